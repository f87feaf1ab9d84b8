"""`VirtioDevice`: what every virtio device has, whatever its transport (VIRTIO 1.2, chapter 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pykvm.devices.state import DeviceStateError, StateReader
from pykvm.devices.virtio.queue import QueueError, VirtQueue, make_queue
from pykvm.memory import GuestMemory
from pykvm.typed import Protocol

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
RING_INDIRECT, RING_EVENT_IDX, VERSION_1 = 1 << 28, 1 << 29, 1 << 32
_QUEUE_WORDS = 8

Commit = Callable[[], None]


class Transport(Protocol):
    """How a device reaches its driver."""

    def queue_interrupt(self, index: int) -> None:
        """The driver should look at a queue's used ring."""

    def config_interrupt(self) -> None:
        """The driver should look at the device's status and configuration."""


class VirtioDevice:
    """Base of the device types. Subclasses give the constructor's arguments, and `handle`.

    - `device_id`: VIRTIO 1.2, chapter 5 (2: block).
    - `queue_sizes`: entries of each queue, powers of two.
    - `features`: bits of the device type; the ring features and VERSION_1 are added.

    A driver that breaks the rules puts the device into DEVICE_NEEDS_RESET (2.1): it does nothing
    more until the driver resets it, and the log says once what was wrong.
    """

    name = "virtio"

    def __init__(self, device_id: int, queue_sizes: Sequence[int], features: int = 0) -> None:
        self.device_id = device_id
        self.features = features | VERSION_1 | RING_INDIRECT | RING_EVENT_IDX
        self.queues = [make_queue(index, size) for index, size in enumerate(queue_sizes)]
        self.driver_features = 0
        self.status = 0
        self.config_generation = 0
        #: The last reason for DEVICE_NEEDS_RESET, "" if there was none since the last reset.
        self.broken = ""
        self._transport: Transport | None = None
        self._complaints = 0

    # -- for subclasses ------------------------------------------------------------------------

    def handle(self, queue: VirtQueue) -> None:
        """The driver kicked `queue`: take its requests. May raise `QueueError`."""
        raise NotImplementedError

    def config(self) -> bytes:
        """The device-specific configuration structure."""
        return b""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver writes to it; most have nothing to write."""

    def activated(self) -> None:
        """DRIVER_OK was set: features and queues are final."""

    def device_reset(self) -> None:
        """State beyond that of this class goes back to power-on."""

    def finish(self, queue: VirtQueue) -> None:
        """Interrupts the driver for what was pushed, if it wants that."""
        if queue.should_notify() and self._transport is not None:
            self._transport.queue_interrupt(queue.index)

    def config_changed(self) -> None:
        """The configuration structure changed: new generation, and the driver is told."""
        self.config_generation = self.config_generation + 1 & 0xFF
        if self.status & DRIVER_OK and self._transport is not None:
            self._transport.config_interrupt()

    def needs_reset(self, why: str) -> None:
        """Nothing more happens until the driver resets the device."""
        if self.broken:
            return
        self.broken = why
        self.complain(f"{self.name} needs a reset: {why}")
        self.status |= NEEDS_RESET
        if self.status & DRIVER_OK and self._transport is not None:
            self._transport.config_interrupt()

    def complain(self, text: str) -> None:
        """A line in the log; the first ten of a device, so that a guest cannot fill it."""
        if self._complaints < 10:
            self._complaints += 1
            import logging

            logging.getLogger("pykvm.devices.virtio").warning("%s", text)

    # -- for transports ------------------------------------------------------------------------

    def attach(self, transport: Transport, memory: GuestMemory) -> None:
        """Connects the device to its transport and to guest memory."""
        self._transport = transport
        for queue in self.queues:
            queue.memory = memory

    @property
    def has(self) -> int:
        """The feature bits that both sides agreed on."""
        return self.driver_features & self.features

    def set_driver_features(self, index: int, value: int) -> None:
        """The driver accepts 32 features: 0 to 31 for `index` 0, 32 to 63 for 1."""
        if self.status & FEATURES_OK or index > 1:
            return
        shift = 32 * index
        self.driver_features = self.driver_features & ~(0xFFFF_FFFF << shift) | value << shift

    def device_features(self, index: int) -> int:
        """32 of the features that the device offers."""
        return self.features >> 32 * index & 0xFFFF_FFFF if index <= 1 else 0

    def set_status(self, value: int) -> None:
        """The driver writes the status register; 0 resets (3.1)."""
        if value == 0:
            self.reset()
            return
        value = value & 0xBF | self.status & NEEDS_RESET
        fresh = value & ~self.status
        if fresh & FEATURES_OK:
            accepted = self.driver_features
            if accepted & ~self.features or not accepted & VERSION_1:
                value &= ~FEATURES_OK  # the driver reads it back and gives up
        if fresh & DRIVER_OK and not value & FEATURES_OK:
            self.status = value & ~DRIVER_OK
            self.needs_reset("DRIVER_OK without FEATURES_OK")
            return
        self.status = value
        if fresh & DRIVER_OK:
            self.activated()

    def enable_queue(self, queue: VirtQueue) -> None:
        """The driver says that a queue's rings are in place."""
        if queue.ready:
            return
        try:
            queue.check()
        except QueueError as error:
            self.needs_reset(str(error))
            return
        queue.event_idx = bool(self.has & RING_EVENT_IDX)
        queue.indirect = bool(self.has & RING_INDIRECT)
        queue.ready = True

    def kick(self, index: int) -> None:
        """The driver says that queue `index` has something to do."""
        if not self.status & DRIVER_OK or self.status & NEEDS_RESET or index >= len(self.queues):
            return
        queue = self.queues[index]
        if not queue.ready:
            return
        try:
            self.handle(queue)
        except QueueError as error:
            self.needs_reset(str(error))

    def config_read(self, offset: int, size: int) -> int:
        """The configuration structure; zeros behind its end."""
        return int.from_bytes(self.config()[offset : offset + size], "little")

    def reset(self) -> None:
        """As after power-on."""
        self.status = self.driver_features = 0
        self.broken = ""
        for queue in self.queues:
            queue.reset()
        self.device_reset()

    def close(self) -> None:
        """Gives back what is behind the device. Twice is harmless."""

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """The guest-visible state as plain values, with keys that a transport does not use."""
        return {
            "virtio_status": self.status,
            "virtio_features": self.driver_features,
            "virtio_generation": self.config_generation,
            "virtio_queues": [word for queue in self.queues for word in queue.state()],
        }

    def take(self, take: StateReader) -> Commit:
        """Reads the fields of `state`; the result, when called, takes them over."""
        status = take.integer("virtio_status", 0xFF)
        features = take.integer("virtio_features", (1 << 64) - 1)
        generation = take.integer("virtio_generation", 0xFF)
        words = take.integers("virtio_queues", _QUEUE_WORDS * len(self.queues), (1 << 64) - 1)
        if len(words) != _QUEUE_WORDS * len(self.queues):
            raise DeviceStateError(f"{self.name}: saved state is of another number of queues")
        for at, queue in enumerate(self.queues):
            size = words[_QUEUE_WORDS * at]
            ready = words[_QUEUE_WORDS * at + 7] & 1
            possible = 1 <= size <= queue.max_size and not size & size - 1
            if size > 0xFFFF or (ready and not possible):
                raise DeviceStateError(f"{self.name}: saved state has a queue of {size} entries")

        def commit() -> None:
            self.status, self.driver_features = status, features
            self.config_generation = generation
            self.broken = "saved so" if status & NEEDS_RESET else ""
            for at, queue in enumerate(self.queues):
                queue.restore(words[_QUEUE_WORDS * at : _QUEUE_WORDS * (at + 1)])

        return commit
