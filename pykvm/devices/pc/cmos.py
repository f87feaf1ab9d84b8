"""The real-time clock with its CMOS RAM: an MC146818A and a second bank of 128 bytes.

Source: Motorola MC146818A data sheet; ports and the NMI mask: Intel ICH9 data sheet, 13.6. Offsets
0 and 1 are index and data (ports 0x70/0x71; bit 7 of the index masks NMIs), 2 and 3 the same for
the second bank (0x72/0x73).

Time is UTC. It runs with the device's clock from the host's wall clock at power-on, or from
`start`. A guest that sets the time moves its own clock only. Interrupt flags are worked out from
the time that has passed when they are looked at; a timer exists only for an enabled interrupt
that is not pending yet, so no rate that a guest chooses makes more work than it takes up.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.devices.base import Clock, Device, IrqLine, MonotonicClock, NullIrqLine, StateReader
from pykvm.devices.pc.cmos_setup import setup_bytes
from pykvm.devices.pc.rtc_calendar import (
    DAY_S,
    FORMAT,
    HOURS_24,
    HOURS_ALARM,
    MINUTES_ALARM,
    SECONDS_ALARM,
    TIME_REGISTERS,
    registers_of,
    seconds_of,
    seconds_to_alarm,
)
from pykvm.devices.pc.window import PortRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

REG_A, REG_B, REG_C, REG_D = range(0x0A, 0x0E)
UIP = 0x80  # A
DIVIDER_RESET = 0x60  # A: both bits set stop the divider chain
SET, PIE, AIE, UIE = 0x80, 0x40, 0x20, 0x10  # B
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10  # C; the flags stand where their enables are in B
VRT = 0x80  # D: the RAM and the time are valid
POWER_ON_A, POWER_ON_B = 0x26, HOURS_24

BANK = 128
SHUTDOWN_CODE = 0x0F
NMI_MASK = 0x80

_SECOND = 1_000_000_000
_UPDATE_NS = 244_000  # how long before an update UIP is seen
_HALF_SECOND = _SECOND // 2  # from the release of the divider chain to the first update
_LATEST = 400_000 * 366 * DAY_S  # seconds; what four BCD or binary bytes can say is less


class Cmos(Device):
    """RTC and CMOS RAM. `irq` is a level, high from an enabled event until register C is read.

    `start` is the UTC time at power-on in seconds since 1970, None the host's time. RAM sizes are
    in bytes. `boot_order` names boot devices, first choice first: a floppy, c disk, d CD-ROM, n
    network. `on_alarm()`, if set, is called when an alarm is noticed, with the device's lock held.
    """

    name = "cmos"
    ADDRESS = 0x70
    LENGTH = 4

    def __init__(
        self,
        irq: IrqLine | None = None,
        clock: Clock | None = None,
        *,
        start: int | None = None,
        ram_below_4g: int = 0,
        ram_above_4g: int = 0,
        boot_order: str = "cda",
    ) -> None:
        self.irq: IrqLine = irq or NullIrqLine()
        self.on_alarm: Callable[[], object] | None = None
        self._own_clock = None if clock is not None else MonotonicClock()
        self._clock: Clock = clock or self._own_clock  # type: ignore[assignment]
        self._start = start
        self._setup = setup_bytes(ram_below_4g, ram_above_4g, boot_order)
        self._lock = allocate_lock()
        self._timer = self._clock.timer(self._on_timer)
        self._level = False
        self._closed = False
        self._power_on()

    def _power_on(self) -> None:
        self.ram = bytearray(BANK)
        self.ram2 = bytearray(BANK)
        for at, value in self._setup.items():
            self.ram[at] = value
        self._index = self._index2 = 0
        self._a, self._b, self._flags = POWER_ON_A, POWER_ON_B, 0
        self._held: dict[int, int] | None = None  # the time registers while time stands still
        self._weekday_shift = 0
        if self._start is None:
            from time import time_ns

            seconds, fraction = divmod(time_ns(), _SECOND)
        else:
            seconds, fraction = self._start, 0
        self._run_from(seconds, self._clock.now_ns() - fraction)

    def ranges(self) -> list[PortRange]:
        """Ports 0x70 to 0x73."""
        return [PortRange("pio", self.ADDRESS, self.LENGTH, self)]

    @property
    def nmi_masked(self) -> bool:
        """Bit 7 of the index port: the guest wants no NMIs."""
        return self._index & NMI_MASK != 0

    @property
    def utc(self) -> int:
        """The guest's time, in seconds since 1970."""
        with self._lock:
            if self._held is not None:
                return seconds_of(self._held, self._b & FORMAT)[0]
            return self._seconds(self._clock.now_ns())

    # -- ports ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A data port reads the chosen byte, the second index port itself; 0x70 is write-only."""
        if offset == 1:
            with self._lock:
                return self._read_register(self._index & 0x7F)
        if offset == 3:
            return self.ram2[self._index2]
        return self._index2 if offset == 2 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a byte, or store one."""
        value &= 0xFF
        if offset == 0:
            self._index = value
        elif offset == 1:
            with self._lock:
                self._write_register(self._index & 0x7F, value)
        elif offset == 2:
            self._index2 = value & 0x7F
        elif offset == 3:
            self.ram2[self._index2] = value

    def _read_register(self, at: int) -> int:
        now = self._clock.now_ns()
        if at in TIME_REGISTERS:
            if self._held is not None:
                return self._held[at]
            return registers_of(self._seconds(now), self._b & FORMAT, self._weekday_shift)[at]
        if at == REG_A:
            late = (now - self._phase) % _SECOND >= _SECOND - _UPDATE_NS
            return self._a | (UIP if late and self._held is None else 0)
        if at == REG_B:
            return self._b
        if at == REG_C:
            self._follow()
            value = self._flags | (IRQF if self._flags & self._b else 0)
            self._flags = 0
            self._update()
            return value
        return VRT if at == REG_D else self.ram[at]

    def _write_register(self, at: int, value: int) -> None:
        self._follow()
        if at in TIME_REGISTERS:
            self._write_time(at, value)
        elif at == REG_A:
            self._control(value & ~UIP, self._b)
        elif at == REG_B:
            self._control(self._a, value & ~UIE if value & SET else value)
        elif at not in (REG_C, REG_D):
            self.ram[at] = value
        self._update()

    # -- time ----------------------------------------------------------------------------------

    def _run_from(self, seconds: int, phase: int) -> None:
        """It is `seconds` now; whole seconds pass where the clock is `phase` plus whole seconds."""
        now = self._clock.now_ns()
        self._phase = phase
        self._tick = (now - phase) // _SECOND  # the whole seconds that were looked at
        self._base = seconds - self._tick
        self._pulses = self._pulse_count(now)

    def _seconds(self, now: int) -> int:
        return self._base + (now - self._phase) // _SECOND

    def _write_time(self, at: int, value: int) -> None:
        if self._held is not None:
            self._held[at] = value
            return
        form = self._b & FORMAT
        registers = registers_of(self._seconds(self._clock.now_ns()), form, self._weekday_shift)
        registers[at] = value
        self._take_time(registers, self._phase)

    def _take_time(self, registers: dict[int, int], phase: int) -> None:
        seconds, self._weekday_shift = seconds_of(registers, self._b & FORMAT)
        self._run_from(seconds, phase)

    def _control(self, a: int, b: int) -> None:
        """New values for registers A and B; time stands still with SET or a stopped divider."""
        stopped, stops = _stopped(self._a), _stopped(a)
        still = stops or b & SET
        if still and self._held is None:
            now = self._seconds(self._clock.now_ns())
            self._held = registers_of(now, self._b & FORMAT, self._weekday_shift)
        self._a, self._b = a, b
        if stopped and not stops:
            self._run_from(0, self._clock.now_ns() - _HALF_SECOND)
        if not still and self._held is not None:
            held, self._held = self._held, None
            self._take_time(held, self._phase)
        self._pulses = self._pulse_count(self._clock.now_ns())

    # -- interrupts ----------------------------------------------------------------------------

    def _frequency(self) -> int:
        """The periodic interrupt's rate in Hz, 0 for none."""
        rate = self._a & 0x0F
        if not rate or _stopped(self._a):
            return 0
        return 32768 >> ((rate if rate > 2 else rate + 7) - 1)

    def _pulse_count(self, now: int) -> int:
        return (now - self._phase) * self._frequency() // _SECOND

    def _alarm_in(self) -> int | None:
        """Seconds from the last look to the alarm."""
        alarm = (self.ram[HOURS_ALARM], self.ram[MINUTES_ALARM], self.ram[SECONDS_ALARM])
        return seconds_to_alarm(self._base + self._tick, alarm, self._b & FORMAT)

    def _follow(self) -> None:
        """Set the flags for what happened since the last look."""
        now = self._clock.now_ns()
        pulses = self._pulse_count(now)
        if pulses > self._pulses:
            self._flags |= PF
        self._pulses = pulses
        tick = (now - self._phase) // _SECOND
        if tick <= self._tick:
            return
        if self._held is None:
            self._flags |= UF
            alarm = self._alarm_in()
            if alarm is not None and alarm <= tick - self._tick:
                self._flags |= AF
                if self.on_alarm is not None:
                    self.on_alarm()
        self._tick = tick

    def _update(self) -> None:
        """Drive the line, and arm the timer for the next event that would raise it."""
        level = self._flags & self._b & (PF | AF | UF) != 0
        if level != self._level and not self._closed:
            self._level = level
            self.irq.set(level)
        due = self._due()
        if due is None or self._closed:
            self._timer.cancel()
        else:
            self._timer.arm(due)

    def _due(self) -> int | None:
        waits = self._b & ~self._flags
        times = []
        frequency = self._frequency()
        if waits & PIE and frequency:
            times.append(self._phase - (-(self._pulses + 1) * _SECOND // frequency))
        if self._held is None and waits & UIE:
            times.append(self._phase + (self._tick + 1) * _SECOND)
        if self._held is None and waits & AIE:
            alarm = self._alarm_in()
            if alarm is not None:
                times.append(self._phase + (self._tick + alarm) * _SECOND)
        return min(times, default=None)

    def _on_timer(self) -> None:
        with self._lock:
            if not self._closed:
                self._follow()
                self._update()

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-on: RAM as set up for the machine, the time `start` or the host's, no interrupt."""
        with self._lock:
            self._power_on()
            self._update()

    def save(self) -> dict[str, object]:
        """RAM, registers and the guest's time."""
        with self._lock:
            self._follow()
            now = self._clock.now_ns()
            held = self._held
            return {
                "ram": list(self.ram),
                "ram2": list(self.ram2),
                "index": [self._index, self._index2],
                "a": self._a,
                "b": self._b,
                "flags": self._flags,
                "seconds": self._seconds(now),
                "fraction_ns": (now - self._phase) % _SECOND,
                "weekday_shift": self._weekday_shift,
                "held": [] if held is None else [held[at] for at in TIME_REGISTERS],
            }

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state; time goes on from where it was."""
        take = StateReader(self.name, state)
        ram = bytearray(take.integers("ram", BANK, 0xFF, least=BANK))
        ram2 = bytearray(take.integers("ram2", BANK, 0xFF, least=BANK))
        index = take.integers("index", 2, 0xFF, least=2)
        a = take.integer("a", 0xFF) & ~UIP
        b = take.integer("b", 0xFF)
        flags = take.integer("flags", 0xFF) & (PF | AF | UF)
        seconds = take.integer("seconds", _LATEST, -_LATEST)
        fraction = take.integer("fraction_ns", _SECOND - 1)
        shift = take.integer("weekday_shift", 6)
        held = take.integers("held", len(TIME_REGISTERS), 0xFF)
        still = b & SET or _stopped(a)
        if len(held) != (len(TIME_REGISTERS) if still else 0):
            take.refuse("held", held, "the time registers exactly while time stands still")
        take.finish()
        with self._lock:
            self.ram, self.ram2 = ram, ram2
            self._index, self._index2 = index[0], index[1] & 0x7F
            self._a, self._b, self._flags = a, b, flags
            self._held = dict(zip(TIME_REGISTERS, held, strict=True)) if still else None
            self._weekday_shift = shift
            self._run_from(seconds, self._clock.now_ns() - fraction)
            self._update()

    def close(self) -> None:
        """Stop the timer and leave the line alone from now on."""
        with self._lock:
            self._closed = True
            self._timer.cancel()
        if self._own_clock is not None:
            self._own_clock.close()


def _stopped(a: int) -> bool:
    return a & DIVIDER_RESET == DIVIDER_RESET
