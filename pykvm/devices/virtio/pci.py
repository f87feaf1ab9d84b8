"""The PCI transport, modern interface only (VIRTIO 1.2, section 4.1).

BAR 4 (64 bits) holds the four structures, a page each; BAR 1 the MSI-X table. Without MSI-X the
interrupt pin and the ISR register do.
"""

from __future__ import annotations

import struct

from pykvm.devices.pci.bar import Bar, Registers
from pykvm.devices.pci.device import Commit, PciDevice
from pykvm.devices.pci.msi import MsixCapability, msix_bar_size
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import VirtQueue
from pykvm.memory import GuestMemory

RED_HAT = 0x1AF4
NO_VECTOR = 0xFFFF
_CAP_VENDOR = 0x09
_COMMON, _NOTIFY, _ISR, _DEVICE, _PCI_CFG = 1, 2, 3, 4, 5  # cfg_type (4.1.4)
_PAGE = 0x1000
_COMMON_AT, _ISR_AT, _DEVICE_AT, _NOTIFY_AT = 0, _PAGE, 2 * _PAGE, 3 * _PAGE
_BAR, _MSIX_BAR, _BAR_SIZE = 4, 1, 4 * _PAGE
_MULTIPLIER = 4
_COMMON_SIZE = 0x3C
_USED_BUFFER, _CONFIG_CHANGE = 1, 2
_ONES = 0xFFFF_FFFF
# PCI class by virtio device ID (what software shows); drivers do not care.
_CLASSES = {
    1: 0x020000, 2: 0x010000, 3: 0x078000, 8: 0x010000, 16: 0x038000, 18: 0x098000, 19: 0x078000,
    20: 0x108000, 25: 0x040100, 26: 0x018000,
}  # fmt: skip
_OTHER_CLASS = 0x00FF00
# Registers of the common configuration structure: offset -> size (4.1.4.3). The queue addresses
# are written by halves.
_FIELDS = {
    0x00: 4, 0x04: 4, 0x08: 4, 0x0C: 4, 0x10: 2, 0x12: 2, 0x14: 1, 0x15: 1, 0x16: 2, 0x18: 2,
    0x1A: 2, 0x1C: 2, 0x1E: 2, 0x20: 4, 0x24: 4, 0x28: 4, 0x2C: 4, 0x30: 4, 0x34: 4, 0x38: 2,
    0x3A: 2,
}  # fmt: skip


