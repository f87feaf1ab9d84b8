"""Anonymous guest memory: whether files have huge pages, and which of its pages there are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache

_SETTING = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_PAGE = 4096
_CHUNK = 1 << 16  # pages looked up at once
_THERE = 3 << 62  # present or swapped (Documentation/admin-guide/mm/pagemap.rst)


@cache
def files_have_thp() -> bool:
    """Whether memory files get transparent huge pages when they ask (MADV_HUGEPAGE)."""
    try:
        with open(_SETTING) as file:
            setting = file.read()
    except OSError:
        return False
    return any(f"[{word}]" in setting for word in ("always", "within_size", "advise", "force"))


def mapped_extents(address: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of `[start, end)` behind host address `address` that have pages: (offset, length).

    Where the kernel does not tell, it is all of it.
    """
    first, last = start // _PAGE, -(-end // _PAGE)
    begun, chunk = -1, first
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            for chunk in range(first, last, _CHUNK):
                count = min(_CHUNK, last - chunk)
                file.seek((address // _PAGE + chunk) * 8)
                data = file.read(count * 8)
                if len(data) != count * 8:
                    raise OSError("the page map is short")
                for page, (entry,) in enumerate(struct.iter_unpack("<Q", data), chunk):
                    if entry & _THERE and begun < 0:
                        begun = page
                    elif not entry & _THERE and begun >= 0:
                        yield _clip(begun, page, start, end)
                        begun = -1
    except OSError:
        yield _clip(begun if begun >= 0 else chunk, last, start, end)
        return
    if begun >= 0:
        yield _clip(begun, last, start, end)


def _clip(first: int, last: int, start: int, end: int) -> tuple[int, int]:
    at = max(first * _PAGE, start)
    return at, min(last * _PAGE, end) - at
