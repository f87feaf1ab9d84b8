"""A driver for any virtio device without a guest: queues filled and read by hand."""

from __future__ import annotations

from time import monotonic_ns

from pci_probe import Board
from virtio_driver import DONE, DriverQueue, MmioTransport, start

from pykvm.devices import ManualClock, RecordingIrqLine
from pykvm.devices.virtio import VirtioDevice, VirtioMmio
from pykvm.memory import GuestMemory

BASE = 0xFEB0_0000
RING = 0x10000  # 8 KiB for each queue's ring
DATA = 0x80000  # buffers
RAM = 1 << 20


class Driver:
    """The driver of one device on the MMIO transport, started with what it offers.

    Buffers come from guest memory at `DATA`, one after the other, until `forget`.
    """

    def __init__(
        self, device: VirtioDevice, *, features: int | None = None, without: int = 0,
        memory: GuestMemory | None = None, size: int = 16, queues: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.device = device
        self.memory = memory or GuestMemory.anonymous([(0, RAM)])
        self.irq = RecordingIrqLine()
        self.outer = VirtioMmio(device, self.memory, self.irq)
        self.board = Board(self.memory)
        self.board.mmio.add_device(self.outer, BASE, VirtioMmio.LENGTH)
        self.transport = MmioTransport(self.board.mmio, BASE)
        self.size = size
        self.which = queues
        self.go(features, without)

    def go(self, features: int | None = None, without: int = 0) -> None:
        """From reset to DRIVER_OK."""
        if features is None:
            self.transport.set_status(0)
            features = self.transport.features() & 0x1_0000_FFFF & ~without
        self.features = start(self.transport, features)
        self.queues: dict[int, DriverQueue] = {}
        self.forget()
        which = range(len(self.device.queues)) if self.which is None else self.which
        for index in which:
            size = min(self.size, self.device.queues[index].max_size)
            queue = self.queues[index] = DriverQueue(self.memory, RING + 0x2000 * index, size)
            self.transport.set_queue(index, size, queue.desc, queue.driver, queue.device)
        self.transport.set_status(DONE)
        assert self.transport.status() == DONE, self.device.broken

    def forget(self) -> None:
        """Buffers start at `DATA` again."""
        self.free = DATA
        self.places: dict[tuple[int, int], tuple[int, int]] = {}

    def place(self, data: bytes) -> int:
        """Bytes in guest memory; their guest-physical address."""
        at = self.free
        self.memory.write(at, data)
        self.free = at + len(data) + 15 & ~15
        return at

    def give(self, index: int, out: bytes = b"", room: int = 0, *, kick: bool = True) -> int:
        """A request of `out` and `room` bytes for an answer; its head."""
        buffers = []
        if out:
            buffers.append((self.place(out), len(out), False))
        if room:
            buffers.append((self.place(b"\xcc" * room), room, True))
        head = self.queues[index].add(buffers)
        self.places[index, head] = (buffers[-1][0], room)
        if kick:
            self.transport.kick(index)
        return head

    def answers(self, index: int) -> list[bytes]:
        """What was written to the requests that came back since the last call."""
        found = []
        for head, written in self.queues[index].used():
            at, room = self.places.pop((index, head))
            assert written <= room
            found.append(self.memory.read(at, written))
        return found

    def ask(self, index: int, out: bytes = b"", room: int = 0) -> bytes:
        """One request and its answer."""
        self.give(index, out, room)
        answers = self.answers(index)
        assert len(answers) == 1, "the request did not come back"
        return answers[0]

    @property
    def broken(self) -> bool:
        """The device needs a reset."""
        return bool(self.transport.status() & 0x40)

    def interrupts(self) -> int:
        """The interrupt status, acknowledged: 1 buffers, 2 configuration."""
        return self.transport.acknowledge()


def clock() -> ManualClock:
    """A clock for a device, which starts at the real time, as rate limits do."""
    return ManualClock(monotonic_ns())
