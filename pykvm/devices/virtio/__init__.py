"""virtio 1.2 devices: split virtqueues, the MMIO and PCI transports, the block device.

Each name is imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.virtio.blk import VirtioBlk
    from pykvm.devices.virtio.device import VirtioDevice
    from pykvm.devices.virtio.mmio import VirtioMmio
    from pykvm.devices.virtio.pci import VirtioPci
    from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue

_HOMES = {
    "Chain": "queue",
    "QueueError": "queue",
    "VirtQueue": "queue",
    "VirtioBlk": "blk",
    "VirtioDevice": "device",
    "VirtioMmio": "mmio",
    "VirtioPci": "pci",
}

__all__ = [
    "Chain",
    "QueueError",
    "VirtQueue",
    "VirtioBlk",
    "VirtioDevice",
    "VirtioMmio",
    "VirtioPci",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
