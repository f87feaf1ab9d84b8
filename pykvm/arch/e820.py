"""The memory map that a PC's firmware gives its operating system (ACPI 6.5 section 15.1).

Addresses are guest-physical, sizes in bytes. An entry packs as the 20 bytes of INT 15h AX=E820h
and of Linux's zero page.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pykvm.arch.errors import ArchError
from pykvm.typed import NamedTuple

RAM = 1
RESERVED = 2
ACPI = 3
"""Holds ACPI tables: usable as RAM once the operating system has read them."""
NVS = 4
"""Firmware's own, to be kept over sleep states."""

TYPE_NAMES = {RAM: "usable", RESERVED: "reserved", ACPI: "ACPI data", NVS: "ACPI NVS"}

EBDA = 0x9FC00
"""Conventional memory ends here on a PC: the last KiB below 640 KiB belongs to firmware."""
VGA_HOLE = (0xA0000, 0x60000)
"""VGA window, option ROMs and the BIOS shadow: never RAM for an operating system on a PC."""


class E820Entry(NamedTuple):
    """One range of the map."""

    base: int
    size: int
    type: int

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.base + self.size

    def pack(self) -> bytes:
        """Base, size and type, little-endian, 20 bytes."""
        return struct.pack("<QQI", self.base, self.size, self.type)

    def __str__(self) -> str:
        kind = TYPE_NAMES.get(self.type, f"type {self.type}")
        return f"{self.base:#014x}-{self.end - 1:#014x} {kind}"


def build_e820(
    ram_regions: Iterable[tuple[int, int]],
    reserved: Iterable[tuple[int, int]] = (),
    *,
    acpi: Iterable[tuple[int, int]] = (),
    nvs: Iterable[tuple[int, int]] = (),
    pc_hole: bool = True,
) -> list[E820Entry]:
    """A sorted map without overlaps: RAM, with what is reserved (base, size) cut out of it.

    With `pc_hole` the EBDA's KiB and 0xA0000-0xFFFFF are not RAM, and the EBDA and the BIOS area
    0xF0000-0xFFFFF are reserved. Where ranges overlap, the stricter type wins: reserved, then NVS,
    then ACPI, then RAM. Raises `ArchError` for a range that is empty or past 64 bits.
    """
    claims: list[E820Entry] = []
    for kind, ranges in ((RAM, ram_regions), (ACPI, acpi), (NVS, nvs), (RESERVED, reserved)):
        for base, size in ranges:
            if size <= 0 or base < 0 or base + size > 1 << 64:
                raise ArchError(f"memory range {base:#x} + {size:#x} is empty or past 64 bits")
            claims.append(E820Entry(base, size, kind))
    if pc_hole:
        hole_base, hole_size = VGA_HOLE
        claims = [
            part
            for entry in claims
            for part in (_without(entry, hole_base, hole_size) if entry.type == RAM else [entry])
        ]
        claims.append(E820Entry(EBDA, hole_base - EBDA, RESERVED))
        claims.append(E820Entry(0xF0000, 0x10000, RESERVED))
    return _flatten(claims)


def _without(entry: E820Entry, base: int, size: int) -> list[E820Entry]:
    """What is left of an entry around a hole."""
    parts = []
    if entry.base < base:
        parts.append(E820Entry(entry.base, min(entry.end, base) - entry.base, entry.type))
    if entry.end > base + size:
        start = max(entry.base, base + size)
        parts.append(E820Entry(start, entry.end - start, entry.type))
    return parts


_STRICTNESS = {RAM: 0, ACPI: 1, NVS: 2, RESERVED: 3}


def _flatten(claims: list[E820Entry]) -> list[E820Entry]:
    edges = sorted({edge for entry in claims for edge in (entry.base, entry.end)})
    result: list[E820Entry] = []
    for i, base in enumerate(edges[:-1]):
        end = edges[i + 1]
        kinds = [entry.type for entry in claims if entry.base <= base and end <= entry.end]
        if not kinds:
            continue
        kind = max(kinds, key=lambda k: _STRICTNESS[k])
        if result and result[-1].end == base and result[-1].type == kind:
            result[-1] = E820Entry(result[-1].base, end - result[-1].base, kind)
        else:
            result.append(E820Entry(base, end - base, kind))
    return result


def ram_size(entries: Iterable[E820Entry], below: int = 1 << 64) -> int:
    """Bytes of RAM under an address."""
    return sum(
        min(entry.end, below) - entry.base
        for entry in entries
        if entry.type == RAM and entry.base < below
    )
