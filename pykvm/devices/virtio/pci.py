"""The PCI transport (VIRTIO 1.2, section 4.1).

BAR 4 (64 bits) holds the four structures, a page each; BAR 1 the MSI-X table; BAR 2 (64 bits)
shared memory, where the device has some; I/O BAR 0 the legacy registers, where they were asked
for. Without MSI-X the interrupt pin and the ISR register do.
"""

from __future__ import annotations

import struct

from pykvm.datapath.word import AtomicWord
from pykvm.devices.pci.bar import Bar, Registers
from pykvm.devices.pci.device import Commit, PciDevice
from pykvm.devices.pci.msi import MsixCapability, msix_bar_size
from pykvm.devices.state import StateReader
from pykvm.devices.virtio import legacy as old
from pykvm.devices.virtio import pci_common
from pykvm.devices.virtio.device import DRIVER_OK, VirtioDevice
from pykvm.devices.virtio.pci_common import NO_VECTOR, CommonConfig
from pykvm.devices.virtio.pci_signals import VectorSignals
from pykvm.devices.virtio.shm import ShmRegion, one_block
from pykvm.devices.virtio.transport import Doorbells, MessageIrqFds, QueueEvents, Signal
from pykvm.memory import GuestMemory

RED_HAT = 0x1AF4
_VERSION = 1
_CAP_VENDOR = 0x09
# cfg_type (4.1.4)
_COMMON, _NOTIFY, _ISR, _DEVICE, _PCI_CFG, _SHARED_MEMORY = 1, 2, 3, 4, 5, 8
_PAGE = 0x1000
_COMMON_AT, _ISR_AT, _DEVICE_AT, _NOTIFY_AT = 0, _PAGE, 2 * _PAGE, 3 * _PAGE
_LEGACY_BAR, _MSIX_BAR, _SHM_BAR, _BAR = 0, 1, 2, 4
_MULTIPLIER = 4
_USED_BUFFER, _CONFIG_CHANGE = 1, 2
# PCI class by virtio device ID (what software shows); drivers do not care.
_CLASSES = {
    1: 0x020000, 2: 0x010000, 3: 0x078000, 8: 0x010000, 16: 0x038000, 18: 0x098000, 19: 0x078000,
    20: 0x108000, 25: 0x040100, 26: 0x018000,
}  # fmt: skip
_OTHER_CLASS = 0x00FF00


