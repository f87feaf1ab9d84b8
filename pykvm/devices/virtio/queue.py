"""The split virtqueue, device side (VIRTIO 1.2, section 2.7).

The driver may change any byte of the rings at any time, so every field is read once and what was
read is checked. What breaks the rules raises `QueueError`; nothing outside guest memory is ever
touched.
"""

from __future__ import annotations

import struct

from pykvm.errors import PykvmError
from pykvm.memory import GuestMemory, MemoryAccessError

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1
MAX_SIZE = 1 << 15
CHAIN_LIMIT = 1024  # buffers of one chain, those of an indirect table included
BYTES_LIMIT = 1 << 32  # of one chain (2.7.4)
_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next


class QueueError(PykvmError):
    """The driver broke the rules of the virtqueue: which one, where."""


class Chain:
    """One request: the driver's buffers, as views of guest memory, without a copy.

    `readable` is what the device may read, `writable` what it may write, each in order.
    """

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []

    @property
    def readable_bytes(self) -> int:
        """Length of the readable part."""
        return sum([len(view) for view in self.readable])

    @property
    def writable_bytes(self) -> int:
        """Length of the writable part."""
        return sum([len(view) for view in self.writable])


class VirtQueue:
    """A queue of up to `max_size` entries. The transport sets its fields, the device uses it.

    Addresses are guest-physical. `pop` gives the next request or None, `push` returns it to the
    driver, `should_notify` says whether the driver wants an interrupt for what was pushed since it
    was last asked.
    """

    def __init__(self, index: int, max_size: int) -> None:
        if max_size & max_size - 1 or not 1 <= max_size <= MAX_SIZE:
            raise ValueError(f"a queue of {max_size} entries is not a power of two up to 32768")
        self.index = index
        self.max_size = max_size
        self.memory: GuestMemory | None = None
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self.size = self.max_size
        self.ready = False
        self.desc = self.driver = self.device = 0
        self.next_avail = self.next_used = 0
        self.event_idx = self.indirect = False
        self._notified = 0  # next_used when `should_notify` was last asked

    def check(self) -> None:
        """Raises `QueueError` if the rings cannot be where the driver put them."""
        size = self.size
        if size & size - 1 or not 1 <= size <= self.max_size:
            raise QueueError(
                f"queue {self.index} has {size} entries; a power of two up to {self.max_size} "
                "was offered"
            )
        areas = (
            ("descriptor table", self.desc, 16 * size, 16),
            ("available ring", self.driver, 6 + 2 * size, 2),
            ("used ring", self.device, 6 + 8 * size, 4),
        )
        for name, address, length, align in areas:
            if address % align:
                raise QueueError(f"queue {self.index}: {name} at {address:#x} is not aligned")
            if not self._memory.contains(address, length):
                raise QueueError(f"queue {self.index}: {name} at {address:#x} is not in memory")

    @property
    def _memory(self) -> GuestMemory:
        assert self.memory is not None, "the transport gives the queue its memory"
        return self.memory

    # -- requests ------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """The next request, or None when the driver has made no more available.

        Raises `QueueError`.
        """
        if not self.ready:
            return None
        memory = self._memory
        try:
            index = memory.read_u16(self.driver + 2)
            if index == self.next_avail:
                if not self.event_idx:
                    return None
                # Ask for a kick at the next one; then look again, it may have come meanwhile.
                memory.write_u16(self.device + 4 + 8 * self.size, self.next_avail)
                index = memory.read_u16(self.driver + 2)
                if index == self.next_avail:
                    return None
            waiting = index - self.next_avail & 0xFFFF
            if waiting > self.size:
                raise QueueError(
                    f"queue {self.index}: {waiting} entries are available in a ring of {self.size}"
                )
            slot = self.next_avail % self.size
            head = memory.read_u16(self.driver + 4 + 2 * slot)
            if head >= self.size:
                raise QueueError(
                    f"queue {self.index}: available entry {head} of a table of {self.size}"
                )
            chain = self._chain(head)
        except MemoryAccessError as error:
            raise QueueError(f"queue {self.index}: {error}") from None
        self.next_avail = self.next_avail + 1 & 0xFFFF
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back; `written` bytes of its writable part were written."""
        slot = self.next_used % self.size
        memory = self._memory
        try:
            memory.write_u64(self.device + 4 + 8 * slot, written << 32 | chain.head)
            self.next_used = self.next_used + 1 & 0xFFFF
            memory.write_u16(self.device + 2, self.next_used)
        except MemoryAccessError as error:
            raise QueueError(f"queue {self.index}: {error}") from None

    def should_notify(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call (2.7.7)."""
        old, new = self._notified, self.next_used
        if old == new:
            return False
        self._notified = new
        memory = self._memory
        try:
            if not self.event_idx:
                return not memory.read_u16(self.driver) & AVAIL_NO_INTERRUPT
            event = memory.read_u16(self.driver + 4 + 2 * self.size)
        except MemoryAccessError as error:
            raise QueueError(f"queue {self.index}: {error}") from None
        return (new - event - 1 & 0xFFFF) < (new - old & 0xFFFF)

    # -- descriptors ---------------------------------------------------------------------------

    def _chain(self, head: int) -> Chain:
        chain = Chain(head)
        memory = self._memory
        index, steps, total = head, 0, 0
        while True:
            raw = memory.read(self.desc + 16 * index, 16)
            address, length, flags, following = _DESCRIPTOR.unpack(raw)
            steps += 1
            if flags & DESC_INDIRECT:
                if not self.indirect:
                    raise QueueError(f"queue {self.index}: indirect tables were not negotiated")
                if flags & DESC_NEXT:
                    raise QueueError(f"queue {self.index}: an indirect descriptor has a next one")
                self._table(chain, address, length, total)
                return chain
            total = self._buffer(chain, address, length, flags, total)
            if not flags & DESC_NEXT:
                return chain
            if steps >= self.size:
                raise QueueError(f"queue {self.index}: the chain from entry {head} loops")
            if following >= self.size:
                raise QueueError(
                    f"queue {self.index}: descriptor {index} leads to {following} of {self.size}"
                )
            index = following

    def _table(self, chain: Chain, address: int, length: int, total: int) -> None:
        count = length // 16
        if length % 16 or not 1 <= count <= CHAIN_LIMIT:
            raise QueueError(f"queue {self.index}: an indirect table of {length} bytes")
        table = self._memory.read(address, length)
        index = 0
        for _ in range(count):
            where, size, flags, following = _DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & DESC_INDIRECT:
                raise QueueError(f"queue {self.index}: an indirect table within another")
            total = self._buffer(chain, where, size, flags, total)
            if not flags & DESC_NEXT:
                return
            if following >= count:
                raise QueueError(
                    f"queue {self.index}: indirect entry {index} leads to {following} of {count}"
                )
            index = following
        raise QueueError(f"queue {self.index}: an indirect table loops")

    def _buffer(self, chain: Chain, address: int, length: int, flags: int, total: int) -> int:
        if not length:
            raise QueueError(f"queue {self.index}: a buffer of no bytes at {address:#x}")
        total += length
        if total > BYTES_LIMIT or len(chain.readable) + len(chain.writable) >= CHAIN_LIMIT:
            raise QueueError(f"queue {self.index}: a request of more than 4 GiB or 1024 buffers")
        if flags & DESC_WRITE:
            part = chain.writable
        elif chain.writable:
            raise QueueError(f"queue {self.index}: a readable buffer after a writable one")
        else:
            part = chain.readable
        memory = self._memory
        try:
            part.append(memory.view(address, length))
        except MemoryAccessError:
            if not memory.contains(address, length):
                raise
            part.extend(self._pieces(address, length))
        return total

    def _pieces(self, address: int, length: int) -> list[memoryview]:
        """A buffer that crosses from one region of memory into the next."""
        end = address + length
        views = []
        for region in self._memory.regions:
            low, high = max(address, region.gpa), min(end, region.end)
            if low < high:
                views.append(self._memory.view(low, high - low))
        return views

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> list[int]:
        """What `restore` takes: eight integers."""
        flags = self.ready | self.event_idx << 1 | self.indirect << 2
        return [
            self.size, self.desc, self.driver, self.device, self.next_avail, self.next_used,
            self._notified, flags,
        ]  # fmt: skip

    def restore(self, state: list[int]) -> None:
        """Takes over what `state` gave; values are cut to their widths."""
        self.size = state[0] & 0xFFFF
        self.desc, self.driver, self.device = state[1:4]
        self.next_avail, self.next_used, self._notified = (n & 0xFFFF for n in state[4:7])
        flags = state[7]
        self.ready = bool(flags & 1)
        self.event_idx, self.indirect = bool(flags & 2), bool(flags & 4)
