"""The 8254 programmable interval timer of a PC: three counters at 1.193182 MHz.

Source: Intel 8254 data sheet (231164). Offsets 0 to 2 are the counters (ports 0x40-0x42), 3 is the
control word register. Counter 0's output is IRQ 0, counter 2's drives the speaker and has its gate
in port 0x61 (`Speaker`); the other gates are high.

Edges of IRQ 0 come from the clock's timer. When it comes late, or the guest asks for more than
5000 a second, edges are lost, as on a PC that keeps interrupts off; `missed` counts them.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.devices.base import Clock, Device, IrqLine, MonotonicClock, NullIrqLine, StateReader
from pykvm.devices.pc.pit_counter import ONE_SHOT_ON_COUNT, Counter
from pykvm.devices.pc.window import PortRange

PIT_HZ = 1_193_182
_SECOND = 1_000_000_000
_LONGEST_NS = 1 << 62
#: Edges that are less than this apart are not all delivered, in ticks (200 µs).
CLOSEST_EDGES = PIT_HZ // 5000
CONTROL = 3
READ_BACK = 3  # the counter field of a control word


class Pit8254(Device):
    """The timer. `irq` gets a rising edge at each terminal count of counter 0."""

    name = "pit"
    ADDRESS = 0x40
    LENGTH = 4

    def __init__(self, irq: IrqLine | None = None, clock: Clock | None = None) -> None:
        self.irq: IrqLine = irq or NullIrqLine()
        self._own_clock = None if clock is not None else MonotonicClock()
        self._clock: Clock = clock or self._own_clock  # type: ignore[assignment]
        self._lock = allocate_lock()
        self._timer = self._clock.timer(self._on_timer)
        self._closed = False
        self._level = False
        self._power_on()

    def _power_on(self) -> None:
        self._epoch = self._clock.now_ns()
        self.counters = [Counter(), Counter(), Counter(gate=False)]
        self._edge: int | None = None  # when counter 0's output rises next
        self._last_edge = -CLOSEST_EDGES
        self.missed = 0

    def ranges(self) -> list[PortRange]:
        """Ports 0x40 to 0x43."""
        return [PortRange("pio", self.ADDRESS, self.LENGTH, self)]

    def ticks(self) -> int:
        """Ticks of the input clock since power-on."""
        return (self._clock.now_ns() - self._epoch) * PIT_HZ // _SECOND

    # -- ports ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A byte of a counter; the control word register cannot be read."""
        if not 0 <= offset < CONTROL:
            return 0xFF
        with self._lock:
            return self.counters[offset].read(self.ticks())

    def write(self, offset: int, size: int, value: int) -> None:
        """A control word, or a byte of a count."""
        value &= 0xFF
        with self._lock:
            now = self.ticks()
            self._follow(now)
            if offset == CONTROL:
                self._control(value, now)
            elif 0 <= offset < CONTROL:
                self.counters[offset].write(value, now)
            self._plan(now)

    def _control(self, word: int, now: int) -> None:
        chosen = word >> 6
        if chosen != READ_BACK:
            counter = self.counters[chosen]
            counter.control(word, now)
            if chosen == 0 and word & 0x30 and counter.mode == ONE_SHOT_ON_COUNT:
                self._drive(False)
            return
        for n, counter in enumerate(self.counters):
            if word >> n + 1 & 1:
                if not word & 0x20:
                    counter.latch(now)
                if not word & 0x10:
                    counter.latch_status(now)

    # -- counter 2 and the speaker -------------------------------------------------------------

    def set_gate(self, level: bool) -> None:
        """Counter 2's gate, which is bit 0 of port 0x61."""
        with self._lock:
            self.counters[2].set_gate(level, self.ticks())

    def output(self, n: int = 2) -> bool:
        """The level of a counter's OUT pin."""
        with self._lock:
            return self.counters[n].output(self.ticks())

    # -- IRQ 0 ---------------------------------------------------------------------------------

    def _drive(self, level: bool) -> None:
        if level != self._level and not self._closed:
            self._level = level
            self.irq.set(level)

    def _follow(self, now: int) -> None:
        """Deliver the edge that is due."""
        edge = self._edge
        if edge is None or now < edge:
            return
        self._edge = None
        self._last_edge = now
        self._drive(False)
        self._drive(True)
        following = self.counters[0].next_edge(edge)
        if following is not None:
            period = following - edge
            self.missed += (now - edge) // period

    def _plan(self, now: int) -> None:
        edge = self.counters[0].next_edge(now)
        if edge is not None and edge < self._last_edge + CLOSEST_EDGES:
            edge = self._last_edge + CLOSEST_EDGES
        self._edge = edge
        if edge is None or self._closed:
            self._timer.cancel()
        else:
            self._timer.arm(self._epoch - (-edge * _SECOND // PIT_HZ))  # rounded up

    def _on_timer(self) -> None:
        with self._lock:
            if not self._closed:
                now = self.ticks()
                self._follow(now)
                self._plan(now)

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Nothing counts; IRQ 0 is low."""
        with self._lock:
            self._timer.cancel()
            self._drive(False)
            self._power_on()

    def save(self) -> dict[str, object]:
        """The counters and the interrupt line."""
        with self._lock:
            now = self.ticks()
            self._follow(now)
            self._plan(now)
            names = ("counter0", "counter1", "counter2")
            state: dict[str, object] = {
                name: counter.save(now) for name, counter in zip(names, self.counters, strict=True)
            }
            return {
                **state,
                "level": self._level,
                "elapsed_ns": self._clock.now_ns() - self._epoch,
                "since_edge": min(now - self._last_edge, CLOSEST_EDGES),
            }

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state; counting goes on from where it was."""
        take = StateReader(self.name, state)
        elapsed = take.integer("elapsed_ns", _LONGEST_NS)
        now = elapsed * PIT_HZ // _SECOND
        counters = [Counter.load(take, f"counter{n}", now) for n in range(3)]
        level = take.boolean("level")
        since_edge = take.integer("since_edge", CLOSEST_EDGES)
        take.finish()
        with self._lock:
            self._epoch = self._clock.now_ns() - elapsed
            self.counters = counters
            self._last_edge = now - since_edge
            self._drive(level)
            self._plan(now)

    def close(self) -> None:
        """Stop the timer and leave the line alone from now on."""
        with self._lock:
            self._closed = True
            self._timer.cancel()
        if self._own_clock is not None:
            self._own_clock.close()
