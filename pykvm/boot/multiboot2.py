"""Multiboot 2 kernels (Multiboot2 Specification 2.0), entered in the i386 machine state (3.3).

The kernel is loaded by its address tag, else as ELF by physical address; one with a relocatable tag
may be moved (as a whole: its entry point moves along). Modules are always page-aligned. It is told
(3.6): command line, boot loader name, modules, basic memory information, memory map, ELF sections,
a copy of the ACPI RSDP, the screen, and its load address if it was moved.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pykvm.boot import memmap, multiboot
from pykvm.boot.bios_services import bios_segments
from pykvm.boot.elf import ElfImage
from pykvm.boot.elf_symbols import symbol_table
from pykvm.boot.entrystate import entry_state
from pykvm.boot.environment import BootEnvironment, FramebufferInfo
from pykvm.boot.errors import ImageError
from pykvm.boot.image import LoadedImage, Segment
from pykvm.boot.layout import FOUR_GIB, HIGH_START, PAGE, Layout
from pykvm.boot.modules import open_all
from pykvm.boot.multiboot2_header import Multiboot2Header, Relocatable, read_header
from pykvm.boot.multiboot_header import MultibootHeader
from pykvm.boot.screens import choose_screen, framebuffer_fields
from pykvm.boot.source import Source
from pykvm.boot.strings import check_string

BOOTLOADER_MAGIC = 0x36D76289
"""In EAX at entry."""

(CMDLINE, LOADER_NAME, MODULE, BASIC_MEMORY) = range(1, 5)
MEMORY_MAP, FRAMEBUFFER, ELF_SECTIONS = 6, 8, 9
ACPI_OLD, ACPI_NEW, LOAD_BASE = 14, 15, 21

_ADDRESS_FLAG = 1 << 16
_FROM_START = 0xFFFFFFFF
"""As load address: the file is loaded from its beginning."""


def load_multiboot2(
    source: Source, layout: Layout, environment: BootEnvironment, entry: int | None = None
) -> LoadedImage:
    """A multiboot 2 kernel; `entry` replaces its guest-physical entry address.

    Raises `ImageError`.
    """
    name = source.name
    header = read_header(name, source.data)
    entries = memmap.memory_map(layout, environment)
    memmap.keep_to(layout, entries)
    screen = choose_screen(environment, header.screen)
    if header.needs_screen and screen is None:
        raise ImageError(
            f"{name}: its multiboot 2 header requires a frame buffer and the machine has no "
            "display: make the tag optional, or give the machine a display"
        )
    kernel, moved = claim_kernel(layout, source, header, entry)
    bios = bios_segments(layout, entries, has_screen=screen is not None)
    state = entry_state(layout, "protected", kernel.entry)
    opened = open_all(environment)
    modules = multiboot.claim_modules(layout, opened)
    notes = [f"{segment.what}: {segment.gpa:#x}-{segment.end:#x}" for segment in modules]
    if moved is not None:
        notes.append(f"the kernel was moved to {moved:#x}")
    symbol_segments: list[Segment] = []
    sections = b""
    if kernel.elf is not None:
        try:
            symbol_segments, sections = _sections(layout, kernel.elf)
        except ImageError as error:
            notes.append(f"the kernel is not told its symbols ({error})")
    tags = [
        _tag(CMDLINE, check_string("command line", environment.cmdline)),
        _tag(LOADER_NAME, multiboot.BOOTLOADER_NAME.encode() + b"\0"),
        _tag(BASIC_MEMORY, struct.pack("<II", *multiboot.memory_sizes(memmap.usable(entries)))),
        *(
            _tag(MODULE, struct.pack("<II", s.gpa, s.end) + check_string("module's string", text))
            for s, (_, text) in zip(modules, opened, strict=True)
        ),
        _memory_tag(entries),
        *_screen_tags(screen),
        *([_tag(ELF_SECTIONS, sections)] if sections else []),
        *_acpi_tags(environment.rsdp_data),
        *([_tag(LOAD_BASE, struct.pack("<I", moved))] if moved is not None else []),
        _tag(0, b""),
    ]
    if environment.rsdp is not None and not environment.rsdp_data:
        notes.append("the kernel is not told of the ACPI tables: no copy of the RSDP was given")
    body = b"".join(tags)
    size = 8 + len(body)
    info = struct.pack("<II", size, 0) + body
    gpa = layout.add(size, "the multiboot information", align=16)
    state.regs["rax"], state.regs["rbx"] = BOOTLOADER_MAGIC, gpa
    piece = Segment(gpa, info, size, "the multiboot information")
    return LoadedImage(
        name=name,
        format="multiboot2",
        segments=[*kernel.segments, *modules, *symbol_segments, *bios, piece],
        entry=kernel.entry,
        mode="protected",
        state=state,
        notes=notes,
        symbol_table=kernel.symbols,
        sources=(source, *(s for s, _ in opened)),
        framebuffer=screen,
    )


def claim_kernel(
    layout: Layout, source: Source, header: Multiboot2Header, entry: int | None
) -> tuple[multiboot.Kernel, int | None]:
    """Take the kernel's place from `layout`; also the address it was moved to, if it was.

    Raises `ImageError`.
    """
    name = source.name
    if header.address is not None:
        if header.entry is None and entry is None:
            raise ImageError(
                f"{name}: its multiboot 2 header has an address tag and no entry address tag: add "
                "one, or give an entry address"
            )
        header_at, load, end, bss_end = header.address
        if load == _FROM_START:
            load = max(header_at - header.offset, 0)
        old_style = MultibootHeader(
            header.offset, _ADDRESS_FLAG, header_at, load, end, bss_end, header.entry or 0
        )
        return multiboot.claim_kernel(layout, source, old_style, entry), None
    if bytes(source.data[:4]) != b"\x7fELF":
        raise ImageError(
            f"{name}: its multiboot 2 header has no address tag and the file is no ELF file: add "
            "the tag, or link it as ELF"
        )
    elf = ElfImage(name, source.data)
    wanted = header.entry if entry is None else entry
    physical = elf.resolve_entry(wanted).physical
    low = min(s.paddr for s in elf.segments)
    high = max(s.paddr + s.mem_size for s in elf.segments)
    base = low
    if header.relocatable is not None:
        base = _find_base(layout, header.relocatable, low, high - low)
    segments = []
    for s in elf.segments:
        gpa = s.paddr - low + base
        layout.claim(gpa, s.mem_size, s.what)
        data = elf.data[s.offset : s.offset + s.file_size]
        segments.append(Segment(gpa, data, s.mem_size, s.what))
    start = physical - low + base
    if start >= FOUR_GIB:
        raise ImageError(
            f"{name}: its entry point {start:#x} is above 4 GiB, out of reach of the 32-bit mode "
            "that multiboot 2 starts in: link it lower"
        )
    moved = base if header.relocatable is not None else None
    return multiboot.Kernel(segments, start, symbol_table(elf), elf), moved


def _find_base(layout: Layout, tag: Relocatable, linked: int, size: int) -> int:
    """Where a relocatable kernel of `size` bytes goes (3.1.13)."""
    align = tag.align if tag.align and not tag.align & (tag.align - 1) else PAGE
    ceiling = min(tag.highest + 1, FOUR_GIB)
    fits = tag.lowest <= linked and linked + size <= ceiling and linked % align == 0
    if tag.preference == 0 and fits and layout.is_free(linked, size):
        return linked
    floor = max(tag.lowest, HIGH_START)
    if tag.preference == 2:
        found = layout.find_down(size, floor, ceiling, align)
    else:
        found = layout.find_up(size, floor, ceiling, align)
    if found is None:
        raise ImageError(
            f"{layout.name}: no room for the kernel of {size:#x} bytes between {tag.lowest:#x} and "
            f"{tag.highest:#x}, where its multiboot 2 header wants it ({layout.describe()}): give "
            "the guest more memory"
        )
    return found


def _tag(kind: int, body: bytes) -> bytes:
    raw = struct.pack("<II", kind, 8 + len(body)) + body
    return raw + bytes(-len(raw) % 8)


def _memory_tag(entries: Sequence[tuple[int, int, int]]) -> bytes:
    packed = b"".join(struct.pack("<QQII", *entry, 0) for entry in entries)
    return _tag(MEMORY_MAP, struct.pack("<II", 24, 0) + packed)


def _screen_tags(screen: FramebufferInfo | None) -> list[bytes]:
    return [] if screen is None else [_tag(FRAMEBUFFER, framebuffer_fields(screen, wide=True))]


def _acpi_tags(rsdp: bytes) -> list[bytes]:
    """A copy of the RSDP: 20 bytes of version 1, all of it from version 2 on."""
    if len(rsdp) < 20:
        return []
    tags = [_tag(ACPI_OLD, rsdp[:20])]
    if rsdp[15] >= 2 and len(rsdp) >= 36:
        tags.append(_tag(ACPI_NEW, rsdp[:36]))
    return tags


def _sections(layout: Layout, elf: ElfImage) -> tuple[list[Segment], bytes]:
    """The symbol sections placed, and the ELF sections tag, whose headers name their places."""
    segments, symbols = multiboot.claim_symbols(layout, elf)
    if symbols is None:
        return [], b""
    count, size, _, names = symbols
    # The last piece is the table of headers, which goes into the tag itself here.
    table = bytes(segments[-1].data)
    return segments[:-1], struct.pack("<III", count, size, names) + table
