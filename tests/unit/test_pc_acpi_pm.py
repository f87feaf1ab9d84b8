"""The ACPI fixed hardware: events, SCI, sleep states, the PM timer."""

from __future__ import annotations

import pytest

from pykvm.devices import ManualClock, RecordingIrqLine
from pykvm.devices.pc import AcpiPm
from pykvm.devices.pc.acpi_pm import PM_TIMER_HZ, SLEEP_TYPES

STS, EN, CNT, TMR, GPE_STS, GPE_EN, SMI_EN, APM = 0, 2, 4, 8, 0x20, 0x28, 0x30, 0x80
SECOND = 1_000_000_000


class Bench:
    def __init__(self, **options: object) -> None:
        self.clock, self.sci = ManualClock(), RecordingIrqLine()
        self.calls: list[object] = []
        self.pm = AcpiPm(
            self.sci, self.clock,
            power_off=lambda: self.calls.append("off"), on_sleep=self.calls.append,
            **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def enable(self, bits: int = 0x721) -> None:
        self.pm.write(APM, 1, 2)
        self.pm.write(EN, 2, bits)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_acpi_mode_by_the_smi_command(bench: Bench) -> None:
    assert bench.pm.read(CNT, 2) == 0
    bench.pm.write(APM, 1, 2)
    assert bench.pm.read(CNT, 2) == 1
    assert bench.pm.read(APM, 1) == 2
    bench.pm.write(APM, 1, 3)
    assert bench.pm.read(CNT, 2) == 0
    bench.pm.write(APM, 2, 0x5577)
    assert bench.pm.read(APM, 2) == 0x5577
    assert bench.pm.read(SMI_EN, 4) == 0x20


def test_power_button(bench: Bench) -> None:
    assert not bench.pm.press_power_button(), "nobody listens yet"
    assert bench.pm.read(STS, 2) == 0x100
    bench.enable()
    assert bench.sci.level
    bench.pm.write(STS, 2, 0x100)
    assert not bench.sci.level
    assert bench.pm.press_power_button()
    assert bench.sci.level
    bench.pm.write(STS + 1, 1, 0x01)
    assert not bench.sci.level
    assert bench.pm.press_sleep_button()
    bench.pm.write(EN, 2, 0)
    assert not bench.sci.level
    assert bench.pm.read(STS, 2) == 0x200


def test_rtc_event(bench: Bench) -> None:
    bench.enable(0x400)
    assert bench.pm.rtc_alarm()
    assert bench.sci.level


def test_any_width(bench: Bench) -> None:
    bench.pm.press_power_button()
    bench.pm.write(STS, 4, 0x0321_0000)
    assert bench.pm.read(STS, 4) == 0x0321_0100
    assert bench.pm.read(EN, 1) == 0x21
    assert bench.pm.read(EN + 1, 1) == 0x03
    bench.pm.write(EN + 1, 1, 0x05)
    assert bench.pm.read(EN, 2) == 0x0521
    bench.pm.write(STS, 4, 0xFFFF_FFFF)
    assert bench.pm.read(STS, 4) == 0x0721_0000
    assert bench.pm.read(0x0C, 4) == 0


@pytest.mark.parametrize("state", [1, 3, 4, 5])
def test_sleep_states(bench: Bench, state: int) -> None:
    value = SLEEP_TYPES[state] << 10
    bench.pm.write(CNT, 2, value | 1)
    assert bench.calls == []
    bench.pm.write(CNT, 2, value | 1 | 0x2000)
    assert bench.calls == ["off" if state == 5 else state]
    assert bench.pm.read(CNT, 2) == value | 1, "SLP_EN reads 0"
    bench.pm.wake()
    assert bench.pm.read(STS, 2) == 0x8000


def test_sleep_without_anybody_to_wake_up() -> None:
    pm = AcpiPm(clock=ManualClock())
    pm.write(CNT, 2, SLEEP_TYPES[3] << 10 | 0x2000)
    assert pm.read(STS, 2) == 0x8000
    pm.write(CNT, 2, SLEEP_TYPES[5] << 10 | 0x2000)
    pm.write(CNT, 2, 2 << 10 | 0x2000)  # no such state


def test_the_timer_counts(bench: Bench) -> None:
    assert bench.pm.read(TMR, 4) == 0
    bench.clock.advance(SECOND)
    assert bench.pm.read(TMR, 4) == PM_TIMER_HZ
    assert bench.pm.read(TMR + 1, 1) == PM_TIMER_HZ >> 8 & 0xFF
    assert Bench(timer_bits=24).pm.read(TMR, 4) == 0
    with pytest.raises(ValueError, match="31 bits"):
        Bench(timer_bits=31)


@pytest.mark.parametrize("bits", [24, 32])
def test_the_timer_wraps_and_says_so(bits: int) -> None:
    bench = Bench(timer_bits=bits)
    half = 1 << (bits - 1)
    to_half = -(-half * SECOND // PM_TIMER_HZ)
    bench.enable(1)
    bench.clock.advance(to_half - 1)
    assert not bench.sci.level
    assert bench.pm.read(TMR, 4) == half - 1
    bench.clock.advance(1)
    assert bench.sci.level
    assert bench.pm.read(STS, 2) == 1
    assert bench.pm.read(TMR, 4) == half
    bench.pm.write(STS, 2, 1)
    assert not bench.sci.level
    bench.clock.advance(to_half)
    assert bench.sci.level
    assert bench.pm.read(TMR, 4) < 4, "it has wrapped"


def test_the_timer_status_without_interrupt(bench: Bench) -> None:
    bench.clock.advance(10_000 * SECOND)
    assert bench.pm.read(STS, 2) == 1
    assert not bench.sci.history
    bench.pm.write(STS, 2, 1)
    assert bench.pm.read(STS, 2) == 0
    assert bench.clock.armed == 0


def test_general_purpose_events(bench: Bench) -> None:
    bench.pm.write(APM, 1, 2)
    bench.pm.write(GPE_EN, 4, 0x12)
    bench.pm.raise_gpe(1)
    assert bench.sci.level
    bench.pm.write(GPE_STS, 1, 0x02)
    assert not bench.sci.level
    bench.pm.set_gpe(4, True)
    bench.pm.write(GPE_STS, 1, 0xFF)
    assert bench.sci.level, "a level stays"
    bench.pm.set_gpe(4, False)
    assert bench.pm.read(GPE_STS, 8) == 0x10
    bench.pm.write(GPE_STS, 1, 0xFF)
    assert not bench.sci.level
    bench.pm.raise_gpe(63)
    assert bench.pm.read(GPE_STS + 7, 1) == 0x80


def test_ranges(bench: Bench) -> None:
    block, apm = bench.pm.ranges(0xB000)
    assert (block.address, block.length) == (0xB000, 0x80)
    assert (apm.address, apm.length) == (0xB2, 2)
    apm.device.write(0, 1, 2)
    assert bench.pm.read(CNT, 1) == 1
