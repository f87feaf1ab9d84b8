"""The 8254: reading, latching, reading back, IRQ 0, gates."""

from __future__ import annotations

import pytest

from pykvm.devices import ManualClock, RecordingIrqLine
from pykvm.devices.pc import Pit8254
from pykvm.devices.pc.pit import CLOSEST_EDGES, PIT_HZ

SECOND = 1_000_000_000


def ns(ticks: int) -> int:
    """The first nanosecond at which `ticks` have passed."""
    return -(-ticks * SECOND // PIT_HZ)


class Bench:
    def __init__(self) -> None:
        self.clock, self.irq0 = ManualClock(), RecordingIrqLine()
        self.pit = Pit8254(self.irq0, self.clock)

    def program(self, counter: int, mode: int, count: int, *, bcd: int = 0) -> None:
        self.pit.write(3, 1, counter << 6 | 0x30 | mode << 1 | bcd)
        self.pit.write(counter, 1, count & 0xFF)
        self.pit.write(counter, 1, count >> 8)

    def at(self, ticks: int) -> None:
        self.clock.advance(ns(ticks) - self.clock.now_ns())

    def count(self, counter: int = 0) -> int:
        return self.pit.read(counter, 1) | self.pit.read(counter, 1) << 8


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_periodic_tick(bench: Bench) -> None:
    bench.program(0, 2, 11932)  # 100 Hz
    assert not bench.irq0.level
    for tick in range(1, 6):
        bench.at(tick * 11932 - 1)
        assert bench.irq0.edges == tick - 1
        bench.at(tick * 11932)
        assert bench.irq0.edges == tick
    bench.pit.write(3, 1, 0x30)  # a new mode, no count yet
    bench.clock.advance(SECOND)
    assert bench.irq0.edges == 5
    assert not bench.irq0.level


def test_one_shot(bench: Bench) -> None:
    bench.program(0, 0, 1000)
    bench.at(999)
    assert not bench.irq0.level
    bench.at(1000)
    assert bench.irq0.level
    assert bench.pit.output(0)
    bench.clock.advance(SECOND)
    assert bench.irq0.edges == 1
    bench.program(0, 0, 5)
    assert not bench.irq0.level
    bench.clock.advance(ns(10))
    assert bench.irq0.edges == 2


def test_a_tick_that_comes_late_is_counted(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.clock._now += ns(5500)  # the host was busy: no timer fired in time
    bench.clock.advance(0)
    assert bench.irq0.edges == 1
    assert bench.pit.missed == 4
    bench.clock.advance(ns(500))
    assert bench.irq0.edges == 2


def test_a_hostile_rate_is_bounded(bench: Bench) -> None:
    bench.program(0, 2, 2)
    bench.clock.advance(SECOND // 10)
    assert 450 <= bench.irq0.edges <= PIT_HZ // CLOSEST_EDGES // 10 + 1


def test_byte_order(bench: Bench) -> None:
    bench.program(2, 0, 0x1234)
    assert bench.count(2) == 0x1234
    bench.pit.write(3, 1, 0x90)  # counter 2, low byte only
    bench.pit.write(2, 1, 0x56)
    assert [bench.pit.read(2, 1) for _ in range(2)] == [0x56, 0x56]
    bench.pit.write(3, 1, 0xA0)  # high byte only
    bench.pit.write(2, 1, 0x78)
    assert [bench.pit.read(2, 1) for _ in range(2)] == [0x78, 0x78]
    bench.pit.write(3, 1, 0x50)
    bench.pit.write(1, 1, 0)
    assert bench.pit.counters[1].count == 0x10000


def test_latch(bench: Bench) -> None:
    bench.program(0, 2, 0x5000)
    bench.at(0x123)
    bench.pit.write(3, 1, 0x00)
    bench.at(0x1000)
    bench.pit.write(3, 1, 0x00)  # a second latch changes nothing
    assert bench.count() == 0x5000 - 0x123
    assert bench.count() == 0x4000


def test_read_back(bench: Bench) -> None:
    bench.program(0, 2, 0x5000)
    bench.pit.write(3, 1, 0xB0 | 2)
    bench.at(0x100)
    bench.pit.write(3, 1, 0xC0 | 0x0A)  # count and status of 0 and 2
    assert bench.pit.read(0, 1) == 0xB4
    assert bench.count() == 0x4F00
    assert bench.pit.read(2, 1) == 0x80 | 0x40 | 0x30 | 0x02, "null count: none was written"
    bench.pit.write(3, 1, 0xE0 | 0x02)
    assert bench.pit.read(0, 1) == 0xB4
    bench.pit.write(3, 1, 0xD0 | 0x02)
    assert bench.count() == 0x4F00


def test_bcd(bench: Bench) -> None:
    bench.program(0, 2, 0x1000, bcd=1)
    bench.at(1)
    assert bench.count() == 0x0999
    bench.at(1000)
    assert bench.irq0.edges == 1
    bench.program(0, 2, 0, bcd=1)
    assert bench.pit.counters[0].count == 10_000
    bench.program(0, 2, 0xFFFF, bcd=1)
    assert bench.pit.counters[0].count == 16_665 % 10_000


def test_a_new_count_waits_for_the_cycle(bench: Bench) -> None:
    bench.program(0, 2, 1000)
    bench.at(300)
    bench.pit.write(0, 1, 0xD0)
    bench.pit.write(0, 1, 0x07)  # 2000
    bench.pit.write(3, 1, 0xE2)
    assert bench.pit.read(0, 1) & 0x40, "null count: not loaded yet"
    bench.at(1000)
    assert bench.irq0.edges == 1
    bench.at(2999)
    assert bench.irq0.edges == 1
    bench.at(3000)
    assert bench.irq0.edges == 2


def test_counter_2_measures_time(bench: Bench) -> None:
    """As Linux calibrates its TSC: mode 0, gate opened, OUT polled."""
    bench.pit.set_gate(True)
    bench.program(2, 0, 50_000)
    bench.at(49_999)
    assert not bench.pit.output(2)
    bench.at(50_000)
    assert bench.pit.output(2)


def test_the_gate_stops_and_starts(bench: Bench) -> None:
    bench.pit.set_gate(True)
    bench.program(2, 0, 1000)
    bench.at(400)
    bench.pit.set_gate(False)
    bench.at(5000)
    assert bench.count(2) == 600
    bench.pit.set_gate(True)
    bench.at(5599)
    assert not bench.pit.output(2)
    bench.at(5600)
    assert bench.pit.output(2)


def test_reset(bench: Bench) -> None:
    bench.program(0, 2, 100)
    bench.at(150)
    bench.pit.reset()
    assert not bench.irq0.level
    assert bench.clock.armed == 0
