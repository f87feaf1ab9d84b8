"""`NativeQueue`: a virtqueue whose rings are walked in C, a whole batch a call."""

from __future__ import annotations

import struct

from pykvm._native import ffi, lib
from pykvm.datapath.map import MemoryMap
from pykvm.datapath.ring import MAX_WRITTEN, Chain, QueueError, VirtQueue
from pykvm.typed import Any

_CHAIN = struct.Struct("<HHII4x8x8x8x8xH6x")  # struct pykvm_chain, what is needed of it
_USED = struct.Struct("<IHHHH")  # struct pykvm_vq_used
_BATCH = 64  # chains a call
_ROOM = lib.PYKVM_VQ_BUFFERS + 1024  # buffers a call
_PACKED, _EVENT_IDX, _INDIRECT, _IN_ORDER = 1, 2, 4, 8

# By the numbers of enum pykvm_vq_error.
_SENTENCES = (
    "",
    "",  # what `_usable` says
    "",  # what `check` says
    "",
    "",  # what `GuestMemory` says
    "{} entries are available in a ring of {size}",
    "available entry {} of a table of {size}",
    "the chain from entry {} loops",
    "descriptor {} leads to {} of {size}",
    "indirect tables were not negotiated",
    "an indirect descriptor has a next one",
    "an indirect table of {} bytes",
    "an indirect table within another",
    "indirect entry {} leads to {} of {}",
    "an indirect table loops",
    "a buffer of no bytes at {:#x}",
    "a request of more than 4 GiB or 1024 buffers",
    "a readable buffer after a writable one",
    "the list from slot {} has more descriptors than the {} that are free to be used",
    "an indirect descriptor within a list, at slot {}",
)
_SIZE, _MEMORY = 1, 4


def _number(name: str) -> Any:
    """A field of the C structure."""

    def get(self: NativeQueue) -> int:
        return int(getattr(self.c, name))

    def put(self: NativeQueue, value: int) -> None:
        setattr(self.c, name, value)
        self._stale = True

    return property(get, put)


def _wrap(name: str) -> Any:
    def get(self: NativeQueue) -> bool:
        return bool(getattr(self.c, name))

    def put(self: NativeQueue, value: bool) -> None:
        setattr(self.c, name, int(value))

    return property(get, put)


def _flag(bit: int) -> Any:
    def get(self: NativeQueue) -> bool:
        return bool(self.c.flags & bit)

    def put(self: NativeQueue, value: bool) -> None:
        self.c.flags = self.c.flags & ~bit | (bit if value else 0)
        self._stale = True

    return property(get, put)


