"""One function's configuration space: bytes with write masks (PCI Local Bus 3.0, chapter 6).

256 bytes; the extended space of PCI Express (offsets 0x100-0xfff, reached through ECAM) is not
there and reads as all-ones, which is how software finds out that a function has none.
"""

from __future__ import annotations

from pykvm.devices.state import DeviceStateError, StateReader
from pykvm.errors import PykvmError

CONFIG_SIZE = 256

# Type 0 header, offsets in bytes.
VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION, CLASS, HEADER_TYPE = 0x08, 0x09, 0x0E
BAR0, SUBSYSTEM_VENDOR, SUBSYSTEM, ROM, CAPABILITIES = 0x10, 0x2C, 0x2E, 0x30, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER = 1 << 0, 1 << 1, 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
STATUS_INTX, STATUS_CAPABILITIES = 1 << 3, 1 << 4
MULTI_FUNCTION = 0x80


class PciError(PykvmError):
    """A device, BAR or capability that PCI cannot express: what is wrong with it."""


class ConfigSpace:
    """The bytes of one function's configuration space, and which of their bits may change.

    `writable`: software may write the bit. `clearing`: writing 1 clears it (status bits).
    `live`: the device itself changes it; it is saved, and software cannot write it.
    """

    __slots__ = ("clearing", "data", "live", "writable")

    def __init__(self) -> None:
        self.data = bytearray(CONFIG_SIZE)
        self.writable = bytearray(CONFIG_SIZE)
        self.clearing = bytearray(CONFIG_SIZE)
        self.live = bytearray(CONFIG_SIZE)

    def define(
        self, offset: int, size: int, value: int, *, writable: int = 0, clearing: int = 0,
        live: int = 0,
    ) -> None:  # fmt: skip
        """A register of `size` bytes: its power-on value and the masks of its bits."""
        end = offset + size
        self.data[offset:end] = value.to_bytes(size, "little")
        self.writable[offset:end] = writable.to_bytes(size, "little")
        self.clearing[offset:end] = clearing.to_bytes(size, "little")
        self.live[offset:end] = live.to_bytes(size, "little")

    def get(self, offset: int, size: int) -> int:
        """A register inside the 256 bytes, without side effects."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def put(self, offset: int, size: int, value: int) -> None:
        """Set a register's bytes, masks ignored: what the device itself does."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        """What software reads: all-ones beyond the 256 bytes."""
        if offset + size <= CONFIG_SIZE:
            return int.from_bytes(self.data[offset : offset + size], "little")
        here = bytes(self.data[offset:CONFIG_SIZE])
        return int.from_bytes(here + b"\xff" * (size - len(here)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """What software writes, through the masks; bytes beyond the 256 go nowhere."""
        for at in range(offset, min(offset + size, CONFIG_SIZE)):
            byte = value & 0xFF
            value >>= 8
            mask = self.writable[at]
            old = self.data[at]
            self.data[at] = (old & ~mask | byte & mask) & ~(byte & self.clearing[at])

    def restored(self, name: str, take: StateReader) -> bytes:
        """The bytes of a saved state, checked: what cannot change must be what it is here."""
        saved = take.integers("config", CONFIG_SIZE, 0xFF)
        if len(saved) != CONFIG_SIZE:
            raise DeviceStateError(f"{name}: saved state has {len(saved)} config bytes, not 256")
        for at, byte in enumerate(saved):
            fixed = ~(self.writable[at] | self.clearing[at] | self.live[at])
            if (byte ^ self.data[at]) & fixed & 0xFF:
                raise DeviceStateError(
                    f"{name}: saved state has config byte {at:#x} = {byte:#x}, which does not fit "
                    f"this device ({self.data[at]:#x}); it is of another device"
                )
        return bytes(saved)
