"""`RateLimit`: token buckets for requests and bytes, shared with the engines in native/."""

from __future__ import annotations

from pykvm._native import ffi, lib
from pykvm.typed import Any

_MOST = (1 << 63) - 1


class RateLimit:
    """At most so many requests and bytes a second; 0 is no limit.

    Each bucket saves up to `burst_ops` requests and `burst_bytes` bytes while nothing happens (0: a
    tenth of a second's worth). A request may go when neither bucket is empty, and is taken in
    whole, so the average keeps to the rate while one larger than the burst is not held for ever.

    Engines take from the same buckets (`native`); several devices may share one limit. All of it
    may be called from any thread, and `set` while devices run. Raises `ValueError` for negative
    numbers.
    """

    __slots__ = ("native",)

    def __init__(
        self, ops_per_s: int = 0, bytes_per_s: int = 0, burst_ops: int = 0, burst_bytes: int = 0
    ) -> None:
        #: `struct pykvm_limit *` for the engines.
        self.native: Any = ffi.new("struct pykvm_limit *")
        self.set(ops_per_s, bytes_per_s, burst_ops, burst_bytes)

    def set(
        self, ops_per_s: int = 0, bytes_per_s: int = 0, burst_ops: int = 0, burst_bytes: int = 0
    ) -> None:
        """Other rates from now on. A request that waits already may wait by the old rate."""
        for value in (ops_per_s, bytes_per_s, burst_ops, burst_bytes):
            if not 0 <= value <= _MOST:
                raise ValueError(f"a rate limit of {value} is not a number from 0 to 2**63 - 1")
        lib.pykvm_limit_set(self.native, ops_per_s, bytes_per_s, burst_ops, burst_bytes)

    @property
    def ops_per_s(self) -> int:
        """Requests a second."""
        return int(self.native.ops.rate)

    @property
    def bytes_per_s(self) -> int:
        """Bytes a second."""
        return int(self.native.bytes.rate)

    @property
    def burst_ops(self) -> int:
        """Requests that may be saved up."""
        return int(self.native.ops.burst)

    @property
    def burst_bytes(self) -> int:
        """Bytes that may be saved up."""
        return int(self.native.bytes.burst)

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.native.ops.rate or self.native.bytes.rate)

    @property
    def held(self) -> int:
        """How often a request was told to wait."""
        return int(self.native.held)

    def take(self, length: int, now: int | None = None) -> int:
        """0: a request of `length` bytes may go, and is counted. Else ns to wait, then ask again.

        `now`: CLOCK_MONOTONIC in ns; the present where it is left out.
        """
        if now is None:
            now = lib.pykvm_now()
        return int(lib.pykvm_limit_take(self.native, now, length))

    def charge(self, length: int, now: int | None = None) -> None:
        """Counts a request that goes whatever the buckets say; later ones wait for it."""
        if now is None:
            now = lib.pykvm_now()
        lib.pykvm_limit_charge(self.native, now, length)

    def __repr__(self) -> str:
        return f"RateLimit(ops_per_s={self.ops_per_s}, bytes_per_s={self.bytes_per_s})"
