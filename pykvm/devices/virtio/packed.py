"""The packed virtqueue (VIRTIO 1.2, section 2.8): one ring of descriptors for both directions.

The driver writes a descriptor with flags AVAIL = its wrap counter and USED = the opposite; the
device overwrites one with AVAIL = USED = its own wrap counter when it is done. Each side starts
with a wrap counter of 1 and turns it over at the end of the ring. A list of buffers (NEXT) takes as
many slots; the device uses up the same number and writes only the first. Two small areas say who
wants to hear of what: the driver's (interrupts) and the device's (kicks).
"""

from __future__ import annotations

import struct

from pykvm.datapath.ring import Chain, VirtQueue
from pykvm.devices.virtio.descriptors import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    PACKED_DESCRIPTOR,
    Buffers,
)
from pykvm.memory import GuestMemory

DESC_AVAIL, DESC_USED = 1 << 7, 1 << 15
EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC = 0, 1, 2  # 2.8.10: notify always, never, at a descriptor
_FLAGS = 14  # of a descriptor
_USED = struct.Struct("<IH")  # what the device writes of it: length, id


class PackedRing:
    """Walks the ring of a queue. Every method may raise `QueueError` or `MemoryAccessError`."""

    def __init__(self, queue: VirtQueue, memory: GuestMemory) -> None:
        self._queue, self._memory = queue, memory

    # -- what the driver made available ----------------------------------------------------------

    def _head_flags(self) -> int:
        queue = self._queue
        return self._memory.read_u16(queue.desc + 16 * queue.next_avail + _FLAGS)

    def _available(self, flags: int) -> bool:
        wrap = self._queue.avail_wrap
        return bool(flags & DESC_AVAIL) == wrap and bool(flags & DESC_USED) != wrap

    def next_chain(self) -> Chain | None:
        """The next list of buffers, or None."""
        queue = self._queue
        flags = self._head_flags()
        if not self._available(flags):
            if not queue.event_idx or queue.no_kicks:
                return None
            # Ask for a kick at the next one; then look again, it may have come meanwhile.
            self._ask_for_kick()
            flags = self._head_flags()
            if not self._available(flags):
                return None
        chain = Chain(0)
        self._follow(chain, flags)
        following = queue.next_avail + chain.count
        if following >= queue.size:
            following -= queue.size
            queue.avail_wrap = not queue.avail_wrap
        queue.next_avail = following
        return chain

    def _free(self) -> int:
        """Descriptors that the driver may have made available: those that are not in flight."""
        queue = self._queue
        flight = queue.next_avail - queue.next_used
        if queue.avail_wrap != queue.used_wrap:
            flight += queue.size
        return queue.size - max(flight, 0)

    def _follow(self, chain: Chain, head_flags: int) -> None:
        queue, memory = self._queue, self._memory
        buffers = Buffers(queue, memory, chain)
        slot, free, chain.count = queue.next_avail, self._free(), 0
        while True:
            if chain.count >= free:
                raise buffers.refuse(
                    f"the list from slot {queue.next_avail} has more descriptors than the "
                    f"{max(free, 0)} that are free to be used"
                )
            raw = memory.read(queue.desc + 16 * slot, 16)
            address, length, chain.head, flags = PACKED_DESCRIPTOR.unpack(raw)
            chain.count += 1
            if chain.count == 1:
                flags = head_flags  # they were read before, and each field counts once
            if flags & DESC_INDIRECT:
                if chain.count > 1:  # 2.8.8: lists are of one kind
                    raise buffers.refuse(f"an indirect descriptor within a list, at slot {slot}")
                table = buffers.table_of(address, length, flags)
                self._take_table(buffers, table)
                return
            buffers.add(address, length, flags)
            if not flags & DESC_NEXT:
                return  # the id of the last one is the list's (2.8.6)
            slot = (slot + 1) % queue.size

    def _take_table(self, buffers: Buffers, table: bytes) -> None:
        """All entries of an indirect table; their ids and most flags are reserved (2.8.8)."""
        for address, length, _, flags in PACKED_DESCRIPTOR.iter_unpack(table):
            if flags & DESC_INDIRECT:
                raise buffers.refuse("an indirect table within another")
            buffers.add(address, length, flags)

    # -- what the device used ----------------------------------------------------------------------

    def put_used(self, done: list[tuple[Chain, int]]) -> None:
        """Writes used descriptors; the flags of the first come last and show all to the driver."""
        queue, memory = self._queue, self._memory
        slot, wrap, slots = queue.next_used, queue.used_wrap, 0
        marks: list[tuple[int, int]] = []
        for chain, written in done:
            place = queue.desc + 16 * slot
            memory.write(
                place + 8, written.to_bytes(4, "little") + chain.head.to_bytes(2, "little")
            )
            flags = (DESC_AVAIL | DESC_USED if wrap else 0) | (DESC_WRITE if written else 0)
            marks.append((place + _FLAGS, flags))
            slots += chain.count
            slot += chain.count
            if slot >= queue.size:
                slot -= queue.size
                wrap = not wrap
        for place, flags in reversed(marks):
            memory.write_u16(place, flags)
        queue.next_used, queue.used_wrap = slot, wrap
        queue.unasked = min(queue.unasked + slots, 2 * queue.size)

    # -- who wants to hear of what ----------------------------------------------------------------

    def wants_interrupt(self, fresh: int) -> bool:
        """Whether the driver wants to hear of the last `fresh` used slots (2.8.10)."""
        queue, memory = self._queue, self._memory
        mode = memory.read_u16(queue.driver + 2) & 3
        if mode != EVENT_DESC or not queue.event_idx:
            return mode != EVENT_DISABLE
        event = memory.read_u16(queue.driver)
        # Two laps (wrap counter 1, then 0) number all places: is the event's among the fresh ones?
        size = queue.size
        now = queue.next_used + (0 if queue.used_wrap else size)
        wanted = (event & 0x7FFF) + (0 if event >> 15 else size)
        return (now - 1 - wanted) % (2 * size) < fresh

    def _ask_for_kick(self) -> None:
        """A kick at the next descriptor with event_idx, else at each (2.8.10)."""
        queue, memory = self._queue, self._memory
        mode = EVENT_ENABLE
        if queue.event_idx:
            memory.write_u16(queue.device, queue.next_avail | queue.avail_wrap << 15)
            mode = EVENT_DESC
        memory.write_u16(queue.device + 2, mode)

    def want_kicks(self, on: bool) -> bool:
        """See `VirtQueue.want_kicks`."""
        if not on:
            self._memory.write_u16(self._queue.device + 2, EVENT_DISABLE)
            return False
        self._ask_for_kick()
        return self._available(self._head_flags())
