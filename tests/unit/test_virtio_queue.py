"""The split virtqueue, device side: what a correct driver does, and what breaks the rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from virtio_driver import INDIRECT, NEXT, WRITE, DriverQueue

from pykvm.devices.virtio.queue import QueueError, VirtQueue, make_queue
from pykvm.memory import GuestMemory

BASE = 0x1000
DATA = 0x8000


Pair = Callable[..., tuple[DriverQueue, VirtQueue]]


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory.anonymous([(0, 1 << 16), (1 << 16, 1 << 16)])
    memory.write(DATA, bytes(range(256)) * 16)
    return memory


@pytest.fixture(params=[True, False], ids=["native", "reference"])
def new(request: pytest.FixtureRequest) -> Callable[[], VirtQueue]:
    """Makes a queue; each test runs with both implementations."""
    return lambda: make_queue(0, 64, native=request.param)


@pytest.fixture
def pair(new: Callable[[], VirtQueue]) -> Pair:
    """Makes the driver's and the device's side of one queue."""

    def make(
        memory: GuestMemory, size: int = 8, *, event_idx: bool = False, indirect: bool = True
    ) -> tuple[DriverQueue, VirtQueue]:
        driver = DriverQueue(memory, BASE, size)
        queue = new()
        queue.memory = memory
        queue.size = size
        queue.desc, queue.driver, queue.device = driver.desc, driver.driver, driver.device
        queue.check()
        queue.event_idx, queue.indirect = event_idx, indirect
        queue.ready = True
        return driver, queue

    return make


def test_a_chain_there_and_back(memory: GuestMemory, pair: Pair) -> None:
    driver, queue = pair(memory)
    assert queue.pop() is None
    head = driver.add([(DATA, 4, False), (DATA + 16, 2, False), (DATA + 64, 8, True)])
    chain = queue.pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [b"\x00\x01\x02\x03", b"\x10\x11"]
    assert (chain.readable_bytes, chain.writable_bytes) == (6, 8)
    chain.writable[0][:3] = b"abc"
    assert queue.pop() is None
    queue.push(chain, 3)
    assert driver.used() == [(head, 3)]
    assert memory.read(DATA + 64, 4) == b"abc\x43"


def test_many_rounds_wrap_the_indices(memory: GuestMemory, pair: Pair) -> None:
    driver, queue = pair(memory, 4)
    driver.avail = driver.seen = queue.next_avail = queue.next_used = 0xFFF0
    memory.write_u16(driver.driver + 2, 0xFFF0)
    memory.write_u16(driver.device + 2, 0xFFF0)
    for turn in range(64):
        heads = [driver.add([(DATA, 1, False)]) for _ in range(turn % 4 + 1)]
        for _ in heads:
            chain = queue.pop()
            assert chain is not None
            queue.push(chain, turn)
        assert driver.used() == [(head, turn) for head in heads]


def test_indirect_tables(memory: GuestMemory, pair: Pair) -> None:
    driver, queue = pair(memory)
    buffers = [(DATA + 16 * n, 16, n >= 20) for n in range(30)]  # more than the ring has entries
    driver.add(buffers, indirect=0x4000)
    chain = queue.pop()
    assert chain is not None
    assert len(chain.readable) == 20
    assert len(chain.writable) == 10


def test_a_buffer_over_two_regions(memory: GuestMemory, pair: Pair) -> None:
    driver, queue = pair(memory)
    memory.write((1 << 16) - 2, b"wxyz")
    driver.add([((1 << 16) - 2, 4, False)])
    chain = queue.pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [b"wx", b"yz"]


def test_notifications_by_flag(memory: GuestMemory, pair: Pair) -> None:
    driver, queue = pair(memory)
    assert not queue.should_notify(), "nothing was pushed"
    for flags, wanted in ((0, True), (1, False), (0, True)):
        memory.write_u16(driver.driver, flags)
        driver.add([(DATA, 1, False)])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        assert queue.should_notify() is wanted
        assert not queue.should_notify()


def test_notifications_by_event_index(memory: GuestMemory, pair: Pair) -> None:
    driver, queue = pair(memory, event_idx=True)
    event = driver.driver + 4 + 2 * driver.size

    def serve(count: int) -> None:
        for _ in range(count):
            driver.add([(DATA, 1, False)])
        for _ in range(count):
            chain = queue.pop()
            assert chain is not None
            queue.push(chain, 0)

    serve(1)
    assert queue.should_notify()
    memory.write_u16(event, 3)  # tell me when the fourth is used
    serve(2)
    assert not queue.should_notify()
    serve(1)
    assert queue.should_notify()
    serve(4)
    assert not queue.should_notify()
    memory.write_u16(event, 9)
    serve(3)
    assert queue.should_notify()
    assert queue.pop() is None
    # The device asks for a kick at the very next request.
    assert memory.read_u16(driver.device + 4 + 8 * driver.size) == driver.avail


BROKEN = {
    "a loop": "loops",
    "next out of range": "leads to 8 of 8",
    "head out of range": "entry 8 of a table",
    "too many available": "9 entries are available",
    "outside memory": "not all memory",
    "wrapping address": "leave the address space",
    "no bytes": "no bytes",
    "readable after writable": "readable buffer after a writable",
    "indirect not negotiated": "not negotiated",
    "indirect with next": "has a next one",
    "indirect in indirect": "within another",
    "indirect of odd length": "table of 24 bytes",
    "indirect of no length": "table of 0 bytes",
    "indirect outside memory": "not all memory",
    "indirect leads away": "leads to 2 of 2",
    "indirect loops": "loops",
    "more than 4 GiB": "4 GiB",
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_rules(memory: GuestMemory, pair: Pair, what: str) -> None:
    driver, queue = pair(memory, indirect=what != "indirect not negotiated")
    put, table = driver.write_descriptor, 0x4000
    head = 0
    put(0, DATA, 4, 0)
    if what == "a loop":
        put(0, DATA, 4, NEXT, 1)
        put(1, DATA, 4, NEXT, 0)
    elif what == "next out of range":
        put(0, DATA, 4, NEXT, 8)
    elif what == "head out of range":
        head = 8
    elif what == "outside memory":
        put(0, (1 << 17) - 2, 4, 0)
    elif what == "wrapping address":
        put(0, (1 << 64) - 2, 4, WRITE)
    elif what == "no bytes":
        put(0, DATA, 0, 0)
    elif what == "readable after writable":
        put(0, DATA, 4, NEXT | WRITE, 1)
        put(1, DATA, 4, 0)
    elif what.startswith("indirect"):
        length = {"indirect of odd length": 24, "indirect of no length": 0}.get(what, 32)
        place = 1 << 20 if what == "indirect outside memory" else table
        put(0, place, length, INDIRECT | (NEXT if what == "indirect with next" else 0))
        inner = DriverQueue(memory, table, 8)
        following = 2 if what == "indirect leads away" else 0
        flags = INDIRECT if what == "indirect in indirect" else NEXT
        inner.write_descriptor(0, DATA, 4, flags, following)
    elif what == "more than 4 GiB":
        queue.desc  # noqa: B018 - the buffers below are one and the same, a GiB each
        big = GuestMemory.anonymous([(0, 1 << 30)])
        driver, queue = pair(big)
        for n in range(5):
            driver.write_descriptor(n, 0, 1 << 30, NEXT if n < 4 else 0, n + 1)
    driver.make_available(head)
    if what == "too many available":
        queue.memory.write_u16(driver.driver + 2, 9)  # type: ignore[union-attr]
    with pytest.raises(QueueError, match=BROKEN[what]):
        queue.pop()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", 3, "3 entries"), ("size", 0, "0 entries"), ("size", 128, "128 entries"),
        ("desc", 0x1008, "not aligned"), ("driver", 0x1001, "not aligned"),
        ("device", 0x1002, "not aligned"), ("desc", 0x1FFF0, "not in memory"),
        ("device", (1 << 64) - 4, "not in memory"),
    ],
)  # fmt: skip
def test_rings_that_cannot_be(
    memory: GuestMemory, pair: Pair, field: str, value: int, message: str
) -> None:
    _, queue = pair(memory)
    setattr(queue, field, value)
    with pytest.raises(QueueError, match=message):
        queue.check()


def test_rings_that_vanish_are_an_error_not_a_crash(memory: GuestMemory, pair: Pair) -> None:
    driver, queue = pair(memory, event_idx=True)
    driver.add([(DATA, 1, False)])
    chain = queue.pop()
    assert chain is not None
    for region in memory.regions:
        memory.remove(region)
    for attempt in (queue.pop, lambda: queue.push(chain, 0)):
        with pytest.raises(QueueError):
            attempt()


def test_state(memory: GuestMemory, pair: Pair, new: Callable[[], VirtQueue]) -> None:
    driver, queue = pair(memory, event_idx=True)
    driver.add([(DATA, 1, False)])
    driver.add([(DATA + 1, 1, False)])
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)
    copy = new()
    copy.memory = memory
    copy.restore(queue.state())
    assert copy.state() == queue.state()
    assert copy.should_notify()
    second = copy.pop()
    assert second is not None
    assert bytes(second.readable[0]) == b"\x01"
