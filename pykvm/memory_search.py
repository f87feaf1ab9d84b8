"""Searching guest memory for bytes without touching the pages that do not exist yet.

Reading a hole through a mapping would create its page, so that a search through a sparse guest of
many GiB would fill it. Here only pages with data are looked at; what a hole holds is known: zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from pykvm._native import ffi, lib
from pykvm.kvm.region import MemoryRegion

Span = tuple[int, int, memoryview, MemoryRegion]
"""A region with what its users need at hand: first gpa, gpa after its last byte, its bytes."""


def find_next(spans: Sequence[Span], needle: bytes, start: int, end: int) -> int | None:
    """The first gpa at or after `start` where all of `needle` lies, ending at `end` or before.

    `spans` are in the order of their addresses; hits may cross between adjacent ones.
    """
    count = len(needle)
    for index, (base, limit, view, region) in enumerate(spans):
        at = max(start, base)
        if at >= limit:
            continue
        if at >= end:
            break
        hit = _find_in_region(region, view, needle, at - base, min(end, limit) - base)
        if hit is not None:
            return base + hit
        # Hits that begin in this region and end in the next ones.
        low = max(at, limit - count + 1)
        joined = bytes(view[low - base :])
        reach = limit
        for next_base, next_limit, next_view, _ in spans[index + 1 :]:
            wanted = min(limit + count - 1, end, next_limit) - reach
            if next_base != reach or wanted <= 0:
                break
            joined += next_view[:wanted]
            reach = next_limit
        position = joined.find(needle)
        if position >= 0 and low + position + count <= end:
            return low + position
    return None


def _find_in_region(
    region: MemoryRegion, view: memoryview, needle: bytes, start: int, end: int
) -> int | None:
    """The first hit in `[start, end)`, as offsets from the region's start."""
    count = len(needle)
    only_zeros = needle.count(0) == count
    at = start  # no hit begins before this
    extents = ((offset, offset + length) for offset, length in region.extents(start, end))
    for data, stop in chain(extents, ((end, end),)):
        if only_zeros and data - at >= count:
            return at  # all of it in a hole
        # Hits with a byte in this data: they may begin and end in the holes around it.
        low, high = max(at, data - count + 1), min(stop + count - 1, end)
        if high - low >= count:
            with ffi.from_buffer(view[low:high]) as window:
                hit = lib.pykvm_memory_find(window, high - low, needle, count)
            if hit >= 0:
                return low + int(hit)
        at = max(at, stop)
    return None
