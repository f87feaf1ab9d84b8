"""The memory map that kernels get, and the layout of a machine that has one."""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.arch.e820 import RAM, build_e820
from pykvm.arch.errors import ArchError
from pykvm.boot.environment import BootEnvironment
from pykvm.boot.errors import ImageError, human_size, span
from pykvm.boot.image import Segment
from pykvm.boot.layout import Layout

MemoryMap = list[tuple[int, int, int]]
"""(guest-physical base, size, e820 type), ascending."""

MAX_ENTRIES = 1024
_TOP = 1 << 64


def memory_map(layout: Layout, environment: BootEnvironment) -> MemoryMap:
    """The machine's own map, or one made from the RAM in `layout` and what is reserved.

    Raises `ImageError` for a map that no kernel could use.
    """
    if not environment.e820:
        pieces = [(start, end - start) for start, end in layout.ram]
        try:
            made = build_e820(pieces, environment.reserved)
        except ArchError as error:
            raise ImageError(f"{layout.name}: {error}: correct the machine's memory") from None
        return [(entry.base, entry.size, entry.type) for entry in made]
    entries = sorted((int(base), int(size), int(kind)) for base, size, kind in environment.e820)
    if len(entries) > MAX_ENTRIES:
        raise ImageError(
            f"{layout.name}: a memory map of {len(entries)} entries is longer than {MAX_ENTRIES}: "
            "join neighbouring ranges"
        )
    for base, size, kind in entries:
        if not (
            0 <= base < _TOP and 0 < size < _TOP and base + size <= _TOP and 0 <= kind < 1 << 32
        ):
            raise ImageError(
                f"{layout.name}: the memory map's entry ({base:#x}, {size:#x}, type {kind}) is no "
                "range of the 64-bit address space: correct it"
            )
    return entries


def usable(entries: MemoryMap) -> list[tuple[int, int]]:
    """The (start, end) ranges that the map calls RAM, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for base, size, kind in entries:
        if kind != RAM:
            continue
        if joined and base <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], base + size))
        else:
            joined.append((base, base + size))
    return joined


def keep_to(layout: Layout, entries: MemoryMap) -> None:
    """Keep the loader's own data to what the map calls RAM."""
    before = 0
    for start, end in usable(entries):
        if start > before:
            layout.avoid(before, start - before)
        before = end
    layout.avoid(before, _TOP - before)
    for base, size, kind in entries:
        if kind != RAM:  # it wins over RAM where the two overlap
            layout.avoid(base, size)


def check_in_ram(layout: Layout, entries: MemoryMap, segments: Sequence[Segment]) -> None:
    """Raise `ImageError` if a segment lies in memory that the map does not call RAM."""
    ranges = usable(entries)
    for segment in segments:
        inside = any(a <= segment.gpa and segment.end <= b for a, b in ranges)
        if segment.mem_size and not inside:
            raise ImageError(
                f"{layout.name}: {segment.what} at {span(segment.gpa, segment.mem_size)} "
                f"({human_size(segment.mem_size)}) is not in RAM by the memory map: link it at an "
                "address that is RAM, or give the guest more memory"
            )


def take_reserved(layout: Layout, reserved: Sequence[tuple[int, int]]) -> None:
    """Take what the machine fills itself, as far as it is RAM, so that nothing else goes there."""
    pieces: list[tuple[int, int]] = []
    for start, size in sorted(reserved):
        if pieces and start <= pieces[-1][1]:
            pieces[-1] = (pieces[-1][0], max(pieces[-1][1], start + size))
        else:
            pieces.append((start, start + size))
    for start, end in pieces:
        for low, high in layout.ram:
            first, last = max(start, low), min(end, high)
            if first < last:
                layout.claim(first, last - first, "the machine's own tables")
