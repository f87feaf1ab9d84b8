"""`Drive`: the task file and the data transfers that disks and CD-ROMs have in common.

A command runs to its end at once, or to where the host must move data: a block through the data
register (`PIO_IN`, `PIO_OUT`), or all of it by bus-master DMA. Source: ATA/ATAPI-7, volume 1
(registers and commands) and volume 2 (protocols).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from pykvm.devices.base import Device
from pykvm.devices.block.backend import BlockBackend
from pykvm.devices.ide.medium import MediumError
from pykvm.devices.state import DeviceStateError, StateReader
from pykvm.errors import PykvmError

# Status register
BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
READY = DRDY | DSC
# Error register
ICRC, UNC, MC, IDNF, MCR, ABRT = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04
# What the host has to do next.
IDLE, PIO_IN, PIO_OUT, DMA_IN, DMA_OUT, PACKET = range(6)
MAX_BLOCK = 0x20000  # bytes that the data register hands over for one interrupt
MAX_TRANSFER = 1 << 28
MAX_REPLY = 0x10000
PACKET_SIZE = 12
_REGISTERS = ("feature", "count", "low", "mid", "high")


class Drive(Device):
    """One device on an IDE cable. As a `Device` its registers are the eight of the command block.

    `interrupt` is called when INTRQ rises; the channel sets it.
    """

    name = "ide-drive"
    access_sizes = (1,)
    max_access = 1
    is_atapi = False

    def __init__(self, medium: BlockBackend | None) -> None:
        self.medium = medium
        self.interrupt: Callable[[], None] = lambda: None
        self._reset_registers()

    # -- registers ---------------------------------------------------------------------------

    def _reset_registers(self) -> None:
        self.feature = self.count = self.low = self.mid = self.high = 0
        # "High order bytes": what was written before the last write (48-bit addresses).
        self.hob = [0] * 5
        self.select = 0
        self.status = 0
        self.error = 0
        self.phase = IDLE
        self.buffer = b""  # the block at the data register
        self.filled = bytearray()  # what the host has written of it
        self.position = 0
        self.reply: bytes | None = None  # where data comes from: this, or the medium
        self.offset = 0  # next byte of that
        self.left = 0  # bytes to move after the block in `buffer`
        self.chunk = 512
        self.command = 0
        self._signature()

    def _signature(self) -> None:
        """Registers after a reset (ATA/ATAPI-7, 9.12): they tell the kind of the device."""
        self.error = 1  # diagnostics passed
        self.count = self.low = 1
        self.mid, self.high = (0x14, 0xEB) if self.is_atapi else (0, 0)
        self.status = 0 if self.is_atapi else READY

    def reset(self) -> None:
        """Power-on."""
        self._reset_registers()

    def soft_reset(self) -> None:
        """SRST, DEVICE RESET: what was going on is forgotten."""
        self._reset_registers()

    def read(self, offset: int, size: int) -> int:
        """A command-block register; the data register is `take`'s. Reading clears nothing."""
        if offset == 7:
            return self.status
        if offset == 1:
            return self.error
        if offset == 6:
            return self.select | 0xA0
        if 2 <= offset <= 5:
            return int(getattr(self, _REGISTERS[offset - 1]))
        if offset == 0:
            return self.take(1)[0]
        return 0xFF

    def read_hob(self, offset: int) -> int:
        """The register's previous contents (device control bit 7)."""
        return self.hob[offset - 1] if 2 <= offset <= 5 else self.read(offset, 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """A command-block register. 7 starts a command."""
        if 1 <= offset <= 5:
            name = _REGISTERS[offset - 1]
            self.hob[offset - 1] = getattr(self, name)
            setattr(self, name, value & 0xFF)
        elif offset == 6:
            self.select = value & 0x5F
        elif offset == 7:
            self.start(value & 0xFF)
        elif offset == 0:
            self.put(bytes([value & 0xFF]))

    # -- commands ----------------------------------------------------------------------------

    def start(self, command: int) -> None:
        """A write to the command register."""
        self.phase = IDLE
        self.buffer = b""
        self.filled = bytearray()
        self.reply = None
        self.left = 0
        self.command = command
        self.error = 0
        self.status = READY
        try:
            self.execute(command)
        except (OSError, PykvmError):
            self.fail(UNC)

    @abstractmethod
    def execute(self, command: int) -> None:
        """The command itself; each kind of drive has its own."""
        raise NotImplementedError

    def finish(self) -> None:
        """The command is done, without error."""
        self.phase = IDLE
        self.status = READY
        self.interrupt()

    def fail(self, error: int = ABRT) -> None:
        """The command ends with an error; nothing more is transferred."""
        self.phase = IDLE
        self.left = 0
        self.buffer = b""
        self.error = error
        self.status = READY | ERR
        self.interrupt()

    # -- the medium --------------------------------------------------------------------------

    def fetch(self, length: int) -> bytes:
        """The next `length` bytes that the host gets. Raises what the medium raises."""
        at = self.offset
        self.offset += length
        if self.reply is not None:
            return self.reply[at : at + length]
        if self.medium is None:
            raise MediumError("there is no medium")
        here = max(0, min(length, self.medium.size - at))
        data = self.medium.read(at, here) if here else b""
        return data + bytes(length - len(data))

    def store(self, data: bytes) -> None:
        """The next bytes that came from the host. Raises what the medium raises."""
        if self.medium is None:
            raise MediumError("there is no medium")
        self.medium.write(self.offset, data)
        self.offset += len(data)

    def begin_reply(self, data: bytes) -> None:
        """Hand `data` (at least one byte) to the host through the data register."""
        self.reply = data
        self.offset, self.left, self.chunk = 0, len(data), len(data)
        self.begin_in()

    # -- transfers through the data register -------------------------------------------------

    def begin_in(self) -> None:
        """Put the next block at the data register and say so."""
        try:
            self.buffer = self.fetch(min(self.left, self.chunk))
        except (OSError, PykvmError):
            self.fail(UNC)
            return
        self.left -= len(self.buffer)
        self.position = 0
        self.phase = PIO_IN
        self.status = READY | DRQ
        self.block_ready()
        self.interrupt()

    def begin_out(self, first: bool) -> None:
        """Ask for the next block; an interrupt says so, but not for the first one."""
        self.filled = bytearray()
        self.phase = PIO_OUT
        self.status = READY | DRQ
        if not first:
            self.interrupt()

    def block_ready(self) -> None:
        """A hook: a block is about to be announced."""

    def complete(self) -> None:
        """A hook: all data was moved. The default ends the command with an interrupt."""
        self.finish()

    def block_taken(self) -> None:
        """The host has read the whole block."""
        self.buffer = b""
        if self.left:
            self.begin_in()
        else:
            self.phase = IDLE
            self.status = READY

    def block_filled(self) -> None:
        """The host has written the whole block."""
        data = bytes(self.filled)
        self.filled = bytearray()
        try:
            self.store(data)
        except (OSError, PykvmError):
            self.fail(IDNF | ABRT)
            return
        self.left -= len(data)
        if self.left:
            self.begin_out(first=False)
        else:
            self.complete()

    def take(self, length: int) -> bytes:
        """`length` bytes from the data register; zeros where there is nothing to read."""
        out = b""
        while self.phase == PIO_IN and len(out) < length:
            end = self.position + length - len(out)
            part = self.buffer[self.position : end]
            self.position += len(part)
            out += part
            if self.position >= len(self.buffer):
                self.block_taken()
        return out + bytes(length - len(out)) if len(out) < length else out

    def put(self, data: bytes) -> None:
        """Bytes to the data register; they go nowhere where none are wanted."""
        while data and self.phase in (PIO_OUT, PACKET):
            want = PACKET_SIZE if self.phase == PACKET else min(self.left, self.chunk)
            room = want - len(self.filled)
            self.filled += data[:room]
            data = data[room:]
            if len(self.filled) < want:
                return
            if self.phase == PACKET:
                self.packet_filled()
            else:
                self.block_filled()

    def packet_filled(self) -> None:
        """The twelve bytes of a packet command are there."""

    # -- DMA ---------------------------------------------------------------------------------

    def begin_dma(self, write: bool) -> None:
        """Wait for the bus master to move `left` bytes."""
        self.phase = DMA_OUT if write else DMA_IN
        self.status = READY | DRQ

    def dma_in(self, length: int) -> bytes:
        """Up to `length` of the bytes to go to memory. Raises what the medium raises."""
        data = self.fetch(min(length, self.left))
        self.left -= len(data)
        return data

    def dma_out(self, data: bytes) -> None:
        """Bytes from memory, no more than `left`. Raises what the medium raises."""
        self.store(data)
        self.left -= len(data)

    # -- state -------------------------------------------------------------------------------

    _SAVED = {
        "feature": 0xFF, "count": 0xFF, "low": 0xFF, "mid": 0xFF, "high": 0xFF, "select": 0x5F,
        "status": 0xFF, "error": 0xFF, "command": 0xFF, "phase": PACKET,
        "position": MAX_BLOCK, "left": MAX_TRANSFER, "chunk": MAX_BLOCK, "offset": 1 << 62,
    }  # fmt: skip

    def save(self) -> dict[str, object]:
        """Registers and a transfer that is under way."""
        state: dict[str, object] = {name: getattr(self, name) for name in self._SAVED}
        state["version"] = 1
        state["hob"] = list(self.hob)
        state["buffer"] = list(self.buffer)
        state["filled"] = list(self.filled)
        state["has_reply"] = self.reply is not None
        state["reply"] = list(self.reply or b"")
        return state

    def load(self, state: dict[str, object]) -> None:
        """As `Device.load`."""
        reader = StateReader(self.name, state, version=1)
        apply = self.parse(reader)
        reader.finish()
        apply()

    def parse(self, reader: StateReader) -> Callable[[], None]:
        """Reads what `save` gave; the function returned puts it in force."""
        values: dict[str, object] = {n: reader.integer(n, high) for n, high in self._SAVED.items()}
        hob = reader.integers("hob", 5, 0xFF)
        buffer = bytes(reader.integers("buffer", MAX_BLOCK, 0xFF))
        filled = bytearray(reader.integers("filled", MAX_BLOCK, 0xFF))
        has_reply = reader.boolean("has_reply")
        reply = bytes(reader.integers("reply", MAX_REPLY, 0xFF))
        phase, left, chunk = values["phase"], values["left"], values["chunk"]
        assert isinstance(phase, int)
        assert isinstance(left, int)
        assert isinstance(chunk, int)
        room = PACKET_SIZE if phase == PACKET else min(left, chunk)
        if len(hob) != 5 or chunk < 1 or (phase in (PIO_OUT, PACKET) and len(filled) >= room):
            raise DeviceStateError(f"{self.name}: saved state has an impossible transfer")
        if phase == PIO_IN and int(str(values["position"])) >= len(buffer):
            raise DeviceStateError(f"{self.name}: saved state has an impossible transfer")
        if phase == PACKET and not self.is_atapi:
            raise DeviceStateError(f"{self.name}: saved state is that of a packet device")
        end = int(str(values["offset"])) + left
        moving = phase in (PIO_IN, PIO_OUT, DMA_IN, DMA_OUT) and left > 0
        if moving and end > (len(reply) if has_reply else self.capacity):
            raise DeviceStateError(f"{self.name}: saved state has a transfer beyond the medium")

        def apply() -> None:
            self.__dict__.update(values)
            self.hob = hob
            self.buffer = buffer
            self.filled = filled
            self.reply = reply if has_reply else None

        return apply

    @property
    def capacity(self) -> int:
        """Bytes that can be addressed on the medium."""
        return 0 if self.medium is None else self.medium.size

    def close(self) -> None:
        """Closes the medium. Twice is harmless."""
        if self.medium is not None:
            self.medium.close()
            self.medium = None
