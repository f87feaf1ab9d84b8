"""Multiboot 1 kernels (Multiboot Specification 0.6.96).

The kernel is loaded by the address fields of its header where flag bit 16 says so, else as ELF32
or ELF64 by physical address, and entered in flat 32-bit protected mode without paging (3.2), EAX
and EBX set as the specification says. It is told (3.3): sizes of lower and upper memory, a memory
map, its command line, its modules, the boot loader's name, where its ELF symbols are, and the
screen, if there is one. A header that requires what the machine cannot give (a video mode without
a display, an unknown requirement bit) is refused, as 3.1.2 demands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pykvm.boot.elf import ElfImage
from pykvm.boot.elf_headers import SHT_STRTAB, SHT_SYMTAB
from pykvm.boot.elf_symbols import find_symbol_sections, symbol_table
from pykvm.boot.environment import FramebufferInfo
from pykvm.boot.errors import ImageError, span
from pykvm.boot.image import Segment
from pykvm.boot.layout import FOUR_GIB, HIGH_START, PAGE, Layout
from pykvm.boot.memmap import usable
from pykvm.boot.multiboot_header import (
    MEMORY_INFO,
    PAGE_ALIGN,
    VIDEO_MODE,
    MultibootHeader,
)
from pykvm.boot.screens import framebuffer_fields
from pykvm.boot.source import Source
from pykvm.boot.strings import check_string
from pykvm.boot.symbols import SymbolTable
from pykvm.typed import NamedTuple

BOOTLOADER_MAGIC = 0x2BADB002
"""In EAX at entry: the kernel was started by a multiboot boot loader."""
BOOTLOADER_NAME = "pykvm"
CONVENTIONAL_END = 0x9FC00
"""Guest-physical end of lower memory; from here to 1 MiB belongs to the firmware."""

INFO_SIZE = 116
_FRAMEBUFFER_AT = 88
_MEMORY, _CMDLINE, _MODULES, _ELF, _MMAP, _NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 9
_FRAMEBUFFER = 1 << 12
_RAM, _RESERVED = 1, 2


class Kernel(NamedTuple):
    """A multiboot kernel whose place in memory has been taken."""

    segments: list[Segment]
    entry: int
    """Guest-physical."""
    symbols: SymbolTable
    elf: ElfImage | None
    """Its headers, if it is an ELF file."""


def check_flags(name: str, header: MultibootHeader, has_screen: bool = False) -> None:
    """Raise `ImageError` if the header requires something that cannot be given."""
    if header.flags & VIDEO_MODE and not has_screen:
        raise ImageError(
            f"{name}: its multiboot header (flags {header.flags:#x}) requires a video mode and "
            'the machine has no display: clear flag bit 2, or load an ELF kernel with format="elf"'
        )
    unknown = header.flags & 0xFFFF & ~(PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE)
    if unknown:
        raise ImageError(
            f"{name}: its multiboot header requires features {unknown:#x}, which multiboot 1 does "
            "not define: clear these flag bits"
        )


def claim_kernel(
    layout: Layout, source: Source, header: MultibootHeader, entry: int | None
) -> Kernel:
    """Take the kernel's place from `layout`; `entry` replaces its entry address.

    Raises `ImageError` if the header contradicts the file, or the kernel does not fit.
    """
    name, data = source.name, source.data
    is_elf = bytes(data[:4]) == b"\x7fELF"
    if header.has_addresses:
        return _claim_by_addresses(layout, data, header, entry)
    if not is_elf:
        raise ImageError(
            f"{name}: its multiboot header (flags {header.flags:#x}) gives no load addresses and "
            "the file is no ELF file: set flag bit 16 and the address fields, or link it as ELF"
        )
    elf = ElfImage(name, data)
    segments = elf.claim(layout)
    physical = elf.resolve_entry(entry).physical
    if physical >= FOUR_GIB:
        raise ImageError(
            f"{name}: its entry point {physical:#x} is above 4 GiB, out of reach of the 32-bit "
            "mode that multiboot starts in: link it lower"
        )
    return Kernel(segments, physical, symbol_table(elf), elf)


def _claim_by_addresses(
    layout: Layout, data: memoryview, header: MultibootHeader, entry: int | None
) -> Kernel:
    """Load by the header's address fields (3.1.3)."""
    name = layout.name
    skipped = header.header_addr - header.load_addr
    start = header.offset - skipped
    if skipped < 0 or start < 0:
        raise ImageError(
            f"{name}: its multiboot header at file offset {header.offset:#x} says it is at "
            f"{header.header_addr:#x} in a text segment from {header.load_addr:#x}, which would "
            f"start {'after it' if skipped < 0 else 'before the file'}: correct the address fields"
        )
    size = len(data) - start
    if header.load_end_addr:
        size = header.load_end_addr - header.load_addr
        if not 0 < size <= len(data) - start:
            raise ImageError(
                f"{name}: its multiboot header loads {header.load_addr:#x} to "
                f"{header.load_end_addr:#x} from file offset {start:#x} and the file has "
                f"{len(data)} bytes: it is truncated, or correct the address fields"
            )
    in_memory = size
    if header.bss_end_addr:
        in_memory = header.bss_end_addr - header.load_addr
        if in_memory < size:
            raise ImageError(
                f"{name}: its multiboot header ends the bss at {header.bss_end_addr:#x}, before "
                f"the data ends at {header.load_addr + size:#x}: correct the address fields"
            )
    layout.claim(header.load_addr, in_memory, "the kernel")
    address = header.entry_addr if entry is None else entry
    if not header.load_addr <= address < header.load_addr + size:
        raise ImageError(
            f"{name}: the entry address {address:#x} lies outside the kernel's loaded bytes at "
            f"{span(header.load_addr, size)}: correct the address fields"
        )
    segment = Segment(header.load_addr, data[start : start + size], in_memory, "the kernel")
    return Kernel([segment], address, SymbolTable(), None)


