"""Interrupts of virtio devices, MSI-X vectors, shared memory, and the legacy interface."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from virtio_driver import NEEDS_RESET
from virtio_parts import RINGS, Driver, Echo, Place, places, written

from pykvm.devices.pci.bar import RamBlock
from pykvm.devices.virtio import VirtioMmio
from pykvm.devices.virtio.shm import ShmRegion

RING_RESET = 1 << 40
Make = Callable[..., Place]


@pytest.fixture(params=["mmio", "pci"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from places(request.param)


# -- interrupts ------------------------------------------------------------------------------------


def test_an_edge_for_what_an_acknowledgement_left() -> None:
    place = Place("mmio", Echo())
    driver = Driver(place)
    driver.request()
    place.device.config_changed()
    assert place.irq.edges == 1
    transport: Any = driver.transport
    transport.put(0x64, 1)
    assert place.irq.edges == 2, "an edge-triggered input would never hear of the other one"
    transport.put(0x64, 2)
    assert not place.irq.level
    place.close()


def test_mmio_edges_come_from_the_eventfd() -> None:
    place = Place("mmio", Echo(), direct=True)
    assert place.irqfds is not None
    driver = Driver(place)
    (fd,) = place.irqfds.lines
    driver.request()
    assert written(fd) == 1
    signal = place.outer.signal_for(1)
    assert (signal.fd, signal.bits) == (fd, 1)
    signal.isr[0] |= signal.bits
    assert driver.transport.acknowledge() == 1
    assert place.irq.history == []
    place.close()
    assert place.irqfds.lines == []


def test_signals_are_heard_where_nothing_takes_them(make: Make) -> None:
    place = make()
    driver = Driver(place)
    signal = place.outer.signal_for(1)
    assert place.outer.signal_for(1).fd == signal.fd
    os.eventfd_write(signal.fd, 1)
    for _ in range(1000):
        if place.irq.level:
            break
        threading.Event().wait(0.01)
    assert driver.transport.acknowledge() == 1
    with pytest.raises(IndexError):
        place.outer.kick_fd(2)


class Messages:
    """MSI-X of a `VirtioPci` as its driver uses it."""

    def __init__(self, place: Place) -> None:
        self.place, self.msix = place, place.pci.msix
        bar = place.pci.bars[1]
        assert bar is not None
        assert bar.address is not None
        self.table = bar.address

    def control(self, *, on: bool = True, mask: bool = False) -> None:
        self.place.board.ports.write(3, 0, self.msix.offset + 2, 2, on << 15 | mask << 14)

    def set(
        self, vector: int, data: int, *, masked: bool = False, address: int = 0xFEE0_0000
    ) -> None:
        for at, value in ((12, 1), (0, address), (4, 0), (8, data), (12, int(masked))):
            self.place.board.mmio.write(self.table + 16 * vector + at, 4, value)

    def mask(self, vector: int, masked: bool) -> None:
        self.place.board.mmio.write(self.table + 16 * vector + 12, 4, int(masked))

    @property
    def pending(self) -> int:
        return self.place.board.mmio.read(self.table + self.msix.pba_offset, 8)

    @property
    def sent(self) -> list[int]:
        sent = [data for _, data in self.place.board.msi.sent]
        self.place.board.msi.sent.clear()
        return sent


@pytest.fixture
def messages() -> Iterator[tuple[Place, Messages, Any]]:
    place = Place("pci", Echo(), io=True, direct=True)
    driver = Driver(place)
    transport: Any = driver.transport
    for queue in (0, 1):
        transport.put(0x16, 2, queue)
        transport.put(0x1A, 2, queue + 1)
    yield place, Messages(place), driver
    place.close()
    assert place.irqfds is not None
    assert place.irqfds.vectors == []


def test_a_vector_takes_its_signal_while_it_may(messages: tuple[Place, Messages, Any]) -> None:
    place, msix, _ = messages
    assert place.irqfds is not None
    vectors = place.irqfds.vectors
    fd = place.outer.signal_for(1).fd
    os.eventfd_write(fd, 1)
    place.wait()
    assert place.irq.level, "without MSI-X it is the pin"
    assert messages[2].transport.acknowledge() == 1
    assert not place.irq.level
    msix.control()
    os.eventfd_write(fd, 1)
    place.wait()
    assert msix.pending == 1 << 2, "masked since power-on"
    assert msix.sent == []
    msix.set(2, 0x52)
    assert msix.sent == [0x52], "what was pending"
    (vector,) = vectors
    assert (vector.fds, vector.message) == ([fd], (0xFEE0_0000, 0x52))
    os.eventfd_write(fd, 3)
    place.wait()
    assert written(fd) == 3, "the kernel would have sent it"
    assert msix.sent == []
    msix.mask(2, True)
    assert vector.fds == []
    os.eventfd_write(fd, 1)
    assert msix.pending == 1 << 2, "seen at once, whether or not the thread has been there"
    assert msix.sent == []
    msix.mask(2, False)
    assert msix.sent == [0x52]
    assert (msix.pending, vector.fds) == (0, [fd])
    msix.control(mask=True)
    assert vector.fds == []
    msix.control()
    assert vector.fds == [fd]
    place.board.ports.write(3, 0, 4, 2, 2)  # no bus master any more
    assert vector.fds == []
    place.board.ports.write(3, 0, 4, 2, 6)
    msix.set(2, 0x53)
    assert (vector.message[1], vector.fds) == (0x53, [fd])
    msix.set(2, 0x53, address=0x1000)
    assert vector.fds == [], "nowhere"


def test_a_queue_that_moves_to_another_vector(messages: tuple[Place, Messages, Any]) -> None:
    place, msix, driver = messages
    assert place.irqfds is not None
    fds = [place.outer.signal_for(n).fd for n in (0, 1)]
    msix.control()
    msix.set(1, 0x51)
    msix.set(2, 0x52)
    first, second = place.irqfds.vectors
    assert (first.fds, second.fds) == ([fds[0]], [fds[1]])
    driver.transport.put(0x16, 2, 1)
    driver.transport.put(0x1A, 2, 1)
    assert (first.fds, second.fds) == (fds, [])
    driver.transport.put(0x1A, 2, 0xFFFF)
    assert (first.fds, second.fds) == ([fds[0]], [])
    driver.transport.set_status(0)
    assert (first.fds, second.fds) == ([], [])
    assert [place.outer.signal_for(n).fd for n in (0, 1)] == fds


def test_the_doorbells_move_with_their_bar() -> None:
    place = Place("pci", Echo(), io=True, direct=True)
    assert place.doorbells is not None
    driver = Driver(place)
    before = place.pci.bars[4].address  # type: ignore[union-attr]
    assert before is not None
    assert [b[2] for b in place.doorbells.there] == [before + 0x3000, before + 0x3004]
    ports = place.board.ports
    ports.write(3, 0, 0x20, 4, 0xD000_0000)
    ports.write(3, 0, 0x24, 4, 0)
    assert [b[2] for b in place.doorbells.there] == [0xD000_3000, 0xD000_3004]
    driver.request(kick=False)
    place.board.mmio.write(0xD000_3000, 2, 0)
    place.wait()
    assert driver.back() == 1
    ports.write(3, 0, 4, 2, 4)  # not decoded
    assert place.doorbells.there == []
    ports.write(3, 0, 4, 2, 6)
    assert len(place.doorbells.there) == 2
    place.outer.reset()
    assert place.doorbells.there == []
    place.close()


# -- shared memory ---------------------------------------------------------------------------------


class Sharing(Echo):
    block: RamBlock

    def shm_regions(self) -> list[ShmRegion]:
        return [ShmRegion(3, self.block, 0x1000, 0x2000), ShmRegion(0, self.block, 0, 0x1000)]


def test_shared_memory_regions(make: Make) -> None:
    device = Sharing()
    device.block = RamBlock(0x4000)
    place = make(device, **({"shm": 1 << 37} if make_kind(make) == "mmio" else {}))
    found: dict[int, tuple[int, int]] = {}
    if isinstance(place.outer, VirtioMmio):
        transport: Any = place.transport()
        for region in (0, 3, 7):
            transport.put(0xAC, region)
            values = [transport.get(at) for at in (0xB0, 0xB4, 0xB8, 0xBC)]
            length, base = values[0] | values[1] << 32, values[2] | values[3] << 32
            if length != (1 << 64) - 1:
                found[region] = base - (1 << 37), length
    else:
        ports, at = place.board.ports, place.board.ports.read(3, 0, 0x34, 1)
        while at:
            if ports.read(3, 0, at, 1) == 9 and ports.read(3, 0, at + 3, 1) == 8:
                assert ports.read(3, 0, at + 2, 1) == 24
                assert ports.read(3, 0, at + 4, 1) == 2
                low, size, high, size_high = (ports.read(3, 0, at + n, 4) for n in (8, 12, 16, 20))
                assert high == size_high == 0
                found[ports.read(3, 0, at + 5, 1)] = low, size
            at = ports.read(3, 0, at + 1, 1)
        assert [(block is device.block) for _, block, _ in place.board.ram_maps] == [True]
    assert found == {0: (0, 0x1000), 3: (0x1000, 0x2000)}
    device.block.close()


def make_kind(make: Make) -> str:
    return make(Echo()).kind


# -- the legacy interface --------------------------------------------------------------------------


class Legacy:
    """An old driver: I/O registers of BAR 0."""

    def __init__(self, place: Place) -> None:
        self.place, self.pio = place, place.board.pio
        bar = place.pci.bars[0]
        assert bar is not None
        assert bar.address is not None
        self.base = bar.address

    def get(self, offset: int, size: int) -> int:
        return self.pio.read(self.base + offset, size)

    def put(self, offset: int, size: int, value: int) -> None:
        self.pio.write(self.base + offset, size, value)

    def put_queue(self, index: int) -> int:
        """Rings at page 16 + 2 * index; the place of the used ring."""
        self.put(14, 2, index)
        size = self.get(12, 2)
        self.put(8, 4, 16 + 2 * index)
        driver = (16 + 2 * index << 12) + 16 * size
        return driver + 6 + 2 * size + 4095 & ~4095


@pytest.mark.parametrize("io", [False, True])
def test_an_old_driver(io: bool) -> None:
    device = Echo()
    device.bytes = b"old configuration"
    place = Place("pci", device, io=io, direct=True, legacy=True)
    ports = place.board.ports
    assert ports.read(3, 0, 2, 2) == 0x1005
    assert (ports.read(3, 0, 8, 1), ports.read(3, 0, 0x2E, 2)) == (0, 4)
    old = Legacy(place)
    assert old.get(0, 4) == 1 << 29 | 1 << 28 | 1 << 27
    assert old.get(12, 2) == 16
    old.put(18, 1, 1)
    old.put(18, 1, 3)
    old.put(4, 4, 0)
    used = old.put_queue(0)
    old.put_queue(1)
    assert old.get(8, 4) == 18
    old.put(14, 2, 0)
    assert old.get(8, 4) == 16
    old.put(18, 1, 7)
    assert old.get(18, 1) == 7
    assert place.doorbells is not None
    bells = [bell[1:] for bell in place.doorbells.there]
    assert bells == ([("pio", old.base + 16, 2, n) for n in (0, 1)] if io else [])
    memory = place.memory
    memory.write(0x10000, (0x8000).to_bytes(8, "little") + b"\x10\0\0\0\0\0\0\0")
    memory.write_u16(0x10000 + 16 * 16 + 2, 1)
    old.put(16, 2, 0)
    place.wait()
    assert memory.read_u16(used + 2) == 1
    assert place.irq.level
    assert old.get(19, 1) == 1
    assert not place.irq.level
    assert old.get(20, 4) == int.from_bytes(b"old ", "little")
    old.put(20, 1, 7)
    assert "config 0 1 7" in device.log
    ports.write(3, 0, place.pci.msix.offset + 2, 2, 0x8000)
    assert old.get(24, 4) == int.from_bytes(b"old ", "little")
    old.put(22, 2, 2)
    old.put(20, 2, 0)
    assert (old.get(22, 2), old.get(20, 2)) == (2, 0)
    saved = place.outer.save()
    place.outer.load(json.loads(json.dumps(saved)))
    assert place.outer.save() == saved
    assert device.legacy
    old.put(18, 1, 0)
    assert (old.get(18, 1), old.get(8, 4), device.legacy) == (0, 0, False)
    place.close()


def test_an_old_driver_that_kicks_before_it_is_ready() -> None:
    place = Place("pci", Echo(), legacy=True)
    old = Legacy(place)
    old.put(18, 1, 3)
    used = old.put_queue(0)
    place.memory.write(0x10000, (0x8000).to_bytes(8, "little") + b"\x10\0\0\0\0\0\0\0")
    place.memory.write_u16(0x10000 + 16 * 16 + 2, 1)
    old.put(16, 2, 0)
    assert place.memory.read_u16(used + 2) == 1
    old.put(14, 2, 0)
    old.put(8, 4, 0)
    assert not place.device.queues[0].ready
    old.put(8, 4, 0xFFFF_FFFF)
    assert old.get(18, 1) & NEEDS_RESET
    place.close()


def test_a_modern_driver_on_a_transitional_device() -> None:
    place = Place("pci", Echo(), legacy=True)
    driver = Driver(place)
    driver.request()
    assert driver.back() == 1
    assert not place.device.legacy
    place.close()


def test_types_without_a_legacy_id() -> None:
    class Modern(Echo):
        pass

    device = Modern()
    device.device_id = 26
    with pytest.raises(Exception, match="legacy drivers do not know"):
        Place("pci", device, legacy=True)


def test_closing_gives_everything_back(make: Make) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    place = make(io=True, direct=True)
    driver = Driver(place)
    driver.request()
    place.outer.signal_for(0)
    place.wait()
    place.close()
    place.close()
    assert place.memory.read(RINGS, 16)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) <= (
        before[0] + 8, before[1],
    )  # fmt: skip
