"""The driver side of devices that share things with the host, on a virtio-mmio of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

from virtio_driver import DONE, DriverQueue, MmioTransport, start

from pykvm.bus import MmioBus
from pykvm.devices import RecordingIrqLine
from pykvm.devices.virtio import VirtioDevice, VirtioMmio
from pykvm.memory import GuestMemory

BASE = 0xFEB0_0000
MEMORY = 8 << 20
QUEUE_SPACE = 0x1_0000
NOT_HERE = 1 << 34 | 1 << 35  # packed, in order: these rings are neither


class SharedBench:
    """A started device. Queue n lies at n * 64 KiB; from `heap` on, memory is the test's."""

    def __init__(
        self, device: VirtioDevice, *, sizes: list[int] | None = None,
        features: int | None = None, begin: bool = True,
    ) -> None:  # fmt: skip
        self.device = device
        self.memory = GuestMemory.anonymous([(0, MEMORY)])
        self.mmio = MmioBus(lambda kind, address, size, value: 0)
        self.irq = RecordingIrqLine()
        self.outer = VirtioMmio(device, self.memory, self.irq)
        self.mmio.add_device(self.outer, BASE, VirtioMmio.LENGTH)
        self.transport = MmioTransport(self.mmio, BASE)
        self.sizes = sizes
        self.queues: list[DriverQueue] = []
        self.heap = QUEUE_SPACE * 16
        if begin:
            self.begin(features)

    def begin(self, features: int | None = None) -> int:
        """Reset, negotiation, queues, DRIVER_OK; the features."""
        if features is None:
            features = self.device.features & ~NOT_HERE
        wanted = start(self.transport, features)
        self.queues = []
        for index, queue in enumerate(self.device.queues):
            size = min(queue.max_size, self.sizes[index] if self.sizes else 64)
            ring = DriverQueue(self.memory, QUEUE_SPACE * index, size)
            self.transport.set_queue(index, size, ring.desc, ring.driver, ring.device)
            self.queues.append(ring)
        self.transport.set_status(DONE)
        return wanted

    def take(self, size: int) -> int:
        """The guest-physical address of `size` bytes that nobody else uses."""
        at = self.heap
        self.heap += size + 15 & ~15
        assert self.heap <= MEMORY
        return at

    def close(self) -> None:
        self.outer.close()
        self.queues = []
        self.memory.close()


def until(condition: Callable[[], object], poll: Callable[[], object] | None = None) -> None:
    """Waits for what other threads or processes do; the test's limit is what ends it."""
    while not condition():
        if poll is not None:
            poll()
        else:
            time.sleep(0.002)
