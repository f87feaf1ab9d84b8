"""BIOS services for kernels that call them where there is no firmware.

The code is the guest image `bios16` (see `guests/bios16/`): a page of real-mode code that answers
the calls of a kernel's set-up code and prints on COM1. It goes into the BIOS area of a PC
(0xc0000-0xfffff, guest-physical), where that is RAM that the memory map hides; the interrupt
vectors at 0 and the BIOS data area at 0x400 go with it.
"""

from __future__ import annotations

import struct
from functools import cache

from pykvm.boot.bios_data import bios_data_area
from pykvm.boot.image import Segment
from pykvm.boot.layout import FOUR_GIB, HIGH_START, Layout
from pykvm.boot.linux_params import E820_ENTRIES
from pykvm.boot.memmap import MemoryMap, usable

IVT_SIZE = 0x400
BIOS_START, BIOS_END = 0xC0000, 0x100000

_HANDLERS = {
    **dict.fromkeys((0x00, 0x06, 0x18, 0x19), "halt"),
    0x08: "irq0",
    **dict.fromkeys(range(0x09, 0x10), "irq_low"),
    0x10: "int10", 0x11: "int11", 0x12: "int12", 0x13: "int13", 0x14: "int14", 0x15: "int15",
    0x16: "int16", 0x17: "int17", 0x1A: "int1a",
    **dict.fromkeys(range(0x70, 0x78), "irq_high"),
}  # fmt: skip


class Bios:
    """The BIOS services in their place: `base` is guest-physical, `entry` the linear address of
    `boot`, which starts a real-mode program."""

    def __init__(self, base: int, data_area: list[Segment]) -> None:
        data, offsets, self._params = _image()
        self.base = base
        self.entry = base + offsets["boot"]
        self._data = bytearray(data)
        vectors = [offsets[_HANDLERS.get(n, "ignore")] | base >> 4 << 16 for n in range(256)]
        table = struct.pack("<256I", *vectors)
        self._low = [Segment(0, table, IVT_SIZE, "the interrupt vectors"), *data_area]

    def set(self, name: str, value: int) -> None:
        """A 16-bit parameter."""
        struct.pack_into("<H", self._data, self._params[name], value)

    def set_map(self, entries: MemoryMap) -> None:
        """What int 15h says about memory."""
        shown = entries[:E820_ENTRIES]
        self.set("bios_e820_count", len(shown))
        for number, entry in enumerate(shown):
            struct.pack_into("<QQI", self._data, self._params["bios_e820"] + 20 * number, *entry)
        above = next((end for start, end in usable(entries) if start <= HIGH_START < end), 0)
        kib = max(min(above, FOUR_GIB) - HIGH_START, 0) >> 10
        self.set("bios_extended", min(kib, 0xFC00))
        self.set("bios_middle", min(kib, 0x3C00))
        self.set("bios_high", min(max(kib - 0x3C00, 0) >> 6, 0xFFFF))

    def start(self, segment: int, stack: int) -> None:
        """What `boot` goes on with: a real-mode segment, and the stack pointer in it."""
        self.set("bios_segment", segment)
        self.set("bios_stack", stack)

    def segments(self) -> list[Segment]:
        """All that goes into memory."""
        data = bytes(self._data)
        return [*self._low, Segment(self.base, data, len(data), "the BIOS services")]


@cache
def _image() -> tuple[bytes, dict[str, int], dict[str, int]]:
    """The image, and where in it its symbols and parameters are."""
    from pykvm import images

    guest = images.find("bios16")
    with open(guest.path, "rb") as file:
        data = file.read()
    offsets = {name: address - guest.load for name, address in guest.symbols.items()}
    return data, offsets, {name: a.address - guest.load for name, a in guest.params.items()}


def place_bios(layout: Layout, entries: MemoryMap, *, has_screen: bool) -> Bios | None:
    """Find room for the BIOS services; None where there is none, or the machine is no PC."""
    size = len(_image()[0])
    base = _room(layout, size, usable(entries))
    if base is None or not layout.is_free(0, IVT_SIZE):
        return None
    data_area = bios_data_area(layout, entries)
    if not data_area:
        return None
    layout.claim(0, IVT_SIZE, "the interrupt vectors")
    layout.claim(base, size, "the BIOS services")
    bios = Bios(base, data_area)
    bios.set_map(entries)
    bios.set("bios_vga", int(has_screen))
    return bios


def bios_segments(layout: Layout, entries: MemoryMap, *, has_screen: bool) -> list[Segment]:
    """BIOS services for a kernel that starts in another mode and may go back to real mode; the
    BIOS data area alone where there is no room for them, nothing on a machine that is no PC."""
    bios = place_bios(layout, entries, has_screen=has_screen)
    return bios_data_area(layout, entries) if bios is None else bios.segments()


def _room(layout: Layout, size: int, ram: list[tuple[int, int]]) -> int | None:
    """The highest page in the BIOS area that is RAM, free, and no RAM to the kernel."""
    for base in range(BIOS_END - 0x1000, BIOS_START - 1, -0x1000):
        hidden = not any(start < base + size and base < end for start, end in ram)
        if hidden and layout.is_free(base, size):
            return base
    return None
