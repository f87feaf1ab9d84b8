"""INTx: interrupt pins, PIRQ lines, and lines that several devices share.

Slot s, pin p (0 is INTA) is wired to PIRQ (s + p) mod 8, as the board's ACPI tables and MP table
say. PIRQ n drives GSI 16 + n, and the ISA interrupt that the chipset routes it to.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock

from pykvm.devices.base import IrqLine, NullIrqLine

PIRQS = 8


class _Input:
    """One device's end of a shared line."""

    __slots__ = ("_bit", "_shared")

    def __init__(self, shared: SharedLine, bit: int) -> None:
        self._shared = shared
        self._bit = bit

    def set(self, level: bool) -> None:
        """This device's level; the line is high as long as anybody holds it high."""
        self._shared.drive(self._bit, level)

    def pulse(self) -> None:
        """High, then low again."""
        self.set(True)
        self.set(False)


class SharedLine:
    """One interrupt line with several devices at it: their levels OR-ed. Any thread."""

    def __init__(self, target: IrqLine | None = None) -> None:
        self._target: IrqLine = target or NullIrqLine()
        self._inputs = 0
        self._high = 0
        self._lock = RLock()

    @property
    def level(self) -> bool:
        """Whether anybody holds the line high."""
        return self._high != 0

    def input(self) -> IrqLine:
        """A new end for one more device."""
        self._inputs += 1
        return _Input(self, 1 << self._inputs - 1)

    def drive(self, bit: int, level: bool) -> None:
        """One input changes; the target hears of changes of the whole."""
        with self._lock:
            before = self._high
            self._high = before | bit if level else before & ~bit
            if bool(before) != bool(self._high):
                self._target.set(bool(self._high))


class _Fork:
    """A line that leads to the IOAPIC, and to an ISA interrupt that may change."""

    def __init__(self, gsi: IrqLine) -> None:
        self._gsi = gsi
        self._isa: IrqLine = NullIrqLine()
        self._level = False
        self._lock = RLock()

    def set(self, level: bool) -> None:
        with self._lock:
            self._level = level
            self._gsi.set(level)
            self._isa.set(level)

    def pulse(self) -> None:
        self.set(True)
        self.set(False)

    def route(self, isa: IrqLine) -> None:
        """Leads to another ISA interrupt from now on; the level moves along."""
        with self._lock:
            if isa is not self._isa:
                self._isa.set(False)
                self._isa = isa
                isa.set(self._level)


class IntxRouter:
    """From interrupt pins over eight PIRQs to GSIs and ISA interrupts.

    - `gsi_lines`: eight lines, PIRQA to PIRQH (GSI 16 to 23).
    - `isa_lines`: by ISA interrupt number, for PIC mode; a line that other devices use as well
      must be an input of a `SharedLine`.
    """

    def __init__(
        self, gsi_lines: Sequence[IrqLine], isa_lines: dict[int, IrqLine] | None = None
    ) -> None:
        self._forks = [_Fork(line) for line in gsi_lines]
        self.pirqs = [SharedLine(fork) for fork in self._forks]
        shared = {irq: SharedLine(line) for irq, line in (isa_lines or {}).items()}
        self._isa = [
            {irq: line.input() for irq, line in shared.items()} for _ in self._forks
        ]  # PIRQs that are routed to the same interrupt share it too

    def pirq(self, slot: int, pin: int) -> int:
        """The PIRQ (0 is PIRQA) of a slot's pin (1 is INTA, as in the config register)."""
        return (slot + pin - 1) % len(self.pirqs)

    def line(self, slot: int, pin: int) -> IrqLine:
        """A device's end of the line; one that leads nowhere for pin 0."""
        return NullIrqLine() if pin == 0 else self.pirqs[self.pirq(slot, pin)].input()

    def route(self, pirq: int, irq: int | None) -> None:
        """Lead a PIRQ to ISA interrupt `irq` too, or (None, or not there) to none."""
        lines = self._isa[pirq]
        self._forks[pirq].route(lines[irq] if irq in lines else NullIrqLine())
