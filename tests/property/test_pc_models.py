"""PIT, RTC, PIC and key tables against simple models: tick by tick, `datetime`, a sorted list."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pykvm.devices import ManualClock, RecordingIrqLine
from pykvm.devices.pc import Cmos, Pic8259
from pykvm.devices.pc.pit_counter import Counter
from pykvm.devices.pc.rtc_calendar import (
    date_of,
    days_of,
    decode,
    decode_hour,
    registers_of,
    seconds_of,
    seconds_to_alarm,
)

SECOND = 1_000_000_000


class SlowCounter:
    """The 8254 data sheet's counter, one clock at a time (a count is loaded at once)."""

    def __init__(self, mode: int, count: int, modulus: int) -> None:
        self.mode, self.initial, self.modulus = mode, count, modulus
        self.left = count
        self.fired = False  # terminal count reached
        self.strobe = False
        self.high = True  # mode 3's flip-flop
        self.gate = True

    def clock(self) -> None:
        self.strobe = False
        if not self.gate and self.mode != 1 and self.mode != 5:
            return
        if self.mode == 2:
            self.left = self.left - 1 or self.initial
        elif self.mode == 3:
            # Odd counts stay high for one clock more.
            self.left -= 1
            if self.left == self.initial // 2 and self.high:
                self.high = False
            if self.left == 0:
                self.left, self.high = self.initial, True
        else:
            self.left = (self.left - 1) % self.modulus
            if self.left == 0 and not self.fired:
                self.fired = self.strobe = True

    @property
    def output(self) -> bool:
        if self.mode in (0, 1):
            return self.fired
        if self.mode == 2:
            return self.left != 1 or self.initial == 1 or not self.gate
        if self.mode == 3:
            return self.high or self.initial == 1 or not self.gate
        return not self.strobe


@settings(max_examples=300, deadline=None)
@given(
    mode=st.integers(0, 5),
    count=st.integers(1, 40),
    bcd=st.booleans(),
    looks=st.sets(st.integers(0, 150), max_size=30),
    gates=st.sets(st.integers(1, 150), max_size=4),
)
@example(mode=4, count=2, bcd=False, looks={2, 3, 9}, gates={2})
@example(mode=4, count=4, bcd=False, looks={5}, gates={4, 5})
@example(mode=4, count=4, bcd=False, looks={4, 5, 6, 7}, gates={4, 5, 6})
def test_a_counter_against_one_that_counts(
    mode: int, count: int, bcd: bool, looks: set[int], gates: set[int]
) -> None:
    counter = Counter(gate=mode not in (1, 5))
    counter.control(0x30 | mode << 1 | bcd, 0)
    written = int(str(count), 16) if bcd else count
    counter.write(written & 0xFF, 0)
    counter.write(written >> 8, 0)
    slow = SlowCounter(mode, count, counter.modulus)
    if mode in (1, 5):
        assert counter.output(0)
        counter.set_gate(True, 0)
    for now in range(151):
        if now:
            slow.clock()
        if now in gates and mode not in (1, 5):
            slow.gate = not slow.gate
            counter.set_gate(slow.gate, now)
            if slow.gate and mode in (2, 3):
                slow.left, slow.high = count, True
        if now in looks:
            assert counter.output(now) == slow.output, now
            if mode != 3:
                value = counter.value(now)
                assert decode(value >> 8, 0) * 100 + decode(value & 0xFF, 0) == slow.left or (
                    not bcd and value == slow.left
                ), now
            edge = counter.next_edge(now)
            assert edge is None or edge > now


