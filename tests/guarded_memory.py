"""Guest memory with pages around each region that nobody may touch.

A read or write next to a region, even one that a neighbour in guest-physical addresses would
cover, ends the process with SIGSEGV: no test that does so can pass.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable

from pykvm.kvm.region import MemoryRegion
from pykvm.memory import GuestMemory

PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Pages:
    """What a region has in place of its own mapping: pages between two guards."""

    def __init__(self, size: int) -> None:
        self._whole = mmap.mmap(-1, size + 2 * PAGE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._whole))
        for guard in (first, first + PAGE + size):
            if _LIBC.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = first + PAGE
        self.view = memoryview(self._whole)[PAGE : PAGE + size]

    def close(self) -> None:
        """The pages go when the last view is gone."""


def guarded_memory(pieces: Iterable[tuple[int, int]]) -> GuestMemory:
    """Regions of (guest-physical address, size), multiples of pages, each between two guards."""
    memory = GuestMemory()
    for gpa, size in pieces:
        region = MemoryRegion(gpa, size)
        region._view.release()
        region._map.close()
        pages = _Pages(size)
        region._map = pages  # type: ignore[assignment]
        region._view = pages.view
        region.host_address = pages.address
        memory._owned.append(region)
        memory.add(region)
    return memory
