"""PVH kernels, and which ELF files are taken for one."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from boot_images import PT_NOTE, Elf, Seg
from kernel_images import PAGE_OFFSET, M, note, pvh_elf, vmlinux

from pykvm.arch.e820 import build_e820
from pykvm.boot import ImageError, LoadedImage, load_image
from pykvm.boot.environment import BootEnvironment


def load(image: bytes, format: str = "auto", **kwargs: Any) -> LoadedImage:
    environment = BootEnvironment(**kwargs)
    return load_image(image, memory_size=64 * M, format=format, environment=environment)


def refused(image: bytes, **kwargs: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load(image, **kwargs)
    return str(caught.value)


class StartInfo:
    """`hvm_start_info` decoded by its definition in Xen's start_info.h."""

    def __init__(self, image: LoadedImage) -> None:
        self._segments = image.segments
        raw = self.read(image.state.regs["rbx"], 56)
        (self.magic, self.version, self.flags, count, modules, cmdline, self.rsdp, memory, entries,
         self.reserved) = struct.unpack("<4I4QII", raw)  # fmt: skip
        self.cmdline = self.text(cmdline)
        self.modules = []
        for n in range(count):
            at, size, text, zero = struct.unpack("<4Q", self.read(modules + 32 * n, 32))
            assert zero == 0
            self.modules.append((at, size, self.text(text)))
        self.memory = []
        for n in range(entries):
            *entry, zero = struct.unpack("<QQII", self.read(memory + 24 * n, 24))
            assert zero == 0
            self.memory.append(tuple(entry))

    def read(self, gpa: int, size: int) -> bytes:
        for s in self._segments:
            if s.gpa <= gpa and gpa + size <= s.gpa + len(s.data):
                return bytes(s.data)[gpa - s.gpa : gpa - s.gpa + size]
        raise AssertionError(f"{gpa:#x} is in no segment")

    def text(self, gpa: int) -> str:
        out = bytearray()
        while (byte := self.read(gpa + len(out), 1)) != b"\0":
            out += byte
        return out.decode()


def test_a_linux_kernel() -> None:
    e820 = build_e820([(0, 64 * M)], acpi=[(63 * M, M)])
    image = load(
        vmlinux(pvh=16 * M + 16), cmdline="console=hvc0", initrd=b"ramdisk", rsdp=0xE0000, e820=e820
    )
    assert (image.format, image.mode, image.entry) == ("pvh", "protected", 16 * M + 16)
    assert image.state.mode == "protected"
    assert not image.state.paging
    assert image.state.segments["cs"].limit == 0xFFFFFFFF
    info = StartInfo(image)
    assert (info.magic, info.version, info.flags) == (0x336EC578, 1, 0)
    assert (info.cmdline, info.rsdp) == ("console=hvc0", 0xE0000)
    assert info.memory == [tuple(e) for e in e820]
    ((at, size, text),) = info.modules
    assert (size, text) == (7, "")
    assert at % 4096 == 0
    assert 62 * M < at < 63 * M, "as high as it can, below the tables"
    assert info.read(at, size) == b"ramdisk"


def test_modules_follow_the_initrd() -> None:
    image = load(pvh_elf(bits=32), initrd=b"first", modules=[(b"second", "its name"), b"third"])
    assert [text for _, _, text in StartInfo(image).modules] == ["", "its name", ""]
    assert StartInfo(load(pvh_elf(bits=32))).modules == []


def test_both_widths_of_the_note() -> None:
    for wide in (False, True):
        assert load(pvh_elf(wide=wide), protocol="pvh").entry == 16 * M


def test_which_elf_files_are_pvh() -> None:
    assert load(vmlinux(pvh=16 * M)).format == "pvh"
    assert load(pvh_elf(bits=32)).format == "pvh"
    # Linked at other addresses than it is loaded at, and not Linux.
    raw = note(b"Xen", 18, struct.pack("<Q", 16 * M))
    segments = [
        Seg(PAGE_OFFSET + 16 * M, b"\xf4" * 9, paddr=16 * M),
        Seg(0x500, raw, type=PT_NOTE),
    ]
    assert load(Elf(segments, entry=PAGE_OFFSET + 16 * M).build()).format == "pvh"
    # A small 64-bit kernel whose own entry is good: only if it is told something.
    assert load(pvh_elf()).format == "elf"
    assert load_image(pvh_elf(), memory_size=64 * M).mode == "long"
    assert load(pvh_elf(), cmdline="x").format == "pvh"
    assert load(pvh_elf(), initrd=b"x").format == "pvh"
    assert load(pvh_elf(), format="pvh").format == "pvh"
    assert load(pvh_elf(), protocol="pvh").format == "pvh"


def test_refused() -> None:
    plain = Elf([Seg(16 * M)], entry=16 * M).build()
    assert "no PVH entry" in refused(plain, format="pvh")
    assert "no PVH entry" in refused(plain, protocol="pvh")
    assert "no loaded segment" in refused(pvh_elf(entry=32 * M), protocol="pvh")
    assert "no loaded segment" in refused(pvh_elf(entry=16 * M + 64), protocol="pvh")
    assert "not an ELF file" in refused(b"\xf4", format="pvh")
    assert "no room for module" in refused(pvh_elf(), initrd=bytes(60 * M))


def test_notes_that_are_damaged_or_strange() -> None:
    for raw in (
        b"",
        b"\1",
        struct.pack("<III", 4, 8, 18) + b"Xen\0",  # cut
        struct.pack("<III", 0xFFFFFFFF, 8, 18) + b"Xen\0" + bytes(8),
        note(b"Xen", 18, b"abc"),
        note(b"Xem", 18, bytes(8)),
        note(b"Xen", 17, bytes(8)),
    ):
        segments = [Seg(16 * M), Seg(0x500, raw, type=PT_NOTE)]
        elf = Elf(segments, entry=16 * M).build()
        assert "no PVH entry" in refused(elf, format="pvh")
    outside = Elf([Seg(16 * M), Seg(0, b"", type=PT_NOTE, offset=1 << 40, file_size=99)], 16 * M)
    assert "no PVH entry" in refused(outside.build(), format="pvh")
