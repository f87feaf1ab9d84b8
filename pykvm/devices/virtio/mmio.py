"""The MMIO transport, version 2 (VIRTIO 1.2, section 4.2).

The interrupt is an edge: the line rises when something is to be told, and once more at an
acknowledgement that left something. Where KVM can, an eventfd makes the edges (irqfd).
"""

from __future__ import annotations

import os

from pykvm.datapath.word import AtomicWord
from pykvm.devices.base import Device, IrqLine, NullIrqLine
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.device import DRIVER_OK, RING_RESET, VirtioDevice
from pykvm.devices.virtio.queue import VirtQueue
from pykvm.devices.virtio.shm import ShmRegion, one_block
from pykvm.devices.virtio.transport import Doorbells, LineIrqFd, QueueEvents, Removable, Signal
from pykvm.memory import GuestMemory

_VERSION = 1
_MAGIC = 0x74726976  # "virt"
_VENDOR = 0x4D564B50  # "PKVM"
_CONFIG = 0x100
_NOTIFY, _STATUS, _READY, _RESET = 0x050, 0x070, 0x044, 0x0C0
_INTERRUPT, _ACKNOWLEDGE = 0x060, 0x064
_ONES = 0xFFFF_FFFF
_USED_BUFFER, _CONFIG_CHANGE = 1, 2


