"""Kernels that nobody here wrote, as they come in their Debian packages, by several protocols.

The packages are downloaded once into pykvm's cache."""

from __future__ import annotations

import pathlib
import threading
from typing import Any

from linux.packages import cache, unpacked

from pykvm import Machine, StopReason, images
from pykvm.boot import load_image
from pykvm.boot.environment import BootEnvironment

M = 1 << 20


def package(name: str) -> pathlib.Path:
    """The tree of a package; asking apt for the newest version takes seconds, any will do."""
    cached = sorted((cache() / "packages").glob(f"{name}_*_amd64"))
    return cached[-1] if cached else unpacked(name)


def until(text: bytes, image: pathlib.Path, *, timeout: float = 90, **options: Any) -> bytes:
    """Boot `image` on the pc board until COM1 has said `text`; everything it said."""
    said = bytearray()
    seen = threading.Event()

    def output(data: bytes) -> None:
        said.extend(data)
        if text in said and not seen.is_set():
            seen.set()
            m.stop()

    with Machine("64M", board="pc", serial=output) as m:
        m.load(image, **options)
        result = m.run(timeout=timeout)
    assert seen.is_set(), f"{result}: {bytes(said[-2000:])!r}"
    return bytes(said)


def test_memdisk_boots_a_floppy_by_the_16_bit_entry() -> None:
    """It asks the BIOS for the memory map, hides its disk behind int 13h, and starts its boot
    sector."""
    memdisk = package("syslinux-common") / "usr/lib/syslinux/memdisk"
    floppy = pathlib.Path(images.find("bootsect16").path).read_bytes().ljust(1440 << 10, b"\0")
    with Machine("64M", board="pc") as m:
        image = m.load(memdisk, initrd=floppy, cmdline="floppy")
        assert (image.format, image.mode) == ("bzimage", "real")
        result = m.run(timeout=60)
    assert b"e820: 0000000000000000 000000000009fc00 1" in result.serial
    assert result.serial.endswith(b"Hello from a boot sector\n")
    assert result.reason is StopReason.HALTED


def test_xen_by_multiboot_1() -> None:
    """It is compressed, goes back to real mode to ask the BIOS, and misses its first module."""
    (image,) = (package("xen-hypervisor-4.17-amd64") / "boot").glob("xen-*.gz")
    said = until(
        b"dom0 kernel not specified", image, cmdline="xen com1=115200 console=com1 noreboot"
    )
    assert b"VGA is text mode 80x25" in said
    by_2 = load_image(
        str(image), memory_size=64 * M, format="multiboot2",
        environment=BootEnvironment(rsdp_data=b"RSD PTR \0PYKVM \2" + bytes(20)),
    )  # fmt: skip
    assert (by_2.format, by_2.mode) == ("multiboot2", "protected")


def test_others_are_recognised() -> None:
    """They take a minute here before they print; where they go is checked."""
    memtest = package("memtest86+") / "boot"
    for name, mode in (("x64", "long"), ("ia32", "protected")):
        image = load_image(str(memtest / f"memtest86+{name}.bin"), memory_size=64 * M)
        assert (image.format, image.mode, image.segments[0].gpa) == ("bzimage", mode, M)
    ipxe = load_image(str(package("ipxe") / "boot/ipxe.lkrn"), memory_size=64 * M)
    assert (ipxe.format, ipxe.mode) == ("bzimage", "real")
    grub = package("grub-xen-host") / "usr/lib/grub-xen/grub-i386-xen_pvh.bin"
    image = load_image(str(grub), memory_size=64 * M)
    assert (image.format, image.entry) == ("pvh", M)
