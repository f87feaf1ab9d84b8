"""Rings and tables that change while they are read: `QueueError` at most, nothing outside memory.

For the native queue a thread changes them while C walks them (the GIL is released there); for the
reference, every read of memory changes something.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from random import Random

import pytest
from generated_rings import REGIONS
from guarded_memory import guarded_memory
from virtio_rings import AVAIL, DESCRIPTOR, INDIRECT, NEXT, USED, WRITE

from pykvm._native import ffi
from pykvm.datapath.queue import NativeQueue
from pykvm.devices.virtio.queue import Chain, QueueError, ReferenceQueue, VirtQueue
from pykvm.memory import GuestMemory

SIZE = 16
DESC, DRIVER, DEVICE, TABLE = 0x1000, 0x1200, 0x1400, 0x4000 - 0x200  # the table crosses regions
ENTRIES = 512
QUIET = 0x10000  # a region that no ring is in and no buffer names
REQUESTS, BROKEN = 10_000, 1000  # so many of each are waited for
ROUNDS = 200_000  # at most
MODES = [(packed, order) for packed in (False, True) for order in (False, True)]


def words(queue: VirtQueue) -> list[int]:
    """A fresh state: everything negotiated."""
    flags = 1 | 2 | 4 | 8 * queue.packed | 16 * queue.in_order
    place = 0x8000 if queue.packed else 0
    return [SIZE, DESC, DRIVER, DEVICE, place, place, place, flags]


class Changer:
    """Writes what is nearly right, all over the rings and the table."""

    def __init__(self, queue: VirtQueue, memory: GuestMemory, seed: int) -> None:
        self.queue, self.memory, self.dice = queue, memory, Random(seed)
        self.entries = [self._descriptor() for _ in range(997)]

    def _descriptor(self) -> bytes:
        dice = self.dice
        flags = dice.choice((NEXT, NEXT, NEXT | WRITE, WRITE, 0, INDIRECT, 0x8080))
        if flags & INDIRECT:
            address, length = TABLE, 16 * dice.choice((1, 7, ENTRIES, ENTRIES, ENTRIES + 1))
        elif dice.random() < 0.04:
            address, length = dice.choice((0x8000, 1 << 63, 0x7FFF)), dice.choice((0, 2, 1 << 31))
        else:
            address, length = dice.randrange(0x2000, 0x7000), dice.randrange(1, 0x1000)
        last = dice.randrange(SIZE) if dice.random() < 0.5 else dice.randrange(ENTRIES)
        if self.queue.packed:
            mark = dice.choice((AVAIL, USED, AVAIL))
            return DESCRIPTOR.pack(address, length, dice.randrange(SIZE), flags | mark)
        return DESCRIPTOR.pack(address, length, flags, last)

    def change(self) -> None:
        dice, memory = self.dice, self.memory
        bits = dice.getrandbits(24)
        entry = self.entries[bits % 997]
        if bits & 3:
            memory.write(TABLE + 16 * (bits >> 8 & ENTRIES - 1), entry)
        else:
            memory.write(DESC + 16 * (bits >> 8 & SIZE - 1), entry)
        if not bits & 12:
            self.offer()
        elif not self.queue.packed and bits & 12 == 4:
            memory.write_u16(DRIVER + 4 + 2 * (bits >> 8 & SIZE - 1), bits >> 16 & SIZE - 1)

    def offer(self) -> None:
        """Makes something available."""
        queue, memory, dice = self.queue, self.memory, self.dice
        if queue.packed:
            place = DESC + 16 * (queue.next_avail % SIZE) + 14
            mark = AVAIL if queue.avail_wrap else USED
            memory.write_u16(place, dice.choice((0, 0, NEXT, INDIRECT)) | mark)
        else:
            memory.write_u16(DRIVER + 2, queue.next_avail + dice.randrange(8) & 0xFFFF)

    def fill(self) -> None:
        for at in range(ENTRIES):
            self.memory.write(TABLE + 16 * at, self.entries[at])
        for _ in range(200):
            self.change()


def check(chain: Chain, memory: GuestMemory) -> None:
    """Every buffer is memory, and there are not too many."""
    views = chain.readable + chain.writable
    assert 1 <= len(views) <= 1024
    assert chain.readable_bytes + chain.writable_bytes <= 1 << 32
    for view in views:
        first = memory.address_of(view)
        assert first is not None
        assert memory.contains(first, len(view))


def serve(queue: VirtQueue, memory: GuestMemory) -> tuple[int, bool]:
    """One round of a device; requests, and whether a rule was broken."""
    chains: list[Chain] = []
    try:
        chains = queue.pop_batch(8)
        for chain in chains[:2]:
            check(chain, memory)
        queue.push_batch([(chain, 1) for chain in chains])
        queue.should_notify()
        queue.want_kicks(bool(len(chains) & 1))
    except QueueError as error:
        if not str(error).startswith("queue 0: "):
            raise
        queue.restore(words(queue))
        return len(chains), True
    return len(chains), False


@pytest.fixture
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switch_often")
@pytest.mark.parametrize(("packed", "in_order"), MODES)
def test_a_thread_changes_what_c_reads(packed: bool, in_order: bool) -> None:
    memory = guarded_memory(REGIONS)
    memory.fill(QUIET, 0x1000, 0xA5)
    queue = NativeQueue(0, 64)
    queue.memory = memory
    queue.packed, queue.in_order = packed, in_order
    queue.restore(words(queue))
    changer = Changer(queue, memory, 1)
    changer.fill()
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            changer.change()

    thread = threading.Thread(target=change)
    thread.start()
    requests = broken = 0
    try:
        for _ in range(ROUNDS):
            changer.offer()
            count, bad = serve(queue, memory)
            requests += count
            broken += bad
            if requests > REQUESTS and broken > BROKEN:
                break
            bases = {r.host_address: r.size for r in memory.regions}
            for n in range(0, 64, 7):  # what engines get: host addresses in the regions
                host = int(ffi.cast("uintptr_t", queue._iov[n].iov_base))
                length = queue._iov[n].iov_len
                assert not host or any(
                    base <= host and host + length <= base + size for base, size in bases.items()
                )
    finally:
        stop.set()
        thread.join()
    assert requests > REQUESTS
    assert broken > BROKEN
    assert memory.read(QUIET, 0x1000) == b"\xa5" * 0x1000


class Shifting(GuestMemory):
    """Memory that is different after every read."""

    __slots__ = ("changer",)

    def __init__(self) -> None:
        super().__init__()
        self.changer: Changer | None = None

    def read(self, gpa: int, length: int) -> bytes:
        found = super().read(gpa, length)
        self._shift()
        return found

    def read_u16(self, gpa: int) -> int:
        found = GuestMemory.read_u16(self, gpa)
        self._shift()
        return found

    def _shift(self) -> None:
        changer, self.changer = self.changer, None
        if changer is not None:
            changer.change()
        self.changer = changer


@pytest.mark.parametrize(("packed", "in_order"), MODES)
def test_every_read_of_the_reference_changes_something(packed: bool, in_order: bool) -> None:
    memory = Shifting()
    for region in (real := guarded_memory(REGIONS)).regions:
        memory.add(region)
    memory.fill(QUIET, 0x1000, 0xA5)
    queue = ReferenceQueue(0, 64)
    queue.memory = memory
    queue.packed, queue.in_order = packed, in_order
    queue.restore(words(queue))
    memory.changer = Changer(queue, memory, 2)
    memory.changer.fill()
    requests = broken = 0
    for _ in range(ROUNDS):
        memory.changer.offer()
        count, bad = serve(queue, memory)
        requests += count
        broken += bad
        if requests > REQUESTS and broken > BROKEN:
            break
    assert requests > REQUESTS
    assert broken > BROKEN
    assert real.read(QUIET, 0x1000) == b"\xa5" * 0x1000