class VirtioPci(PciDevice):
    """A virtio device as PCI function 1af4:(1040 + device ID). Put it on a `PciBus`.

    - `legacy`: a transitional device, 1af4:1000 to 1009, that old drivers know too.
    - `vectors`: MSI-X vectors; one for each queue and one for the configuration unless given.
    - `doorbells`, `irqfds`: let KVM take the driver's kicks and send the interrupts.

    `close` it before what it was given goes away.
    """

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, *, legacy: bool = False,
        vectors: int | None = None, doorbells: Doorbells | None = None,
        irqfds: MessageIrqFds | None = None,
    ) -> None:  # fmt: skip
        self.device = device
        name = f"{device.name}-pci"
        count = len(device.queues) + 1 if vectors is None else max(1, vectors)
        self._room = 1 << (_NOTIFY_AT + _MULTIPLIER * len(device.queues) - 1).bit_length()
        regions = tuple(device.shm_regions())
        bars = self._make_bars(name, count, regions, legacy)
        self._transitional = legacy
        super().__init__(
            RED_HAT, old.pci_id(device) if legacy else 0x1040 + device.device_id,
            _CLASSES.get(device.device_id, _OTHER_CLASS), revision=0 if legacy else 1,
            subsystem=(RED_HAT, device.device_id if legacy else 0x1100), interrupt_pin=1,
            bars=bars, name=name,
        )  # fmt: skip
        self.msix = MsixCapability(self, count, _MSIX_BAR)
        self._table = self.msix.registers()
        self._structures(regions)
        self._isr = AtomicWord()
        self.common = CommonConfig(device, count, self._set_status, self._rewired)
        self.events = QueueEvents(device, doorbells)
        self.signals = VectorSignals(self, self.events, irqfds)
        self._header = old.LegacyHeader(
            device, self.common, isr=self._take_isr, msix=lambda: self.msix.enabled,
            kick=self.events.kick, opened=self._open, set_status=self._set_status,
        )  # fmt: skip
        for bar in (bars[_BAR], bars[_LEGACY_BAR]):
            if bar is not None:
                bar.moved = self._moved
        device.attach(self, memory)

    def _make_bars(
        self, name: str, vectors: int, regions: tuple[ShmRegion, ...], legacy: bool
    ) -> list[Bar | None]:
        bars: list[Bar | None] = [None] * 6
        bars[_BAR] = Bar(
            "mem64", self._room, Registers(name, self._bar_read, self._bar_write), prefetch=True
        )
        table = Registers(f"{name}-msix", self._msix_read, self._msix_write, max_access=8)
        bars[_MSIX_BAR] = Bar("mem32", msix_bar_size(vectors), table)
        block = one_block(self.device.name, regions)
        if block is not None:
            size = 1 << (block.size - 1).bit_length()
            bars[_SHM_BAR] = Bar("mem64", size, ram=block, prefetch=True)
        if legacy:
            registers = Registers(
                f"{name}-legacy", lambda at, size: self._header.read(at, size),
                lambda at, size, value: self._header.write(at, size, value),
            )  # fmt: skip
            bars[_LEGACY_BAR] = Bar("io", old.bar_size(self.device), registers)
        return bars

    def _structures(self, regions: tuple[ShmRegion, ...]) -> None:
        self._structure(_COMMON, _COMMON_AT, pci_common.SIZE)
        self._structure(_ISR, _ISR_AT, 1)
        self._structure(_DEVICE, _DEVICE_AT, _PAGE)
        notify = struct.pack("<I", _MULTIPLIER)
        self._structure(_NOTIFY, _NOTIFY_AT, _MULTIPLIER * len(self.device.queues), notify)
        # 4.1.4.9: bar, offset, length and data are the driver's.
        writable = bytes(2) + b"\xff" + bytes(3) + b"\xff" * 12
        self._window = self._structure(_PCI_CFG, 0, 0, bytes(4), writable, writable)
        for region in regions:  # 4.1.4.7
            high = struct.pack("<II", region.offset >> 32, region.length >> 32)
            self._structure(
                _SHARED_MEMORY, region.offset & 0xFFFF_FFFF, region.length & 0xFFFF_FFFF, high,
                bar=_SHM_BAR, number=region.id,
            )  # fmt: skip

    def _structure(
        self, kind: int, offset: int, length: int, more: bytes = b"", writable: bytes = b"",
        live: bytes = b"", *, bar: int = _BAR, number: int = 0,
    ) -> int:  # fmt: skip
        if kind == _PCI_CFG:
            bar = 0
        size = 16 + len(more)
        body = struct.pack("<BBBBHII", size, kind, bar, number, 0, offset, length) + more
        return self.add_capability(_CAP_VENDOR, body, writable, live)

    # -- BARs ----------------------------------------------------------------------------------

    def _bar_read(self, offset: int, size: int) -> int:
        if offset < _ISR_AT:
            return self.common.read(offset, size)
        if offset < _DEVICE_AT:
            return self._take_isr() if offset == _ISR_AT else 0
        if offset < _NOTIFY_AT:
            return self.device.config_read(offset - _DEVICE_AT, size)
        return 0

    def _bar_write(self, offset: int, size: int, value: int) -> None:
        if offset >= _NOTIFY_AT:
            self.events.kick((offset - _NOTIFY_AT) // _MULTIPLIER)
        elif offset >= _DEVICE_AT:
            with self.device.lock:
                self.device.config_write(offset - _DEVICE_AT, size, value)
        elif offset < _ISR_AT:
            self.common.write(offset, size, value)

    def _msix_read(self, offset: int, size: int) -> int:
        with self.device.lock:
            self.signals.collect()
            return self._table.read(offset, size)

    def _msix_write(self, offset: int, size: int, value: int) -> None:
        with self.device.lock:
            self._table.write(offset, size, value)
            self.signals.settle()

    def _set_status(self, value: int) -> None:
        device = self.device
        device.set_status(value)
        if not device.status:
            self._forget()
        elif value & DRIVER_OK:
            self._open()

    def _open(self) -> None:
        if self.device.status & DRIVER_OK:
            self.events.open_doors(self._door)

    def _door(self, index: int) -> tuple[str, int, int, int | None] | None:
        """Where KVM finds the kicks of a queue at the moment."""
        if self.device.legacy:
            bar = self.bars[_LEGACY_BAR]
            if bar is None or bar.address is None:
                return None
            return "pio", bar.address + old.NOTIFY, 2, index
        bar = self.bars[_BAR]
        if bar is None or bar.address is None:
            return None
        return "mmio", bar.address + _NOTIFY_AT + _MULTIPLIER * index, 2, None

    def _moved(self) -> None:
        if self.device.status & DRIVER_OK:
            self.events.move_doors(self._door)

    # -- configuration space; the window in it (4.1.4.9) ---------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Configuration space; reading `pci_cfg_data` reads from the BAR."""
        data = self._window + 16
        if offset < data + 4 and offset + size > data:
            place = self._window_place()
            if place is not None:
                self.config.put(data, 4, self._bar_read(*place))
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Configuration space; writing `pci_cfg_data` writes to the BAR."""
        with self.device.lock:
            super().write(offset, size, value)
            self.signals.settle()
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
        return (offset, length) if offset + length <= self._room else None

    # -- kicks and interrupts ------------------------------------------------------------------

    def kick(self, index: int) -> None:
        """As if the driver had notified a queue."""
        self.events.kick(index)

    def kick_fd(self, index: int) -> int:
        """The eventfd of a queue's kicks."""
        return self.events.kick_fd(index)

    def signal_for(self, index: int) -> Signal:
        """Sends the queue's MSI-X message, or does what there is instead of one."""
        with self.device.lock:
            return self.signals.make(index)

    def queue_interrupt(self, index: int) -> None:
        """A used buffer notification."""
        with self.device.lock:
            self._signal(self.common.vectors[index], _USED_BUFFER)

    def config_interrupt(self) -> None:
        """A configuration change notification."""
        with self.device.lock:
            self._signal(self.common.vectors[-1], _CONFIG_CHANGE)

    def _signal(self, vector: int, cause: int) -> None:
        if self.msix.enabled:
            if vector != NO_VECTOR:
                self.msix.send(vector)
            return
        self._isr.set_bits(cause)
        self.set_intx(True)

    def _take_isr(self) -> int:
        """Reading the status releases the pin."""
        with self.device.lock:
            value = self._isr.take()
            self.set_intx(False)
        return value

    def _rewired(self, place: int) -> None:
        if place < len(self.device.queues):
            self.signals.settle()

    # -- life ----------------------------------------------------------------------------------

    def _forget(self) -> None:
        """What a reset of the virtio device clears in the transport."""
        self.events.close_doors()
        with self.device.lock:
            self._isr.take()
            self.common.forget()
            self.signals.settle()
            self.set_intx(False)

    def reset(self) -> None:
        """Power-on, of the device behind it too."""
        self.device.reset()
        self.device.config_generation = 0
        with self.device.lock:
            self.common.selected[:] = [0, 0, 0]
        self._forget()
        with self.device.lock:
            super().reset()
            self.signals.settle()

    def save(self) -> dict[str, object]:
        """Configuration space, MSI-X, the transport's registers, the device's state, nothing being
        in flight."""
        self.device.freeze()
        try:
            with self.device.lock:
                self.signals.collect()
                return {
                    **super().save(),
                    "isr": self._isr.value,
                    "selected": list(self.common.selected),
                    "vectors": list(self.common.vectors),
                    "legacy": self.device.legacy,
                    **self.device.state(),
                }
        finally:
            self.device.thaw()

    def load(self, state: dict[str, object]) -> None:
        """Takes all of it over."""
        take = StateReader(self.name, state, _VERSION)
        commit = self.take_state(take)
        take.finish()
        self.events.close_doors()
        self.device.load_with(commit)
        self._open()

    def take_state(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take_state(take)
        isr = take.integer("isr", 3)
        selected = take.integers("selected", 3, 0xFFFF_FFFF)
        vectors = take.integers("vectors", len(self.common.vectors), NO_VECTOR)
        legacy = take.boolean("legacy")
        device = self.device.take(take)
        common = self.common

        def commit() -> None:
            device()
            self.device.legacy = legacy and self._transitional
            self._isr.take()
            self._isr.set_bits(isr)
            common.selected[: len(selected)] = selected
            common.vectors[: len(vectors)] = [common.vector(v) for v in vectors]
            base()
            self.signals.settle()

        return commit

    def close(self) -> None:
        """Closes the device too, and every descriptor."""
        self.device.freeze()
        self.events.close_doors()
        super().close()
        self.device.close()
        self.signals.close()
        self.events.close()
