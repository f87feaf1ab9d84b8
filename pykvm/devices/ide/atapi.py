"""`AtapiCdrom`: a CD-ROM or DVD-ROM drive that takes packet commands (MMC-3, SFF-8020i)."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.block.backend import BlockBackend
from pykvm.devices.ide import mmc
from pykvm.devices.ide.drive import (
    ABRT,
    DMA_IN,
    DRQ,
    ERR,
    IDLE,
    MAX_BLOCK,
    PACKET,
    READY,
    Drive,
)  # fmt: skip
from pykvm.devices.ide.identify import identify_cdrom
from pykvm.devices.ide.mmc import SECTOR, Sense
from pykvm.devices.state import StateReader
from pykvm.errors import PykvmError

# Interrupt reason, in the sector count register
_COMMAND, _TO_HOST = 0x01, 0x02
_FEATURES = (0x02, 0x03, 0x05, 0x55, 0x66, 0x82, 0x85, 0xAA, 0xCC)
_POWER = (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)


class AtapiCdrom(Drive):
    """A drive with an ISO image in it, or none: `insert` and `eject` change that."""

    name = "atapi-cdrom"
    is_atapi = True

    def __init__(
        self,
        medium: BlockBackend | None = None,
        serial: str = "PYKVM0002",
        model: str = "PYKVM CDROM",
    ) -> None:
        self.serial = serial
        self.model = model
        self._defaults()
        super().__init__(medium)

    def _defaults(self) -> None:
        self.sense = Sense.NONE
        self.attention: tuple[int, int, int] | None = None
        self.locked = False
        self.event = 0  # of GET EVENT STATUS: 0 none, 2 new media, 3 media removal
        self.limit = 0  # byte count limit of the packet command
        self.dma = False
        self.mode = 0

    def reset(self) -> None:
        """Power-on."""
        self._defaults()
        super().reset()

    @property
    def blocks(self) -> int:
        """Sectors of 2048 bytes; a last one that is not whole is filled up with zeros."""
        return 0 if self.medium is None else -(-self.medium.size // SECTOR)

    @property
    def capacity(self) -> int:
        """Bytes in sectors."""
        return self.blocks * SECTOR

    def insert(self, medium: BlockBackend) -> None:
        """Another disc; the guest hears of it at its next command."""
        self.medium = medium
        self.attention = Sense.MEDIUM_CHANGED
        self.event = 2

    def eject(self) -> BlockBackend | None:
        """Takes the disc out, locked or not, and returns it."""
        medium, self.medium = self.medium, None
        self.attention = None
        self.event = 3
        return medium

    # -- ATA commands ------------------------------------------------------------------------

    def execute(self, command: int) -> None:
        """As `Drive.execute`: the few ATA commands that a packet device has."""
        if command == 0xA0:
            self.limit = self.mid | self.high << 8
            self.dma = bool(self.feature & 1)
            self.filled = bytearray()
            self.phase = PACKET
            self.status = READY | DRQ
            self.count = _COMMAND
        elif command == 0xA1:
            self.limit = 0xFFFE
            self.begin_reply(identify_cdrom(self))
        elif command == 0x08:
            self._reset_registers()
        elif command == 0x90:
            self._signature()
            self.interrupt()
        elif command == 0xEF and self.feature in _FEATURES:
            if self.feature == 3:
                self.mode = self.count
            self.finish()
        elif command == 0xE5:
            self.count = 0xFF
            self.finish()
        elif command in _POWER:
            self.finish()
        else:
            if command in (0xEC, 0x20, 0x24):  # asked whether it is a disk
                self._signature()
            self.fail()

    # -- packets -----------------------------------------------------------------------------

    def packet_filled(self) -> None:
        """The twelve bytes are there: what they ask for."""
        packet = bytes(self.filled)
        self.filled = bytearray()
        self.phase = IDLE
        try:
            result = mmc.execute(self, packet)
        except mmc.CheckCondition as error:
            self.check(error.sense)
            return
        except (OSError, PykvmError):
            self.check(Sense.READ_ERROR)
            return
        if isinstance(result, bytes):
            self.reply, self.offset, self.left = result, 0, len(result)
        elif result is not None:
            self.reply = None
            self.offset, self.left = result
        else:
            self.left = 0
        if self.left == 0:
            self.complete()
        elif self.dma:
            self.count = _TO_HOST
            self.begin_dma(write=False)
        else:
            limit = self.limit or 0xFFFE
            if limit < self.left and limit & 1:  # only the last block may be odd
                limit -= 1
            self.chunk = max(2, min(limit, MAX_BLOCK))
            self.begin_in()

    def check(self, sense: tuple[int, int, int]) -> None:
        """CHECK CONDITION: the host asks with REQUEST SENSE what was wrong."""
        self.sense = sense
        self.phase = IDLE
        self.left = 0
        self.buffer = b""
        self.count = _COMMAND | _TO_HOST
        self.error = sense[0] << 4 | (ABRT if sense[0] == 5 else 0)
        self.status = READY | ERR
        self.interrupt()

    def fail(self, error: int = ABRT) -> None:
        """In the middle of a packet command an error is a CHECK CONDITION."""
        if self.command == 0xA0:
            self.check(Sense.READ_ERROR)
        else:
            super().fail(error)

    def block_ready(self) -> None:
        """The byte count of this block is in the cylinder registers."""
        if self.command == 0xA0:
            self.mid, self.high = len(self.buffer) & 0xFF, len(self.buffer) >> 8 & 0xFF
            self.count = _TO_HOST

    def block_taken(self) -> None:
        """After the last block of a packet command an interrupt tells the end."""
        if self.left or self.command != 0xA0:
            super().block_taken()
        else:
            self.buffer = b""
            self.complete()

    def complete(self) -> None:
        """Without error."""
        self.sense = Sense.NONE
        self.count = _COMMAND | _TO_HOST
        self.finish()

    # -- state -------------------------------------------------------------------------------

    def save(self) -> dict[str, object]:
        """Also sense data and what the guest set."""
        return {
            **super().save(), "sense": list(self.sense), "locked": self.locked,
            "attention": list(self.attention or ()), "event": self.event, "limit": self.limit,
            "dma": self.dma, "mode": self.mode,
        }  # fmt: skip

    def parse(self, reader: StateReader) -> Callable[[], None]:
        """As `Drive.parse`."""
        base = super().parse(reader)
        sense = reader.integers("sense", 3, 0xFF)
        attention = reader.integers("attention", 3, 0xFF)
        locked, dma = reader.boolean("locked"), reader.boolean("dma")
        event, limit = reader.integer("event", 3), reader.integer("limit", 0xFFFF)
        mode = reader.integer("mode", 0xFF)

        def apply() -> None:
            base()
            self.sense = _triple(sense)
            self.attention = _triple(attention) if attention else None
            self.locked, self.dma = locked, dma
            self.event, self.limit, self.mode = event, limit, mode

        return apply

    @property
    def waits_for_dma(self) -> bool:
        """Whether a packet's data is to go by DMA."""
        return self.phase == DMA_IN


def _triple(values: list[int]) -> tuple[int, int, int]:
    key, code, qualifier = (*values, 0, 0, 0)[:3]
    return key & 0x0F, code, qualifier
