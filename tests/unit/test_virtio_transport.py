"""What virtio devices and transports do together: I/O threads, standing still, resets, eventfds."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from virtio_driver import DONE, NEEDS_RESET, VERSION_1
from virtio_parts import MMIO_BASE, Driver, Echo, Place, echo, places, written

from pykvm.devices.virtio.queue import VirtQueue

RING_RESET = 1 << 40
Make = Callable[..., Place]


@pytest.fixture(params=["mmio", "pci"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from places(request.param)


# -- who does the work -----------------------------------------------------------------------------


def test_without_an_io_thread_the_kick_does_the_work(make: Make) -> None:
    place = make()
    driver = Driver(place)
    driver.request()
    assert driver.back() == 1
    assert echo(place).threads == {threading.current_thread().name}


def test_the_io_thread_does_the_work(make: Make) -> None:
    place = make(io=True)
    driver = Driver(place)
    for index in (0, 1, 1):
        driver.request(index)
    place.wait()
    assert (driver.back(0), driver.back(1)) == (1, 2)
    assert echo(place).threads == {"test-io"}
    assert place.irq.level


def test_a_doorbell_that_rings(make: Make) -> None:
    place = make(io=True, direct=True)
    assert place.doorbells is not None
    there = place.doorbells.there
    driver = Driver(place)
    assert [bell[0] for bell in there] == [place.outer.kick_fd(0), place.outer.kick_fd(1)]
    if place.kind == "mmio":
        assert [bell[1:] for bell in there] == [("mmio", MMIO_BASE + 0x50, 4, n) for n in (0, 1)]
    driver.request(1, kick=False)
    os.eventfd_write(there[1][0], 1)
    place.wait()
    assert driver.back(1) == 1
    driver.transport.set_status(0)
    assert there == []


def test_queues_that_an_engine_polls_are_left_to_it(make: Make) -> None:
    device = Echo()
    device.native_queues = frozenset({1})
    place = make(device, io=True, direct=True)
    driver = Driver(place)
    fd = device.kick_fd(1)
    driver.request(0)
    driver.request(1)
    place.wait()
    assert (driver.back(0), driver.back(1)) == (1, 0)
    assert written(fd) == 1
    assert fd == device.kick_fd(1), "for the device's life"
    assert place.doorbells is not None
    assert len(place.doorbells.there) == 2
    driver.transport.set_status(0)
    Driver(place)
    assert device.kick_fd(1) == fd


def test_what_goes_wrong_on_the_io_thread_breaks_that_device_alone(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    place = make(io=True)
    other = Place("mmio", Echo())
    other.device.io = place.io
    driver, sane = Driver(place), Driver(other)
    echo(place).before = lambda queue: [][0]
    driver.request()
    place.wait()
    assert driver.transport.status() == DONE | NEEDS_RESET
    driver.request()
    place.wait()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "echo needs a reset: IndexError in its own code: list index out of range"
    ]
    sane.request()
    place.wait()
    assert sane.back() == 1
    echo(place).before = lambda queue: None
    again = Driver(place)
    again.request()
    place.wait()
    assert again.back() == 1
    other.outer.close()


# -- standing still --------------------------------------------------------------------------------


def test_kicks_while_frozen_are_heard_afterwards(make: Make) -> None:
    for io in (False, True):
        place = make(io=io)
        driver = Driver(place)
        place.device.freeze()
        place.device.freeze()
        driver.request()
        place.wait()
        place.device.thaw()
        place.wait()
        assert driver.back() == 0
        place.device.thaw()
        place.wait()
        assert driver.back() == 1
        log = echo(place).take_log()
        assert log[-3:] == ["quiesce", "unquiesce", "request 0"]


def test_a_driver_that_never_ends_cannot_delay_a_freeze_or_a_reset(make: Make) -> None:
    place = make(io=True)
    driver = Driver(place)

    begun = threading.Event()

    def more(queue: VirtQueue) -> None:
        driver.request(0, kick=False)  # another one for each that is handled
        begun.set()

    echo(place).before = more
    driver.request()
    assert begun.wait(20)
    for _ in range(20):
        place.device.freeze()
        place.device.thaw()
    saved = place.outer.save()
    driver.transport.set_status(0)
    assert driver.transport.status() == 0
    handled = echo(place).log.count("request 0")
    assert handled > 0
    queues = saved["virtio_queues"]
    assert isinstance(queues, list)
    assert queues[4] == queues[5], "each request that was begun was finished"
    place.wait()
    assert echo(place).log.count("request 0") == handled


def test_a_reset_waits_for_the_request_in_flight(make: Make) -> None:
    place = make(io=True)
    driver = Driver(place)
    inside, go = threading.Event(), threading.Event()
    echo(place).before = lambda queue: (inside.set(), go.wait(20))
    driver.request()
    assert inside.wait(20)
    resetting = threading.Thread(target=driver.transport.set_status, args=(0,))
    resetting.start()
    resetting.join(0.02)
    assert resetting.is_alive()
    go.set()
    resetting.join(20)
    assert not resetting.is_alive()
    log = echo(place).take_log()
    assert log[log.index("activated") + 1 :] == ["request 0", "quiesce", "reset", "unquiesce"]


def test_saved_in_flight_nothing_is_lost_or_done_twice(make: Make) -> None:
    place = make(io=True)
    driver = Driver(place)
    inside, go = threading.Event(), threading.Event()
    echo(place).before = lambda queue: (inside.set(), go.wait(20))
    for index in (0, 0, 0, 0, 0, 1):
        driver.request(index, kick=False)
        place.outer.kick(index)
    assert inside.wait(20)
    threading.Timer(0.02, go.set).start()
    place.device.freeze()  # as a pause of the machine does
    saved = json.loads(json.dumps(place.outer.save()))
    done = [driver.back(0), driver.back(1)]
    copy = make(Echo(), io=True)
    copy.memory.write(0, place.memory.read(0, 1 << 20))
    copy.outer.load(saved)
    copy.wait()
    copy.wait()
    for index, count in enumerate((5, 1)):
        queue = driver.queues[index]
        queue.memory = copy.memory
        assert done[index] + len(queue.used()) == count
        assert echo(copy).log.count(f"request {index}") == count - done[index]
    assert echo(copy).log.count("activated") == 1
    place.device.thaw()
    place.wait()


def test_loading_twice_starts_the_device_anew(make: Make) -> None:
    place = make()
    Driver(place)
    saved = place.outer.save()
    place.outer.reset()
    idle = place.outer.save()
    echo(place).take_log()
    place.outer.load(saved)
    assert echo(place).take_log() == ["quiesce", "reset", "activated", "unquiesce"]
    assert place.outer.save() == saved
    echo(place).take_log()
    place.outer.load(idle)
    assert echo(place).take_log() == ["quiesce", "reset", "unquiesce"]


# -- one queue -------------------------------------------------------------------------------------


def reset_queue(place: Place, driver: Driver, index: int) -> int:
    """Writes the register; what it reads afterwards."""
    transport: Any = driver.transport
    if place.kind == "mmio":
        transport.put(0x30, index)
        transport.put(0xC0, 1)
        return int(transport.get(0xC0))
    transport.put(0x16, 2, index)
    transport.put(0x3A, 2, 1)
    return int(transport.get(0x3A, 2))


@pytest.mark.parametrize("io", [False, True])
def test_a_queue_is_reset_alone(make: Make, io: bool) -> None:
    place = make(io=io)
    driver = Driver(place, VERSION_1 | RING_RESET)
    for index in (0, 1):
        driver.request(index)
    place.wait()
    echo(place).take_log()
    assert reset_queue(place, driver, 0) == 0
    assert echo(place).take_log() == ["quiesce", "queue reset 0", "unquiesce"]
    assert [queue.ready for queue in place.device.queues] == [False, True]
    driver.request(0)
    driver.request(1)
    place.wait()
    assert driver.back(1) == 2
    driver.queues[0] = driver.put_queue(0)
    driver.request(0)
    place.wait()
    assert driver.back(0) == 1
    assert "enabled 0" in echo(place).log


def test_a_queue_is_not_reset_without_the_feature(make: Make) -> None:
    place = make()
    driver = Driver(place, VERSION_1)
    assert reset_queue(place, driver, 0) == 0
    assert place.device.queues[0].ready


def test_features_can_be_switched_off() -> None:
    place = Place("mmio", Echo(features_off=RING_RESET | 1 << 34, queues=1))
    assert not place.transport().features() & (RING_RESET | 1 << 34)
    device = Echo()
    device.use(features_off=RING_RESET, queues="reference")
    assert type(device.queues[0]).__name__ == "ReferenceQueue"
    assert not device.features & RING_RESET
    place.close()
