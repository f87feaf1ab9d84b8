"""`BusMaster`: DMA for one IDE channel from a table of memory regions (SFF-8038i).

The guest's table is hostile: entries outside memory end the transfer with the error bit, and a
table has at most 64 KiB. A transfer happens at once, when both the drive and the guest are ready.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pykvm.devices.ide.channel import IdeChannel
from pykvm.devices.ide.drive import DMA_IN, DMA_OUT, IDNF, UNC
from pykvm.devices.state import StateReader
from pykvm.errors import PykvmError
from pykvm.memory import GuestMemory

START, TO_MEMORY = 0x01, 0x08
ACTIVE, ERROR, INTERRUPT, CAPABLE = 0x01, 0x02, 0x04, 0x60
_ENTRY = struct.Struct("<II")
_END = 0x8000_0000
MAX_ENTRIES = 8192


class BusMaster:
    """The eight registers of a channel. `allowed` says whether the function may master the bus."""

    def __init__(
        self, channel: IdeChannel, memory: GuestMemory, allowed: Callable[[], bool] = lambda: True
    ) -> None:
        self._channel = channel
        self._memory = memory
        self._allowed = allowed
        channel.on_dma = self.run
        channel.on_interrupt = self._interrupt
        self.reset()

    def reset(self) -> None:
        """Power-on."""
        self.command = self.status = 0
        self.table = 0
        self._entry = 0  # the next one of the table
        self._done = 0  # bytes of it that are moved

    def _interrupt(self) -> None:
        self.status |= INTERRUPT

    def read(self, offset: int, size: int) -> int:
        """0 command, 2 status, 4 to 7 the table's guest-physical address."""
        raw = bytes([self.command, 0, self.status, 0]) + struct.pack("<I", self.table)
        return int.from_bytes(raw[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Setting START runs the transfer, clearing it forgets what is left."""
        for i in range(size):
            self._write_byte(offset + i, value >> 8 * i & 0xFF)

    def _write_byte(self, offset: int, value: int) -> None:
        with self._channel.lock:
            if offset == 0:
                started = value & START and not self.command & START
                self.command = value & (START | TO_MEMORY)
                if not value & START:
                    self.status &= ~ACTIVE
                elif started:
                    self._entry = self._done = 0
                    self.status |= ACTIVE
                    self.run()
            elif offset == 2:
                kept = self.status & (ERROR | INTERRUPT) & ~value
                self.status = self.status & ACTIVE | value & CAPABLE | kept
            elif 4 <= offset <= 7:
                shift = 8 * (offset - 4)
                table = self.table & ~(0xFF << shift) | value << shift
                self.table = table & 0xFFFF_FFFC

    def run(self) -> None:
        """Moves data as long as drive, table and registers allow."""
        drive = self._channel.drive
        if drive is None or drive.phase not in (DMA_IN, DMA_OUT):
            return
        if not self.status & ACTIVE or not self._allowed():
            return
        to_memory = drive.phase == DMA_IN
        if bool(self.command & TO_MEMORY) != to_memory:
            self._stop(ERROR)  # the guest programmed the other direction
            drive.fail()
            return
        while drive.left:
            if self._entry >= MAX_ENTRIES:
                self._stop(ERROR)
                drive.fail()
                return
            try:
                address, word = _ENTRY.unpack(
                    self._memory.read(self.table + 8 * self._entry, _ENTRY.size)
                )
                size = word & 0xFFFE or 0x10000
                address = (address & ~1) + self._done
                count = min(size - self._done, drive.left)
                if not self._memory.contains(address, count):
                    raise _BadTableError
                source = b"" if to_memory else self._memory.read(address, count)
            except PykvmError:
                self._stop(ERROR)
                drive.fail()
                return
            try:
                if to_memory:
                    self._memory.write(address, drive.dma_in(count))
                else:
                    drive.dma_out(source)
            except (OSError, PykvmError):
                self._stop(0)
                drive.fail(UNC if to_memory else IDNF)
                return
            self._done += count
            if self._done == size:
                self._done = 0
                self._entry += 1
                if word & _END:
                    self._stop(0)
                    break
        if not drive.left:  # else the table was too short: the drive waits on
            drive.complete()

    def _stop(self, error: int) -> None:
        self.status = self.status & ~ACTIVE | error

    def save(self) -> dict[str, object]:
        """Registers, and how far a transfer got."""
        return {
            "command": self.command, "status": self.status, "table": self.table,
            "entry": self._entry, "done": self._done,
        }  # fmt: skip

    def parse(self, reader: StateReader, prefix: str) -> Callable[[], None]:
        """Reads what `save` gave, its names after `prefix`; the function puts it in force."""
        command = reader.integer(prefix + "command", 0x09)
        status = reader.integer(prefix + "status", 0x67)
        table = reader.integer(prefix + "table", 0xFFFF_FFFF)
        entry = reader.integer(prefix + "entry", MAX_ENTRIES)
        done = reader.integer(prefix + "done", 0xFFFF)

        def apply() -> None:
            self.command, self.status = command & 0x09, status & 0x67
            self.table = table & 0xFFFF_FFFC
            self._entry, self._done = entry, done

        return apply


class _BadTableError(PykvmError):
    """A region of the table is not memory."""
