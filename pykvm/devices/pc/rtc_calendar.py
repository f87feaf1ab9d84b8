"""The calendar registers of the RTC: their number formats, and UTC seconds from and to them.

Source: MC146818A data sheet, "Time, calendar and alarm locations". All functions take any byte
values: what is no date (month 13, BCD digits above 9) counts on arithmetically.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Register numbers.
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR = range(6, 10)
CENTURY = 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

# Bits of register B that say how numbers look.
BINARY, HOURS_24 = 0x04, 0x02
FORMAT = BINARY | HOURS_24
PM = 0x80

DAY_S = 86400
_DAYS_TO_1970 = 719_468  # from 1 March of the year 0


def encode(value: int, form: int) -> int:
    """A number from 0 to 99 as a register holds it."""
    return value if form & BINARY else value // 10 << 4 | value % 10


def decode(byte: int, form: int) -> int:
    """What a register's byte means."""
    return byte if form & BINARY else (byte >> 4) * 10 + (byte & 0x0F)


def encode_hour(hour: int, form: int) -> int:
    """An hour from 0 to 23, in the 12 or 24 hour form."""
    if form & HOURS_24:
        return encode(hour, form)
    return encode(hour % 12 or 12, form) | (PM if hour >= 12 else 0)


def decode_hour(byte: int, form: int) -> int:
    """The hour from 0 to 23 of an hours register."""
    if form & HOURS_24:
        return decode(byte, form)
    return decode(byte & ~PM, form) % 12 + (12 if byte & PM else 0)


def days_of(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a Gregorian date; a month or day outside its range counts on."""
    year, month = year + (month - 3) // 12, (month - 3) % 12
    # Years start in March here, so that the leap day is the last of its year.
    days = 365 * year + year // 4 - year // 100 + year // 400
    return days + (153 * month + 2) // 5 + day - 1 - _DAYS_TO_1970


def date_of(days: int) -> tuple[int, int, int]:
    """(year, month, day) of a day number that counts from 1970-01-01."""
    days += _DAYS_TO_1970
    era, rest = divmod(days, 146_097)
    year = (rest - rest // 1460 + rest // 36_524 - rest // 146_096) // 365
    rest -= 365 * year + year // 4 - year // 100
    month = (5 * rest + 2) // 153
    day = rest - (153 * month + 2) // 5 + 1
    return 400 * era + year + month // 10, (month + 2) % 12 + 1, day


def registers_of(seconds: int, form: int, weekday_shift: int = 0) -> dict[int, int]:
    """The time registers at `seconds` of UTC. Years wrap after 9999."""
    days, second = divmod(seconds, DAY_S)
    year, month, day = date_of(days)
    weekday = (days + 4 + weekday_shift) % 7 + 1  # 1970-01-01 was a Thursday; 1 is Sunday
    return {
        SECONDS: encode(second % 60, form),
        MINUTES: encode(second // 60 % 60, form),
        HOURS: encode_hour(second // 3600, form),
        WEEKDAY: encode(weekday, form),
        DAY: encode(day, form),
        MONTH: encode(month, form),
        YEAR: encode(year % 100, form),
        CENTURY: encode(year // 100 % 100, form),
    }


def seconds_of(registers: dict[int, int], form: int) -> tuple[int, int]:
    """(UTC seconds, weekday shift) that the time registers say."""
    number = {at: decode(registers[at], form) for at in TIME_REGISTERS}
    year = number[CENTURY] * 100 + number[YEAR]
    days = days_of(year, number[MONTH], number[DAY])
    hour = decode_hour(registers[HOURS], form)
    seconds = days * DAY_S + hour * 3600 + number[MINUTES] * 60 + number[SECONDS]
    return seconds, (number[WEEKDAY] - 1 - (seconds // DAY_S + 4)) % 7


def seconds_to_alarm(now: int, alarm: Sequence[int], form: int) -> int | None:
    """Seconds from `now` (UTC) to the next match of the alarm, at least 1; None if there is none.

    `alarm` holds the (hours, minutes, seconds) registers; 0xC0 and above match everything.
    """
    hours = _matching(alarm[0], 24, decode_hour(alarm[0], form))
    minutes = _matching(alarm[1], 60, decode(alarm[1], form))
    seconds = _matching(alarm[2], 60, decode(alarm[2], form))
    if not (hours and minutes and seconds):
        return None
    start = (now + 1) % DAY_S
    best = min(
        (second - start) % DAY_S
        for hour in _next(hours, start // 3600)
        for minute in _next(minutes, start // 60 % 60)
        for second in (hour * 3600 + minute * 60 + each for each in _next(seconds, start % 60))
    )
    return best + 1


def _matching(register: int, count: int, value: int) -> Sequence[int]:
    if register >= 0xC0:
        return range(count)
    return (value,) if value < count else ()


def _next(values: Sequence[int], at: int) -> set[int]:
    """Of the values that a field may have: the one now, the next, and the first."""
    later = [value for value in values if value >= at][:2]
    return {values[0], *later}
