"""A virtio device that does nothing in particular, and what a machine would give its transport."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pci_probe import Board
from virtio_driver import (
    DONE,
    VERSION_1,
    DriverQueue,
    MmioTransport,
    PciTransport,
    Transport,
    start,
)

from pykvm.datapath.loop import IoThread
from pykvm.devices import RecordingIrqLine
from pykvm.devices.pci import Window, assign_bars
from pykvm.devices.virtio import VirtioDevice, VirtioMmio, VirtioPci
from pykvm.devices.virtio.queue import VirtQueue

MMIO_BASE = 0xFEB0_0000
RINGS = 0x10000
ID = 4  # entropy: no configuration, and old drivers know it


class Echo(VirtioDevice):
    """Gives every request back; `log` says what happened to it."""

    name = "echo"

    def __init__(self, queues: int = 2, features: int = 0, **options: Any) -> None:
        super().__init__(ID, [16] * queues, features, **options)
        self.log: list[str] = []
        self.threads: set[str] = set()
        self.before: Callable[[VirtQueue], object] = lambda queue: None
        self.bytes = b""

    def handle(self, queue: VirtQueue) -> None:
        self.threads.add(threading.current_thread().name)
        while (chain := queue.pop()) is not None:
            self.before(queue)
            queue.push(chain, 0)
            self.log.append(f"request {queue.index}")
        self.finish(queue)

    def config(self) -> bytes:
        return self.bytes

    def config_write(self, offset: int, size: int, value: int) -> None:
        self.log.append(f"config {offset} {size} {value}")

    def activated(self) -> None:
        self.log.append("activated")

    def queue_enabled(self, queue: VirtQueue) -> None:
        self.log.append(f"enabled {queue.index}")

    def queue_reset(self, queue: VirtQueue) -> None:
        self.log.append(f"queue reset {queue.index}")

    def quiesce(self) -> None:
        self.log.append("quiesce")

    def unquiesce(self) -> None:
        self.log.append("unquiesce")

    def device_reset(self) -> None:
        self.log.append("reset")

    def take_log(self) -> list[str]:
        log, self.log = self.log, []
        return log


class Taken:
    """Something that was attached; it takes itself off the list."""

    def __init__(self, where: list[Any], what: Any) -> None:
        self.where, self.what = where, what
        where.append(what)

    def remove(self) -> None:
        self.where.remove(self.what)


class RecordingDoorbells:
    """`Doorbells` that ring when a test says so."""

    def __init__(self) -> None:
        self.there: list[tuple[int, str, int, int, int | None]] = []

    def add(self, fd: int, kind: str, address: int, length: int, match: int | None) -> Taken:
        return Taken(self.there, (fd, kind, address, length, match))


class RecordingIrqFds:
    """`LineIrqFd` and `MessageIrqFds`; what would be sent is in the eventfds."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.vectors: list[RecordingVector] = []

    def attach(self, fd: int) -> Taken:
        return Taken(self.lines, fd)

    def vector(self) -> RecordingVector:
        self.vectors.append(RecordingVector(self))
        return self.vectors[-1]


class RecordingVector:
    def __init__(self, owner: RecordingIrqFds) -> None:
        self.owner = owner
        self.message = (0, 0)
        self.fds: list[int] = []

    def aim(self, address: int, data: int) -> bool:
        if address >> 20 != 0xFEE:
            return False
        self.message = address, data
        return True

    def attach(self, fd: int) -> Taken:
        return Taken(self.fds, fd)

    def close(self) -> None:
        assert not self.fds
        self.owner.vectors.remove(self)


class Place:
    """A device on a board by either transport, with an I/O thread or without."""

    def __init__(
        self, kind: str, device: VirtioDevice, *, io: bool = False, direct: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        self.kind, self.device = kind, device
        self.board = Board()
        self.memory = self.board.memory
        self.irq = RecordingIrqLine()
        self.io = IoThread("test-io") if io else None
        device.io = self.io
        self.doorbells = RecordingDoorbells() if direct else None
        self.irqfds = RecordingIrqFds() if direct else None
        self.outer: VirtioMmio | VirtioPci
        if kind == "mmio":
            self.outer = VirtioMmio(
                device, self.memory, self.irq, address=MMIO_BASE,
                doorbells=self.doorbells, irqfd=self.irqfds, **options,
            )  # fmt: skip
            self.board.mmio.add_device(self.outer, MMIO_BASE, VirtioMmio.LENGTH)
        else:
            self.outer = VirtioPci(
                device, self.memory, doorbells=self.doorbells, irqfds=self.irqfds, **options
            )
            self.board.bus.add(3, 0, self.outer)
            self.irq = self.board.gsi[3]
            self.assign()

    def assign(self) -> None:
        assign_bars(self.board.bus, Window(0xC000, 0x1000), [Window(0xC000_0000, 1 << 24)])

    @property
    def pci(self) -> VirtioPci:
        assert isinstance(self.outer, VirtioPci)
        return self.outer

    def transport(self) -> Transport:
        if self.kind == "mmio":
            return MmioTransport(self.board.mmio, MMIO_BASE)
        return PciTransport(self.board.ports, 3, self.board.mmio)

    def wait(self) -> None:
        """Until the I/O thread has handled what came before."""
        if self.io is not None:
            self.io.call(lambda: None, timeout=20)

    def close(self) -> None:
        self.outer.close()
        if self.io is not None:
            self.io.stop()


class Driver:
    """A started device with its queues, each of 16 entries."""

    def __init__(self, place: Place, features: int = VERSION_1) -> None:
        self.place = place
        self.transport = place.transport()
        start(self.transport, features)
        self.queues = []
        for index in range(len(place.device.queues)):
            self.queues.append(self.put_queue(index))
        self.transport.set_status(DONE)

    def put_queue(self, index: int) -> DriverQueue:
        queue = DriverQueue(self.place.memory, RINGS + index * 0x2000, 16)
        self.transport.set_queue(index, 16, queue.desc, queue.driver, queue.device)
        return queue

    def request(self, index: int = 0, *, kick: bool = True) -> None:
        self.queues[index].add([(0x8000, 16, False), (0x8100, 16, True)])
        if kick:
            self.transport.kick(index)

    def back(self, index: int = 0) -> int:
        """Requests that came back since the last call."""
        return len(self.queues[index].used())


def written(fd: int) -> int:
    """How often an eventfd was written."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def places(kind: str) -> Iterator[Callable[..., Place]]:
    """Makes places on one transport, and closes them; for a fixture."""
    made: list[Place] = []

    def build(device: Echo | None = None, **options: Any) -> Place:
        made.append(Place(kind, device or Echo(), **options))
        return made[-1]

    yield build
    for place in made:
        place.close()


def echo(place: Place) -> Echo:
    """Its device."""
    assert isinstance(place.device, Echo)
    return place.device
