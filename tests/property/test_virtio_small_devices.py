"""The smaller virtio devices: saved states as one contract for all, and hostile drivers.

A driver may put anything into its queues: no exception leaves a device, nothing outside of guest
memory and of the buffers that the device may write is changed, and after a reset it works again.
"""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Callable, Iterator

import pytest
from device_contract import Bench, Case, Step, differ, perform, steps_for
from hostile_chains import DATA, EXTRA, scramble
from hypothesis import given, settings
from virtio_driver import NEXT, WRITE, DriverQueue
from virtio_makers import BLOCK, MAKERS
from virtio_small import RAM, Driver

from pykvm.devices import ManualClock
from pykvm.devices.virtio import VirtioMmio
from pykvm.devices.virtio.mem import VirtioMem
from pykvm.memory import GuestMemory, MemoryRegion

# -- saved states --------------------------------------------------------------------------------

# What the first requests say to each device, and how much room they have for the answer.
REQUESTS: dict[str, list[tuple[bytes, int]]] = {
    "rng": [(b"", 64)],
    "mem": [(struct.pack("<H6xQH6x", 0, EXTRA, 2), 16), (struct.pack("<H6xQH6x", 3, EXTRA, 4), 16)],
    "pmem": [(bytes(4), 4)],
    "keyboard": [(b"", 8)],
    "mouse": [(b"", 8)],
    "tablet": [(b"", 8)],
    "gpu": [
        (struct.pack("<IIQII4I", 0x101, 1, 5, 0, 0, 1, 2, 8, 4), 64),
        (struct.pack("<IIQII6I", 0x103, 0, 0, 0, 0, 0, 0, 8, 4, 0, 1), 64),
    ],
}
STRIDE = 0x400  # rings of four entries


def requests(kind: str, index: int) -> list[tuple[bytes, int]]:
    """Those of one queue."""
    if kind == "balloon":
        return [
            [(struct.pack("<2I", 14, 13), 0)], [(struct.pack("<I", 14), 0)],
            [(struct.pack("<HQ", 4, 9), 0)], [(struct.pack("<I", 2), 0), (b"", 64)], [(b"", 64)],
        ][index]  # fmt: skip
    if kind == "console":
        if index == 3:  # DEVICE_READY, PORT_READY
            return [(struct.pack("<IHH", 0, 0, 1), 0), (struct.pack("<IHH", 1, 3, 1), 0)]
        return [(b"output", 0)] if index & 1 else [(b"", 64), (b"", 64)]
    return REQUESTS[kind]


def rings(kind: str, queues: int) -> GuestMemory:
    """Memory with a ring for each queue, and the device's requests in all of them."""
    memory = GuestMemory.anonymous([(0, 0x10000)])
    for index in range(queues):
        queue = DriverQueue(memory, STRIDE * index, 4)
        at = 0x8000 + 0x400 * index
        for number, (out, room) in enumerate(requests(kind, index)):
            place = at + 256 * number
            memory.write(place, out)
            if out:
                following = NEXT if room else 0
                queue.write_descriptor(2 * number, place, len(out), following, 2 * number + 1)
            if room:
                own = 2 * number + (1 if out else 0)
                queue.write_descriptor(own, place + 128, room, WRITE)
            queue.make_available(2 * number)
    return memory


