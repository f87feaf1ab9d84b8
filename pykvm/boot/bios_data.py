"""The BIOS data area, where kernels for PCs look for the end of conventional memory and the serial
ports (IBM PC/AT Technical Reference, "ROM BIOS Data Area"; Ralf Brown's MEMORY.LST)."""

from __future__ import annotations

import struct

from pykvm.boot.image import Segment
from pykvm.boot.layout import Layout
from pykvm.boot.memmap import MemoryMap, usable

BDA, BDA_SIZE = 0x400, 0x100
_LOWEST_END, _HIGHEST_END = 0x80000, 0xA0000
"""Where conventional memory of a PC ends, at least and at most."""

_COM1 = 0x3F8
_EQUIPMENT = 0x0222  # one serial port, 80 x 25 colour text, an FPU
_CRTC = 0x3D4


def bios_data_area(
    layout: Layout, entries: MemoryMap, ports: tuple[int, ...] = (_COM1,)
) -> list[Segment]:
    """The area for a machine with this memory map; empty where it is no PC's, or not free."""
    end = next((end for start, end in usable(entries) if start == 0), 0)
    if not _LOWEST_END <= end <= _HIGHEST_END or not layout.is_free(BDA, BDA_SIZE):
        return []
    layout.claim(BDA, BDA_SIZE, "the BIOS data area")
    data = bytearray(BDA_SIZE)
    struct.pack_into("<4H", data, 0x00, *(*ports, 0, 0, 0, 0)[:4])
    struct.pack_into("<H", data, 0x0E, end >> 4)  # segment of the extended BIOS data area
    struct.pack_into("<HxH", data, 0x10, _EQUIPMENT, end >> 10)
    struct.pack_into("<HH", data, 0x1A, 0x1E, 0x1E)  # keyboard buffer: empty
    struct.pack_into("<BHH", data, 0x49, 3, 80, 0x1000)  # video mode, columns, page size
    struct.pack_into("<HB", data, 0x60, 0x0607, 0)  # cursor shape, page
    struct.pack_into("<H", data, 0x63, _CRTC)
    struct.pack_into("<HH", data, 0x80, 0x1E, 0x3E)  # bounds of the keyboard buffer
    struct.pack_into("<BH", data, 0x84, 24, 16)  # last row, lines of a character
    return [Segment(BDA, bytes(data), BDA_SIZE, "the BIOS data area")]
