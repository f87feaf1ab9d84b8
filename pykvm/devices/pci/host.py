"""`PciHost`: how software reaches configuration space, by ports and by memory.

Configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2): the address at 0xcf8, the data at
0xcfc-0xcff. ECAM (PCI Express Base, 7.2.2): 1 MiB of memory per bus, 4 KiB per function.
"""

from __future__ import annotations

from pykvm.bus import BusDevice
from pykvm.devices.base import Device
from pykvm.devices.pci.bar import Log, Mapping, Registers
from pykvm.devices.pci.bus import PciBus
from pykvm.devices.state import StateReader
from pykvm.errors import PykvmError

_VERSION = 1
CONFIG_PORTS, CONFIG_PORTS_LENGTH = 0xCF8, 8
BUS_SIZE = 1 << 20  # ECAM bytes per bus


class PciHost(Device):
    """The eight ports from 0xcf8, and the ECAM window.

    `reset_control`: the device of port 0xcf9, which lies inside: byte accesses there go to it.
    Other accesses to 0xcf8-0xcfb than whole dwords at 0xcf8 are not configuration accesses: they
    read all-ones.

    As a `Device` it is the ports: add it at `CONFIG_PORTS`, `CONFIG_PORTS_LENGTH` long. The window
    places itself through the bus's mapper: `place_ecam`.
    """

    name = "pci-host"
    access_sizes = (1, 2, 4)
    max_access = 4

    def __init__(self, bus: PciBus, reset_control: BusDevice | None = None) -> None:
        self.bus = bus
        self._reset_control = reset_control
        self._address = 0
        #: Accesses to the ECAM window, by offset from its start.
        self.ecam = Registers("pci-ecam", self.ecam_read, self.ecam_write, max_access=4)
        self._log = Log()
        self._window: Mapping | None = None
        self._wanted: tuple[int, int] | None = None
        #: Where ECAM is decoded (guest-physical) and how many bytes of it; None where it is not.
        self.ecam_place: tuple[int, int] | None = None

    def read(self, offset: int, size: int) -> int:
        """The address register as a dword, or the window to the selected register."""
        if offset >= 4:
            address = self._address
            if not address >> 31:
                return (1 << 8 * size) - 1
            register = address & 0xFC | offset & 3
            return self.bus.read_config(address >> 16 & 0xFF, address >> 8 & 0xFF, register, size)
        if offset == 0 and size == 4:
            return self._address
        if offset == 1 and self._reset_control is not None:
            return self._reset_control.read(0, 1) | (1 << 8 * size) - 1 & ~0xFF
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Select a register, or write to the selected one."""
        if offset >= 4:
            address = self._address
            if address >> 31:
                bus, devfn = address >> 16 & 0xFF, address >> 8 & 0xFF
                self.bus.write_config(bus, devfn, address & 0xFC | offset & 3, size, value)
        elif offset == 0 and size == 4:
            self._address = value & 0x80FF_FFFC
        elif offset == 1 and self._reset_control is not None:
            self._reset_control.write(0, 1, value & 0xFF)

    def ecam_read(self, offset: int, size: int) -> int:
        """An access to the ECAM window."""
        return self.bus.read_config(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size)

    def ecam_write(self, offset: int, size: int, value: int) -> None:
        """An access to the ECAM window."""
        self.bus.write_config(offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF, size, value)

    def place_ecam(self, address: int | None, buses: int = 256) -> None:
        """Move the ECAM window to guest-physical `address`; None takes it away.

        Where it cannot be (over RAM, over a BAR) it is not decoded, with a line in the log.
        """
        place = None if address is None else (address, buses * BUS_SIZE)
        if place == self._wanted:
            return
        self._wanted = place
        self._unmap()
        if place is None:
            return
        try:
            self._window = self.bus.mapper.map("mmio", *place, self.ecam)
        except PykvmError as error:
            self._log.warn(f"ECAM is not decoded at {place[0]:#x}: {error}")
            return
        self.ecam_place = place

    def _unmap(self) -> None:
        if self._window is not None:
            self._window.remove()
            self._window = self.ecam_place = None
            self.bus.settle()

    def reset(self) -> None:
        """The address register goes to 0; the window is the host bridge's, which resets it."""
        self._address = 0

    def save(self) -> dict[str, object]:
        """The address register."""
        return {"version": _VERSION, "address": self._address}

    def load(self, state: dict[str, object]) -> None:
        """Take it over."""
        take = StateReader(self.name, state, _VERSION)
        address = take.integer("address", 0xFFFF_FFFF)
        take.finish()
        self._address = address & 0x80FF_FFFC

    def close(self) -> None:
        """Takes the window away."""
        self.place_ecam(None)