class NativeQueue(VirtQueue):
    """See `VirtQueue`. `c` is the queue for engines: valid while the queue is `ready`.

    While an engine uses `c`, nobody calls the queue's methods or sets its fields. If the regions of
    guest memory change meanwhile, the engine goes on with the old ones, which stay mapped, until
    `refresh`.
    """

    size = _number("size")
    desc = _number("desc")
    driver = _number("driver")
    device = _number("device")
    next_avail = _number("next_avail")
    next_used = _number("next_used")
    unasked = _number("unasked")
    avail_wrap = _wrap("avail_wrap")
    used_wrap = _wrap("used_wrap")
    no_kicks = _wrap("no_kicks")
    packed = _flag(_PACKED)
    event_idx = _flag(_EVENT_IDX)
    indirect = _flag(_INDIRECT)
    in_order = _flag(_IN_ORDER)

    def __init__(self, index: int, max_size: int) -> None:
        self.c = ffi.new("struct pykvm_vq *", {"index": index})
        self._map: MemoryMap | None = None
        self._stale = True
        self._ready = False
        self._chains: Any = None
        self._held: Any = ()
        self._possible = False
        super().__init__(index, max_size)

    def reset(self) -> None:
        """As after power-on; guest memory is let go."""
        super().reset()
        self._map = None
        self._held = ()
        self.c.map = self.c.held = ffi.NULL
        self.c.popped = self.c.oldest = 0

    def close(self) -> None:
        """Lets go of guest memory."""
        self._ready = False
        self._map = None
        self.c.map = ffi.NULL

    @property
    def ready(self) -> bool:
        """Whether the driver has put the rings in place."""
        return self._ready

    @ready.setter
    def ready(self, value: bool) -> None:
        self._ready = value
        if value and self.memory is not None:
            self.refresh()

    @property
    def map(self) -> MemoryMap | None:
        """Guest memory as C sees it through this queue; who holds it keeps its pages mapped."""
        return self._map

    def outdated(self) -> bool:
        """Whether the regions of guest memory changed since: `refresh` takes the new ones."""
        return self._map is None or self._map.spans is not self._memory.spans

    def refresh(self) -> None:
        """Takes over the fields and the regions of guest memory as they are now.

        Rings that are not all in memory are no error here, but at their use.
        """
        queue = self.c
        self._map = MemoryMap.of(self._memory)
        queue.map = self._map.c
        if self.in_order and len(self._held) != self.size:
            self._held = ffi.new("struct pykvm_vq_used[]", self.size)
            queue.held = self._held
            queue.popped = queue.oldest = 0
        if self._chains is None:
            self._allocate()
        self._possible = lib.pykvm_vq_start(queue) == 0 or queue.error != _SIZE
        self._stale = False

    def _allocate(self) -> None:
        self._chains = ffi.new("struct pykvm_chain[]", _BATCH)
        self._iov = ffi.new("struct iovec[]", _ROOM)
        self._gpa = ffi.new("uint64_t[]", _ROOM)
        self._used = ffi.new("struct pykvm_vq_used[]", _BATCH)
        self._more = ffi.new("int *")
        self._chain_view = memoryview(ffi.buffer(self._chains))
        self._iov_view = memoryview(ffi.buffer(self._iov)).cast("Q")
        self._gpa_view = memoryview(ffi.buffer(self._gpa)).cast("Q")
        self._used_view = memoryview(ffi.buffer(self._used))

    def _usable(self) -> bool:
        """Whether the rings may be touched; takes over new fields and new memory."""
        if not self._ready:
            return False
        if self._stale or self.outdated():
            self.refresh()
        if not self._possible:
            raise QueueError(f"queue {self.index}: a ring of {self.size} entries")
        return True

    def error(self) -> QueueError:
        """The rule that the last call of C found broken, as an exception."""
        number, detail = self.c.error, self.c.detail
        if number == _MEMORY:
            what = str(self._memory.outside(detail[0] + detail[2], detail[1]))
        else:
            what = _SENTENCES[number].format(*detail, size=self.size)
        return QueueError(f"queue {self.index}: {what}")

    # -- requests ------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """As `VirtQueue.pop`."""
        found = self.pop_batch(1)
        return found[0] if found else None

    def pop_batch(self, limit: int = _BATCH) -> list[Chain]:
        """As `VirtQueue.pop_batch`."""
        if self.halted or not self._usable():
            return []
        found: list[Chain] = []
        while len(found) < limit:
            count = lib.pykvm_vq_pop_batch(
                self.c, self._chains, min(limit - len(found), _BATCH),
                self._iov, self._gpa, _ROOM, self._more,
            )  # fmt: skip
            if count < 0:
                if found:
                    break
                raise self.error()
            if count:
                self._collect(found, count)
            if not self._more[0]:
                break
        return found

    def _collect(self, found: list[Chain], count: int) -> None:
        """Makes chains of what C left in the arrays."""
        rows = list(_CHAIN.iter_unpack(self._chain_view[: count * _CHAIN.size]))
        total = sum([row[2] + row[3] for row in rows])
        lengths = self._iov_view[1 : 2 * total : 2].tolist()
        places = self._gpa_view[:total].tolist()
        memory = self._map
        assert memory is not None
        base, end, main = memory.main
        views = [
            main[gpa - base : gpa - base + length]
            if base <= gpa and gpa + length <= end
            else memory.view(gpa, length)
            for gpa, length in zip(places, lengths, strict=True)
        ]
        at = 0
        for head, slots, readable, writable, position in rows:
            chain = Chain(head, slots, position)
            chain.readable = views[at : at + readable]
            at += readable
            chain.writable = views[at : at + writable]
            at += writable
            found.append(chain)

    def push(self, chain: Chain, written: int) -> None:
        """As `VirtQueue.push`."""
        if not self._usable():
            return
        _USED.pack_into(
            self._used_view, 0,
            min(written, MAX_WRITTEN), chain.head, chain.count, chain.position, 0,
        )  # fmt: skip
        if lib.pykvm_vq_push_batch(self.c, self._used, 1):
            raise self.error()

    def push_batch(self, done: list[tuple[Chain, int]]) -> None:
        """As `VirtQueue.push_batch`."""
        if not done or not self._usable():
            return
        count = len(done)
        used, view = self._used, self._used_view
        if count > _BATCH:
            used = ffi.new("struct pykvm_vq_used[]", count)
            view = memoryview(ffi.buffer(used))
        for at, (chain, written) in enumerate(done):
            _USED.pack_into(
                view, at * _USED.size,
                min(written, MAX_WRITTEN), chain.head, chain.count, chain.position, 0,
            )  # fmt: skip
        if lib.pykvm_vq_push_batch(self.c, used, count):
            raise self.error()

    def should_notify(self) -> bool:
        """As `VirtQueue.should_notify`."""
        return self._answer(lib.pykvm_vq_should_notify(self.c)) if self._usable() else False

    def want_kicks(self, on: bool) -> bool:
        """As `VirtQueue.want_kicks`."""
        return self._answer(lib.pykvm_vq_want_kicks(self.c, on)) if self._usable() else False

    def _answer(self, result: int) -> bool:
        if result < 0:
            raise self.error()
        return result > 0
