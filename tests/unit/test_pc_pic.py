"""The 8259A pair: initialisation, priorities, the kinds of EOI, cascading, levels."""

from __future__ import annotations

import pytest

from pykvm.devices import RecordingIrqLine
from pykvm.devices.pc import Pic8259

MASTER, SLAVE, ELCR = 0, 2, 4
SPECIFIC, NON_SPECIFIC = 0x60, 0x20


class Bench:
    def __init__(self, *, icw4: int = 1, icw1: int = 0x11) -> None:
        self.intr = RecordingIrqLine()
        self.pic = Pic8259(self.intr)
        for chip, vector, cascade in ((MASTER, 0x20, 4), (SLAVE, 0x28, 2)):
            self.out(chip, icw1)
            self.out(chip + 1, vector)
            self.out(chip + 1, cascade)
            if icw1 & 1:
                self.out(chip + 1, icw4)
            self.out(chip + 1, 0)

    def out(self, offset: int, value: int) -> None:
        self.pic.write(offset, 1, value)

    def irr(self, chip: int = MASTER) -> int:
        self.out(chip, 0x0A)
        return self.pic.read(chip, 1)

    def isr(self, chip: int = MASTER) -> int:
        self.out(chip, 0x0B)
        return self.pic.read(chip, 1)

    def edge(self, *irqs: int) -> None:
        for irq in irqs:
            self.pic.line(irq).pulse()

    def take(self) -> list[int]:
        """All interrupts that can be had now, without EOI."""
        found = []
        while self.intr.level:
            found.append(self.pic.acknowledge())
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_fully_nested(bench: Bench) -> None:
    bench.edge(5, 3, 6)
    assert bench.irr() == 0x68
    assert bench.take() == [0x23]
    assert (bench.irr(), bench.isr()) == (0x60, 0x08)
    bench.edge(1, 3)
    assert bench.take() == [0x21], "only a higher priority interrupts"
    bench.out(MASTER, NON_SPECIFIC)
    assert bench.isr() == 0x08
    bench.out(MASTER, NON_SPECIFIC)
    assert bench.take() == [0x23]
    bench.out(MASTER, SPECIFIC | 3)
    assert bench.take() == [0x25]
    bench.out(MASTER, SPECIFIC | 4)
    assert bench.isr() == 0x20, "the EOI of another one ends nothing"


def test_masks(bench: Bench) -> None:
    bench.out(MASTER + 1, 0x02)
    bench.edge(1)
    assert not bench.intr.level
    assert bench.pic.read(MASTER + 1, 1) == 0x02
    bench.out(MASTER + 1, 0)
    assert bench.take() == [0x21]


def test_nothing_comes_before_initialisation_is_complete() -> None:
    bench = Bench()
    bench.edge(1)
    bench.out(MASTER, 0x11)
    assert not bench.intr.level
    bench.edge(1)
    bench.out(MASTER + 1, 0x40)
    assert not bench.intr.level
    bench.out(MASTER + 1, 4)
    bench.out(MASTER + 1, 1)
    assert bench.take() == [0x41]


def test_without_icw4_and_cascade() -> None:
    bench = Bench(icw1=0x10)
    bench.edge(7)
    assert bench.take() == [0x27]
    bench.out(MASTER, 0x12)  # single: no ICW3
    bench.out(MASTER + 1, 0x50)
    bench.edge(2 + 4)
    assert bench.take() == [0x56]


def test_cascade(bench: Bench) -> None:
    bench.edge(12, 8, 4)
    assert bench.take() == [0x28]
    assert (bench.isr(), bench.isr(SLAVE)) == (0x04, 0x01)
    bench.out(SLAVE, NON_SPECIFIC)
    assert not bench.intr.level, "the master still serves its input 2"
    bench.out(MASTER, NON_SPECIFIC)
    assert bench.take() == [0x2C]
    bench.out(SLAVE, NON_SPECIFIC)
    bench.out(MASTER, NON_SPECIFIC)
    assert bench.take() == [0x24]
    bench.pic.line(2).set(True)
    assert not bench.irr() & 4, "input 2 is the slave's"


def test_special_fully_nested() -> None:
    bench = Bench(icw4=0x11)
    bench.edge(12)
    assert bench.take() == [0x2C]
    bench.edge(9)
    assert bench.take() == [0x29], "a higher one of the same slave"