@settings(max_examples=200, deadline=None)
@given(st.datetimes(datetime(1601, 1, 1), datetime(9998, 1, 1)), st.sampled_from([0, 2, 4, 6]))
def test_calendar_against_datetime(when: datetime, form: int) -> None:
    when = when.replace(microsecond=0)
    seconds = (when - datetime(1970, 1, 1)) // timedelta(seconds=1)
    assert date_of(seconds // 86400) == (when.year, when.month, when.day)
    assert days_of(when.year, when.month, when.day) == seconds // 86400
    registers = registers_of(seconds, form)
    assert seconds_of(registers, form) == (seconds, 0)
    assert decode(registers[6], form) == when.isoweekday() % 7 + 1
    assert decode_hour(registers[4], form) == when.hour


@settings(max_examples=200, deadline=None)
@given(
    registers=st.lists(
        st.one_of(st.integers(0, 0x24), st.integers(0, 255), st.just(0xFF)), min_size=3, max_size=3
    ),
    now=st.integers(0, 86399),
    form=st.sampled_from([0, 2, 4, 6]),
)
def test_the_alarm_against_looking_at_every_second(
    registers: list[int], now: int, form: int
) -> None:
    hour, minute, second = registers

    def rings(at: int) -> bool:
        return (
            (hour >= 0xC0 or decode_hour(hour, form) == at // 3600)
            and (minute >= 0xC0 or decode(minute, form) == at // 60 % 60)
            and (second >= 0xC0 or decode(second, form) == at % 60)
        )

    slowly = next((n for n in range(1, 86401) if rings((now + n) % 86400)), None)
    assert seconds_to_alarm(now, registers, form) == slowly


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.integers(0, 5 * SECOND), st.just(0)),
            st.tuples(
                st.sampled_from([0, 2, 4, 6, 7, 8, 9, 0x32]), st.integers(0, 255), st.just(0)
            ),
            st.tuples(st.just("b"), st.sampled_from([2, 6, 0, 4, 0x82]), st.just(0)),
        ),
        max_size=20,
    )
)
def test_time_never_goes_back_by_itself(steps: list[tuple[object, int, int]]) -> None:
    clock = ManualClock()
    rtc = Cmos(clock=clock, start=1_000_000_000)
    for what, value, _ in steps:
        before = rtc.utc
        if what == "wait":
            clock.advance(value)
            running = not rtc._b & 0x80
            assert rtc.utc - before in ((value // SECOND, value // SECOND + 1) if running else (0,))
        else:
            rtc.write(0, 1, 11 if what == "b" else what)  # type: ignore[arg-type]
            rtc.write(1, 1, value)
            datetime.fromtimestamp(min(rtc.utc, 10**10), UTC)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("edge"), st.sampled_from([n for n in range(16) if n != 2])),
            st.tuples(st.just("take"), st.just(0)),
            st.tuples(st.just("end"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_the_pair_serves_in_the_order_of_a_pc(steps: list[tuple[str, int]]) -> None:
    """Fully nested: 0, 1, 8-15, 3-7; the model keeps sets and a stack."""
    order = [0, 1, *range(8, 16), *range(3, 8)]
    line = RecordingIrqLine()
    pic = Pic8259(line)
    for chip, vector in ((0, 0x20), (2, 0x28)):
        for offset, value in ((0, 0x11), (1, vector), (1, 4 if chip == 0 else 2), (1, 1), (1, 0)):
            pic.write(chip + offset, 1, value)
    waiting: set[int] = set()
    serving: list[int] = []

    def next_one() -> int | None:
        # While the slave is served, the master lets no other of its interrupts through.
        def rank(irq: int) -> int:
            return 2 if irq >= 8 else irq

        able = [n for n in order if n in waiting]
        if serving:
            able = [n for n in able if rank(n) < rank(serving[-1])]
        return able[0] if able else None

    for what, irq in steps:
        if what == "edge":
            pic.line(irq).pulse()
            waiting.add(irq)
        elif what == "take" and line.level:
            expected = next_one()
            assert expected is not None
            vector = pic.acknowledge()
            assert vector == 0x20 + expected
            waiting.discard(expected)
            serving.append(expected)
        elif what == "end" and serving:
            ended = serving.pop()
            if ended >= 8:
                pic.write(2, 1, 0x20)
            pic.write(0, 1, 0x20)
        assert line.level == (next_one() is not None)
