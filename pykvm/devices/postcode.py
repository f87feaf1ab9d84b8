"""The POST-code port 0x80: firmware and boot code say how far they have come, one byte at a time.

Linux writes to it as well, to pass about a microsecond (`outb_p`), so the history is bounded.
"""

from __future__ import annotations

from collections import deque

from pykvm.devices.base import Clock, Device, MonotonicClock, StateReader

_VERSION = 1
_MOST_NS = 1 << 62


class PostCode(Device):
    """Keeps the newest `history` codes, each with its time in nanoseconds since power-on or reset.

    A read gives the last code, 0 before the first. `count` is how many were written in all.
    """

    name = "postcode"
    LENGTH = 1

    def __init__(self, clock: Clock | None = None, history: int = 256) -> None:
        if history < 1:
            raise ValueError(f"a POST-code history of {history} holds nothing; give at least 1")
        self._now_ns = (clock or MonotonicClock()).now_ns
        self._epoch = self._now_ns()
        self._codes: deque[tuple[int, int]] = deque(maxlen=history)
        self._last = 0
        self.count = 0

    @property
    def codes(self) -> list[tuple[int, int]]:
        """The newest codes as (nanoseconds since power-on, code), oldest first."""
        return list(self._codes)

    @property
    def last(self) -> int:
        """The code written last, 0 before the first."""
        return self._last

    def read(self, offset: int, size: int) -> int:
        """The last code."""
        return self._last

    def write(self, offset: int, size: int, value: int) -> None:
        """Note a code, the low byte of `value`."""
        self._last = value & 0xFF
        self.count += 1
        self._codes.append((self._now_ns() - self._epoch, self._last))

    def reset(self) -> None:
        """Forget all codes; time starts at 0 again."""
        self._codes.clear()
        self._last = self.count = 0
        self._epoch = self._now_ns()

    def save(self) -> dict[str, object]:
        """The history and how long ago power-on was."""
        codes = self.codes
        return {
            "version": _VERSION,
            "elapsed_ns": self._now_ns() - self._epoch,
            "times": [when for when, _ in codes],
            "codes": [code for _, code in codes],
            "last": self._last,
            "count": self.count,
        }

    def load(self, state: dict[str, object]) -> None:
        """Take over a history; of one longer than this device keeps, the newest codes."""
        take = StateReader(self.name, state, _VERSION)
        elapsed = take.integer("elapsed_ns", _MOST_NS)
        times = take.integers("times", 1 << 20, _MOST_NS)
        codes = take.integers("codes", len(times), 0xFF)
        last = take.integer("last", 0xFF)
        count = take.integer("count", _MOST_NS, len(times))
        take.finish()
        self._codes.clear()
        self._codes.extend(zip(times, codes, strict=False))
        self._last = last
        self.count = count
        self._epoch = self._now_ns() - elapsed
