"""An I/O APIC with 24 pins, for machines whose local APICs are KVM's and the rest is not.

Source: Intel 82093AA data sheet (290566); the version register and the EOI register at 0x40 are
those of the I/O xAPIC in the Intel ICH9 data sheet, 13.5. Interrupts leave as messages: an entry
of the redirection table has the fields of an MSI (SDM vol. 3, 11.11).

A pin's level is taken as "asserted", whatever polarity the entry names. An edge that comes while
its entry is masked is lost, a level is not. `eoi` is what KVM reports with KVM_EXIT_IOAPIC_EOI.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.devices.base import Device, StateReader
from pykvm.devices.pc.window import PortRange
from pykvm.typed import NamedTuple, Protocol

PINS = 24
VERSION = 0x20
SELECT, DATA, EOI = 0x00, 0x10, 0x40
ID, VERSION_REGISTER, ARBITRATION, TABLE = 0x00, 0x01, 0x02, 0x10

LOGICAL, SENT, ACTIVE_LOW, REMOTE_IRR = 1 << 11, 1 << 12, 1 << 13, 1 << 14
LEVEL, MASKED = 1 << 15, 1 << 16
_READ_ONLY = SENT | REMOTE_IRR
_WRITABLE = 0xFF00_0000_0001_FFFF & ~_READ_ONLY
EXTINT = 7
MSI_BASE = 0xFEE0_0000


class MsiSender(Protocol):
    """Where interrupt messages go."""

    def send(self, address: int, data: int) -> None:
        """Deliver one message: guest-physical address and 32-bit data. Must not call back."""


class Entry(NamedTuple):
    """A pin's entry as a message, for the kernel's interrupt routing table.

    `level` is true for level-triggered ones, whose EOI matters.
    """

    pin: int
    masked: bool
    level: bool
    address: int
    data: int


class IoApicLine:
    """One pin as an `IrqLine`."""

    __slots__ = ("_ioapic", "pin")

    def __init__(self, ioapic: IoApic, pin: int) -> None:
        self._ioapic = ioapic
        self.pin = pin

    def set(self, level: bool) -> None:
        """Drive the pin."""
        self._ioapic.set_pin(self.pin, level)

    def pulse(self) -> None:
        """High, then low."""
        self._ioapic.set_pin(self.pin, True)
        self._ioapic.set_pin(self.pin, False)


def message(pin: int, entry: int) -> Entry:
    """A redirection table entry as a message."""
    address = MSI_BASE | (entry >> 56 & 0xFF) << 12 | (4 if entry & LOGICAL else 0)
    data = entry & 0x7FF  # vector and delivery mode
    if entry & LEVEL:
        data |= 1 << 15 | 1 << 14
    return Entry(pin, bool(entry & MASKED), bool(entry & LEVEL), address, data)


class IoApic(Device):
    """The I/O APIC. `sender` gets its interrupts. `on_change()` is called after the guest has
    changed the table, with no lock held: whoever mirrors it looks at `entries`. Thread-safe.
    """

    name = "ioapic"
    ADDRESS = 0xFEC0_0000
    LENGTH = 0x1000
    access_sizes = (1, 2, 4)
    max_access = 4

    def __init__(self, sender: MsiSender | None = None, id: int = 0) -> None:
        self.sender = sender
        self.on_change = _nothing
        self._first_id = id & 0x0F
        self._lock = allocate_lock()
        self._pins = 0  # levels of the pins
        self._power_on()

    def _power_on(self) -> None:
        self._select = 0
        self._id = self._first_id
        self._table = [MASKED] * PINS

    def ranges(self) -> list[PortRange]:
        """4 KiB at 0xfec00000."""
        return [PortRange("mmio", self.ADDRESS, self.LENGTH, self)]

    # -- interrupts ----------------------------------------------------------------------------

    def line(self, pin: int) -> IoApicLine:
        """Pin 0 to 23."""
        if not 0 <= pin < PINS:
            raise ValueError(f"pin {pin} does not exist; an I/O APIC has 0 to {PINS - 1}")
        return IoApicLine(self, pin)

    def set_pin(self, pin: int, level: bool) -> None:
        """Drive a pin."""
        bit = 1 << pin
        with self._lock:
            rising = level and not self._pins & bit
            self._pins = self._pins | bit if level else self._pins & ~bit
            entry = self._table[pin]
            if rising and not entry & (MASKED | LEVEL):
                self._send(pin)
            else:
                self._serve_level(pin)

    def _serve_level(self, pin: int) -> None:
        entry = self._table[pin]
        if entry & LEVEL and self._pins >> pin & 1 and not entry & (MASKED | REMOTE_IRR):
            self._table[pin] |= REMOTE_IRR
            self._send(pin)

    def _send(self, pin: int) -> None:
        if self.sender is not None:
            entry = message(pin, self._table[pin])
            self.sender.send(entry.address, entry.data)

    def eoi(self, vector: int) -> None:
        """A local APIC has ended the level interrupt `vector`; pins still high send again."""
        with self._lock:
            for pin, entry in enumerate(self._table):
                if entry & REMOTE_IRR and entry & 0xFF == vector:
                    self._table[pin] &= ~REMOTE_IRR
                    self._serve_level(pin)

    def serving(self) -> set[int]:
        """The vectors of level interrupts that were sent and not ended yet."""
        with self._lock:
            return {entry & 0xFF for entry in self._table if entry & REMOTE_IRR}

    def entries(self) -> list[Entry]:
        """All pins as messages."""
        with self._lock:
            return [message(pin, entry) for pin, entry in enumerate(self._table)]

    @property
    def takes_extint(self) -> bool:
        """Pin 0 lets the PIC's interrupts through (delivery mode ExtINT, not masked)."""
        entry = self._table[0]
        return entry >> 8 & 7 == EXTINT and not entry & MASKED

    # -- registers -----------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The chosen register number, or that register."""
        if offset & ~3 == SELECT:
            value = self._select
        elif offset & ~3 == DATA:
            with self._lock:
                value = self._register(self._select)
        else:
            value = 0
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _register(self, at: int) -> int:
        if at in (ID, ARBITRATION):
            return self._id << 24
        if at == VERSION_REGISTER:
            return (PINS - 1) << 16 | VERSION
        if TABLE <= at < TABLE + 2 * PINS:
            return self._table[at - TABLE >> 1] >> 32 * (at & 1) & 0xFFFF_FFFF
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a register, write to it, or end a level interrupt.

        Data wants 32 bits: narrower writes leave the other bits 0, those at odd places are lost.
        """
        if offset == SELECT:
            self._select = value & 0xFF
        elif offset == DATA:
            with self._lock:
                changed = self._write_register(self._select, value & 0xFFFF_FFFF)
            if changed:
                self.on_change()
        elif offset == EOI:
            self.eoi(value & 0xFF)

    def _write_register(self, at: int, value: int) -> bool:
        if at == ID:
            self._id = value >> 24 & 0x0F
        if not TABLE <= at < TABLE + 2 * PINS:
            return False
        pin, high = at - TABLE >> 1, at & 1
        old = self._table[pin]
        if high:
            entry = old & 0xFFFF_FFFF | value << 32
        else:
            entry = old & ~0xFFFF_FFFF | value
        entry = entry & _WRITABLE | old & REMOTE_IRR
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR  # the way drivers clear it on chips without an EOI register
        self._table[pin] = entry
        self._serve_level(pin)
        return entry != old

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Every entry masked; the pins keep their levels."""
        with self._lock:
            self._power_on()
        self.on_change()

    def save(self) -> dict[str, object]:
        """Registers, table and pins."""
        with self._lock:
            return {
                "select": self._select,
                "id": self._id,
                "table": list(self._table),
                "pins": self._pins,
            }

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state. No message is sent: what was sent is in the local APICs."""
        take = StateReader(self.name, state)
        select = take.integer("select", 0xFF)
        id_ = take.integer("id", 0x0F)
        table = take.integers("table", PINS, (1 << 64) - 1, least=PINS)
        pins = take.integer("pins", (1 << PINS) - 1)
        take.finish()
        with self._lock:
            self._select, self._id, self._pins = select, id_, pins
            self._table = [
                entry & (_WRITABLE | (REMOTE_IRR if entry & LEVEL else 0)) for entry in table
            ]
        self.on_change()


def _nothing() -> None:
    """Nobody mirrors the table."""
