"""`VirtQueue`: what a virtqueue is to its device and its transport, whoever walks the rings.

Two classes do: `pykvm.datapath.queue.NativeQueue` in C, and the reference in
`pykvm.devices.virtio.queue`, to be read. They behave alike, to the text of their errors.
"""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.memory import GuestMemory
from pykvm.typed import Any

MAX_SIZE = 1 << 15
MAX_WRITTEN = (1 << 32) - 1
_READY, _EVENT_IDX, _INDIRECT, _PACKED, _IN_ORDER, _NO_KICKS = 1, 2, 4, 8, 16, 32


class QueueError(PykvmError):
    """The driver broke the rules of the virtqueue: which one, where."""


class Chain:
    """One request: the driver's buffers, as views of guest memory, without a copy.

    `readable` is what the device may read, `writable` what it may write, each in order. `head`: by
    what the driver knows it; `count`: slots of the ring that it takes; `position`: its turn among
    those in flight, for queues whose requests must come back in order.
    """

    __slots__ = ("count", "head", "position", "readable", "writable")

    def __init__(self, head: int, count: int = 1, position: int = 0) -> None:
        self.head = head
        self.count = count
        self.position = position
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

    Addresses are guest-physical: `desc` of the descriptor table or ring, `driver` and `device` of
    the areas that each side writes. `packed`, `in_order`, `event_idx` and `indirect` are what was
    negotiated; set them before `check` and `ready`. One thread at a time may use a queue.
    """

    memory: GuestMemory | None
    size: int
    desc: int
    driver: int
    device: int
    packed: bool
    in_order: bool
    event_idx: bool
    indirect: bool
    ready: bool
    #: Where the next request and the next used entry are: indices modulo 2^16 (split), or slots
    #: with wrap counters (packed).
    next_avail: int
    next_used: int
    avail_wrap: bool
    used_wrap: bool
    #: Ring slots used since `should_notify` was last asked.
    unasked: int
    #: Whether `want_kicks(False)` was the last word.
    no_kicks: bool

    #: `pop` gives nothing for the time being; `push` works. Set by any thread, kept over resets.
    halted: bool = False

    #: The queue as engines in native/ take it (`struct pykvm_vq *`); the reference has none.
    c: Any = None

    def __init__(self, index: int, max_size: int) -> None:
        if max_size & max_size - 1 or not 1 <= max_size <= MAX_SIZE:
            raise ValueError(f"a queue of {max_size} entries is not a power of two up to 32768")
        self.index = index
        self.max_size = max_size
        self.memory = None
        self.reset()

    def reset(self) -> None:
        """As after power-on. Nothing of the queue may be in flight."""
        self.ready = False
        self.size = self.max_size
        self.desc = self.driver = self.device = 0
        self.packed = self.in_order = self.event_idx = self.indirect = False
        self.next_avail = self.next_used = self.unasked = 0
        self.avail_wrap = self.used_wrap = True
        self.no_kicks = False

    def close(self) -> None:
        """Lets go of guest memory. Reset comes first where engines use the queue."""
        self.ready = False

    def check(self) -> None:
        """Raises `QueueError` if the rings cannot be where the driver put them."""
        size, packed = self.size, self.packed
        if not 1 <= size <= self.max_size or (size & size - 1 and not packed):
            kind = "any number" if packed else "a power of two"
            raise QueueError(
                f"queue {self.index} has {size} entries; {kind} up to {self.max_size} was offered"
            )
        areas = (
            ("descriptor ring", self.desc, 16 * size, 16),
            ("driver event area", self.driver, 4, 4),
            ("device event area", self.device, 4, 4),
        ) if packed else (
            ("descriptor table", self.desc, 16 * size, 16),
            ("available ring", self.driver, 6 + 2 * size, 2),
            ("used ring", self.device, 6 + 8 * size, 4),
        )  # fmt: skip
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

        Raises `QueueError`; then nothing was taken.
        """
        raise NotImplementedError

    def pop_batch(self, limit: int = 64) -> list[Chain]:
        """Up to `limit` requests; fewer when there are no more.

        Raises `QueueError` if the very first is bad. A bad one behind good ones ends the batch, and
        the next call raises.
        """
        raise NotImplementedError

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back; `written` bytes of its writable part were written.

        On a queue that is not `ready` this does nothing: its driver has no use for it any more.
        """
        raise NotImplementedError

    def push_batch(self, done: list[tuple[Chain, int]]) -> None:
        """Give (request, bytes written) back, all at once as the driver sees it."""
        raise NotImplementedError

    def should_notify(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call."""
        raise NotImplementedError

    def want_kicks(self, on: bool) -> bool:
        """With False the driver need not kick, as the device looks by itself; with True it must.

        The result: whether there is something already, for which no kick may come any more.
        """
        raise NotImplementedError

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> list[int]:
        """What `restore` takes: eight integers.

        Size, three addresses, next_avail, next_used, next_used when the driver was last thought of,
        and flags. In a packed ring bit 15 of a place is its wrap counter.
        """
        avail, used = self.next_avail, self.next_used
        if self.packed:
            laps = 2 * self.size or 1  # a lap with the wrap counter 1, then one with 0
            told = used + (0 if self.used_wrap else self.size) - min(self.unasked, laps - 1)
            told %= laps
            told = told | 0x8000 if told < self.size else told - self.size
            avail |= self.avail_wrap << 15
            used |= self.used_wrap << 15
        else:
            told = used - min(self.unasked, 0xFFFF) & 0xFFFF
        flags = (
            _READY * self.ready | _EVENT_IDX * self.event_idx | _INDIRECT * self.indirect
            | _PACKED * self.packed | _IN_ORDER * self.in_order | _NO_KICKS * self.no_kicks
        )  # fmt: skip
        return [self.size, self.desc, self.driver, self.device, avail, used, told, flags]

    def restore(self, state: list[int]) -> None:
        """Takes over what `state` gave; values are cut to their widths."""
        self.reset()
        size = self.size = state[0] & 0xFFFF
        self.desc, self.driver, self.device = state[1:4]
        avail, used, told = (n & 0xFFFF for n in state[4:7])
        flags = state[7]
        self.event_idx, self.indirect = bool(flags & _EVENT_IDX), bool(flags & _INDIRECT)
        self.packed, self.in_order = bool(flags & _PACKED), bool(flags & _IN_ORDER)
        self.no_kicks = bool(flags & _NO_KICKS)
        if self.packed:
            self.avail_wrap, self.used_wrap = bool(avail >> 15), bool(used >> 15)
            self.next_avail, self.next_used = ((n & 0x7FFF) % (size or 1) for n in (avail, used))
            before = (told & 0x7FFF) % (size or 1) + (0 if told >> 15 else size)
            now = self.next_used + (0 if self.used_wrap else size)
            self.unasked = (now - before) % (2 * size or 1)
        else:
            self.next_avail, self.next_used = avail, used
            self.unasked = used - told & 0xFFFF
        self.ready = bool(flags & _READY)
