"""Port 0x61: the speaker's gate, and what PC software reads there.

Source: Intel ICH9 data sheet, 13.7.1 (NMI_SC). Bits 0 to 3 are read as written: counter 2's gate,
the speaker, and the masks of two error sources that do not exist. Bit 4 changes with each memory
refresh, every 15 µs; bit 5 is counter 2's output.

For a user-space `Pit8254`. With KVM's own PIT, KVM answers this port as well.
"""

from __future__ import annotations

from pykvm.devices.base import Clock, Device, MonotonicClock, StateReader
from pykvm.devices.pc.window import PortRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.pc.pit import Pit8254

GATE, SPEAKER, KEPT = 0x01, 0x02, 0x0F
REFRESH_NS = 15_085
PIT_HZ = 1_193_182


class Speaker(Device):
    """The port, connected to a timer's counter 2 if there is one."""

    name = "speaker"
    ADDRESS = 0x61
    LENGTH = 1

    def __init__(self, clock: Clock | None = None, pit: Pit8254 | None = None) -> None:
        self._clock = clock or MonotonicClock()
        self._pit = pit
        self._epoch = self._clock.now_ns()
        self._value = 0

    def ranges(self) -> list[PortRange]:
        """Port 0x61."""
        return [PortRange("pio", self.ADDRESS, self.LENGTH, self)]

    @property
    def tone_hz(self) -> float | None:
        """The tone that would be heard now, None for silence."""
        counter = None if self._pit is None else self._pit.counters[2]
        if counter is None or self._value & 3 != 3 or not counter.loaded or counter.mode != 3:
            return None
        return PIT_HZ / counter.count

    def read(self, offset: int, size: int) -> int:
        """The bits as written, the refresh toggle and counter 2's output."""
        refresh = (self._clock.now_ns() - self._epoch) // REFRESH_NS & 1
        output = self._pit is not None and self._pit.output(2)
        return self._value | refresh << 4 | output << 5

    def write(self, offset: int, size: int, value: int) -> None:
        """Open or close the gate."""
        self._value = value & KEPT
        if self._pit is not None:
            self._pit.set_gate(value & GATE != 0)

    def reset(self) -> None:
        """All bits 0, the gate closed."""
        self._epoch = self._clock.now_ns()
        self.write(0, 1, 0)

    def save(self) -> dict[str, object]:
        """The written bits and where the refresh is."""
        elapsed = (self._clock.now_ns() - self._epoch) % (2 * REFRESH_NS)
        return {"value": self._value, "elapsed_ns": elapsed}

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state; the gate is part of the timer's."""
        take = StateReader(self.name, state)
        value = take.integer("value", KEPT)
        elapsed = take.integer("elapsed_ns", 2 * REFRESH_NS - 1)
        take.finish()
        self._value = value
        self._epoch = self._clock.now_ns() - elapsed
