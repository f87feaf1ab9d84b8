"""`PciDevice`: one function on a PCI bus (PCI Local Bus 3.0, type 0 header).

As a `Device`, its `read` and `write` are accesses to configuration space. What its BARs hold are
devices of their own, given to `Bar`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pykvm.devices.base import Device, IrqLine, NullIrqLine
from pykvm.devices.pci import config as c
from pykvm.devices.pci.bar import Bar, RamBlock
from pykvm.devices.pci.config import ConfigSpace, PciError
from pykvm.devices.state import StateReader
from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pykvm.devices.pci.bus import PciBus

_VERSION = 1
_COMMAND_BITS = 0x0547  # I/O, memory, master, parity response, SERR, INTx disable
_STATUS_CLEAR = 0xF900
_FIRST_CAPABILITY = 0x40

Commit = Callable[[], None]


class Capability(Protocol):
    """A capability that acts when its registers change."""

    def written(self, offset: int, size: int) -> None:
        """Software wrote `size` bytes at config offset `offset`."""

    def reset(self) -> None:
        """The registers went back to their power-on values."""

    def state(self) -> dict[str, object]:
        """What is to be saved besides the registers."""

    def take(self, take: StateReader) -> Commit:
        """Reads that back; the result, when called, makes it so."""


class PciDevice(Device):
    """A PCI function.

    - `class_code`: 24 bits, base class in the highest byte (0x010601: an AHCI controller).
    - `subsystem`: (vendor, device); the device's own unless given.
    - `interrupt_pin`: 0 none, 1 to 4 for INTA to INTD.
    - `bars`: up to six `Bar`s, None for one that is not there; a mem64 takes two registers, so
      None must follow it.
    - `rom`: an option ROM image, shown at the expansion ROM BAR.

    Put it on a bus with `PciBus.add`. Raises `PciError` for impossible arguments.
    """

    access_sizes = (1, 2, 4)
    max_access = 4

    def __init__(
        self, vendor: int, device: int, class_code: int, *, revision: int = 0,
        subsystem: tuple[int, int] | None = None, interrupt_pin: int = 0,
        bars: Sequence[Bar | None] = (), rom: bytes | None = None, name: str = "pci-device",
    ) -> None:  # fmt: skip
        self.name = name
        self.config = space = ConfigSpace()
        if not 0 <= interrupt_pin <= 4:
            raise PciError(f"interrupt pin {interrupt_pin} of {name} is not 0 (none) to 4 (INTD)")
        space.define(c.VENDOR_ID, 2, vendor)
        space.define(c.DEVICE_ID, 2, device)
        space.define(c.COMMAND, 2, 0, writable=_COMMAND_BITS)
        space.define(c.STATUS, 2, 0, clearing=_STATUS_CLEAR, live=c.STATUS_INTX)
        space.define(c.REVISION, 1, revision)
        space.define(c.CLASS, 3, class_code)
        space.define(0x0C, 1, 0, writable=0xFF)  # cache line size
        sub_vendor, sub_device = subsystem or (vendor, device)
        space.define(c.SUBSYSTEM_VENDOR, 2, sub_vendor)
        space.define(c.SUBSYSTEM, 2, sub_device)
        space.define(c.INTERRUPT_LINE, 1, 0, writable=0xFF)
        space.define(c.INTERRUPT_PIN, 1, interrupt_pin)
        self.bars: list[Bar | None] = [*bars, *[None] * (6 - len(bars))]
        self._define_bars()
        self.rom: Bar | None = None
        if rom is not None:
            self._define_rom(rom)
        self.capabilities: list[tuple[int, int, Capability]] = []
        self._next_capability = _FIRST_CAPABILITY
        self._last_pointer = c.CAPABILITIES
        self._power_on = bytes(space.data)
        self._intx = False
        self._line: IrqLine = NullIrqLine()
        self._driven = False
        self.bus: PciBus | None = None
        self.slot = 0
        self.function = 0

    def _define_bars(self) -> None:
        if len(self.bars) != 6:
            raise PciError(f"{self.name} has {len(self.bars)} BARs, but there are 6 registers")
        for index, bar in enumerate(self.bars):
            if bar is None:
                continue
            wide = bar.kind == "mem64"
            if wide and (index == 5 or self.bars[index + 1] is not None):
                raise PciError(f"BAR {index} of {self.name} is 64 bits: the next one must be None")
            size = 8 if wide else 4
            self.config.define(c.BAR0 + 4 * index, size, bar.flags, writable=bar.mask)

    def _define_rom(self, image: bytes) -> None:
        size = max(4096, 1 << (len(image) - 1).bit_length()) if image else 0
        if not 0 < size <= 16 << 20:
            raise PciError(f"an option ROM of {len(image)} bytes is not possible; 1 B to 16 MiB")
        block = RamBlock(size, f"{self.name}-rom", image)
        self.rom = Bar("mem32", size, ram=block, readonly=True)
        self.config.define(c.ROM, 4, 0, writable=self.rom.mask | 1)

    # -- for subclasses ------------------------------------------------------------------------

    def add_capability(
        self, kind: int, body: bytes, writable: bytes = b"", live: bytes = b"",
        handler: Capability | None = None,
    ) -> int:  # fmt: skip
        """Appends a capability: `body` follows the ID and next-pointer bytes.

        `writable` and `live` are masks over `body`, zeros where shorter. Returns its offset.
        """
        at = self._next_capability
        end = at + 2 + len(body)
        if end > c.CONFIG_SIZE:
            raise PciError(f"{self.name}: no room for capability {kind:#x} of {len(body)} bytes")
        space = self.config
        space.data[self._last_pointer] = at
        space.data[at] = kind
        space.data[at + 2 : end] = body
        space.writable[at + 2 : at + 2 + len(writable)] = writable
        space.live[at + 2 : at + 2 + len(live)] = live
        space.data[c.STATUS] |= c.STATUS_CAPABILITIES
        self._last_pointer = at + 1
        self._next_capability = end + 3 & ~3
        if handler is not None:
            self.capabilities.append((at, end, handler))
        self._power_on = bytes(space.data)
        return at

    def define(self, offset: int, size: int, value: int, **masks: int) -> None:
        """A device-specific register, as `ConfigSpace.define`; `value` is its power-on value."""
        self.config.define(offset, size, value, **masks)
        self._power_on = bytes(self.config.data)

    def config_written(self, offset: int, size: int) -> None:
        """Called after software wrote `size` bytes at `offset`; for subclasses."""

    # -- configuration space -------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A configuration space read; all-ones beyond byte 255."""
        return self.config.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A configuration space write; BARs move at once."""
        self.config.write(offset, size, value)
        if offset < 0x34:
            self._decode()
            self._drive()
        for start, end, handler in self.capabilities:
            if offset < end and start < offset + size:
                handler.written(offset, size)
        self.config_written(offset, size)

    @property
    def command(self) -> int:
        """The command register."""
        return self.config.get(c.COMMAND, 2)

    @property
    def bus_master(self) -> bool:
        """Whether the device may access memory and send MSIs."""
        return bool(self.config.data[c.COMMAND] & c.COMMAND_MASTER)

    def set_multi_function(self) -> None:
        """Say that the slot has more functions than 0."""
        self.config.data[c.HEADER_TYPE] |= c.MULTI_FUNCTION
        self._power_on = bytes(self.config.data)

    def all_bars(self) -> list[Bar]:
        """The BARs that exist, the expansion ROM last."""
        bars = [bar for bar in self.bars if bar is not None]
        return bars if self.rom is None else [*bars, self.rom]

    def wanted(self) -> list[tuple[Bar, int | None]]:
        """Where each BAR is to be decoded by what the registers say now."""
        places: list[tuple[Bar, int | None]] = []
        command = self.command
        for index, bar in enumerate(self.bars):
            if bar is None:
                continue
            on = command & (c.COMMAND_IO if bar.kind == "io" else c.COMMAND_MEMORY)
            register = self.config.get(c.BAR0 + 4 * index, 8 if bar.kind == "mem64" else 4)
            places.append((bar, bar.place(register) if on else None))
        if self.rom is not None:
            register = self.config.get(c.ROM, 4)
            on = command & c.COMMAND_MEMORY and register & 1
            places.append((self.rom, self.rom.place(register) if on else None))
        return places

    def _decode(self) -> None:
        if self.bus is not None:
            self.bus.decode(self)

    # -- interrupts ----------------------------------------------------------------------------

    def attach(self, bus: PciBus, slot: int, function: int, line: IrqLine) -> None:
        """`PciBus.add` calls it: where the device is, and its interrupt line."""
        self.bus, self.slot, self.function = bus, slot, function
        self._line = line

    def set_intx(self, level: bool) -> None:
        """Assert or release the interrupt pin. The command register may keep it off the line."""
        self._intx = level
        low = self.config.data[c.STATUS]
        self.config.data[c.STATUS] = low | c.STATUS_INTX if level else low & ~c.STATUS_INTX
        self._drive()

    def _drive(self) -> None:
        level = self._intx and not self.command & c.COMMAND_INTX_DISABLE
        if level != self._driven:
            self._driven = level
            self._line.set(level)

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-on: BARs unassigned, decoding off, the interrupt pin released."""
        self.config.data[:] = self._power_on
        self._intx = False
        self._decode()
        self._drive()
        for _, _, handler in self.capabilities:
            handler.reset()

    def save(self) -> dict[str, object]:
        """Configuration space, and what the capabilities and the device add."""
        state: dict[str, object] = {"version": _VERSION, "config": list(self.config.data)}
        for _, _, handler in self.capabilities:
            state.update(handler.state())
        return state

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state: the BARs go where it says."""
        take = StateReader(self.name, state, _VERSION)
        commit = self.take_state(take)
        take.finish()
        commit()

    def take_state(self, take: StateReader) -> Commit:
        """Reads the fields of `save`; the result, when called, takes them over."""
        data = self.config.restored(self.name, take)
        commits = [handler.take(take) for _, _, handler in self.capabilities]

        def commit() -> None:
            self.config.data[:] = data
            self._intx = bool(data[c.STATUS] & c.STATUS_INTX)
            for one in commits:
                one()
            self._decode()
            self._drive()

        return commit

    def close(self) -> None:
        """Give back what the BARs hold."""
        for bar in self.all_bars():
            bar.want(None)
        if self.rom is not None and self.rom.ram is not None:
            self.rom.ram.close()
