"""`PciBus`: bus 0 with 32 slots of 8 functions, and where its devices' BARs are decoded."""

from __future__ import annotations

from collections.abc import Iterator

from pykvm.devices.base import NullIrqLine
from pykvm.devices.pci.bar import BarMapper
from pykvm.devices.pci.config import PciError
from pykvm.devices.pci.device import PciDevice
from pykvm.devices.pci.intx import IntxRouter
from pykvm.devices.pci.msi import MsiSender, NullMsiSender

SLOTS, FUNCTIONS = 32, 8


class PciBus:
    """PCI bus 0.

    - `mapper`: puts BARs on the machine's buses.
    - `router`: where interrupt pins lead; nowhere without.
    - `msi`: sends message-signalled interrupts; devices find it here.

    A BAR that cannot be where software put it (over RAM, over another device) is not decoded,
    with one line in the log; it is tried again whenever another range has gone.
    """

    def __init__(
        self, mapper: BarMapper, router: IntxRouter | None = None, msi: MsiSender | None = None
    ) -> None:
        self.mapper = mapper
        self.router = router
        self.msi: MsiSender = msi or NullMsiSender()
        self._functions: dict[int, PciDevice] = {}
        self._unsettled = False

    def add(self, slot: int, function: int, device: PciDevice) -> None:
        """Puts a function into a slot, for good. Raises `PciError` if that place is taken."""
        if not (0 <= slot < SLOTS and 0 <= function < FUNCTIONS):
            raise PciError(f"{device.name}: 00:{slot:02x}.{function} is not a place on a PCI bus")
        devfn = slot << 3 | function
        if devfn in self._functions:
            other = self._functions[devfn].name
            raise PciError(f"{device.name}: 00:{slot:02x}.{function} is taken by {other}")
        if device.bus is not None:
            raise PciError(f"{device.name} is on a bus already")
        self._functions[devfn] = device
        pin = device.config.data[0x3D]
        line = NullIrqLine() if self.router is None else self.router.line(slot, pin)
        device.attach(self, slot, function, line)
        if any(n >> 3 == slot and n & 7 for n in self._functions) and slot << 3 in self._functions:
            self._functions[slot << 3].set_multi_function()
        self.decode(device)

    def get(self, slot: int, function: int = 0) -> PciDevice | None:
        """The device at a place, or None."""
        return self._functions.get(slot << 3 | function)

    def free_slot(self, first: int = 3) -> int:
        """The lowest empty slot from `first` on. Raises `PciError` when there is none."""
        for slot in range(first, SLOTS):
            if not any(n >> 3 == slot for n in self._functions):
                return slot
        raise PciError("all 32 slots of the PCI bus are taken; use fewer devices")

    def __iter__(self) -> Iterator[PciDevice]:
        """The devices by slot and function."""
        return iter([self._functions[n] for n in sorted(self._functions)])

    # -- configuration access ------------------------------------------------------------------

    def read_config(self, bus: int, devfn: int, offset: int, size: int) -> int:
        """A configuration read; all-ones where nobody is."""
        device = self._functions.get(devfn) if bus == 0 else None
        return (1 << 8 * size) - 1 if device is None else device.read(offset, size)

    def write_config(self, bus: int, devfn: int, offset: int, size: int, value: int) -> None:
        """A configuration write; nothing happens where nobody is."""
        device = self._functions.get(devfn) if bus == 0 else None
        if device is not None:
            device.write(offset, size, value)

    # -- decoding ------------------------------------------------------------------------------

    def decode(self, device: PciDevice) -> None:
        """Bring a device's BARs to where its registers say, as far as that is possible."""
        changed = False
        for bar, place in device.wanted():
            changed |= bar.want(place)
        if not changed:
            return
        if self._unsettled:  # what was in the way of another BAR may be gone
            self.settle()
        else:
            self._unsettled = not self._settle(device)

    def settle(self) -> None:
        """Try again to map the BARs that were in somebody's way."""
        self._unsettled = False in [self._settle(device) for device in self]

    def _settle(self, device: PciDevice) -> bool:
        name = f"{device.name} at 00:{device.slot:02x}.{device.function}"
        return False not in [bar.settle(self.mapper, name) for bar in device.all_bars()]