def test_auto_eoi_and_rotation() -> None:
    bench = Bench(icw4=3)
    bench.edge(3, 4)
    assert bench.take() == [0x23, 0x24]
    assert bench.isr() == 0
    bench.out(MASTER, 0x80)  # rotate at each automatic EOI
    bench.edge(3, 4)
    assert bench.pic.acknowledge() == 0x23
    bench.edge(3)
    assert bench.take() == [0x24, 0x23]
    bench.out(MASTER, 0x00)
    bench.edge(3, 4)
    assert bench.take() == [0x24, 0x23], "3 stays the lowest"


def test_rotation_by_eoi(bench: Bench) -> None:
    bench.edge(3)
    bench.take()
    bench.out(MASTER, 0xA0)  # 3 has the lowest priority now
    bench.edge(3, 4)
    assert bench.take() == [0x24]
    bench.out(MASTER, 0xE0 | 4)
    bench.edge(4)
    assert bench.take() == [0x23]
    bench.out(MASTER, SPECIFIC | 3)
    bench.out(MASTER, 0xC0 | 7)  # set priority: as after power-on
    bench.edge(0, 7)
    assert bench.take() == [0x20]


def test_special_mask(bench: Bench) -> None:
    bench.edge(1)
    bench.take()
    bench.edge(5)
    assert not bench.intr.level
    bench.out(MASTER + 1, 0x02)
    bench.out(MASTER, 0x68)
    assert bench.take() == [0x25], "a lower one, while 1 is served but masked"
    bench.out(MASTER, NON_SPECIFIC)
    assert bench.isr() == 0x02
    bench.out(MASTER, 0x48)
    bench.out(MASTER, NON_SPECIFIC)
    assert bench.isr() == 0


def test_poll(bench: Bench) -> None:
    bench.out(MASTER, 0x0C)
    assert bench.pic.read(MASTER, 1) & 0x80 == 0
    bench.edge(6)
    bench.out(MASTER, 0x0C)
    assert bench.pic.read(MASTER, 1) == 0x86
    assert bench.isr() == 0x40
    assert not bench.intr.level


def test_levels(bench: Bench) -> None:
    bench.out(ELCR, 0xFF)
    bench.out(ELCR + 1, 0xFF)
    assert (bench.pic.read(ELCR, 1), bench.pic.read(ELCR + 1, 1)) == (0xF8, 0xDE)
    line = bench.pic.line(10)
    line.set(True)
    assert bench.take() == [0x2A]
    bench.out(SLAVE, NON_SPECIFIC)
    bench.out(MASTER, NON_SPECIFIC)
    assert bench.take() == [0x2A], "still high: again"
    line.set(False)
    bench.out(SLAVE, NON_SPECIFIC)
    bench.out(MASTER, NON_SPECIFIC)
    assert not bench.intr.level


def test_an_edge_is_latched_a_level_is_not(bench: Bench) -> None:
    bench.out(ELCR, 0x20)
    line = bench.pic.line(5)
    line.set(True)
    assert bench.intr.level
    line.set(False)
    assert not bench.intr.level
    assert bench.pic.acknowledge() == 0x27, "spurious"
    assert bench.isr() == 0
    bench.edge(6)
    assert bench.take() == [0x26]


def test_spurious_from_the_slave(bench: Bench) -> None:
    bench.out(ELCR + 1, 0x02)
    bench.pic.line(9).set(True)
    bench.out(MASTER + 1, 0xFF)
    bench.pic.line(9).set(False)
    assert bench.pic.acknowledge() == 0x27


def test_an_edge_needs_a_low_before(bench: Bench) -> None:
    line = bench.pic.line(3)
    line.set(True)
    assert bench.take() == [0x23]
    bench.out(MASTER, NON_SPECIFIC)
    line.set(True)
    assert not bench.intr.level
    line.set(False)
    line.set(True)
    assert bench.take() == [0x23]


@pytest.mark.parametrize("irq", [-1, 16])
def test_lines_that_do_not_exist(bench: Bench, irq: int) -> None:
    with pytest.raises(ValueError, match=str(irq)):
        bench.pic.line(irq)