def words(*pairs: tuple[int, int]) -> list[Step]:
    return [("write", offset // 4, value) for offset, value in pairs]


def case_of(kind: str) -> Case:
    queues = len(MAKERS[kind](ManualClock()).queues)

    def make(bench: Bench) -> VirtioMmio:
        return VirtioMmio(MAKERS[kind](bench.clock), rings(kind, queues), bench.irq)

    start = words((0x70, 3), (0x20, 0xFFFF_FFFF & offered(kind)), (0x24, 1), (0x20, 1))
    start += words((0x70, 0x0B))
    for index in range(queues):
        base = STRIDE * index
        start += words(
            (0x30, index), (0x38, 4), (0x80, base), (0x90, base + 64), (0xA0, base + 80), (0x44, 1),
        )  # fmt: skip
    start += words((0x70, 0x0F))
    kicked = [*start, *words(*((0x50, index) for index in range(queues)))]
    return Case(
        make,
        0x140 // 4,
        {"event": EVENTS.get(kind, lambda outer, value: None)},
        lambda outer: outer.device.state(),
        width=4,
        starts=[[], start, kicked, [*kicked, ("event", 0, 1)]],
    )


def offered(kind: str) -> int:
    """The features of the device itself, without those of the rings."""
    return MAKERS[kind](ManualClock()).features & 0xFFFF


EVENTS: dict[str, Callable[[VirtioMmio, int], object]] = {
    "balloon": lambda outer, value: (
        outer.device.hint_free_pages()  # type: ignore[attr-defined]
        if value & 1
        else setattr(outer.device, "target", (value & 7) * 4096)
    ),
    "console": lambda outer, value: outer.device.resize(1 + value, 2),  # type: ignore[attr-defined]
    "mem": lambda outer, value: setattr(outer.device, "requested", (value & 7) * BLOCK),
    "keyboard": lambda outer, value: outer.device.tap("shift-a"),  # type: ignore[attr-defined]
    "mouse": lambda outer, value: outer.device.move_mouse(value, 1),  # type: ignore[attr-defined]
    "tablet": lambda outer, value: outer.device.point(value, 1),  # type: ignore[attr-defined]
    "gpu": lambda outer, value: outer.device.resize(1 + value, 2),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_copy_behaves_as_the_original(kind: str) -> None:
    case = case_of(kind)

    @settings(max_examples=40, deadline=None)
    @given(before=steps_for(case, case.starts), after=steps_for(case, [[]]))
    def check(before: list[Step], after: list[Step]) -> None:
        assert differ(case, before, after) is None

    check()


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_reset_is_power_on(kind: str) -> None:
    case = case_of(kind)

    @settings(max_examples=20, deadline=None)
    @given(steps=steps_for(case, case.starts))
    def check(steps: list[Step]) -> None:
        bench = Bench(ManualClock())
        used = case.make(bench)
        perform(case, bench, used, [step for step in steps if step[0] != "event"])
        used.reset()
        assert not bench.irq.level
        assert used.save() == case.make(Bench(bench.clock)).save()

    check()


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_the_requests_of_the_cases_do_something(kind: str) -> None:
    """Else the tests above would compare devices that never did any work."""
    case = case_of(kind)
    bench = Bench(ManualClock())
    device = case.make(bench)
    assert isinstance(device, VirtioMmio)
    idle = device.device.state()
    perform(case, bench, device, [*case.starts[3], ("wait", 0, 255)])
    state = device.device.state()
    assert {key for key in state if state[key] != idle[key]} >= {"virtio_status", "virtio_queues"}
    assert state["virtio_status"] == 0x0F, device.device.broken
    progress = [queue.state()[4] for queue in device.device.queues]
    assert any(progress)


# -- hostile drivers -----------------------------------------------------------------------------

KINDS = [0, 1, 2, 3, 4, 5, 6, 7, 8, *range(0x100, 0x10C), 0x300, 0x301, 0xFFFF]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def blob(dice: random.Random) -> bytes:
    """Something that may be a request of one of the devices."""
    shape = dice.randrange(6)
    small = [0, 1, 2, 3, 4, 16, 64, dice.getrandbits(32), 0xFFFF_FFFF]
    if shape == 0:  # a GPU command
        words = [dice.choice(small) for _ in range(8)]
        return struct.pack("<IIQII8I", dice.choice(KINDS), 1, 7, 0, 0, *words)
    if shape == 1:  # of a memory device
        address = EXTRA + dice.choice([0, BLOCK, 5, -BLOCK, 15 * BLOCK, 1 << 40])
        return struct.pack(
            "<H6xQH6x", dice.choice(KINDS) & 0xFFFF, address, dice.choice([0, 1, 16])
        )
    if shape == 2:  # a console's control message
        return struct.pack("<IHH", dice.choice(small), dice.choice(KINDS), dice.randrange(3))
    if shape == 3:  # page numbers
        return struct.pack("<8I", *[dice.choice([DATA >> 12, 200, 0xFFFF_FFFF]) for _ in range(8)])
    if shape == 4:  # statistics
        return struct.pack("<HQHQ", dice.randrange(12), dice.getrandbits(64), 3, 4)
    return dice.randbytes(8)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_hostile_drivers(kind: str) -> None:
    dice = random.Random(kind)
    clock = ManualClock()
    device = MAKERS[kind](clock)
    regions = [MemoryRegion(0, RAM)]
    if isinstance(device, VirtioMem):
        regions.append(device.region)
    guards = [MemoryRegion(RAM + 4096, 4096), MemoryRegion(EXTRA - 4096, 4096)]
    for guard in guards:
        guard.fill(0, 4096, 0xA5)
    memory = GuestMemory(regions)
    driver = Driver(device, memory=memory)
    rings = [(queue.device, queue.end) for queue in driver.queues.values()]
    discards = kind in ("balloon", "mem")
    worked = broken = 0
    event = EVENTS.get(kind)
    for _ in range(200):
        writable = scramble(driver, dice, blob)
        before = memory.read(0, RAM)
        for index in driver.queues:
            driver.transport.kick(index)
        if event is not None and dice.random() < 0.3:
            event(driver.outer, dice.randrange(256))
        if dice.random() < 0.3:
            offset, value = dice.randrange(64), dice.getrandbits(32)
            driver.board.mmio.write(0xFEB0_0100 + (offset & ~3), 4, value)
            driver.board.mmio.read(0xFEB0_0100 + (offset & ~3), 4)
        clock.advance(20_000_000)
        after = memory.read(0, RAM)
        worked += any(queue.state()[4] for queue in device.queues)
        if not discards and after != before:
            old, new = bytearray(before), bytearray(after)
            for start, end in [*rings, *((a, a + n) for a, n in writable if a < RAM)]:
                end = min(end, RAM)
                old[start:end] = new[start:end] = bytes(end - start)
            assert old == new
        if driver.broken:
            broken += 1
            driver.go()
        driver.interrupts()
    assert worked > 100
    assert broken > 10
    for guard in guards:
        assert bytes(guard.view) == b"\xa5" * 4096
    driver.go()
    driver.outer.close()