class VirtioPci(PciDevice):
    """A virtio device as PCI function 1af4:(1040 + device ID). Put it on a `PciBus`."""

    def __init__(self, device: VirtioDevice, memory: GuestMemory) -> None:
        self.device = device
        vectors = len(device.queues) + 1
        bars: list[Bar | None] = [None] * 6
        bars[_BAR] = Bar(
            "mem64", _BAR_SIZE,
            Registers(f"{device.name}-pci", self._bar_read, self._bar_write), prefetch=True,
        )  # fmt: skip
        table = Registers(f"{device.name}-msix", self._msix_read, self._msix_write, max_access=8)
        bars[_MSIX_BAR] = Bar("mem32", msix_bar_size(vectors), table)
        super().__init__(
            RED_HAT, 0x1040 + device.device_id, _CLASSES.get(device.device_id, _OTHER_CLASS),
            revision=1, subsystem=(RED_HAT, 0x1100), interrupt_pin=1, bars=bars,
            name=f"{device.name}-pci",
        )  # fmt: skip
        self.msix = MsixCapability(self, vectors, _MSIX_BAR)
        self._table = self.msix.registers()
        self._structure(_COMMON, _COMMON_AT, _COMMON_SIZE)
        self._structure(_ISR, _ISR_AT, 1)
        self._structure(_DEVICE, _DEVICE_AT, _PAGE)
        notify = struct.pack("<I", _MULTIPLIER)
        self._structure(_NOTIFY, _NOTIFY_AT, _MULTIPLIER * len(device.queues), notify)
        # 4.1.4.9: bar, offset, length and data are the driver's.
        writable = bytes(2) + b"\xff" + bytes(3) + b"\xff" * 12
        self._window = self._structure(_PCI_CFG, 0, 0, bytes(4), writable, writable)
        self._isr = 0
        self._selected = [0, 0, 0]  # device features, driver features, queue
        self._vectors = [NO_VECTOR] * vectors  # of the queues, then of the configuration
        device.attach(self, memory)

    def _structure(
        self, kind: int, offset: int, length: int, more: bytes = b"", writable: bytes = b"",
        live: bytes = b"",
    ) -> int:  # fmt: skip
        bar = 0 if kind == _PCI_CFG else _BAR
        body = struct.pack("<BBB3xII", 16 + len(more), kind, bar, offset, length) + more
        return self.add_capability(_CAP_VENDOR, body, writable, live)

    # -- BAR 4 ---------------------------------------------------------------------------------

    def _bar_read(self, offset: int, size: int) -> int:
        if offset < _ISR_AT:
            return self._common_read(offset, size)
        if offset < _DEVICE_AT:
            if offset != _ISR_AT:
                return 0
            value, self._isr = self._isr, 0
            self.set_intx(False)
            return value
        if offset < _NOTIFY_AT:
            return self.device.config_read(offset - _DEVICE_AT, size)
        return 0

    def _bar_write(self, offset: int, size: int, value: int) -> None:
        if offset >= _NOTIFY_AT:
            self.device.kick((offset - _NOTIFY_AT) // _MULTIPLIER)
        elif offset >= _DEVICE_AT:
            self.device.config_write(offset - _DEVICE_AT, size, value)
        elif offset < _ISR_AT and _FIELDS.get(offset) == size:
            self._common_write(offset, value)

    def _msix_read(self, offset: int, size: int) -> int:
        return self._table.read(offset, size)

    def _msix_write(self, offset: int, size: int, value: int) -> None:
        self._table.write(offset, size, value)

    @property
    def _queue(self) -> VirtQueue | None:
        queues, index = self.device.queues, self._selected[2]
        return queues[index] if index < len(queues) else None

    def _common_read(self, offset: int, size: int) -> int:
        """Any width: software that dumps the structure reads it as it likes."""
        value = 0
        for at, width in _FIELDS.items():
            if at < offset + size and offset < at + width:
                field = self._field(at)
                value |= field << 8 * (at - offset) if at >= offset else field >> 8 * (offset - at)
        return value & (1 << 8 * size) - 1

    def _field(self, offset: int) -> int:
        device, queue = self.device, self._queue
        match offset:
            case 0x00 | 0x08:
                return self._selected[offset >> 3]
            case 0x04:
                return device.device_features(self._selected[0])
            case 0x0C:
                index = self._selected[1]
                return device.driver_features >> 32 * index & _ONES if index <= 1 else 0
            case 0x10:
                return self._vectors[-1]
            case 0x12:
                return len(device.queues)
            case 0x14:
                return device.status
            case 0x15:
                return device.config_generation
            case 0x16:
                return self._selected[2]
        if queue is None:
            return NO_VECTOR if offset == 0x1A else 0
        match offset:
            case 0x18:
                return queue.size
            case 0x1A:
                return self._vectors[queue.index]
            case 0x1C:
                return int(queue.ready)
            case 0x1E:
                return queue.index
        address = {0x20: queue.desc, 0x28: queue.driver, 0x30: queue.device}.get(offset & ~7, 0)
        return address >> (32 if offset & 4 else 0) & _ONES if offset < 0x38 else 0

    def _common_write(self, offset: int, value: int) -> None:
        device = self.device
        match offset:
            case 0x00 | 0x08:
                self._selected[offset >> 3] = value
            case 0x0C:
                device.set_driver_features(self._selected[1], value)
            case 0x10:
                self._vectors[-1] = self._vector(value)
            case 0x14:
                device.set_status(value)
                if not device.status:
                    self._forget()
            case 0x16:
                self._selected[2] = value
            case _:
                if self._queue is not None:
                    self._queue_write(self._queue, offset, value)

    def _queue_write(self, queue: VirtQueue, offset: int, value: int) -> None:
        if offset == 0x1A:
            self._vectors[queue.index] = self._vector(value)
            return
        if queue.ready:  # 4.1.4.3.2: only before queue_enable
            return
        match offset:
            case 0x18:
                queue.size = value
            case 0x1C:
                if value == 1:
                    self.device.enable_queue(queue)
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

    def _vector(self, value: int) -> int:
        return value if value < self.msix.vectors else NO_VECTOR

    # -- the window in configuration space (4.1.4.9) -------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Configuration space; reading `pci_cfg_data` reads from the BAR."""
        data = self._window + 16
        if offset < data + 4 and offset + size > data:
            place = self._window_place()
            if place is not None:
                self.config.put(data, 4, self._bar_read(*place))
        return super().read(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        """Writing `pci_cfg_data` writes to the BAR."""
        data = self._window + 16
        if offset < data + 4 and offset + size > data:
            place = self._window_place()
            if place is not None:
                width = place[1]
                self._bar_write(*place, self.config.get(data, 4) & (1 << 8 * width) - 1)

    def _window_place(self) -> tuple[int, int] | None:
        bar = self.config.data[self._window + 4]
        offset = self.config.get(self._window + 8, 4)
        length = self.config.get(self._window + 12, 4)
        if bar != _BAR or length not in (1, 2, 4) or offset % length:
            return None
        return (offset, length) if offset + length <= _BAR_SIZE else None

    # -- interrupts ----------------------------------------------------------------------------

    def queue_interrupt(self, index: int) -> None:
        """A used buffer notification."""
        self._signal(self._vectors[index], _USED_BUFFER)

    def config_interrupt(self) -> None:
        """A configuration change notification."""
        self._signal(self._vectors[-1], _CONFIG_CHANGE)

    def _signal(self, vector: int, cause: int) -> None:
        if self.msix.enabled:
            if vector != NO_VECTOR:
                self.msix.send(vector)
            return
        self._isr |= cause
        self.set_intx(True)

    # -- life ----------------------------------------------------------------------------------

    def _forget(self) -> None:
        """What a reset of the virtio device clears in the transport."""
        self._isr = 0
        self._vectors = [NO_VECTOR] * len(self._vectors)
        self.set_intx(False)

    def reset(self) -> None:
        """Power-on, of the device behind it too."""
        self.device.reset()
        self.device.config_generation = 0
        self._selected = [0, 0, 0]
        self._forget()
        super().reset()

    def save(self) -> dict[str, object]:
        """Configuration space, MSI-X, the transport's registers, the device's state."""
        return {
            **super().save(),
            "isr": self._isr,
            "selected": list(self._selected),
            "vectors": list(self._vectors),
            **self.device.state(),
        }

    def take_state(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take_state(take)
        isr = take.integer("isr", 3)
        selected = take.integers("selected", 3, _ONES)
        vectors = take.integers("vectors", len(self._vectors), NO_VECTOR)
        device = self.device.take(take)

        def commit() -> None:
            device()
            self._isr = isr
            self._selected[: len(selected)] = selected
            self._vectors[: len(vectors)] = [self._vector(v) for v in vectors]
            base()

        return commit

    def close(self) -> None:
        """Closes the device too."""
        super().close()
        self.device.close()
