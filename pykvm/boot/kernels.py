"""Kernels with a boot protocol of their own: which one an ELF file speaks, and its loader.

An ELF file is taken by its PVH entry if it has one, and as a Linux vmlinux by its own entry if it
is one. Only a 64-bit kernel that is linked at its physical addresses, is not Linux and is given
nothing that PVH would pass on is started at its ELF entry in long mode all the same: many small
kernels carry the PVH note for other VMMs beside an entry that is ready for long mode.
"""

from __future__ import annotations

from pykvm.boot.elf import ElfImage
from pykvm.boot.elf_notes import notes, pvh_entry
from pykvm.boot.environment import PROTOCOLS, BootEnvironment
from pykvm.boot.errors import ImageError, printable
from pykvm.boot.image import LoadedImage
from pykvm.boot.layout import Layout
from pykvm.boot.source import Source

LINUX_BANNER = rb"Linux version [0-9]"

_WHAT = {
    "bzimage": "a Linux kernel",
    "linux64": "a Linux kernel",
    "linux32": "a Linux kernel",
    "pvh": "a PVH kernel",
    "multiboot2": "a multiboot 2 kernel",
    "firmware": "firmware",
}


def kind_of_elf(elf: ElfImage, environment: BootEnvironment) -> str:
    """`elf`, `pvh`, `linux64` or `linux32`: how this ELF file is started.

    Raises `ImageError` if the environment asks for an entry that it does not have.
    """
    native = f"linux{elf.bits}"
    wanted = environment.protocol
    if wanted == "pvh":
        return "pvh"
    if wanted != "auto":
        if wanted == str(elf.bits):
            return native
        raise ImageError(
            f"{elf.name}: an ELF{elf.bits} kernel is started by its {elf.bits}-bit or PVH entry, "
            f"not by boot protocol {printable(str(wanted))}: leave the protocol out"
        )
    linux = looks_like_linux(elf)
    if pvh_entry(elf) is None:
        return native if linux else "elf"
    entry = elf.resolve_entry()
    gives = bool(environment.cmdline or environment.modules or environment.initrd is not None)
    return "pvh" if linux or elf.bits == 32 or entry.is_mapped or gives else "elf"


def looks_like_linux(elf: ElfImage) -> bool:
    """Whether this is a Linux vmlinux: linked high, entered by a physical address, and with a note
    of Linux's own or its banner inside."""
    address = elf.entry_address
    high = [s for s in elf.segments if s.executable and s.vaddr > s.paddr]
    if any(s.holds_virtual(address) for s in high):
        return False
    if not any(s.holds_physical(address) for s in high):
        return False
    if any(note.owner == "Linux" for note in notes(elf)):
        return True
    import re

    return re.search(LINUX_BANNER, elf.data) is not None


def check_protocol(name: str, chosen: str, environment: BootEnvironment) -> None:
    """Raise `ImageError` for an unknown boot protocol, or one that the format cannot have."""
    wanted = environment.protocol
    if wanted not in PROTOCOLS:
        raise ImageError(
            f"the boot protocol {printable(repr(wanted))} is not known: choose one of "
            f"{', '.join(PROTOCOLS)}"
        )
    if wanted != "auto" and chosen in ("flat", "multiboot", "multiboot2", "firmware"):
        what = _WHAT.get(chosen, f"a {chosen} image")
        raise ImageError(
            f"{name}: boot protocol {wanted} is for Linux and PVH kernels and this is {what}: "
            "leave the protocol out"
        )


def load_kernel(
    chosen: str,
    source: Source,
    layout: Layout,
    environment: BootEnvironment,
    load: int | None,
    entry: int | None,
    mode: str | None,
) -> LoadedImage:
    """Load an image of a format that says itself where it goes and how it starts.

    `load`, `entry` and `mode` are what the user asked for. Raises `ImageError`.
    """
    name = source.name
    if chosen == "multiboot":
        from pykvm.boot.multiboot_load import load_multiboot

        return load_multiboot(source, layout, environment, load, entry, mode)
    if chosen == "multiboot2":
        from pykvm.boot.multiboot2 import load_multiboot2

        _refuse_placement(name, chosen, load, None)
        return _in_mode(load_multiboot2(source, layout, environment, entry), mode)
    _refuse_placement(name, chosen, load, entry)
    if chosen == "firmware":
        from pykvm.boot.firmware import load_firmware

        _refuse_extras(name, environment)
        return _in_mode(load_firmware(source, layout), mode)
    if chosen == "bzimage":
        from pykvm.boot.linux import load_bzimage

        return _in_mode(load_bzimage(source, layout, environment), mode)
    elf = ElfImage(name, source.data)
    if chosen == "pvh":
        from pykvm.boot.pvh import load_pvh

        return _in_mode(load_pvh(source, elf, layout, environment), mode)
    if chosen != f"linux{elf.bits}":
        raise ImageError(
            f'{name}: this is an ELF{elf.bits} file and format="{chosen}" is for the other width: '
            f'choose format="linux{elf.bits}"'
        )
    from pykvm.boot.linux import load_vmlinux

    return _in_mode(load_vmlinux(source, elf, layout, environment), mode)


def _refuse_placement(name: str, chosen: str, load: int | None, entry: int | None) -> None:
    for what, value in (("load", load), ("entry", entry)):
        if value is not None:
            raise ImageError(
                f"{name}: {_WHAT[chosen]} says itself where it is loaded and entered, so the "
                f"{what} address {value:#x} cannot be used: leave it out"
            )


def _refuse_extras(name: str, environment: BootEnvironment) -> None:
    for what, given in (
        ("a command line", environment.cmdline),
        ("an initrd", environment.initrd is not None),
        ("modules", environment.modules),
    ):
        if given:
            raise ImageError(
                f"{name}: {what} cannot be given to firmware: leave it out, or give a kernel"
            )


def _in_mode(image: LoadedImage, mode: str | None) -> LoadedImage:
    if mode not in (None, image.mode):
        raise ImageError(
            f"{image.name}: this kernel is entered in {image.mode} mode, not in {mode} mode: leave "
            "the mode out"
        )
    return image
