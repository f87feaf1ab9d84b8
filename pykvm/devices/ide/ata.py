"""`AtaDisk`: an ATA-7 hard disk of 512-byte sectors over a block back end."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.block.backend import BlockBackend
from pykvm.devices.ide.drive import ABRT, IDNF, READY, Drive
from pykvm.devices.ide.identify import identify_disk
from pykvm.devices.ide.medium import MediumError
from pykvm.devices.state import StateReader
from pykvm.errors import PykvmError

SECTOR = 512
HEADS, SECTORS_PER_TRACK, MAX_CYLINDERS = 16, 63, 16383
MAX_MULTIPLE = 128

# (write, 48-bit address, how: one sector an interrupt, several, or DMA)
_ONE, _MULTIPLE, _DMA = range(3)
_TRANSFERS = {
    0x20: (False, False, _ONE), 0x21: (False, False, _ONE), 0x24: (False, True, _ONE),
    0xC4: (False, False, _MULTIPLE), 0x29: (False, True, _MULTIPLE),
    0xC8: (False, False, _DMA), 0xC9: (False, False, _DMA), 0x25: (False, True, _DMA),
    0x30: (True, False, _ONE), 0x31: (True, False, _ONE), 0x34: (True, True, _ONE),
    0xC5: (True, False, _MULTIPLE), 0x39: (True, True, _MULTIPLE), 0xCE: (True, True, _MULTIPLE),
    0xCA: (True, False, _DMA), 0xCB: (True, False, _DMA), 0x35: (True, True, _DMA),
    0x3D: (True, True, _DMA),
}  # fmt: skip
_FUA = (0xCE, 0x3D)  # on the medium before the command ends
_VERIFY = {0x40: False, 0x41: False, 0x42: True}
# SET FEATURES: write cache, transfer mode, advanced power, look-ahead, revert to defaults.
_FEATURES = (0x02, 0x03, 0x05, 0x42, 0x55, 0x66, 0x82, 0x85, 0xAA, 0xC2, 0xCC)
_POWER = (0x94, 0x95, 0x96, 0x97, 0x99, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6)


class AtaDisk(Drive):
    """A disk. `serial` (20 characters) and `model` (40) are what IDENTIFY DEVICE says.

    Raises `MediumError` for a medium smaller than one sector. Bytes after the last whole sector
    of the medium are not on the disk.
    """

    name = "ata-disk"

    def __init__(
        self, medium: BlockBackend, serial: str = "PYKVM0001", model: str = "PYKVM HARDDISK"
    ) -> None:
        if medium.size < SECTOR:
            raise MediumError(
                f"a disk needs at least one sector of {SECTOR} bytes; this image has {medium.size}"
            )
        self.sectors = medium.size // SECTOR
        self.serial = serial
        self.model = model
        self.cylinders = max(1, min(self.sectors // (HEADS * SECTORS_PER_TRACK), MAX_CYLINDERS))
        self._defaults()
        super().__init__(medium)

    def _defaults(self) -> None:
        self.heads, self.track = HEADS, SECTORS_PER_TRACK
        self.multiple = 16
        self.mode = 0
        self.write_cache = True

    @property
    def capacity(self) -> int:
        """Bytes in whole sectors."""
        return self.sectors * SECTOR

    def reset(self) -> None:
        """Power-on: the geometry is the default one again."""
        self._defaults()
        super().reset()

    # -- addresses ---------------------------------------------------------------------------

    def _address(self, extended: bool) -> tuple[int, int] | None:
        """(LBA, sectors) of the task file; None where a CHS address is impossible."""
        if extended:
            hob = self.hob
            lba = self.low | self.mid << 8 | self.high << 16
            lba |= (hob[2] | hob[3] << 8 | hob[4] << 16) << 24
            return lba, (hob[1] << 8 | self.count) or 0x10000
        count = self.count or 0x100
        if self.select & 0x40:
            return self.low | self.mid << 8 | self.high << 16 | (self.select & 0x0F) << 24, count
        head = self.select & 0x0F
        if not 1 <= self.low <= self.track or head >= self.heads:
            return None
        cylinder = self.mid | self.high << 8
        return (cylinder * self.heads + head) * self.track + self.low - 1, count

    def _place(self, extended: bool) -> bool:
        """Sets `offset` and `left` from the task file; False, and failed, beyond the end."""
        address = self._address(extended)
        if address is None or address[0] + address[1] > self.sectors:
            self.fail(IDNF)
            return False
        self.offset, self.left = address[0] * SECTOR, address[1] * SECTOR
        return True

    # -- commands ----------------------------------------------------------------------------

    def execute(self, command: int) -> None:
        """As `Drive.execute`; what is not known is aborted."""
        if command in _TRANSFERS:
            self._transfer(command)
        elif command in _VERIFY:
            if self._place(_VERIFY[command]):
                self.left = 0
                self.finish()
        elif command == 0xEC:
            self.begin_reply(identify_disk(self))
        elif command in (0xE7, 0xEA):
            self._flush()
            self.finish()
        elif command == 0xEF:
            self._set_features()
        elif command == 0xC6:
            if self.count & (self.count - 1) or self.count > MAX_MULTIPLE:
                self.fail()
            else:
                self.multiple = self.count
                self.finish()
        elif command == 0x91:
            self._set_geometry()
        elif command == 0x90:
            self._signature()
            self.interrupt()
        elif command in (0xE5, 0x98):
            self.count = 0xFF  # active
            self.finish()
        elif command in (0xF8, 0x27):
            self._native_max(command == 0x27)
        elif command in _POWER or command >> 4 in (1, 7):  # recalibrate, seek
            self.finish()
        else:
            self.fail()

    def _transfer(self, command: int) -> None:
        write, extended, how = _TRANSFERS[command]
        assert self.medium is not None
        if write and self.medium.read_only:
            self.fail()
            return
        if how == _MULTIPLE and not self.multiple:
            self.fail()
            return
        if not self._place(extended):
            return
        if how == _DMA:
            self.begin_dma(write)
            return
        self.chunk = SECTOR * (self.multiple if how == _MULTIPLE else 1)
        if write:
            self.begin_out(first=True)
        else:
            self.begin_in()

    def complete(self) -> None:
        """All sectors are written: with FUA, or without the write cache, on the medium itself."""
        if self.command in _FUA or not self.write_cache:
            try:
                self._flush()
            except (OSError, PykvmError):
                self.fail(ABRT)
                return
        self.finish()

    def _flush(self) -> None:
        if self.medium is not None and not self.medium.read_only:
            self.medium.flush()

    def _set_features(self) -> None:
        if self.feature not in _FEATURES:
            self.fail()
            return
        if self.feature == 0x03:
            self.mode = self.count
        elif self.feature in (0x02, 0x82):
            self.write_cache = self.feature == 0x02
            if not self.write_cache:
                self._flush()
        self.finish()

    def _set_geometry(self) -> None:
        """INITIALIZE DEVICE PARAMETERS: heads and sectors per track for CHS addresses."""
        if not self.count:
            self.fail()
            return
        self.heads, self.track = (self.select & 0x0F) + 1, self.count
        self.finish()

    def _native_max(self, extended: bool) -> None:
        last = self.sectors - 1
        if not extended:
            last = min(last, 0x0FFF_FFFE)
            self.select = self.select & 0xF0 | last >> 24 & 0x0F
        self.low, self.mid, self.high = last & 0xFF, last >> 8 & 0xFF, last >> 16 & 0xFF
        if extended:
            self.hob[2:5] = [last >> 24 & 0xFF, last >> 32 & 0xFF, last >> 40 & 0xFF]
        self.status = READY
        self.finish()

    # -- state -------------------------------------------------------------------------------

    def save(self) -> dict[str, object]:
        """Also the geometry and features that the guest set."""
        return {
            **super().save(), "heads": self.heads, "track": self.track, "mode": self.mode,
            "multiple": self.multiple, "write_cache": self.write_cache,
        }  # fmt: skip

    def parse(self, reader: StateReader) -> Callable[[], None]:
        """As `Drive.parse`."""
        base = super().parse(reader)
        heads, track = reader.integer("heads", 16, 1), reader.integer("track", 255, 1)
        mode, multiple = reader.integer("mode", 0xFF), reader.integer("multiple", MAX_MULTIPLE)
        write_cache = reader.boolean("write_cache")

        def apply() -> None:
            base()
            self.heads, self.track, self.mode = heads, track, mode
            self.multiple, self.write_cache = multiple, write_cache

        return apply
