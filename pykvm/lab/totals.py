"""An account of a machine's exits: how many, of which kind, where, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.lab.places import describe_place
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.accounting import Count
    from pykvm.machine import Machine, RunResult


@dataclass(frozen=True, slots=True)
class ExitTotal:
    """Exits of one reason, or of one port or MMIO page. Times in ns, over all of them.

    `place` is "" for a whole reason; `run_ns` was spent in KVM_RUN before the exits, `handle_ns`
    between them and the next entry.
    """

    reason: str
    place: str
    count: int
    run_ns: int
    handle_ns: int


def exit_totals(machine: Machine) -> list[ExitTotal]:
    """The exits of all vCPUs since the machine was made: reasons, each followed by its places."""
    reasons: dict[str, list[int]] = {}
    places: dict[str, dict[str, list[int]]] = {}
    for vcpu in machine.vcpus:
        stats = vcpu.stats()
        for name, count in stats.reasons.items():
            _add(reasons, name, count)
        ports = places.setdefault("KVM_EXIT_IO", {})
        for port, count in stats.ports.items():
            _add(
                ports,
                _with_name(f"port {port:#x}", describe_place(machine, "pio", port, True)),
                count,
            )
        pages = places.setdefault("KVM_EXIT_MMIO", {})
        for page, count in stats.mmio_pages.items():
            name = describe_place(machine, "mmio", page, True)
            _add(pages, _with_name(f"page {page:#x}", "" if name == "unclaimed" else name), count)
        if stats.mmio_other.count:
            _add(pages, "other pages", stats.mmio_other)
    rows = []
    for name, sums in sorted(reasons.items(), key=lambda item: -item[1][0]):
        rows.append(ExitTotal(name, "", *sums))
        inner = sorted(places.get(name, {}).items(), key=lambda item: -item[1][0])
        rows += [ExitTotal(name, place, *sums) for place, sums in inner]
    return rows


def _with_name(place: str, name: str) -> str:
    return f"{place} {name.partition(' ')[0]}" if name else place


def _add(table: dict[str, list[int]], key: str, count: Count) -> None:
    sums = table.setdefault(key, [0, 0, 0])
    sums[0] += count.count
    sums[1] += count.run_ns
    sums[2] += count.handle_ns


def totals_text(rows: Sequence[ExitTotal], result: RunResult, limit: int = 40) -> str:
    """The account as aligned text; at most `limit` rows."""
    total = sum(row.count for row in rows if not row.place)
    lines = [f"{result.reason} after {result.elapsed:.3f} s, {total} exits"]
    assisted = sorted(result.assisted.items(), key=lambda item: (-item[1], item[0]))
    assist = "assist: " + ", ".join(f"{name} {n}" for name, n in assisted)
    if not rows:
        return lines[0] + (f"\n  {assist}" if assisted else "")
    lines[0] += "; times are means per exit"
    labels = [f"  {row.place}" if row.place else row.reason for row in rows[:limit]]
    width = max(len(label) for label in labels)
    lines.append(f"  {'':<{width}}  {'exits':>9}  {'in guest':>9}  {'handled':>9}")
    for label, row in zip(labels, rows, strict=False):
        run, handle = duration(row.run_ns / row.count), duration(row.handle_ns / row.count)
        lines.append(f"  {label:<{width}}  {row.count:>9}  {run:>9}  {handle:>9}")
    if len(rows) > limit:
        lines.append(f"  … and {len(rows) - limit} more places")
    if assisted:
        lines.append(f"  {assist}")
    return "\n".join(lines)


def duration(ns: float) -> str:
    """A time with its unit, three digits: "870 ns", "12.3 µs", "1.20 s"."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            value = ns / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{ns:.0f} ns"