class VirtioMmio(Device):
    """512 bytes of registers for one device at guest-physical `address`, with interrupt `irq`.

    - `irqfd`: where given, edges of the interrupt line come from there and not from `irq`.
    - `doorbells`: lets KVM take the driver's kicks; needs `address`.
    - `shm`: the guest-physical address of the device's shared memory, if it has some.

    `close` it before what it was given goes away.
    """

    access_sizes = (1, 2, 4)
    max_access = 4
    LENGTH = 0x200

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, irq: IrqLine | None = None, *,
        address: int | None = None, doorbells: Doorbells | None = None,
        irqfd: LineIrqFd | None = None, shm: int | None = None,
    ) -> None:  # fmt: skip
        self.device = device
        self.irq: IrqLine = irq or NullIrqLine()
        self.name = f"{device.name}-mmio"
        self.address = address
        self.events = QueueEvents(device, doorbells if address is not None else None)
        self._regions: tuple[ShmRegion, ...] = tuple(device.shm_regions())
        one_block(device.name, self._regions)
        self._shm = shm
        self._pending = AtomicWord()
        self._level = False
        self._irqfd = irqfd
        self._edge: int | None = None  # the eventfd that makes edges
        self._attached: list[Removable] = []
        self._device_sel = self._driver_sel = self._queue_sel = self._shm_sel = 0
        device.attach(self, memory)
        if irqfd is not None:
            self._edge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            edges = irqfd.attach(self._edge)
            if edges is None:
                os.close(self._edge)
                self._edge = None
            else:
                self._attached.append(edges)

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
        if offset == _INTERRUPT:  # without the device's lock: it may be busy
            return self._pending.value
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
            case 0x070:
                return device.status
            case 0x0B0 | 0x0B4 | 0x0B8 | 0x0BC:
                return self._shared(offset)
            case 0x0FC:
                return device.config_generation
        return 0

    def _shared(self, offset: int) -> int:
        """Length and address of the chosen shared memory region; all-ones where there is none."""
        region = next((r for r in self._regions if r.id == self._shm_sel), None)
        if region is None or self._shm is None:
            return _ONES
        value = region.length if offset < 0x0B8 else self._shm + region.offset
        return value >> (32 if offset & 4 else 0) & _ONES

    def write(self, offset: int, size: int, value: int) -> None:
        """As `read`."""
        device = self.device
        if offset >= _CONFIG:
            with device.lock:
                device.config_write(offset - _CONFIG, size, value)
            return
        if size != 4 or offset & 3:
            return
        match offset:
            case 0x050:
                self.events.kick(value)
            case 0x064:
                self._acknowledge(value)
            case 0x070:
                self._set_status(value & 0xFF)
            case 0x0C0:
                if value & 1 and self._queue is not None and device.has & RING_RESET:
                    device.reset_queue(self._queue)
            case 0x044:
                if self._queue is None:
                    return
                if value & 1:
                    device.enable_queue(self._queue)
                elif self._queue.ready:
                    device.reset_queue(self._queue)
            case _:
                with device.lock:
                    self._write_plain(offset, value)

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
        return None if self.address is None else ("mmio", self.address + _NOTIFY, 4, index)

    def _write_plain(self, offset: int, value: int) -> None:
        device = self.device
        match offset:
            case 0x014:
                self._device_sel = value
            case 0x020:
                device.set_driver_features(self._driver_sel, value)
            case 0x024:
                self._driver_sel = value
            case 0x030:
                self._queue_sel = value
            case 0x0AC:
                self._shm_sel = value
            case _:
                if self._queue is not None and not self._queue.ready:  # 4.2.2.2
                    self._write_queue(self._queue, offset, value)

    def _write_queue(self, queue: VirtQueue, offset: int, value: int) -> None:
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

    # -- kicks and interrupts ------------------------------------------------------------------

    def kick(self, index: int) -> None:
        """As if the driver had notified a queue."""
        self.events.kick(index)

    def kick_fd(self, index: int) -> int:
        """The eventfd of a queue's kicks."""
        return self.events.kick_fd(index)

    def signal_for(self, index: int) -> Signal:
        """The interrupt line's edges are made by the kernel, or by who listens here."""
        if self._edge is not None:
            return Signal(self._edge, self._pending.cdata, _USED_BUFFER)
        self.events.listen(index, self.queue_interrupt)
        return Signal(self.events.signal_fd(index), self._pending.cdata, _USED_BUFFER)

    def queue_interrupt(self, index: int) -> None:
        """A used buffer notification."""
        self._tell(_USED_BUFFER)

    def config_interrupt(self) -> None:
        """A configuration change notification."""
        self._tell(_CONFIG_CHANGE)

    def _tell(self, cause: int) -> None:
        self._pending.set_bits(cause)
        if self._edge is not None:
            os.eventfd_write(self._edge, 1)
        else:
            with self.device.lock:
                self._drive()

    def _acknowledge(self, bits: int) -> None:
        before = self._pending.clear_bits(bits)
        if self._edge is None:
            with self.device.lock:
                if before & ~bits and self._level:  # an edge for what came meanwhile
                    self._level = False
                    self.irq.set(False)
                self._drive()

    def _drive(self) -> None:
        level = self._pending.value != 0
        if level != self._level:
            self._level = level
            self.irq.set(level)

    # -- life ----------------------------------------------------------------------------------

    def _forget(self) -> None:
        """What a reset of the virtio device clears in the transport."""
        self.events.close_doors()
        self._pending.take()
        with self.device.lock:
            self._drive()

    def reset(self) -> None:
        """Power-on, of the device behind it too."""
        self.device.reset()
        self.device.config_generation = 0
        self._device_sel = self._driver_sel = self._queue_sel = self._shm_sel = 0
        self._forget()

    def save(self) -> dict[str, object]:
        """The selectors, the interrupt status and the device's state, nothing being in flight."""
        self.device.freeze()
        try:
            with self.device.lock:
                return {
                    "version": _VERSION,
                    "interrupt": self._pending.value,
                    "device_sel": self._device_sel,
                    "driver_sel": self._driver_sel,
                    "queue_sel": self._queue_sel,
                    "shm_sel": self._shm_sel,
                    **self.device.state(),
                }
        finally:
            self.device.thaw()

    def load(self, state: dict[str, object]) -> None:
        """Takes all of it over."""
        take = StateReader(self.name, state, _VERSION)
        interrupt = take.integer("interrupt", 3)
        selectors = [
            take.integer(name, _ONES)
            for name in ("device_sel", "driver_sel", "queue_sel", "shm_sel")
        ]
        device = self.device.take(take)
        take.finish()

        def commit() -> None:
            device()
            self._device_sel, self._driver_sel, self._queue_sel, self._shm_sel = selectors
            self._pending.take()
            self._pending.set_bits(interrupt)
            if self._edge is None:
                self._drive()

        self.events.close_doors()
        self.device.load_with(commit)
        self._open()

    def close(self) -> None:
        """Closes the device, and every descriptor. Twice is harmless."""
        self.device.freeze()
        self.events.close_doors()
        self.device.close()
        self.events.close()
        for attached in self._attached:
            attached.remove()
        self._attached.clear()
        if self._edge is not None:
            os.close(self._edge)
            self._edge = None
