"""One counter of the 8254, as a function of time in ticks of its input clock.

Source: Intel 8254 data sheet (231164), "Mode definitions". Nothing here moves by itself: the
counter remembers when it started, and works out its count and its output when it is asked.
Simplified: a new count is loaded at once, not one clock later, and in mode 3 at the end of the
whole cycle.
"""

from __future__ import annotations

from pykvm.devices.state import StateReader

LATCH, LOW_BYTE, HIGH_BYTE, BOTH_BYTES = range(4)  # the access field of a control word
ONE_SHOT_ON_COUNT, ONE_SHOT_ON_GATE, RATE, SQUARE, STROBE, STROBE_ON_GATE = range(6)
PERIODIC = (RATE, SQUARE)
ON_GATE = (ONE_SHOT_ON_GATE, STROBE_ON_GATE)

_FARTHEST = 1 << 80  # ticks in a saved state


class Counter:
    """A counter. Every method gets `now`, in ticks."""

    def __init__(self, gate: bool = True) -> None:
        self.gate = gate
        self.mode = ONE_SHOT_ON_COUNT
        self.access = BOTH_BYTES
        self.bcd = False
        self.count = 0x10000  # what is counted down from: 1 to 65536, or to 10000 in BCD
        self.loaded = False  # a count was written since the mode was set, and has begun
        self.start = 0  # when counting began
        self.paused: int | None = None  # ticks counted when the gate went low
        self.spent = False  # the strobe of this count was over when counting went on
        self.waiting: int | None = None  # a count that is loaded at the next cycle or trigger
        self.low: int | None = None  # the low byte of a count whose high byte is due
        self.latched: list[int] = []  # bytes of a latched count, those to be read next first
        self.status: int | None = None
        self.high_next = False  # an unlatched read gives the high byte next

    @property
    def modulus(self) -> int:
        """How many counts there are."""
        return 10_000 if self.bcd else 0x10000

    # -- what it does --------------------------------------------------------------------------

    def elapsed(self, now: int) -> int:
        """Ticks since counting began, in periodic modes since the cycle's beginning at most."""
        self._next_cycle(now)
        return now - self.start if self.paused is None else self.paused

    def _next_cycle(self, now: int) -> None:
        if self.waiting is None or self.mode not in PERIODIC or self.paused is not None:
            return
        if now - self.start >= self.count:
            self.start += self.count
            self.count, self.waiting = self.waiting, None

    def output(self, now: int) -> bool:
        """The level of OUT."""
        if not self.loaded:
            return self.mode != ONE_SHOT_ON_COUNT
        done = self.elapsed(now)
        if self.mode in (ONE_SHOT_ON_COUNT, ONE_SHOT_ON_GATE):
            return done >= self.count
        if self.mode in PERIODIC:
            if not self.gate or self.count == 1:
                return True
            high = self.count - 1 if self.mode == RATE else (self.count + 1) // 2
            return done % self.count < high
        if self.spent:
            return True
        if self.paused is not None:  # GATE stops the count, but a strobe lasts one clock
            return self.paused != self.count or now != self.start + self.count
        return done != self.count

    def value(self, now: int) -> int:
        """The count as it is read: 16 bits, in BCD where that was asked for."""
        count = self.count
        if self.loaded:
            done = self.elapsed(now)
            count = self.count
            if self.mode == SQUARE:
                half = (count + 1) // 2
                done %= count
                count = (count & ~1) - 2 * (done if done < half else done - half)
            elif self.mode == RATE:
                count -= done % count
            else:
                count -= done
        return self._shown(count % self.modulus)

    def _shown(self, value: int) -> int:
        return int(str(value), 16) if self.bcd else value

    def next_edge(self, now: int) -> int | None:
        """When OUT next rises, None if it does not without a trigger."""
        if not self.loaded or self.paused is not None:
            return None
        done = self.elapsed(now)
        if self.mode in PERIODIC:
            return self.start + (done // self.count + 1) * self.count
        return self.start + self.count if done < self.count else None

    # -- registers -----------------------------------------------------------------------------

    def control(self, word: int, now: int) -> None:
        """A control word for this counter: a latch command or a new mode."""
        access = word >> 4 & 3
        if access == LATCH:
            self.latch(now)
            return
        self.access = access
        self.mode = word >> 1 & 7
        if self.mode > STROBE_ON_GATE:
            self.mode -= 4  # 6 and 7 mean 2 and 3
        self.bcd = word & 1 != 0
        self.count = min(self.count, self.modulus)
        self.loaded = self.high_next = self.spent = False
        self.waiting = self.low = self.paused = self.status = None
        self.latched.clear()

    def latch(self, now: int) -> None:
        """Keep the count for reading, unless one is kept already."""
        if not self.latched:
            value = self.value(now)
            both = [value & 0xFF, value >> 8]
            self.latched = {LOW_BYTE: both[:1], HIGH_BYTE: both[1:]}.get(self.access, both)

    def latch_status(self, now: int) -> None:
        """Keep the status byte for reading, unless one is kept already."""
        if self.status is None:
            null = not self.loaded or self.waiting is not None
            self.status = (
                self.output(now) << 7 | null << 6 | self.access << 4 | self.mode << 1 | self.bcd
            )

    def read(self, now: int) -> int:
        """The next byte: a kept status, a kept count, or the count as it is now."""
        if self.status is not None:
            value, self.status = self.status, None
            return value
        if self.latched:
            return self.latched.pop(0)
        value = self.value(now)
        if self.access == BOTH_BYTES:
            self.high_next = not self.high_next
            return value & 0xFF if self.high_next else value >> 8
        return value >> 8 if self.access == HIGH_BYTE else value & 0xFF

    def write(self, byte: int, now: int) -> None:
        """The next byte of a count."""
        if self.access == BOTH_BYTES and self.low is None:
            self.low = byte
            return
        if self.access == BOTH_BYTES:
            assert self.low is not None
            written, self.low = self.low | byte << 8, None
        else:
            written = byte << 8 if self.access == HIGH_BYTE else byte
        if self.bcd:
            written = sum((written >> 4 * i & 15) * 10**i for i in range(4)) % self.modulus
        self._take_count(written or self.modulus, now)

    def _take_count(self, count: int, now: int) -> None:
        if self.mode in ON_GATE:
            self.waiting = count
            return
        if self.mode in PERIODIC and self.loaded and self.paused is None:
            self.start += self.elapsed(now) // self.count * self.count
            self.waiting = count
            return
        self._begin(count, now)
        self.paused = None if self.gate else 0

    def _begin(self, count: int, now: int) -> None:
        self.count, self.start, self.loaded = count, now, True
        self.waiting = self.paused = None
        self.spent = False

    def set_gate(self, gate: bool, now: int) -> None:
        """Drive the GATE input."""
        rising, falling = gate and not self.gate, self.gate and not gate
        if falling and self.loaded and self.mode not in ON_GATE:
            self.paused = self.elapsed(now)
        self.gate = gate
        if not rising:
            return
        if self.mode in ON_GATE:
            if self.waiting is not None or self.loaded:
                self._begin(self.waiting or self.count, now)
        elif self.loaded and self.mode in PERIODIC:
            self._begin(self.waiting or self.count, now)
        elif self.paused is not None:
            self.spent |= self.paused == self.count and now != self.start + self.count
            self.start, self.paused = now - self.paused, None

    # -- life ----------------------------------------------------------------------------------

    def save(self, now: int) -> list[int]:
        """Every field as a number, the start as ticks ago; -1 for None."""
        done = self.elapsed(now)
        flags = self.gate | self.bcd << 1 | self.loaded << 2 | self.high_next << 3
        flags |= (self.paused is not None) << 4 | self.spent << 5
        none = -1
        return [
            flags,
            self.mode,
            self.access,
            self.count,
            done,
            none if self.waiting is None else self.waiting,
            none if self.low is None else self.low,
            none if self.status is None else self.status,
            *self.latched,
        ]

    @classmethod
    def load(cls, take: StateReader, name: str, now: int) -> Counter:
        """The counter that `save` gave as field `name`."""
        fields = take.integers(name, 10, _FARTHEST, least=8, low=-1)
        flags, mode, access, count, done, waiting, low, status = fields[:8]
        counter = cls(gate=flags & 1 != 0)
        counter.bcd = flags & 2 != 0
        largest = counter.modulus
        good = (
            0 <= flags < 64
            and 0 <= mode <= STROBE_ON_GATE
            and LOW_BYTE <= access <= BOTH_BYTES
            and 1 <= count <= largest
            and done >= 0
            and waiting != 0
            and max(low, status, *fields[8:], 0) <= 0xFF
            and min(fields[8:], default=0) >= 0
            and waiting <= largest
        )
        if not good:
            take.refuse(name, fields, "a counter of an 8254")
        counter.mode, counter.access, counter.count = mode, access, count
        counter.loaded, counter.high_next = flags & 4 != 0, flags & 8 != 0
        counter.start = now - done
        counter.paused, counter.spent = done if flags & 16 else None, flags & 32 != 0
        counter.waiting = None if waiting < 0 else waiting
        counter.low = None if low < 0 else low
        counter.status = None if status < 0 else status
        counter.latched = fields[8:]
        return counter
