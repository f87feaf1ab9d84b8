"""The driver side of virtqueues, without a guest: split and packed rings in guest memory.

Both have the same methods: `add` makes a request available, `used` collects what came back,
`needs_kick` tells whether the device wants to hear of what was added, `want_interrupts` and
`interrupt_after` say what the driver wants to hear.
"""

from __future__ import annotations

import struct
from collections import deque

from pykvm.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2
DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags and next (split) or id and flags

Buffers = list[tuple[int, int, bool]]  # guest-physical address, length, device writes


class RingFull(Exception):
    """The driver has no free descriptors."""


class DriverQueue:
    """A split ring of `size` entries at guest-physical `base`; 16 KiB are enough for 512."""

    packed = False

    def __init__(
        self, memory: GuestMemory, base: int, size: int, *, event_idx: bool = False,
        in_order: bool = False,
    ) -> None:  # fmt: skip
        self.memory, self.base, self.size = memory, base, size
        self.event_idx, self.in_order = event_idx, in_order
        self.desc = base
        self.driver = base + 16 * size
        self.device = self.driver + 6 + 2 * size + 3 & ~3
        self.end = self.device + 6 + 8 * size
        memory.fill(base, self.end - base)
        self.free = deque(range(size))
        self.chains: dict[int, list[int]] = {}  # in flight, in their order: head to descriptors
        self.avail = self.seen = 0
        self._kicked = 0
        self._done: list[tuple[int, int]] = []

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int = 0
    ) -> None:
        self.memory.write(
            self.desc + 16 * index, DESCRIPTOR.pack(address, length, flags, following)
        )

    def _take(self, count: int) -> list[int]:
        if len(self.free) < count:
            self._poll()
        if len(self.free) < count:
            raise RingFull(f"{count} descriptors wanted, {len(self.free)} are free")
        return [self.free.popleft() for _ in range(count)]

    def add(self, buffers: Buffers, indirect: int = 0) -> int:
        """Makes (address, length, device writes) buffers one request; gives its head entry.

        `indirect`: the guest-physical place of a table to put the descriptors in.
        """
        last = len(buffers) - 1
        if indirect:
            for i, (address, length, writable) in enumerate(buffers):
                flags = (WRITE if writable else 0) | (NEXT if i < last else 0)
                raw = DESCRIPTOR.pack(address, length, flags, i + 1)
                self.memory.write(indirect + 16 * i, raw)
            indices = self._take(1)
            self.write_descriptor(indices[0], indirect, 16 * len(buffers), INDIRECT)
        else:
            indices = self._take(len(buffers))
            for i, (address, length, writable) in enumerate(buffers):
                flags = (WRITE if writable else 0) | (NEXT if i < last else 0)
                following = indices[i + 1] if i < last else 0
                self.write_descriptor(indices[i], address, length, flags, following)
        head = indices[0]
        self.chains[head] = indices
        self.make_available(head)
        return head

    def make_available(self, head: int) -> None:
        self.memory.write_u16(self.driver + 4 + 2 * (self.avail % self.size), head)
        self.avail = self.avail + 1 & 0xFFFF
        self.memory.write_u16(self.driver + 2, self.avail)

    def _poll(self) -> None:
        upto = self.memory.read_u16(self.device + 2)
        while self.seen != upto:
            raw = self.memory.read_u64(self.device + 4 + 8 * (self.seen % self.size))
            head = raw & 0xFFFF_FFFF
            if self.in_order and self.chains:
                assert head == next(iter(self.chains)), "used out of order"
            self._done.append((head, raw >> 32))
            self.free.extend(self.chains.pop(head, []))
            self.seen = self.seen + 1 & 0xFFFF

    def used(self) -> list[tuple[int, int]]:
        """(head, bytes written) of the requests that came back since the last call."""
        self._poll()
        done, self._done = self._done, []
        self.interrupt_after(1)
        return done

    def needs_kick(self) -> bool:
        """Whether the device wants to hear of what was added since the last call (2.7.10)."""
        fresh = self.avail - self._kicked & 0xFFFF
        self._kicked = self.avail
        if not self.event_idx:
            return not self.memory.read_u16(self.device) & 1
        event = self.memory.read_u16(self.device + 4 + 8 * self.size)
        return (self.avail - event - 1 & 0xFFFF) < fresh

    def want_interrupts(self, on: bool) -> None:
        """Without event_idx: at every used entry, or never (2.7.7)."""
        self.memory.write_u16(self.driver, 0 if on else 1)

    def interrupt_after(self, count: int) -> None:
        """With event_idx: when `count` more entries than were seen are used."""
        self.memory.write_u16(self.driver + 4 + 2 * self.size, self.seen + count - 1 & 0xFFFF)


