"""`IdeController`: the IDE function of a PIIX3 (8086:7010), with both channels.

The channels stay at their legacy ports (compatibility mode); BAR 4 has the bus-master registers,
eight for each channel. Source: Intel 82371SB data sheet, IDE controller registers.
"""

from __future__ import annotations

from pykvm.devices.base import IrqLine
from pykvm.devices.ide.ata import AtaDisk
from pykvm.devices.ide.atapi import AtapiCdrom
from pykvm.devices.ide.busmaster import BusMaster
from pykvm.devices.ide.channel import IdeChannel
from pykvm.devices.ide.medium import MediumError
from pykvm.devices.pci.bar import Bar, Registers
from pykvm.devices.pci.device import PciDevice
from pykvm.devices.state import StateReader
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.pci.device import Commit

VENDOR, DEVICE = 0x8086, 0x7010
CLASS = 0x010180  # IDE, bus master, both channels in compatibility mode
_IDETIM, _SIDETIM = 0x40, 0x44
_DECODE_ENABLE = 0x8000
#: (command block, control block, ISA interrupt) of each channel.
LEGACY = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))


class IdeController(PciDevice):
    """The PCI function. `channels[0]` is the primary one."""

    def __init__(self, memory: GuestMemory, irqs: tuple[IrqLine, IrqLine] | None = None) -> None:
        lines: tuple[IrqLine | None, IrqLine | None] = irqs or (None, None)
        self.channels = [IdeChannel(f"ide{i}", lines[i]) for i in range(2)]
        self.masters = [BusMaster(c, memory, lambda: self.bus_master) for c in self.channels]
        window = Registers("ide bus master", self._read_master, self._write_master, 4)
        bars = [None, None, None, None, Bar("io", 16, window)]
        super().__init__(VENDOR, DEVICE, CLASS, bars=bars, name="piix3-ide")
        for i in range(2):
            # Both channels decode from the start, as firmware would set them.
            self.define(_IDETIM + 2 * i, 2, _DECODE_ENABLE, writable=0xFFFF)
        self.define(_SIDETIM, 1, 0, writable=0xFF)

    def add_drive(self, index: int, drive: AtaDisk | AtapiCdrom) -> None:
        """Drive `index`: 0 and 1 on the primary channel, 2 and 3 on the secondary one."""
        if not 0 <= index <= 3:
            raise MediumError(f"there is no IDE drive {index}: two channels have drives 0 to 3")
        if self.channels[index // 2].drives[index % 2] is not None:
            raise MediumError(f"IDE drive {index} is there already; choose another one of 0 to 3")
        self.channels[index // 2].attach(index % 2, drive)

    @property
    def drives(self) -> list[AtaDisk | AtapiCdrom]:
        """The drives that are there."""
        return [drive for channel in self.channels for drive in channel.drives if drive]

    def legacy_ranges(self) -> list[tuple[int, int, IdeChannel | Registers]]:
        """(port, length, device) of the channels' fixed ports."""
        ranges: list[tuple[int, int, IdeChannel | Registers]] = []
        for (command, control, _), channel in zip(LEGACY, self.channels, strict=True):
            ranges += [(command, 8, channel), (control, 1, channel.control)]
        return ranges

    def _read_master(self, offset: int, size: int) -> int:
        channel, at = divmod(offset, 8)
        if at + size > 8:
            size = 8 - at
        return self.masters[channel & 1].read(at, size)

    def _write_master(self, offset: int, size: int, value: int) -> None:
        channel, at = divmod(offset, 8)
        self.masters[channel & 1].write(at, min(size, 8 - at), value)

    def config_written(self, offset: int, size: int) -> None:
        """Bus mastering switched on: a transfer may have waited for it."""
        if offset <= 0x05 and self.bus_master:
            for master in self.masters:
                master.run()

    def reset(self) -> None:
        """Power-on; the channels reset themselves."""
        super().reset()
        for master in self.masters:
            master.reset()

    def save(self) -> dict[str, object]:
        """Configuration space and bus-master registers; channels and drives save their own."""
        state = super().save()
        for i, master in enumerate(self.masters):
            state.update({f"master{i}_{name}": value for name, value in master.save().items()})
        return state

    def take_state(self, take: StateReader) -> Commit:
        """As `PciDevice.take_state`."""
        commits = [super().take_state(take)]
        commits += [m.parse(take, f"master{i}_") for i, m in enumerate(self.masters)]

        def commit() -> None:
            for one in commits:
                one()

        return commit
