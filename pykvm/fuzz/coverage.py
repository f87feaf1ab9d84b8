"""Coverage: a map of 64 KiB, a byte an edge, as AFL's; and what of it is new."""

from __future__ import annotations

from pykvm.fuzz import layout as at

# AFL's buckets: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, 128-255 times.
_BUCKETS = bytes(
    0 if n == 0 else 1 if n == 1 else 2 if n == 2 else 4 if n == 3 else 8 if n < 8
    else 16 if n < 16 else 32 if n < 32 else 64 if n < 128 else 128
    for n in range(256)
)  # fmt: skip


class Coverage:
    """The map of the last run, in memory that the guest writes: no copy is made."""

    size = at.COVERAGE_SIZE

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def count(self) -> int:
        """How many edges were taken."""
        data = bytes(self.view)
        return len(data) - data.count(0)

    def edges(self) -> list[int]:
        """Their numbers."""
        return [index for index, n in enumerate(bytes(self.view)) if n]

    def buckets(self) -> bytes:
        """How often each edge was taken, as AFL rounds it: what is compared between runs."""
        return bytes(self.view).translate(_BUCKETS)

    def release(self) -> None:
        """Lets go of the memory."""
        self.view.release()


class Seen:
    """All that was covered so far."""

    def __init__(self) -> None:
        self._bits = 0
        self._last = b""

    def add(self, coverage: Coverage) -> bool:
        """Whether the last run did something that none before it did."""
        now = coverage.buckets()
        if now == self._last:
            return False
        self._last = now
        bits = int.from_bytes(now, "little")
        if not bits & ~self._bits:
            return False
        self._bits |= bits
        return True

    def count(self) -> int:
        """Edges that were ever taken."""
        data = self._bits.to_bytes(Coverage.size, "little")
        return len(data) - data.count(0)
