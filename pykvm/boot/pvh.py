"""Kernels with a PVH entry (Xen's public headers: elfnote.h, arch-x86/hvm/start_info.h; boot ABI in
xen/docs/misc/pvh.pandoc).

The kernel is an ELF file loaded by physical address. It is entered at the address in its note
XEN_ELFNOTE_PHYS32_ENTRY, in flat 32-bit protected mode without paging, EBX = `hvm_start_info`. The
structure (version 1) names the command line, the modules (the initrd first), the memory map and
the ACPI RSDP. Everything it points to lies below 4 GiB.
"""

from __future__ import annotations

import struct

from pykvm.boot.bios_data import bios_data_area
from pykvm.boot.elf import ElfImage
from pykvm.boot.elf_notes import pvh_entry
from pykvm.boot.elf_symbols import symbol_table
from pykvm.boot.entrystate import entry_state
from pykvm.boot.environment import BootEnvironment
from pykvm.boot.errors import ImageError, span
from pykvm.boot.image import LoadedImage, Segment
from pykvm.boot.layout import FOUR_GIB, Layout
from pykvm.boot.linux_header import SetupHeader
from pykvm.boot.memmap import MemoryMap, check_in_ram, keep_to, memory_map
from pykvm.boot.modules import OpenModule, open_all
from pykvm.boot.source import Source
from pykvm.boot.strings import check_string

MAGIC = 0x336EC578
VERSION = 1
_START_INFO = struct.Struct("<4IQQQQII")
_MODULE = struct.Struct("<4Q")
_MEMORY = struct.Struct("<QQII")


def load_pvh(
    source: Source,
    elf: ElfImage,
    layout: Layout,
    environment: BootEnvironment,
    header: SetupHeader | None = None,
) -> LoadedImage:
    """A kernel by its PVH entry; `header` is that of the bzImage it was in. Raises `ImageError`."""
    name = source.name
    entry = pvh_entry(elf)
    if entry is None:
        raise ImageError(
            f"{name}: this ELF file has no PVH entry point (a Xen note of type 18): build it with "
            "CONFIG_PVH, or leave the format out"
        )
    entries = memory_map(layout, environment)
    keep_to(layout, entries)
    segments = elf.claim(layout)
    check_in_ram(layout, entries, segments)
    segments += bios_data_area(layout, entries)
    _check_entry(name, elf, entry)
    if header is not None:
        start = min(s.paddr for s in elf.segments)
        layout.avoid(start, header.init_size)
    state = entry_state(layout, "protected", entry)
    opened = open_all(environment)
    pieces, notes = _place_modules(layout, opened)
    texts = [text for _, text in opened]
    info = start_info(layout, environment, entries, list(zip(pieces, texts, strict=True)))
    state.regs["rbx"] = info.gpa
    return LoadedImage(
        name=name,
        format="pvh",
        segments=[*segments, *pieces, info],
        entry=entry,
        mode="protected",
        state=state,
        notes=notes,
        symbol_table=symbol_table(elf),
        sources=(source, *(s for s, _ in opened)),
        framebuffer=environment.framebuffer,
    )


def _check_entry(name: str, elf: ElfImage, entry: int) -> None:
    for s in elf.segments:
        if s.paddr <= entry < s.paddr + s.file_size and entry < FOUR_GIB:
            return
    raise ImageError(
        f"{name}: its PVH entry point {entry:#x} lies in no loaded segment below 4 GiB: "
        "build the kernel again"
    )


def _place_modules(layout: Layout, opened: list[OpenModule]) -> tuple[list[Segment], list[str]]:
    pieces, notes = [], []
    for source, _ in opened:
        size = len(source.data)
        what = f"module {source.name}"
        gpa = layout.add_top(max(size, 1), what, ceiling=FOUR_GIB)
        if gpa is None:
            gpa = layout.add_high(max(size, 1), what)  # says what is wrong
        pieces.append(Segment(gpa, source.data, size, what))
        notes.append(f"{what}: {span(gpa, size)}")
    return pieces, notes


def start_info(
    layout: Layout,
    environment: BootEnvironment,
    entries: MemoryMap,
    modules: list[tuple[Segment, str]],
) -> Segment:
    """`hvm_start_info` with all that it points to but the modules' contents, in one piece."""
    strings = [check_string("command line", environment.cmdline)]
    strings += [check_string("module's string", text) for _, text in modules]
    modules_at = _START_INFO.size
    memory_at = modules_at + _MODULE.size * len(modules)
    strings_at = memory_at + _MEMORY.size * len(entries)
    size = strings_at + sum(map(len, strings))
    gpa = layout.add(size, "the PVH start info", align=16)
    addresses, at = [], gpa + strings_at
    for string in strings:
        addresses.append(at)
        at += len(string)
    data = bytearray(
        _START_INFO.pack(
            *(MAGIC, VERSION, 0, len(modules), gpa + modules_at if modules else 0),
            *(addresses[0], environment.rsdp or 0, gpa + memory_at, len(entries), 0),
        )
    )
    for (segment, _), address in zip(modules, addresses[1:], strict=True):
        data += _MODULE.pack(segment.gpa, segment.mem_size, address, 0)
    for base, length, kind in entries:
        data += _MEMORY.pack(base, length, kind, 0)
    data += b"".join(strings)
    return Segment(gpa, bytes(data), size, "the PVH start info")
