"""The MMIO transport, version 2 (VIRTIO 1.2, section 4.2)."""

from __future__ import annotations

from pykvm.devices.base import Device, IrqLine, NullIrqLine
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import VirtQueue
from pykvm.memory import GuestMemory

_VERSION = 1
_MAGIC = 0x74726976  # "virt"
_VENDOR = 0x4D564B50  # "PKVM"
_CONFIG = 0x100
_ONES = 0xFFFF_FFFF
_USED_BUFFER, _CONFIG_CHANGE = 1, 2


class VirtioMmio(Device):
    """512 bytes of registers for one device; `irq` is level-triggered, high until acknowledged."""

    access_sizes = (1, 2, 4)
    max_access = 4
    LENGTH = 0x200

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, irq: IrqLine | None = None
    ) -> None:
        self.device = device
        self.irq: IrqLine = irq or NullIrqLine()
        self.name = f"{device.name}-mmio"
        self._interrupt = 0
        self._level = False
        self._device_sel = self._driver_sel = self._queue_sel = 0
        device.attach(self, memory)

    @property
    def _queue(self) -> VirtQueue | None:
        queues = self.device.queues
        return queues[self._queue_sel] if self._queue_sel < len(queues) else None

    def read(self, offset: int, size: int) -> int:
        """A register (dwords only), or any width of the configuration structure."""
        if offset >= _CONFIG:
            return self.device.config_read(offset - _CONFIG, size)
        if size != 4 or offset & 3:
            return 0
        device, queue = self.device, self._queue
        match offset:
            case 0x000:
                return _MAGIC
            case 0x004:
                return 2
            case 0x008:
                return device.device_id
            case 0x00C:
                return _VENDOR
            case 0x010:
                return device.device_features(self._device_sel)
            case 0x034:
                return queue.max_size if queue is not None else 0
            case 0x044:
                return queue.ready if queue is not None else 0
            case 0x060:
                return self._interrupt
            case 0x070:
                return device.status
            case 0x0B0 | 0x0B4 | 0x0B8 | 0x0BC:  # no shared memory regions
                return _ONES
            case 0x0FC:
                return device.config_generation
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """As `read`."""
        device = self.device
        if offset >= _CONFIG:
            device.config_write(offset - _CONFIG, size, value)
            return
        if size != 4 or offset & 3:
            return
        match offset:
            case 0x014:
                self._device_sel = value
            case 0x020:
                device.set_driver_features(self._driver_sel, value)
            case 0x024:
                self._driver_sel = value
            case 0x030:
                self._queue_sel = value
            case 0x050:
                device.kick(value)
            case 0x064:
                self._interrupt &= ~value
                self._drive()
            case 0x070:
                device.set_status(value & 0xFF)
                if not device.status:
                    self._interrupt = 0
                    self._drive()
            case _:
                if self._queue is not None:
                    self._write_queue(self._queue, offset, value)

    def _write_queue(self, queue: VirtQueue, offset: int, value: int) -> None:
        if offset == 0x044:
            if value & 1:
                self.device.enable_queue(queue)
            else:
                queue.ready = False
            return
        if queue.ready:  # 4.2.2.2: not while the queue is in use
            return
        match offset:
            case 0x038:
                queue.size = value & 0xFFFF
            case 0x080:
                queue.desc = queue.desc & ~_ONES | value
            case 0x084:
                queue.desc = queue.desc & _ONES | value << 32
            case 0x090:
                queue.driver = queue.driver & ~_ONES | value
            case 0x094:
                queue.driver = queue.driver & _ONES | value << 32
            case 0x0A0:
                queue.device = queue.device & ~_ONES | value
            case 0x0A4:
                queue.device = queue.device & _ONES | value << 32

    # -- interrupts ----------------------------------------------------------------------------

    def queue_interrupt(self, index: int) -> None:
        """A used buffer notification."""
        self._interrupt |= _USED_BUFFER
        self._drive()

    def config_interrupt(self) -> None:
        """A configuration change notification."""
        self._interrupt |= _CONFIG_CHANGE
        self._drive()

    def _drive(self) -> None:
        level = self._interrupt != 0
        if level != self._level:
            self._level = level
            self.irq.set(level)

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-on, of the device behind it too."""
        self.device.reset()
        self.device.config_generation = 0
        self._interrupt = self._device_sel = self._driver_sel = self._queue_sel = 0
        self._drive()

    def save(self) -> dict[str, object]:
        """The selectors, the interrupt status and the device's state."""
        return {
            "version": _VERSION,
            "interrupt": self._interrupt,
            "device_sel": self._device_sel,
            "driver_sel": self._driver_sel,
            "queue_sel": self._queue_sel,
            **self.device.state(),
        }

    def load(self, state: dict[str, object]) -> None:
        """Takes all of it over."""
        take = StateReader(self.name, state, _VERSION)
        interrupt = take.integer("interrupt", 3)
        device_sel = take.integer("device_sel", _ONES)
        driver_sel = take.integer("driver_sel", _ONES)
        queue_sel = take.integer("queue_sel", _ONES)
        commit = self.device.take(take)
        take.finish()
        commit()
        self._device_sel, self._driver_sel, self._queue_sel = device_sel, driver_sel, queue_sel
        self._interrupt = interrupt
        self._drive()

    def close(self) -> None:
        """Closes the device."""
        self.device.close()
