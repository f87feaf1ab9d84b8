"""RTC and CMOS RAM, driven through its ports as a BIOS and Linux drive it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pykvm.devices import ManualClock, RecordingIrqLine
from pykvm.devices.pc import Cmos

A, B, C, D = 10, 11, 12, 13
SECOND = 1_000_000_000
START = int(datetime(2026, 11, 23, 18, 59, 58, tzinfo=UTC).timestamp())


class Ports:
    def __init__(self, **options: object) -> None:
        self.clock, self.line = ManualClock(), RecordingIrqLine()
        self.rtc = Cmos(self.line, self.clock, **{"start": START, **options})  # type: ignore[arg-type]

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def set(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def time(self) -> list[int]:
        """Century, year, month, day, weekday, hour, minute, second as they read."""
        return [self.get(at) for at in (0x32, 9, 8, 7, 6, 4, 2, 0)]


@pytest.fixture
def ports() -> Ports:
    return Ports()


def test_time_in_all_formats(ports: Ports) -> None:
    assert ports.time() == [0x20, 0x26, 0x11, 0x23, 2, 0x18, 0x59, 0x58]
    ports.set(B, 0x06)
    assert ports.time() == [20, 26, 11, 23, 2, 18, 59, 58]
    ports.set(B, 0x04)
    assert ports.get(4) == 0x86  # 6 p.m.
    ports.set(B, 0x00)
    assert ports.get(4) == 0x86
    ports.clock.advance(2 * SECOND)
    assert (ports.get(4), ports.get(2), ports.get(0)) == (0x87, 0, 0)
    ports.clock.advance(5 * 3600 * SECOND)
    assert ports.get(4) == 0x12  # midnight
    assert ports.get(7) == 0x24


def test_the_host_time_without_a_start() -> None:
    before = datetime.now(UTC).timestamp()
    assert before - 1 <= Cmos(clock=ManualClock()).utc <= datetime.now(UTC).timestamp() + 1


def test_setting_the_time(ports: Ports) -> None:
    """As Linux's `mc146818_set_time`: SET, stop the divider, write, let go."""
    ports.set(B, 0x82)
    ports.set(A, 0x70 | 0x06)
    for at, value in (
        (0x32, 0x19),
        (9, 0x99),
        (8, 0x12),
        (7, 0x31),
        (4, 0x23),
        (2, 0x59),
        (0, 0x50),
    ):
        ports.set(at, value)
    ports.clock.advance(100 * SECOND)
    assert ports.get(0) == 0x50, "time stands still while SET is on"
    ports.set(B, 0x02)
    assert ports.get(0) == 0x50
    ports.set(A, 0x26)
    ports.clock.advance(SECOND // 2 - 1)
    assert ports.get(0) == 0x50
    ports.clock.advance(1)
    assert ports.get(0) == 0x51, "the first update comes half a second after the divider starts"
    ports.clock.advance(9 * SECOND)
    assert ports.time()[:4] == [0x20, 0x00, 0x01, 0x01]
    assert ports.rtc.utc == datetime(2000, 1, 1, tzinfo=UTC).timestamp()


def test_setting_one_register_while_time_runs(ports: Ports) -> None:
    ports.clock.advance(SECOND // 4)
    ports.set(2, 0x07)
    assert ports.time()[-3:] == [0x18, 0x07, 0x58]
    ports.clock.advance(3 * SECOND // 4)
    assert ports.get(0) == 0x59


def test_a_date_that_does_not_exist_counts_on(ports: Ports) -> None:
    ports.set(8, 0x02)
    ports.set(7, 0x30)
    assert (ports.get(8), ports.get(7)) == (0x03, 0x02)
    ports.set(8, 0xFF)
    assert ports.get(8) in range(0x13)


def test_update_in_progress(ports: Ports) -> None:
    assert ports.get(A) == 0x26
    ports.clock.advance(SECOND - 244_000)
    assert ports.get(A) == 0xA6
    ports.clock.advance(244_000)
    assert ports.get(A) == 0x26
    ports.set(B, 0x82)
    ports.clock.advance(SECOND - 1)
    assert ports.get(A) == 0x26


def test_update_interrupt(ports: Ports) -> None:
    ports.set(B, 0x12)
    assert not ports.line.level
    ports.clock.advance(SECOND)
    assert ports.line.level
    assert ports.get(C) == 0xD0  # the periodic flag is set as well, and means nothing
    assert not ports.line.level
    assert ports.get(C) == 0
    ports.clock.advance(10 * SECOND)
    assert ports.line.edges == 2, "until register C is read there is one interrupt"
    ports.set(B, 0x92)
    assert ports.get(B) == 0x82, "SET clears the update interrupt"


def test_flags_without_interrupts(ports: Ports) -> None:
    ports.clock.advance(SECOND)
    assert ports.get(C) & 0x50 == 0x50
    assert not ports.line.history
    assert ports.clock.armed == 0, "an interrupt that is off costs no timer"


@pytest.mark.parametrize(("rate", "hertz"), [(6, 1024), (3, 8192), (15, 2), (1, 256), (2, 128)])
def test_periodic_interrupt(ports: Ports, rate: int, hertz: int) -> None:
    ports.set(A, 0x20 | rate)
    ports.set(B, 0x42)
    ports.clock.advance(-(-SECOND // hertz) - 1)
    assert not ports.line.level
    ports.clock.advance(1)
    assert ports.line.level
    assert ports.get(C) & 0xC0 == 0xC0
    taken = 0
    for _ in range(2 * hertz):
        ports.clock.advance(SECOND // hertz)
        taken += ports.get(C) >> 6 & 1
    assert 2 * hertz - 2 <= taken <= 2 * hertz


@pytest.mark.parametrize(
    ("alarm", "seconds"),
    [
        ((0x19, 0x00, 0x03), 5), ((0xFF, 0xFF, 0x03), 5), ((0xC0, 0x01, 0xC5), 62),
        ((0xFF, 0xFF, 0xFF), 1), ((0x18, 0x59, 0x57), 86399),
    ],
)  # fmt: skip
def test_alarm(ports: Ports, alarm: tuple[int, int, int], seconds: int) -> None:
    for at, value in zip((5, 3, 1), alarm, strict=True):
        ports.set(at, value)
    ports.set(B, 0x22)
    ports.clock.advance(seconds * SECOND - 1)
    assert not ports.line.level
    ports.clock.advance(1)
    assert ports.line.level
    assert ports.get(C) & 0xA0 == 0xA0


def test_an_alarm_that_never_comes(ports: Ports) -> None:
    for at, value in ((5, 0x25), (3, 0), (1, 0)):
        ports.set(at, value)
    ports.set(B, 0x22)
    assert ports.clock.armed == 0
    ports.clock.advance(200_000 * SECOND)
    assert not ports.line.level


def test_alarm_in_the_12_hour_form(ports: Ports) -> None:
    ports.set(B, 0x20)
    for at, value in ((5, 0x87), (3, 0), (1, 0)):  # 7 p.m.
        ports.set(at, value)
    ports.clock.advance(2 * SECOND)
    assert ports.line.level


def test_memory_sizes() -> None:
    ports = Ports(ram_below_4g=3 << 30, ram_above_4g=5 << 30)
    assert ports.get(0x15) | ports.get(0x16) << 8 == 640
    assert ports.get(0x17) | ports.get(0x18) << 8 == 0xFFFF
    assert ports.get(0x30) | ports.get(0x31) << 8 == 0xFFFF
    assert (ports.get(0x34) | ports.get(0x35) << 8) << 16 == (3 << 30) - (16 << 20)
    assert (ports.get(0x5B) | ports.get(0x5C) << 8 | ports.get(0x5D) << 16) << 16 == 5 << 30
    small = Ports(ram_below_4g=8 << 20)
    assert small.get(0x17) | small.get(0x18) << 8 == 7 << 10
    assert small.get(0x34) | small.get(0x35) << 8 == 0
    total = sum(small.get(at) for at in range(0x10, 0x2E))
    assert small.get(0x2E) << 8 | small.get(0x2F) == total


def test_boot_order() -> None:
    ports = Ports(boot_order="dca")
    assert (ports.get(0x3D), ports.get(0x38)) == (0x23, 0x10)
    with pytest.raises(ValueError, match="boot order 'x'"):
        Ports(boot_order="x")


def test_ram_banks_and_nmi(ports: Ports) -> None:
    ports.set(0x0F, 0x0A)
    ports.set(0x50, 0x77)
    ports.set(0x8F, 0x05)  # bit 7 is the NMI mask, not an address
    assert ports.rtc.nmi_masked
    assert ports.rtc.read(1, 1) == 0x05
    assert ports.get(0x50) == 0x77
    assert not ports.rtc.nmi_masked
    ports.rtc.write(2, 1, 0xD0)
    ports.rtc.write(3, 1, 0x99)
    assert (ports.rtc.read(2, 1), ports.rtc.read(3, 1)) == (0x50, 0x99)
    assert ports.get(0x50) == 0x77, "the banks are two"
    assert ports.rtc.read(0, 1) == 0xFF
    ports.set(D, 0)
    ports.set(C, 0)
    assert ports.get(D) == 0x80


def test_a_copy_goes_on_in_another_process(ports: Ports) -> None:
    ports.set(9, 0x30)
    ports.clock.advance(SECOND // 3)
    copy = Cmos(clock=(clock := ManualClock(10**15)), start=0)
    copy.load(ports.rtc.save())
    assert copy.utc == ports.rtc.utc
    clock.advance(SECOND - SECOND // 3 - 1)
    assert copy.utc == ports.rtc.utc
    clock.advance(1)
    assert copy.utc == ports.rtc.utc + 1
