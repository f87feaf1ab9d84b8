"""The common configuration structure of virtio-pci (VIRTIO 1.2, section 4.1.4.3)."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.virtio.device import RING_RESET, VirtioDevice
from pykvm.devices.virtio.queue import VirtQueue

NO_VECTOR = 0xFFFF
SIZE = 0x3C
_ONES = 0xFFFF_FFFF
_QUEUE_RESET = 0x3A
# Registers: offset -> size. The queue addresses are written by halves.
_FIELDS = {
    0x00: 4, 0x04: 4, 0x08: 4, 0x0C: 4, 0x10: 2, 0x12: 2, 0x14: 1, 0x15: 1, 0x16: 2, 0x18: 2,
    0x1A: 2, 0x1C: 2, 0x1E: 2, 0x20: 4, 0x24: 4, 0x28: 4, 0x2C: 4, 0x30: 4, 0x34: 4, 0x38: 2,
    0x3A: 2,
}  # fmt: skip


class CommonConfig:
    """The registers.

    `vectors`: the MSI-X vector of each queue and, last, of the configuration; there are `limit`
    of them. `set_vector(place, vector)` is called when the driver changes one, `set_status(value)`
    when it writes the status.
    """

    def __init__(
        self, device: VirtioDevice, limit: int,
        set_status: Callable[[int], None], rewired: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.device = device
        self._limit = limit
        self._set_status = set_status
        self._rewired = rewired
        #: Selectors: device features, driver features, queue.
        self.selected = [0, 0, 0]
        self.vectors = [NO_VECTOR] * (len(device.queues) + 1)

    def vector(self, value: int) -> int:
        """A vector number as the register keeps it."""
        return value if value < self._limit else NO_VECTOR

    @property
    def queue(self) -> VirtQueue | None:
        """The selected queue."""
        queues, index = self.device.queues, self.selected[2]
        return queues[index] if index < len(queues) else None

    def read(self, offset: int, size: int) -> int:
        """Any width: software that dumps the structure reads it as it likes."""
        if _FIELDS.get(offset) == size:
            return self._field(offset)
        value = 0
        for at, width in _FIELDS.items():
            if at < offset + size and offset < at + width:
                field = self._field(at)
                value |= field << 8 * (at - offset) if at >= offset else field >> 8 * (offset - at)
        return value & (1 << 8 * size) - 1

    def _field(self, offset: int) -> int:
        device, queue = self.device, self.queue
        match offset:
            case 0x00 | 0x08:
                return self.selected[offset >> 3]
            case 0x04:
                return device.device_features(self.selected[0])
            case 0x0C:
                index = self.selected[1]
                return device.driver_features >> 32 * index & _ONES if index <= 1 else 0
            case 0x10:
                return self.vectors[-1]
            case 0x12:
                return len(device.queues)
            case 0x14:
                return device.status
            case 0x15:
                return device.config_generation
            case 0x16:
                return self.selected[2]
        if queue is None:
            return NO_VECTOR if offset == 0x1A else 0
        match offset:
            case 0x18:
                return queue.size
            case 0x1A:
                return self.vectors[queue.index]
            case 0x1C:
                return int(queue.ready)
            case 0x1E:
                return queue.index
        address = {0x20: queue.desc, 0x28: queue.driver, 0x30: queue.device}.get(offset & ~7, 0)
        return address >> (32 if offset & 4 else 0) & _ONES if offset < 0x38 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A register of its own width; anything else goes nowhere. Not with the lock held."""
        if _FIELDS.get(offset) != size:
            return
        device, queue = self.device, self.queue
        if offset == 0x14:
            self._set_status(value)
        elif offset == _QUEUE_RESET:
            if value == 1 and queue is not None and device.has & RING_RESET:
                device.reset_queue(queue)
        elif offset == 0x1C:
            if value == 1 and queue is not None:
                device.enable_queue(queue)
        else:
            with device.lock:
                self._write_plain(offset, value)

    def _write_plain(self, offset: int, value: int) -> None:
        device = self.device
        match offset:
            case 0x00 | 0x08:
                self.selected[offset >> 3] = value
            case 0x0C:
                device.set_driver_features(self.selected[1], value)
            case 0x10:
                self.set_vector(len(device.queues), value)
            case 0x16:
                self.selected[2] = value
            case 0x1A:
                if self.queue is not None:
                    self.set_vector(self.queue.index, value)
            case _:
                if self.queue is not None and not self.queue.ready:  # 4.1.4.3.2
                    self._queue_write(self.queue, offset, value)

    def set_vector(self, place: int, value: int) -> None:
        """The vector of a queue, or (behind the last one) of the configuration."""
        self.vectors[place] = self.vector(value)
        self._rewired(place)

    def _queue_write(self, queue: VirtQueue, offset: int, value: int) -> None:
        match offset:
            case 0x18:
                queue.size = value
            case 0x20:
                queue.desc = queue.desc & ~_ONES | value
            case 0x24:
                queue.desc = queue.desc & _ONES | value << 32
            case 0x28:
                queue.driver = queue.driver & ~_ONES | value
            case 0x2C:
                queue.driver = queue.driver & _ONES | value << 32
            case 0x30:
                queue.device = queue.device & ~_ONES | value
            case 0x34:
                queue.device = queue.device & _ONES | value << 32

    def forget(self) -> None:
        """What a reset of the virtio device clears."""
        self.vectors[:] = [NO_VECTOR] * len(self.vectors)
