"""Ends of level interrupts that KVM does not report: found by looking, and never counted twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.devices import ManualClock
from pykvm.devices.pc import IoApic
from pykvm.machine.missed_eoi import FIRST_LOOK_NS, LAST_LOOK_NS, MissedEoi

VECTOR, PIN = 0x41, 16


class FakeVcpu:
    def __init__(self, id: int) -> None:
        self.id = id
        self.kicks = 0
        self.irr: list[int] = []
        self.isr: list[int] = []

    def kick(self) -> None:
        self.kicks += 1

    def get_lapic(self) -> Any:
        return SimpleNamespace(irr=self.irr, isr=self.isr)


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.vcpus = [FakeVcpu(0), FakeVcpu(1)]
        self.sent: list[int] = []
        self.missed = MissedEoi(self, self)  # type: ignore[arg-type]
        self.ioapic = self.missed.ioapic = IoApic(self.missed)
        self.ioapic.write(0, 4, 0x10 + 2 * PIN)
        self.ioapic.write(0x10, 4, 0x8000 | VECTOR)

    def send(self, address: int, data: int) -> None:
        self.sent.append(data & 0xFF)

    def look(self) -> None:
        for vcpu in self.vcpus:
            self.missed.look(vcpu)  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.ioapic.set_pin(PIN, True)
    assert bench.sent == [VECTOR]
    return bench


def test_an_interrupt_that_ends_in_time_costs_nothing(bench: Bench) -> None:
    bench.ioapic.set_pin(PIN, False)
    bench.missed.reported(VECTOR)
    bench.clock.advance(10 * LAST_LOOK_NS)
    assert [vcpu.kicks for vcpu in bench.vcpus] == [0, 0]
    assert bench.clock.armed == 0


def test_a_missed_end_is_found(bench: Bench) -> None:
    bench.look()
    assert bench.ioapic.serving() == {VECTOR}, "nobody asked yet"
    bench.clock.advance(FIRST_LOOK_NS)
    assert [vcpu.kicks for vcpu in bench.vcpus] == [1, 1]
    bench.missed.look(bench.vcpus[1])  # type: ignore[arg-type]
    assert bench.sent == [VECTOR], "the other vCPU may have it"
    bench.missed.look(bench.vcpus[0])  # type: ignore[arg-type]
    assert bench.sent == [VECTOR, VECTOR], "the pin is still high: again"
    bench.missed.reported(VECTOR)  # the exit of the first, late
    assert bench.sent == [VECTOR, VECTOR]
    bench.ioapic.set_pin(PIN, False)
    bench.missed.reported(VECTOR)
    assert not bench.ioapic.serving()


@pytest.mark.parametrize("where", ["irr", "isr"])
def test_an_interrupt_that_is_still_served_is_left_alone(bench: Bench, where: str) -> None:
    getattr(bench.vcpus[1], where).append(VECTOR)
    bench.clock.advance(FIRST_LOOK_NS)
    bench.look()
    assert bench.sent == [VECTOR]
    getattr(bench.vcpus[1], where).clear()
    bench.clock.advance(2 * FIRST_LOOK_NS)
    bench.look()
    assert bench.sent == [VECTOR, VECTOR]


def test_a_message_in_the_middle_of_a_look(bench: Bench) -> None:
    """The vCPU that was looked at already may have taken it."""
    bench.clock.advance(FIRST_LOOK_NS)
    bench.missed.look(bench.vcpus[0])  # type: ignore[arg-type]
    bench.missed.reported(VECTOR)
    assert bench.sent == [VECTOR, VECTOR]
    bench.missed.look(bench.vcpus[1])  # type: ignore[arg-type]
    assert bench.sent == [VECTOR, VECTOR]
    assert bench.ioapic.serving() == {VECTOR}


def test_looks_become_rare(bench: Bench) -> None:
    bench.vcpus[0].isr.append(VECTOR)
    for _ in range(100):
        bench.clock.advance(LAST_LOOK_NS)
        bench.look()
    assert bench.vcpus[0].kicks < 110
    assert bench.sent == [VECTOR]
