"""Devices that have several ranges of ports: where each goes, and windows into one register space.

Such a device numbers all its registers in one space of offsets. The range that starts at offset 0
is served by the device itself; every other range by a `Window`, which adds its base to the offset.
"""

from __future__ import annotations

from pykvm.devices.base import Device
from pykvm.typed import NamedTuple


class PortRange(NamedTuple):
    """Where a PC has a range of a device.

    `kind` is "pio" or "mmio", `address` a port or a guest-physical address, `length` in bytes.
    """

    kind: str
    address: int
    length: int
    device: Device


class Window(Device):
    """A further range of `owner`, whose registers start at offset `base` of the owner's space.

    It has no state: `save`, `load`, `reset` and `close` are the owner's part.
    """

    def __init__(self, owner: Device, base: int, name: str = "") -> None:
        self.owner = owner
        self.name = name or owner.name
        self.access_sizes = owner.access_sizes
        self.max_access = owner.max_access
        self._base = base
        self._read = owner.read
        self._write = owner.write

    def read(self, offset: int, size: int) -> int:
        """The owner's register."""
        return self._read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """To the owner's register."""
        self._write(self._base + offset, size, value)
