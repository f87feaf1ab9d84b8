"""What the C loop counted and recorded: exit statistics and the trace ring of a vCPU."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pykvm._native import ffi, lib
from pykvm.kvm.constants import exit_name
from pykvm.typed import Any, NamedTuple


class Count(NamedTuple):
    """Exits of one kind. `run_ns`: time in KVM_RUN before, `handle_ns`: time until re-entry."""

    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody wants here
    run_ns: int
    handle_ns: int


class ExitStats(NamedTuple):
    """A vCPU's exits since it was made or `reset_stats()`.

    `reasons` by `KVM_EXIT_*` name, `ports` by port, `mmio_pages` by guest-physical page address;
    `mmio_other` counts accesses to pages beyond the 1,024 that are told apart. `entries` is the
    number of KVM_RUN calls, `native` the exits that a native rule finished.
    """

    entries: int
    native: int
    reasons: dict[str, Count]
    ports: dict[int, Count]
    mmio_pages: dict[int, Count]
    mmio_other: Count


class TraceRecord(NamedTuple):
    """One exit as the trace ring kept it. `rip` and `cs_base` are 0 where not synced.

    `address` is a port, a guest-physical address, an MSR or a hypercall number; `value` the first
    element moved (None where there is none); times in ns, `time_ns` on CLOCK_MONOTONIC.
    """

    sequence: int
    vcpu: int
    time_ns: int
    reason: int
    name: str
    rip: int
    cs_base: int
    address: int
    value: int | None
    size: int
    count: int  # type: ignore[assignment]
    is_write: bool
    native: bool
    run_ns: int
    handle_ns: int


class _Scale:
    """TSC to nanoseconds, by two readings of both clocks as far apart as the process is old."""

    def __init__(self) -> None:
        self.tsc, self.ns = self.now()

    @staticmethod
    def now() -> tuple[int, int]:
        pair = ffi.new("uint64_t[2]")
        lib.pykvm_clock(pair, pair + 1)
        return pair[0], pair[1]

    def ns_per_cycle(self) -> float:
        tsc, ns = self.now()
        if ns - self.ns < 2_000_000:  # too close together to divide
            import time

            time.sleep(0.002)
            tsc, ns = self.now()
        return (ns - self.ns) / max(1, tsc - self.tsc)


_scale = _Scale()


def _count(c: Any, scale: float) -> Count:
    return Count(c.count, round(c.run_cycles * scale), round(c.handle_cycles * scale))


def read_stats(native: Any) -> ExitStats:
    """The counters of a `struct pykvm_vcpu` as an `ExitStats`."""
    s = native.stats
    scale = _scale.ns_per_cycle()
    reasons = {
        exit_name(i): _count(s.reason[i], scale)
        for i in range(lib.PYKVM_REASONS)
        if s.reason[i].count
    }
    ports = {}
    if reasons.get("KVM_EXIT_IO"):
        ports = {p: _count(s.port[p], scale) for p in _used_ports(s)}
    pages = {}
    for i in range(lib.PYKVM_MMIO_PAGES):
        slot = s.page[i]
        if slot.page:
            pages[(slot.page - 1) << 12] = _count(slot.c, scale)
    return ExitStats(
        s.entries,
        s.native,
        reasons,
        ports,
        dict(sorted(pages.items())),
        _count(s.mmio_other, scale),
    )


def _used_ports(stats: Any) -> Iterator[int]:
    counts = memoryview(ffi.buffer(stats.port, 65536 * ffi.sizeof("struct pykvm_count"))).cast("Q")
    for port in range(65536):
        if counts[port * 3]:
            yield port


def exit_counts(native: Any) -> dict[str, int]:
    """Just the counts by reason name: cheap."""
    s = native.stats
    return {exit_name(i): s.reason[i].count for i in range(64) if s.reason[i].count}


def clear_stats(native: Any) -> None:
    """Sets every counter to zero."""
    s = native.stats
    used = list(_used_ports(s))
    zero = ffi.new("struct pykvm_count *")[0]
    for port in used:
        s.port[port] = zero
    ffi.memmove(s.page, bytes(lib.PYKVM_MMIO_PAGES * ffi.sizeof("struct pykvm_page_count")),
                lib.PYKVM_MMIO_PAGES * ffi.sizeof("struct pykvm_page_count"))  # fmt: skip
    for i in range(lib.PYKVM_REASONS):
        s.reason[i] = zero
    s.mmio_other = zero
    s.entries = s.native = 0


def drain_trace(native: Any, vcpu_id: int, limit: int | None = None) -> list[TraceRecord]:
    """Takes the records that are new since the last call, oldest first.

    In an overwriting ring, records that were overwritten meanwhile are gone; their sequence
    numbers are missing.
    """
    trace = native.trace
    head, tail = trace.head, trace.tail
    if not trace.capacity:
        return []
    tail = max(tail, head - trace.capacity)
    end = head if limit is None else min(head, tail + limit)
    records = _decode(trace, range(tail, end), vcpu_id)
    trace.tail = end
    return records


def last_records(native: Any, vcpu_id: int, n: int) -> list[TraceRecord]:
    """The last `n` records, oldest first; the ring is left as it is."""
    trace = native.trace
    if not trace.capacity:
        return []
    first = max(0, trace.head - trace.capacity, trace.head - n)
    return _decode(trace, range(first, trace.head), vcpu_id)


def _decode(trace: Any, sequence: range, vcpu_id: int) -> list[TraceRecord]:
    scale = _scale.ns_per_cycle()
    tsc0, ns0 = _scale.now()
    mask = trace.capacity - 1
    raw = ffi.buffer(trace.ring, trace.capacity * _RECORD.size)
    out = []
    for n in sequence:
        (tsc, rip, cs_base, address, value, run, handle, count, reason, size, flags, number) = (
            _RECORD.unpack_from(raw, (n & mask) * _RECORD.size)
        )
        out.append(
            TraceRecord(
                sequence=number,
                vcpu=vcpu_id,
                time_ns=ns0 - round((tsc0 - tsc) * scale),
                reason=reason,
                name=exit_name(reason),
                rip=rip,
                cs_base=cs_base,
                address=address,
                value=value if flags & _VALUE else None,
                size=size,
                count=count,
                is_write=bool(flags & _WRITE),
                native=bool(flags & _NATIVE),
                run_ns=round(run * scale),
                handle_ns=round(handle * scale),
            )
        )
    return out


_RECORD = struct.Struct("<5Q3IHBBQ")  # struct pykvm_record
_WRITE, _NATIVE, _VALUE = lib.PYKVM_T_WRITE, lib.PYKVM_T_NATIVE, lib.PYKVM_T_VALUE
