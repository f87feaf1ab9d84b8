"""`IoStatistics`: what a device did, by kind of request; readable while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from pykvm._native import ffi, lib
from pykvm.typed import Any


class KindStatistics:
    """One kind of request (reads, packets received, …). A view of counters that go on counting."""

    __slots__ = ("_keep", "name", "native")

    def __init__(self, name: str, native: Any, keep: object) -> None:
        self.name = name
        #: `struct pykvm_stat *` for the engines.
        self.native = native
        self._keep = keep

    def add(self, length: int = 0, ns: int = 0, *, failed: bool = False) -> None:
        """A request of `length` bytes ended after `ns` nanoseconds."""
        lib.pykvm_stat_add(self.native, length, ns, failed)

    @property
    def requests(self) -> int:
        """How many ended, those that failed too."""
        return int(self.native.requests)

    @property
    def bytes(self) -> int:
        """Bytes moved."""
        return int(self.native.bytes)

    @property
    def errors(self) -> int:
        """How many failed."""
        return int(self.native.errors)

    @property
    def total_ns(self) -> int:
        """The sum of all latencies in ns."""
        return int(self.native.total_ns)

    @property
    def latency(self) -> dict[int, int]:
        """The histogram: {n: requests that took from n to 2n - 1 nanoseconds}, n a power of two.

        What took less than 2 ns (or was not timed) is at 1, what took 2**39 ns or more at 2**39.
        """
        counts = ffi.unpack(self.native.latency, lib.PYKVM_STAT_SLOTS)
        return {1 << slot: count for slot, count in enumerate(counts) if count}

    def percentile(self, share: float) -> int:
        """An upper bound in ns for the latency of `share` (0 to 1) of the requests; 0 if none."""
        histogram = self.latency
        wanted = share * sum(histogram.values())
        seen = 0
        for low in sorted(histogram):
            seen += histogram[low]
            if seen >= wanted:
                return 2 * low - 1
        return 0

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "requests": self.requests, "bytes": self.bytes, "errors": self.errors,
            "total_ns": self.total_ns, "latency": self.latency,
        }  # fmt: skip


class IoStatistics:
    """The counters of one device: `statistics["read"].requests`; `kinds` in the order given.

    Engines write to the array `native` (`struct pykvm_stat[]`), Python devices use
    `KindStatistics.add`. Reading takes no lock: numbers that belong together may be one request
    apart.
    """

    __slots__ = ("_kinds", "native")

    def __init__(self, kinds: Sequence[str]) -> None:
        self.native: Any = ffi.new("struct pykvm_stat[]", len(kinds))
        self._kinds = {
            name: KindStatistics(name, self.native + at, self.native)
            for at, name in enumerate(kinds)
        }

    def __getitem__(self, kind: str) -> KindStatistics:
        return self._kinds[kind]

    @property
    def kinds(self) -> list[str]:
        """The names of the kinds of request."""
        return list(self._kinds)

    @property
    def requests(self) -> int:
        """Requests of all kinds."""
        return sum(kind.requests for kind in self._kinds.values())

    @property
    def bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(kind.bytes for kind in self._kinds.values())

    @property
    def errors(self) -> int:
        """Failures of all kinds."""
        return sum(kind.errors for kind in self._kinds.values())

    def reset(self) -> None:
        """All counters to 0; requests that end meanwhile may be lost from them."""
        ffi.memmove(self.native, bytes(ffi.sizeof(self.native)), ffi.sizeof(self.native))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """All of it as plain values, by kind."""
        return {name: kind.as_dict() for name, kind in self._kinds.items()}
