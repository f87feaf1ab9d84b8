"""Descriptors and the buffers they name, the same in both ring formats (VIRTIO 1.2, 2.7.5, 2.8.1).

The driver may change any byte of the rings at any time, so every field is read once and what was
read is checked.
"""

from __future__ import annotations

import struct

from pykvm.datapath.ring import Chain, QueueError, VirtQueue
from pykvm.memory import GuestMemory, MemoryAccessError

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
CHAIN_LIMIT = 1024  # buffers of one chain, those of an indirect table included
BYTES_LIMIT = 1 << 32  # of one chain (2.7.4)
SPLIT_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
PACKED_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, id, flags


class Buffers:
    """Fills a chain with the buffers that descriptors name, as long as they obey the rules."""

    def __init__(self, queue: VirtQueue, memory: GuestMemory, chain: Chain) -> None:
        self._queue, self._memory, self._chain = queue, memory, chain
        self._total = 0

    def refuse(self, what: str) -> QueueError:
        """The error that says `what` about this queue."""
        return QueueError(f"queue {self._queue.index}: {what}")

    def add(self, address: int, length: int, flags: int) -> None:
        """One buffer. One that crosses from one region of memory into the next is two views."""
        chain, memory = self._chain, self._memory
        if not length:
            raise self.refuse(f"a buffer of no bytes at {address:#x}")
        self._total += length
        if self._total > BYTES_LIMIT or self._pieces >= CHAIN_LIMIT:
            raise self.refuse("a request of more than 4 GiB or 1024 buffers")
        if flags & DESC_WRITE:
            part = chain.writable
        elif chain.writable:
            raise self.refuse("a readable buffer after a writable one")
        else:
            part = chain.readable
        try:
            part.append(memory.view(address, length))
        except MemoryAccessError:
            if not memory.contains(address, length):
                raise
            for region in memory.regions:
                low, high = max(address, region.gpa), min(address + length, region.end)
                if low < high:
                    part.append(memory.view(low, high - low))
            if self._pieces > CHAIN_LIMIT:
                raise self.refuse("a request of more than 4 GiB or 1024 buffers") from None

    @property
    def _pieces(self) -> int:
        return len(self._chain.readable) + len(self._chain.writable)

    def table_of(self, address: int, length: int, flags: int) -> bytes:
        """The indirect table that a descriptor with INDIRECT names (2.7.5.3, 2.8.8)."""
        if not self._queue.indirect:
            raise self.refuse("indirect tables were not negotiated")
        if flags & DESC_NEXT:
            raise self.refuse("an indirect descriptor has a next one")
        if length % 16 or not 1 <= length // 16 <= CHAIN_LIMIT:
            raise self.refuse(f"an indirect table of {length} bytes")
        return self._memory.read(address, length)
