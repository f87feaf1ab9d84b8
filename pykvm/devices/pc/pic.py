"""The two 8259A interrupt controllers of a PC: master, and slave on the master's input 2.

Source: Intel 8259A data sheet (231468); wiring and ELCR: Intel ICH9 data sheet, 13.4. In one
register space: offsets 0 and 1 are the master (ports 0x20/0x21), 2 and 3 the slave (0xa0/0xa1), 4
and 5 the ELCR of both (0x4d0/0x4d1).
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.devices.base import Device, IrqLine, NullIrqLine, StateReader
from pykvm.devices.pc.pic_chip import SPURIOUS, Chip
from pykvm.devices.pc.window import PortRange, Window

ELCR = 4
CASCADE = 2
LINES = 16


class PicLine:
    """One of the inputs, IRQ 0 to 15, as an `IrqLine`."""

    __slots__ = ("_pic", "irq")

    def __init__(self, pic: Pic8259, irq: int) -> None:
        self._pic = pic
        self.irq = irq

    def set(self, level: bool) -> None:
        """Drive the input."""
        self._pic.set_irq(self.irq, level)

    def pulse(self) -> None:
        """High, then low."""
        self._pic.set_irq(self.irq, True)
        self._pic.set_irq(self.irq, False)


class Pic8259(Device):
    """The pair. `output` is INTR to the CPU: a level, high while an interrupt is to be served.

    When the CPU takes it, `acknowledge` gives the vector. Thread-safe.
    """

    name = "pic"
    ADDRESS = 0x20
    LENGTH = 2  # further ranges are windows

    def __init__(self, output: IrqLine | None = None) -> None:
        self.output: IrqLine = output or NullIrqLine()
        # IRQ 0, 1, 2, 8 and 13 cannot be levels (ICH9).
        self._chips = (Chip(0xF8, True), Chip(0xDE, False))
        self._lock = allocate_lock()
        self._level = False

    def ranges(self) -> list[PortRange]:
        """Ports 0x20/0x21, 0xa0/0xa1 and 0x4d0/0x4d1."""
        return [
            PortRange("pio", self.ADDRESS, 2, self),
            PortRange("pio", 0xA0, 2, Window(self, 2, "pic-slave")),
            PortRange("pio", 0x4D0, 2, Window(self, ELCR, "pic-elcr")),
        ]

    def line(self, irq: int) -> PicLine:
        """Input `irq`, 0 to 15; 2 is the slave's and leads nowhere."""
        if not 0 <= irq < LINES:
            raise ValueError(f"IRQ {irq} does not exist; a PC's PICs have 0 to {LINES - 1}")
        return PicLine(self, irq)

    def set_irq(self, irq: int, level: bool) -> None:
        """Drive input `irq`."""
        if irq == CASCADE:
            return
        with self._lock:
            self._chips[irq >> 3].set_input(irq & 7, level)
            self._update()

    def acknowledge(self) -> int:
        """The CPU takes an interrupt: its vector. A spurious one has input 7's."""
        master, slave = self._chips
        with self._lock:
            n = master.pending()
            if n is None:
                vector = master.vector + SPURIOUS
            else:
                master.acknowledge(n)
                vector = master.vector + n
                if n == CASCADE:
                    m = slave.pending()
                    vector = slave.vector + (SPURIOUS if m is None else m)
                    if m is not None:
                        slave.acknowledge(m)
            self._update()
        return vector

    @property
    def pending(self) -> bool:
        """INTR is high."""
        return self._level

    def _update(self) -> None:
        master, slave = self._chips
        # As a level, whatever ICW1 said: an edge could be lost while the slave serves another.
        if slave.pending() is not None:
            master.irr |= 1 << CASCADE
        else:
            master.irr &= ~(1 << CASCADE)
        level = master.pending() is not None
        if level != self._level:
            self._level = level
            self.output.set(level)

    def read(self, offset: int, size: int) -> int:
        """A chip's register, or ELCR."""
        if offset >= ELCR + 2:
            return 0xFF
        if offset >= ELCR:
            return self._chips[offset - ELCR].elcr
        with self._lock:
            value = self._chips[offset >> 1].read(offset & 1)
            self._update()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """To a chip's register, or ELCR."""
        if offset >= ELCR + 2:
            return
        with self._lock:
            if offset >= ELCR:
                self._chips[offset - ELCR].write_elcr(value & 0xFF)
            else:
                self._chips[offset >> 1].write(offset & 1, value & 0xFF)
            self._update()

    def reset(self) -> None:
        """Both chips uninitialised, all inputs edge-triggered; the inputs keep their levels."""
        with self._lock:
            for chip in self._chips:
                levels = chip.levels
                chip.power_on()
                chip.levels = levels
            self._update()

    def save(self) -> dict[str, object]:
        """Both chips."""
        with self._lock:
            return {"master": self._chips[0].save(), "slave": self._chips[1].save()}

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state, with the levels of the inputs; INTR follows."""
        chips = (Chip(0xF8, True), Chip(0xDE, False))
        take = StateReader(self.name, state)
        for chip, name in zip(chips, ("master", "slave"), strict=True):
            chip.load(take, name)
        take.finish()
        with self._lock:
            self._chips = chips
            self._update()
