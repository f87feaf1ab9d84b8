"""Long lives of queues with a correct driver, in every format: nothing lost, nobody left asleep.

The device completes in any order, and now and then the queue is saved and goes on in the other
implementation.
"""

from __future__ import annotations

from random import Random

import pytest
from virtio_rings import AnyQueue, RingFull, driver_queue

from pykvm.devices.virtio.queue import Chain, VirtQueue, make_queue
from pykvm.memory import GuestMemory

RING, TABLES, DATA = 0x1000, 0x4000, 0x8000
MODES = [(event_idx, in_order) for event_idx in (False, True) for in_order in (False, True)]


class Life:
    """A driver and a device on one queue."""

    def __init__(self, size: int, packed: bool, event_idx: bool, in_order: bool) -> None:
        self.dice = Random(repr((size, packed, event_idx, in_order)))
        self.memory = GuestMemory.anonymous([(0, 0x1000), (0x1000, 0x1F000)])
        self.driver: AnyQueue = driver_queue(
            self.memory, RING, size, packed=packed, event_idx=event_idx, in_order=in_order
        )
        self.in_order = in_order
        self.native = True
        self.queue = self._queue()
        queue = self.queue
        queue.size, queue.packed, queue.event_idx = size, packed, event_idx
        queue.in_order, queue.indirect = in_order, True
        queue.desc, queue.driver, queue.device = (
            self.driver.desc, self.driver.driver, self.driver.device,
        )  # fmt: skip
        queue.check()
        queue.ready = True
        self.asked: dict[int, tuple[int, int]] = {}  # by the driver: lengths of the two parts
        self.busy: list[Chain] = []  # in the device
        self.asleep = True  # the device, until a kick
        self.waiting = False  # the driver, for the next used buffer
        self.finished = self.tables = 0

    def _queue(self) -> VirtQueue:
        queue = make_queue(1, 64, native=self.native)
        queue.memory = self.memory
        return queue

    def ask(self) -> None:
        """The driver adds a few requests, and kicks where the device wants it."""
        dice = self.dice
        self.collect()
        added = 0
        for _ in range(dice.randrange(4)):
            count = dice.randrange(1, 4)
            at = dice.randrange(count + 1)
            buffers = [
                (DATA + 64 * dice.randrange(512), dice.randrange(1, 64), i >= at)
                for i in range(count)
            ]
            buffers.sort(key=lambda buffer: buffer[2])
            self.tables = (self.tables + 1) % 128  # more than can be in flight
            table = TABLES + 64 * self.tables if dice.random() < 0.3 else 0
            try:
                name = self.driver.add(buffers, table)
            except RingFull:
                break
            added += 1
            lengths = tuple(sum(b[1] for b in buffers if b[2] is part) for part in (False, True))
            assert name not in self.asked
            self.asked[name] = (lengths[0], lengths[1])
        if not added:
            return
        if self.driver.needs_kick():
            self.asleep = False
        else:
            assert not self.asleep, "a device that waits for a kick got none"

    def take(self) -> None:
        """The device takes what is there; when there is no more it may go to sleep."""
        dice, queue = self.dice, self.queue
        limit = dice.choice((1, 2, 64))
        if limit == 1:
            chain = queue.pop()
            found = [] if chain is None else [chain]
        else:
            found = queue.pop_batch(limit)
        for chain in found:
            assert (chain.readable_bytes, chain.writable_bytes) == self.asked[chain.head]
        self.busy += found
        if dice.random() < 0.2:
            queue.want_kicks(False)
            self.asleep = False
        elif len(found) < limit and not queue.want_kicks(True):
            self.asleep = True

    def finish(self) -> None:
        """The device completes some of what it has."""
        dice, queue = self.dice, self.queue
        dice.shuffle(self.busy)
        count = dice.randrange(len(self.busy) + 1)
        done = [(chain, chain.head + 1) for chain in self.busy[:count]]
        del self.busy[:count]
        before = queue.next_used, queue.used_wrap
        if dice.getrandbits(1):
            queue.push_batch(done)
        else:
            for chain, written in done:
                queue.push(chain, written)
        told = queue.should_notify()
        if (queue.next_used, queue.used_wrap) != before and self.waiting:
            assert told, "a driver that waits for an interrupt got none"
            self.waiting = not self.driver.event_idx  # that one asked for a single one
        assert not queue.should_notify(), "nothing was used since"

    def collect(self) -> None:
        """The driver looks at what came back."""
        for name, written in self.driver.used():
            assert written == name + 1
            del self.asked[name]
            self.finished += 1
        self.waiting = True
        if not self.driver.event_idx:
            self.waiting = bool(self.dice.getrandbits(1))
            self.driver.want_interrupts(self.waiting)

    def move(self) -> None:
        """Save, and go on in the other implementation."""
        state = self.queue.state()
        self.native = not self.native
        self.queue = self._queue()
        self.queue.restore(state)
        assert self.queue.state() == state

    def run(self, rounds: int) -> None:
        for turn in range(rounds):
            self.ask()
            self.take()
            self.finish()
            if self.dice.getrandbits(1):
                self.collect()
            if turn % 20 == 19:
                while self.asked:
                    self.take()
                    while self.busy:
                        self.finish()
                    self.collect()
                assert not self.queue.pop_batch()
                self.move()


@pytest.mark.parametrize(("event_idx", "in_order"), MODES)
@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_split(size: int, event_idx: bool, in_order: bool) -> None:
    life = Life(size, False, event_idx, in_order)
    life.run(600)
    assert life.finished > 150


@pytest.mark.parametrize(("event_idx", "in_order"), MODES)
@pytest.mark.parametrize("size", [1, 3, 7, 8, 64])
def test_packed(size: int, event_idx: bool, in_order: bool) -> None:
    life = Life(size, True, event_idx, in_order)
    life.run(600)
    assert life.finished > 150


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_a_reset_queue_starts_from_nothing(native: bool, packed: bool) -> None:
    memory = GuestMemory.anonymous([(0, 0x20000)])
    queue = make_queue(0, 8, native=native)
    queue.memory = memory
    for _ in range(3):
        driver = driver_queue(memory, RING, 8, packed=packed, in_order=True)
        queue.packed, queue.in_order, queue.size = packed, True, 8
        queue.desc, queue.driver, queue.device = driver.desc, driver.driver, driver.device
        queue.check()
        queue.ready = True
        driver.add([(DATA, 8, False)])
        name = driver.add([(DATA, 8, False)])
        first, second = queue.pop_batch()
        queue.push(second, 0)
        assert driver.used() == [], "it waits for the first"
        queue.push(first, 0)
        assert driver.used()[-1] == (name, 0)
        driver.add([(DATA, 8, False)])
        assert queue.pop() is not None
        queue.reset()
        assert not queue.ready
        assert queue.pop() is None
        assert not queue.packed
        assert queue.state() == make_queue(0, 8, native=native).state()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_a_driver_that_was_told_nothing_for_many_laps_is_told(native: bool, packed: bool) -> None:
    memory = GuestMemory.anonymous([(0, 0x20000)])
    queue = make_queue(0, 8, native=native)
    queue.memory = memory
    driver = driver_queue(memory, RING, 2, packed=packed, event_idx=True)
    queue.packed, queue.size, queue.event_idx = packed, 2, True
    queue.desc, queue.driver, queue.device = driver.desc, driver.driver, driver.device
    queue.ready = True
    driver.interrupt_after(1)
    for _ in range(4 if packed else 1 << 16):
        driver.add([(DATA, 8, False)])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
    assert queue.should_notify()
