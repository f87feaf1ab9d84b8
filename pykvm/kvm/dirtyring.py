"""The dirty ring of a vCPU: which guest pages it wrote, without scanning bitmaps.

The kernel pushes (slot, page) pairs into a ring shared with user space; user space takes them and
marks them for reset; KVM_RESET_DIRTY_RINGS write-protects those pages again (KVM API,
KVM_CAP_DIRTY_LOG_RING).
"""

from __future__ import annotations

import contextlib
import mmap

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import ClosedError
from pykvm.typed import Any

ENTRY_SIZE = 16


class DirtyRing:
    """The ring of one vCPU, mapped. Use it from one thread at a time; the vCPU may run."""

    def __init__(self, vcpu_fd: int, size: int) -> None:
        offset = c.KVM_DIRTY_LOG_PAGE_OFFSET * c.PAGE_SIZE
        self.entries = size // ENTRY_SIZE
        self._map = mmap.mmap(vcpu_fd, size, flags=mmap.MAP_SHARED, offset=offset)
        self._buffer: Any = ffi.from_buffer("struct kvm_dirty_gfn[]", self._map)
        self._next = 0

    def harvest(self, limit: int | None = None) -> list[tuple[int, int]]:
        """Takes dirty pages out of the ring: (memory slot, page number in the slot), in order.

        At most `limit` of them. The pages stay unprotected until `Vm.reset_dirty_rings()`.
        """
        ring, size, position = self._buffer, self.entries, self._next
        if ring is None:
            raise ClosedError("this dirty ring is closed with its vCPU")
        found: list[tuple[int, int]] = []
        left = size if limit is None else limit
        while left > 0:
            # x86 orders loads with loads and stores with stores: the entry read after its flag is
            # the one the kernel published, and the reset mark follows our reads of it.
            entry = ring[position % size]
            if entry.flags & 3 != c.KVM_DIRTY_GFN_F_DIRTY:
                break
            found.append((entry.slot, entry.offset))
            entry.flags = c.KVM_DIRTY_GFN_F_RESET
            position += 1
            left -= 1
        self._next = position
        return found

    def close(self) -> None:
        """Unmaps the ring."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            ffi.release(buffer)
            with contextlib.suppress(BufferError):
                self._map.close()