class PackedDriverQueue:
    """A packed ring (2.8) of `size` entries at guest-physical `base`, which is aligned to 16."""

    packed = True

    def __init__(
        self, memory: GuestMemory, base: int, size: int, *, event_idx: bool = False,
        in_order: bool = False,
    ) -> None:  # fmt: skip
        self.memory, self.base, self.size = memory, base, size
        self.event_idx, self.in_order = event_idx, in_order
        self.desc = base
        self.driver = base + 16 * size
        self.device = self.driver + 4
        self.end = self.device + 4
        memory.fill(base, self.end - base)
        self.ids = deque(range(size))
        self.room = size
        self.chains: dict[int, int] = {}  # in flight, in their order: id to slots
        self.avail = self.seen = 0
        self.avail_wrap = self.used_wrap = True
        self._fresh = 0
        self._done: list[tuple[int, int]] = []

    def add(self, buffers: Buffers, indirect: int = 0) -> int:
        """As `DriverQueue.add`; gives the buffer id."""
        count = 1 if indirect else len(buffers)
        if self.room < count or not self.ids:
            self._poll()
        if self.room < count or not self.ids:
            raise RingFull(f"{count} descriptors wanted, {self.room} are free")
        name = self.ids.popleft()
        if indirect:
            for i, (address, length, writable) in enumerate(buffers):
                raw = DESCRIPTOR.pack(address, length, 0, WRITE if writable else 0)
                self.memory.write(indirect + 16 * i, raw)
            entries = [(indirect, 16 * len(buffers), INDIRECT)]
        else:
            entries = [
                (address, length, (WRITE if writable else 0) | (NEXT if i < count - 1 else 0))
                for i, (address, length, writable) in enumerate(buffers)
            ]
        self.chains[name] = count
        self.add_raw([(address, length, name, flags) for address, length, flags in entries])
        return name

    def add_raw(self, entries: list[tuple[int, int, int, int]]) -> None:
        """(address, length, id, flags) descriptors; the flags of the first are written last."""
        head: tuple[int, int] | None = None
        for address, length, name, flags in entries:
            flags |= AVAIL if self.avail_wrap else USED
            place = self.desc + 16 * self.avail
            if head is None:
                head = place + 14, flags
                self.memory.write(place, DESCRIPTOR.pack(address, length, name, 0)[:14])
            else:
                self.memory.write(place, DESCRIPTOR.pack(address, length, name, flags))
            self.avail += 1
            if self.avail == self.size:
                self.avail, self.avail_wrap = 0, not self.avail_wrap
        if head is not None:
            self.memory.write_u16(*head)
        self.room -= len(entries)
        self._fresh += len(entries)

    def _poll(self) -> None:
        while True:
            raw = self.memory.read(self.desc + 16 * self.seen, 16)
            _, length, name, flags = DESCRIPTOR.unpack(raw)
            if bool(flags & AVAIL) != self.used_wrap or bool(flags & USED) != self.used_wrap:
                return
            if name not in self.chains:
                return
            if self.in_order:
                assert name == next(iter(self.chains)), "used out of order"
            self._done.append((name, length if flags & WRITE else 0))
            count = self.chains.pop(name)
            self.ids.append(name)
            self.room += count
            self.seen += count
            if self.seen >= self.size:
                self.seen, self.used_wrap = self.seen - self.size, not self.used_wrap

    def used(self) -> list[tuple[int, int]]:
        """(id, bytes written) of the requests that came back since the last call."""
        self._poll()
        done, self._done = self._done, []
        if self.event_idx:
            self.interrupt_after(1)
        return done

    def needs_kick(self) -> bool:
        """Whether the device wants to hear of what was added since the last call (2.8.10)."""
        fresh, self._fresh = self._fresh, 0
        mode = self.memory.read_u16(self.device + 2) & 3
        if mode != DESC:
            return mode == ENABLE
        event = self.memory.read_u16(self.device)
        now = self.avail + (0 if self.avail_wrap else self.size)
        wanted = (event & 0x7FFF) + (0 if event >> 15 else self.size)
        return (now - 1 - wanted) % (2 * self.size) < fresh

    def want_interrupts(self, on: bool) -> None:
        """At every used descriptor, or never."""
        self.memory.write_u16(self.driver + 2, ENABLE if on else DISABLE)

    def interrupt_after(self, count: int) -> None:
        """With event_idx: when `count` more slots than were seen are used."""
        place = self.seen + count - 1 + (0 if self.used_wrap else self.size)
        place %= 2 * self.size
        event = place | 0x8000 if place < self.size else place - self.size
        self.memory.write_u16(self.driver, event)
        self.memory.write_u16(self.driver + 2, DESC)


AnyQueue = DriverQueue | PackedDriverQueue


def driver_queue(
    memory: GuestMemory, base: int, size: int, *, packed: bool = False, event_idx: bool = False,
    in_order: bool = False,
) -> AnyQueue:  # fmt: skip
    """A ring in the format that was negotiated."""
    kind = PackedDriverQueue if packed else DriverQueue
    return kind(memory, base, size, event_idx=event_idx, in_order=in_order)
