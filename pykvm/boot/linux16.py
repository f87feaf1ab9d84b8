"""A bzImage by its 16-bit entry: the kernel's real-mode part runs in the guest, with BIOS services
to ask (Documentation/arch/x86/boot.rst, "Memory Layout", "Running the Kernel").

Guest-physical layout:

- 0: interrupt vectors; 0x400: BIOS data area
- X, at most 0x90000: the real-mode part, its heap and stack up to X + 0xe000, the command line from
  there to X + 0xf000
- 0xc0000-0xfffff, where it is RAM that the memory map hides: the BIOS services
  (`pykvm.boot.bios_services`)

The CPU starts in the BIOS services' `boot`, which sets up interrupt controllers and timer as a BIOS
leaves them and goes on to the real-mode part, CS 0x20 paragraphs above the other segments.
"""

from __future__ import annotations

import struct

from pykvm.boot.bios_services import BIOS_END, BIOS_START, place_bios
from pykvm.boot.environment import BootEnvironment
from pykvm.boot.errors import ImageError, human_size
from pykvm.boot.image import LoadedImage, Segment
from pykvm.boot.layout import FOUR_GIB, HIGH_START, Layout
from pykvm.boot.linux import Placed, encode_cmdline, note_kernel, place_kernel
from pykvm.boot.linux_entry import bios_state
from pykvm.boot.linux_header import CAN_USE_HEAP, SetupHeader
from pykvm.boot.linux_params import TYPE_OF_LOADER, VIDEO_MODE_NORMAL
from pykvm.boot.memmap import MemoryMap, keep_to
from pykvm.boot.source import Source

HIGHEST_SETUP = 0x90000
"""Where the real-mode part goes at most; kernels before protocol 2.02 know no other place."""
HEAP_END = 0xE000
"""End of the real-mode part's heap and stack, from its start."""
CMDLINE_END = 0xF000
LEAST_STACK = 0x1000

_OLD_CMDLINE_MAGIC = 0xA33F


def load_setup(
    header: SetupHeader,
    source: Source,
    layout: Layout,
    environment: BootEnvironment,
    entries: MemoryMap,
) -> LoadedImage:
    """Lay out kernel, real-mode part and BIOS services. Raises `ImageError`."""
    name = source.name
    placed = Placed(layout, environment, entries)
    if environment.fast_boot:
        placed.notes.append("this kernel holds no compressed vmlinux, so fast boot changes nothing")
    bios = place_bios(layout, entries, has_screen=environment.framebuffer is not None)
    if bios is None:
        raise ImageError(
            f"{name}: no free RAM at 0-0x4ff and {BIOS_START:#x}-{BIOS_END - 1:#x} for the BIOS "
            "services that the 16-bit entry needs: choose boot protocol 32 or 64"
        )
    keep_to(layout, entries)
    setup_at = _place_setup(header, layout)
    kernel = placed.add(place_kernel(header, layout, entries))
    initrd = placed.initrd(min(header.initrd_addr_max + 1, FOUR_GIB))
    longest = min(header.cmdline_size, CMDLINE_END - HEAP_END - 1)
    cmdline = encode_cmdline(name, environment.cmdline, longest)
    data = bytearray(header.setup)
    _fill_header(header, data, setup_at, kernel, initrd)
    piece = bytes(data).ljust(HEAP_END, b"\0") + cmdline
    placed.add(Segment(setup_at, piece, CMDLINE_END, "the real-mode part"))
    bios.start(setup_at >> 4, HEAP_END)
    placed.segments += bios.segments()
    if environment.rsdp is not None and not HIGH_START - 0x20000 <= environment.rsdp < HIGH_START:
        placed.notes.append("by its 16-bit entry the kernel finds ACPI only at 0xe0000-0xfffff")
    note_kernel(placed, header, kernel)
    return LoadedImage(
        name=name,
        format="bzimage",
        segments=placed.segments,
        entry=bios.entry,
        mode="real",
        state=bios_state(bios.base, bios.entry),
        notes=placed.notes,
        sources=(source, *placed.sources),
        framebuffer=environment.framebuffer,
    )


def _place_setup(header: SetupHeader, layout: Layout) -> int:
    if header.setup_size > HEAP_END - LEAST_STACK:
        raise ImageError(
            f"{header.name}: its real-mode part of {human_size(header.setup_size)} leaves no room "
            "for its stack in 64 KiB: choose another boot protocol"
        )
    if header.version < 0x202:
        layout.claim(HIGHEST_SETUP, CMDLINE_END, "the real-mode part")
        return HIGHEST_SETUP
    at = layout.add_top(
        CMDLINE_END, "the real-mode part", ceiling=HIGHEST_SETUP + CMDLINE_END, floor=0x1000
    )
    if at is None:
        raise ImageError(
            f"{header.name}: no room for the real-mode part in conventional memory "
            f"({layout.describe()}): give the guest more memory"
        )
    return at


def _fill_header(
    header: SetupHeader, data: bytearray, at: int, kernel: Segment, initrd: Segment | None
) -> None:
    """What a boot loader writes into the real-mode part, which was loaded `at`."""

    def put(layout: str, offset: int, value: int) -> None:
        struct.pack_into("<" + layout, data, offset, value)

    put("H", 0x1FA, VIDEO_MODE_NORMAL)
    put("B", 0x210, TYPE_OF_LOADER)
    if header.loaded_high and kernel.gpa != HIGH_START:
        put("I", 0x214, kernel.gpa)
    if initrd is not None:
        put("I", 0x218, initrd.gpa)
        put("I", 0x21C, initrd.mem_size)
    if header.version >= 0x201:
        put("H", 0x224, HEAP_END - 0x200)
        put("B", 0x211, header.loadflags | CAN_USE_HEAP)
    if header.version >= 0x202:
        put("I", 0x228, at + HEAP_END)
    else:
        put("H", 0x20, _OLD_CMDLINE_MAGIC)
        put("H", 0x22, HEAP_END)
        put("H", 0x212, CMDLINE_END)  # setup_move_size
