"""The split virtqueue (VIRTIO 1.2, section 2.7): three areas.

- the descriptor table, the driver's: 16 bytes each, linked into chains;
- the available ring, the driver's: flags, an index that only grows, the heads of chains, and the
  used event: from which used entry on it wants an interrupt;
- the used ring, the device's: the same in the other direction.
"""

from __future__ import annotations

from pykvm.datapath.ring import Chain, QueueError, VirtQueue
from pykvm.devices.virtio.descriptors import (
    DESC_INDIRECT,
    DESC_NEXT,
    SPLIT_DESCRIPTOR,
    Buffers,
)
from pykvm.memory import GuestMemory

AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1


class SplitRing:
    """Walks the rings of a queue. Every method may raise `QueueError` or `MemoryAccessError`."""

    def __init__(self, queue: VirtQueue, memory: GuestMemory) -> None:
        self._queue, self._memory = queue, memory

    # -- what the driver made available ----------------------------------------------------------

    def _avail_index(self) -> int:
        return self._memory.read_u16(self._queue.driver + 2)

    def next_chain(self) -> Chain | None:
        """The next chain, or None."""
        queue = self._queue
        index = self._avail_index()
        if index == queue.next_avail:
            if not queue.event_idx or queue.no_kicks:
                return None
            # Ask for a kick at the next one; then look again, it may have come meanwhile.
            self._ask_for_kick()
            index = self._avail_index()
            if index == queue.next_avail:
                return None
        # Those in flight count too: each chain has a descriptor of its own.
        most = max(index - queue.next_avail & 0xFFFF, index - queue.next_used & 0xFFFF)
        if most > queue.size:
            raise QueueError(
                f"queue {queue.index}: {most} entries are available in a ring of {queue.size}"
            )
        head = self._memory.read_u16(queue.driver + 4 + 2 * (queue.next_avail % queue.size))
        if head >= queue.size:
            raise QueueError(
                f"queue {queue.index}: available entry {head} of a table of {queue.size}"
            )
        chain = Chain(head)
        self._follow(chain)
        queue.next_avail = queue.next_avail + 1 & 0xFFFF
        return chain

    def _follow(self, chain: Chain) -> None:
        queue, memory = self._queue, self._memory
        buffers = Buffers(queue, memory, chain)
        index, steps = chain.head, 0
        while True:
            raw = memory.read(queue.desc + 16 * index, 16)
            address, length, flags, following = SPLIT_DESCRIPTOR.unpack(raw)
            steps += 1
            if flags & DESC_INDIRECT:
                self._follow_table(buffers, buffers.table_of(address, length, flags))
                return
            buffers.add(address, length, flags)
            if not flags & DESC_NEXT:
                return
            if steps >= queue.size:
                raise buffers.refuse(f"the chain from entry {chain.head} loops")
            if following >= queue.size:
                raise buffers.refuse(f"descriptor {index} leads to {following} of {queue.size}")
            index = following

    def _follow_table(self, buffers: Buffers, table: bytes) -> None:
        count, index = len(table) // 16, 0
        for _ in range(count):
            address, length, flags, following = SPLIT_DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & DESC_INDIRECT:
                raise buffers.refuse("an indirect table within another")
            buffers.add(address, length, flags)
            if not flags & DESC_NEXT:
                return
            if following >= count:
                raise buffers.refuse(f"indirect entry {index} leads to {following} of {count}")
            index = following
        raise buffers.refuse("an indirect table loops")

    # -- what the device used ----------------------------------------------------------------------

    def put_used(self, done: list[tuple[Chain, int]]) -> None:
        """Writes used entries, then the index that shows them to the driver."""
        queue, memory = self._queue, self._memory
        index = queue.next_used
        for chain, written in done:
            place = queue.device + 4 + 8 * (index % queue.size)
            memory.write_u64(place, written << 32 | chain.head)
            index = index + 1 & 0xFFFF
        memory.write_u16(queue.device + 2, index)
        queue.next_used = index
        queue.unasked = min(queue.unasked + len(done), 1 << 16)

    # -- who wants to hear of what ----------------------------------------------------------------

    def wants_interrupt(self, fresh: int) -> bool:
        """Whether the driver wants to hear of the last `fresh` used entries (2.7.7)."""
        queue, memory = self._queue, self._memory
        if not queue.event_idx:
            return not memory.read_u16(queue.driver) & AVAIL_NO_INTERRUPT
        event = memory.read_u16(queue.driver + 4 + 2 * queue.size)
        return (queue.next_used - event - 1 & 0xFFFF) < fresh

    def _ask_for_kick(self) -> None:
        """The avail event: a kick when the driver adds the very next chain (2.7.10)."""
        queue = self._queue
        self._memory.write_u16(queue.device + 4 + 8 * queue.size, queue.next_avail)

    def want_kicks(self, on: bool) -> bool:
        """See `VirtQueue.want_kicks`."""
        queue = self._queue
        if not queue.event_idx:
            self._memory.write_u16(queue.device, 0 if on else USED_NO_NOTIFY)
        elif on:
            self._ask_for_kick()  # when off, the event stays behind: the driver has passed it
        return on and self._avail_index() != queue.next_avail