def claim_modules(layout: Layout, modules: Sequence[tuple[Source, str]]) -> list[Segment]:
    """Find room for the modules, page-aligned (which flag bit 0 asks for), in their order."""
    segments = []
    for source, _ in modules:
        size = len(source.data)
        what = f"module {source.name}"
        gpa = layout.add_high(max(size, 1), what, align=PAGE)
        segments.append(Segment(gpa, source.data, size, what))
    return segments


def claim_symbols(
    layout: Layout, elf: ElfImage
) -> tuple[list[Segment], tuple[int, int, int, int] | None]:
    """Load the ELF section headers, and the symbol and string tables they describe (3.3, flag bit
    5).

    Returns the segments and the `num, size, addr, shndx` fields, None if the kernel was stripped.
    The other sections that are not part of the program, such as debugging information, are not
    loaded and keep address 0. Raises `ImageError` if the file has no usable section headers, or no
    room is left.
    """
    if find_symbol_sections(elf) is None:
        return [], None
    header = elf.header
    size = header.e_shentsize
    table = bytearray(elf.data[header.e_shoff : header.e_shoff + header.e_shnum * size])
    sections = elf.sections()
    segments = []
    for index, section in enumerate(sections):
        wanted = section.sh_type in (SHT_SYMTAB, SHT_STRTAB)
        if not wanted or section.sh_addr or not section.sh_size:
            continue
        if section.sh_offset + section.sh_size > len(elf.data):
            raise ImageError(f"{elf.name}: section {index} lies outside the file")
        gpa = layout.add_high(section.sh_size, f"section {index}", align=16)
        data = elf.data[section.sh_offset : section.sh_offset + section.sh_size]
        segments.append(Segment(gpa, data, len(data), f"section {index}"))
        address_at = index * size + (16 if elf.bits == 64 else 12)
        struct.pack_into("<Q" if elf.bits == 64 else "<I", table, address_at, gpa)
    gpa = layout.add_high(len(table), "the section headers", align=16)
    segments.append(Segment(gpa, bytes(table), len(table), "the section headers"))
    return segments, (header.e_shnum, size, gpa, header.e_shstrndx)


def memory_map(ram: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """The memory map for RAM at these (start, end) pieces, as (start, size, type) entries.

    RAM between 0x9fc00 and 1 MiB is reported as reserved, as on a PC: firmware tables live there.
    """
    entries = []
    for start, end in ram:
        for low, high, kind in (
            (0, CONVENTIONAL_END, _RAM),
            (CONVENTIONAL_END, HIGH_START, _RESERVED),
            (HIGH_START, 1 << 64, _RAM),
        ):
            first, last = max(start, low), min(end, high)
            if first < last:
                entries.append((first, last - first, kind))
    return entries


def memory_sizes(ram: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """`mem_lower` and `mem_upper` in KiB: RAM from 0, and from 1 MiB up to the first hole."""
    lower = max((min(end, CONVENTIONAL_END) for start, end in ram if start == 0), default=0)
    upper = max(
        (min(end, FOUR_GIB) - HIGH_START for start, end in ram if start <= HIGH_START < end),
        default=0,
    )
    return lower >> 10, upper >> 10


def information(
    layout: Layout,
    cmdline: str,
    modules: Sequence[tuple[Segment, str]],
    symbols: tuple[int, int, int, int] | None,
    memory: Sequence[tuple[int, int, int]] = (),
    screen: FramebufferInfo | None = None,
) -> Segment:
    """The multiboot information structure with all that it points to, in one piece (3.3).

    `memory` is the memory map; without one it is made from the RAM.
    """
    memory = memory or memory_map(layout.ram)
    strings = [check_string("command line", cmdline), BOOTLOADER_NAME.encode() + b"\0"]
    strings += [check_string("module's string", text) for _, text in modules]
    mmap = b"".join(struct.pack("<IQQI", 20, *entry) for entry in memory)
    mods_at = INFO_SIZE + len(mmap)
    strings_at = mods_at + 16 * len(modules)
    size = strings_at + sum(map(len, strings))
    gpa = layout.add(size, "the multiboot information", align=16)

    addresses, at = [], gpa + strings_at
    for string in strings:
        addresses.append(at)
        at += len(string)
    flags = _MEMORY | _CMDLINE | _MODULES | _MMAP | _NAME | (_ELF if symbols else 0)
    flags |= _FRAMEBUFFER if screen is not None else 0
    lower, upper = memory_sizes(usable(list(memory)))
    info = struct.pack(
        "<18I",
        *(flags, lower, upper, 0, addresses[0], len(modules), gpa + mods_at),
        *(symbols or (0, 0, 0, 0)),
        *(len(mmap), gpa + INFO_SIZE, 0, 0, 0),
        *(addresses[1], 0),
    ).ljust(_FRAMEBUFFER_AT, b"\0")
    info += framebuffer_fields(screen, wide=False) if screen is not None else b""
    info = info.ljust(INFO_SIZE, b"\0")
    table = b"".join(
        struct.pack("<4I", segment.gpa, segment.end, address, 0)
        for (segment, _), address in zip(modules, addresses[2:], strict=True)
    )
    data = b"".join((info, mmap, table, *strings))
    if len(data) != size:
        raise AssertionError(f"multiboot information is {len(data)} bytes, planned {size}")
    return Segment(gpa, data, size, "the multiboot information")
