"""The legacy interface of virtio-pci, for drivers from before VIRTIO 1.0 (4.1.4.10, 4.1.5.1.3.1).

Registers in I/O BAR 0. Rings are one piece of memory at a page number, VERSION_1 and FEATURES_OK
do not exist, numbers are in the guest's byte order (x86: little endian, as always). Drivers of
that time kick before DRIVER_OK (3.1.2), so a queue that has its page works at once.
"""

from __future__ import annotations

from pykvm.devices.virtio.device import (
    ANY_LAYOUT,
    DRIVER,
    DRIVER_OK,
    VERSION_1,
    VirtioDevice,
)
from pykvm.devices.virtio.pci_common import NO_VECTOR, CommonConfig
from pykvm.devices.virtio.queue import VirtQueue
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NOTIFY = 0x10
HEADER, HEADER_MSIX = 20, 24  # bytes before the device's own configuration
_PAGE_SHIFT, _ALIGN = 12, 4096
_ONES = 0xFFFF_FFFF
_FIELDS = {0: 4, 4: 4, 8: 4, 12: 2, 14: 2, 16: 2, 18: 1, 19: 1}
_VECTORS = {20: 2, 22: 2}
# PCI device IDs of transitional devices (4.1.2.1), by virtio device ID.
IDS = {1: 0x1000, 2: 0x1001, 5: 0x1002, 3: 0x1003, 8: 0x1004, 4: 0x1005, 9: 0x1009}


def pci_id(device: VirtioDevice) -> int:
    """The transitional PCI device ID. Raises `PykvmError` for a type that never had one."""
    found = IDS.get(device.device_id)
    if found is None:
        raise PykvmError(
            f"{device.name} is of a type that legacy drivers do not know; leave out legacy=True"
        )
    return found


def bar_size(device: VirtioDevice) -> int:
    """Bytes of I/O BAR 0."""
    return max(32, 1 << (HEADER_MSIX + len(device.config()) - 1).bit_length())


class LegacyHeader:
    """The registers. `isr` takes the interrupt status, `msix` says whether MSI-X is on, `opened`
    is called when the device is used and `set_status` when the driver writes the status."""

    def __init__(
        self, device: VirtioDevice, common: CommonConfig, *, isr: Callable[[], int],
        msix: Callable[[], bool], kick: Callable[[int], None], opened: Callable[[], None],
        set_status: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.device = device
        self._common = common
        self._isr = isr
        self._msix = msix
        self._kick = kick
        self._opened = opened
        self._set_status = set_status

    @property
    def _offered(self) -> int:
        """Bits 0 to 31; packed rings, VERSION_1 and the like are above."""
        return self.device.features & _ONES | ANY_LAYOUT

    def read(self, offset: int, size: int) -> int:
        """A register, or any width of the configuration structure."""
        start = HEADER_MSIX if self._msix() else HEADER
        if offset >= start:
            return self.device.config_read(offset - start, size)
        if _FIELDS.get(offset, _VECTORS.get(offset)) != size:
            return 0
        device, queue, vectors = self.device, self._common.queue, self._common.vectors
        match offset:
            case 0:
                return self._offered
            case 4:
                return device.driver_features & _ONES
            case 8:
                return queue.desc >> _PAGE_SHIFT & _ONES if queue is not None else 0
            case 12:
                return queue.max_size if queue is not None else 0
            case 14:
                return self._common.selected[2]
            case 18:
                return device.status & 0xFF
            case 19:
                return self._isr()
            case 20:
                return vectors[-1]
            case 22:
                return NO_VECTOR if queue is None else vectors[queue.index]
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """As `read`. Not with the device's lock held."""
        device = self.device
        start = HEADER_MSIX if self._msix() else HEADER
        if offset >= start:
            with device.lock:
                device.config_write(offset - start, size, value)
            return
        if _FIELDS.get(offset, _VECTORS.get(offset)) != size:
            return
        queue = self._common.queue
        if offset == NOTIFY:
            self.notify(value)
        elif offset == 18:
            if value:
                with device.lock:
                    device.legacy = True
            self._set_status(value)
        elif offset == 8:
            self._place(queue, value)
        else:
            with device.lock:
                self._write_plain(offset, value)

    def _write_plain(self, offset: int, value: int) -> None:
        device, common = self.device, self._common
        match offset:
            case 4:
                device.legacy = True
                if not device.status & DRIVER_OK:
                    device.driver_features = value & self._offered & ~VERSION_1
            case 14:
                common.selected[2] = value
            case 20:
                common.set_vector(len(device.queues), value)
            case 22:
                if common.queue is not None:
                    common.set_vector(common.queue.index, value)

    def _place(self, queue: VirtQueue | None, page: int) -> None:
        """The rings are one after the other from guest page `page` on; 0 takes them away."""
        if queue is None:
            return
        device = self.device
        if queue.ready or page == 0:
            device.reset_queue(queue)
        if page == 0:
            return
        with device.lock:
            device.legacy = True
            queue.size = queue.max_size
            queue.desc = page << _PAGE_SHIFT
            queue.driver = queue.desc + 16 * queue.size
            end = queue.driver + 6 + 2 * queue.size
            queue.device = end + _ALIGN - 1 & ~(_ALIGN - 1)
            device.enable_queue(queue)
        if device.active:
            self._opened()

    def notify(self, index: int) -> None:
        """The driver kicks; the first time perhaps before it has said DRIVER_OK."""
        device = self.device
        early = device.status & (DRIVER | DRIVER_OK) == DRIVER
        if early and index < len(device.queues) and device.queues[index].ready:
            self._set_status(device.status | DRIVER_OK)
        self._kick(index)
