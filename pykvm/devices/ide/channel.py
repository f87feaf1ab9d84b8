"""`IdeChannel`: one IDE cable with up to two drives, as its two port ranges show it.

The command block (eight ports, 0x1f0 or 0x170) is the device's own range; `control` is the one
port of the control block (0x3f6 or 0x376). Source: ATA/ATAPI-7, volume 2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pykvm.devices.base import Device, IrqLine, NullIrqLine
from pykvm.devices.ide.ata import AtaDisk
from pykvm.devices.ide.atapi import AtapiCdrom
from pykvm.devices.ide.drive import DMA_IN, DMA_OUT, Drive
from pykvm.devices.pci.bar import Registers
from pykvm.devices.state import StateReader

_NIEN, _SRST, _HOB = 0x02, 0x04, 0x80
MAX_BLOCK_READ = 1 << 20


class IdeChannel(Device):
    """A channel. `irq` is its interrupt line; `drives[0]` is the master.

    `on_dma` is called when a drive waits for the bus master, `on_interrupt` when INTRQ rises.
    """

    access_sizes = (1, 2, 4)
    max_access = 4

    def __init__(self, name: str = "ide0", irq: IrqLine | None = None) -> None:
        self.name = name
        self.irq: IrqLine = irq or NullIrqLine()
        self.drives: list[AtaDisk | AtapiCdrom | None] = [None, None]
        self.on_dma: Callable[[], None] = lambda: None
        self.on_interrupt: Callable[[], None] = lambda: None
        self.control = Registers(f"{name} control", self.read_control, self.write_control, 1)
        self.lock = threading.RLock()
        self._select = 0
        self._control = 0
        self._pending = False
        self._level = False

    def attach(self, index: int, drive: AtaDisk | AtapiCdrom) -> None:
        """Puts a drive on the cable: 0 is the master, 1 the slave."""
        self.drives[index] = drive

        def interrupt() -> None:
            # A drive that is not selected keeps its interrupt to itself.
            if self.drive is drive:
                self._interrupt()

        drive.interrupt = interrupt

    @property
    def drive(self) -> Drive | None:
        """The drive that is selected, None where there is none."""
        return self.drives[self._select >> 4 & 1]

    # -- interrupts --------------------------------------------------------------------------

    def _interrupt(self) -> None:
        self._pending = True
        self.on_interrupt()
        self._drive_line()

    def _drive_line(self) -> None:
        level = self._pending and not self._control & _NIEN
        if level != self._level:
            self._level = level
            self.irq.set(level)

    def _acknowledge(self) -> None:
        self._pending = False
        self._drive_line()

    # -- command block -----------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Ports of the command block. 0 is the data register, 16 or 32 bits wide."""
        with self.lock:
            drive = self.drive
            if drive is None:
                return 0
            if offset == 0:
                return int.from_bytes(drive.take(size), "little")
            value = 0
            for i in range(size):
                value |= self._read_register(drive, offset + i) << 8 * i
            return value

    def _read_register(self, drive: Drive, offset: int) -> int:
        if offset > 7:
            return 0xFF
        if offset == 7:
            self._acknowledge()
        if offset == 6:
            return self._select | 0xA0
        if self._control & _HOB:
            return drive.read_hob(offset)
        return drive.read(offset, 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Both drives hear the registers; the selected one gets data and commands."""
        with self.lock:
            if offset == 0:
                if self.drive is not None:
                    self.drive.put((value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
                return
            for i in range(size):
                if offset + i <= 7:
                    self._write_register(offset + i, value >> 8 * i & 0xFF)

    def _write_register(self, offset: int, value: int) -> None:
        self._control &= ~_HOB
        if offset == 7:
            self._command(value)
            return
        if offset == 6:
            self._select = value & 0x5F
        for drive in self.drives:
            if drive is not None:
                drive.write(offset, 1, value)

    def _command(self, value: int) -> None:
        if value == 0x90:  # EXECUTE DEVICE DIAGNOSTIC is for both
            self._select = 0
            other = self.drives[1]
            if other is not None:
                other.start(value)
        drive = self.drive
        if drive is None or self._control & _SRST:
            return
        self._acknowledge()
        drive.start(value)
        self._after()

    def _after(self) -> None:
        drive = self.drive
        if drive is not None and drive.phase in (DMA_IN, DMA_OUT):
            self.on_dma()

    def read_block(self, offset: int, size: int, count: int) -> bytes:
        """REP INS: `count` elements of `size` bytes at once, as that many reads would give."""
        length = size * count
        with self.lock:
            drive = self.drive
            if offset == 0 and drive is not None and length <= MAX_BLOCK_READ:
                return drive.take(length)
        values = (self.read(offset, size) for _ in range(count))
        return b"".join([value.to_bytes(size, "little") for value in values])

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """REP OUTS: elements of `size` bytes at once, as that many writes would do."""
        with self.lock:
            drive = self.drive
            if offset == 0 and drive is not None:
                drive.put(bytes(data))
                self._after()
                return
        for at in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))

    # -- control block -----------------------------------------------------------------------

    def read_control(self, offset: int, size: int) -> int:
        """Alternate status: as the status, without acknowledging the interrupt."""
        with self.lock:
            return 0 if self.drive is None else self.drive.status

    def write_control(self, offset: int, size: int, value: int) -> None:
        """Device control: nIEN, SRST, HOB."""
        with self.lock:
            before, self._control = self._control, value & (_NIEN | _SRST | _HOB)
            if value & _SRST and not before & _SRST:
                self._select = 0
                self._pending = False
                for drive in self.drives:
                    if drive is not None:
                        drive.soft_reset()
            self._drive_line()

    # -- life --------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-on, drives too."""
        with self.lock:
            self._select = self._control = 0
            self._pending = False
            self._drive_line()
            for drive in self.drives:
                if drive is not None:
                    drive.reset()

    def save(self) -> dict[str, object]:
        """The channel's registers; its drives are devices of their own."""
        return {
            "version": 1, "select": self._select, "control": self._control,
            "pending": self._pending,
        }  # fmt: skip

    def load(self, state: dict[str, object]) -> None:
        """As `Device.load`."""
        reader = StateReader(self.name, state, version=1)
        select = reader.integer("select", 0x5F)
        control = reader.integer("control", 0x86)
        pending = reader.boolean("pending")
        reader.finish()
        with self.lock:
            self._select, self._control = select & 0x5F, control & 0x86
            self._pending = pending
            self._drive_line()

    def close(self) -> None:
        """Closes the drives' media."""
        for drive in self.drives:
            if drive is not None:
                drive.close()
