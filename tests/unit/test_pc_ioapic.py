"""The I/O APIC: registers, messages, levels and their EOI."""

from __future__ import annotations

import pytest

from pykvm.devices.pc import IoApic

SELECT, DATA, EOI = 0x00, 0x10, 0x40
LEVEL, MASKED = 0x8000, 0x1_0000


class Bench:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.chip = IoApic(self, id=2)

    def send(self, address: int, data: int) -> None:
        self.sent.append((address, data))

    def get(self, at: int) -> int:
        self.chip.write(SELECT, 4, at)
        return self.chip.read(DATA, 4)

    def set(self, at: int, value: int) -> None:
        self.chip.write(SELECT, 4, at)
        self.chip.write(DATA, 4, value)

    def entry(self, pin: int, low: int, high: int = 0) -> None:
        self.set(0x11 + 2 * pin, high)
        self.set(0x10 + 2 * pin, low)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_registers(bench: Bench) -> None:
    assert bench.get(0) == 2 << 24
    assert bench.get(2) == 2 << 24
    assert bench.get(1) == 0x0017_0020
    bench.set(0, 0xFF00_0000)
    assert bench.get(0) == 0x0F00_0000
    assert bench.get(0x10) == MASKED
    assert bench.get(0x40) == 0
    assert bench.chip.read(SELECT, 1) == 0x40
    bench.entry(23, 0xFFFF_FFFF, 0xFFFF_FFFF)
    assert bench.get(0x3E) == 0x1_AFFF, "delivery status and remote IRR are read-only"
    assert bench.get(0x3F) == 0xFF00_0000
    bench.chip.reset()
    assert bench.get(0x3E) == MASKED


def test_an_edge_becomes_a_message(bench: Bench) -> None:
    bench.entry(4, 0x0934, 0x0500_0000)  # logical, lowest priority
    bench.chip.line(4).pulse()
    assert bench.sent == [(0xFEE0_5004, 0x0134)]
    line = bench.chip.line(4)
    line.set(True)
    line.set(True)
    assert len(bench.sent) == 2
    line.set(False)
    assert len(bench.sent) == 2


def test_an_edge_while_masked_is_lost_a_level_is_not(bench: Bench) -> None:
    bench.chip.line(4).set(True)
    bench.chip.line(9).set(True)
    bench.entry(4, 0x34)
    bench.entry(9, 0x39 | LEVEL)
    assert bench.sent == [(0xFEE0_0000, 0xC039)]


def test_a_level_until_its_eoi(bench: Bench) -> None:
    bench.entry(16, 0x50 | LEVEL)
    bench.entry(17, 0x51 | LEVEL)
    line = bench.chip.line(16)
    line.set(True)
    line.set(False)
    line.set(True)
    assert len(bench.sent) == 1
    assert bench.get(0x30) == 0x50 | LEVEL | 0x4000
    bench.chip.eoi(0x51)
    assert len(bench.sent) == 1
    bench.chip.eoi(0x50)
    assert len(bench.sent) == 2, "still high: again"
    line.set(False)
    bench.chip.write(EOI, 4, 0x50)
    assert len(bench.sent) == 2
    assert bench.get(0x30) == 0x50 | LEVEL


def test_masking_and_edge_mode_clear_remote_irr(bench: Bench) -> None:
    """How drivers end an interrupt on chips without an EOI register."""
    bench.entry(16, 0x50 | LEVEL)
    bench.chip.line(16).set(True)
    bench.set(0x30, 0x50 | MASKED)
    assert bench.get(0x30) == 0x50 | MASKED
    bench.set(0x30, 0x50 | LEVEL)
    assert len(bench.sent) == 2


def test_entries_for_routing(bench: Bench) -> None:
    changes: list[int] = []
    bench.chip.on_change = lambda: changes.append(1)
    bench.entry(1, 0x31 | LEVEL, 0x0300_0000)
    assert len(changes) == 2
    bench.set(0x12, 0x31 | LEVEL)
    assert len(changes) == 2, "the same again is no change"
    entries = bench.chip.entries()
    assert len(entries) == 24
    assert entries[0].masked
    assert entries[1] == (1, False, True, 0xFEE0_3000, 0xC031)
    assert not bench.chip.takes_extint
    bench.entry(0, 0x700)
    assert bench.chip.takes_extint


@pytest.mark.parametrize("pin", [-1, 24])
def test_pins_that_do_not_exist(bench: Bench, pin: int) -> None:
    with pytest.raises(ValueError, match=str(pin)):
        bench.chip.line(pin)
