"""A trace in a table: reason × address × guest RIP, with counts and times."""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.lab.tracing.tracer import TracedExit

MAX_ROWS = 10_000
"""Different rows that are told apart; a guest that makes more fills the last one."""


@dataclass(slots=True)
class SummaryRow:
    """Exits of one kind from one instruction. Times in ns, over all of them."""

    reason: str
    access: str
    """"out 0x3f8", "mmio read 0xd0000000", "" for what is no access."""
    place: str
    address: int | None
    """Linear address of the instruction."""
    symbol: str
    instruction: str
    count: int = 0
    run_ns: int = 0
    handle_ns: int = 0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "reason": self.reason,
            "access": self.access,
            "place": self.place,
            "rip": self.address,
            "symbol": self.symbol,
            "instruction": self.instruction,
            "count": self.count,
            "run_ns": self.run_ns,
            "handle_ns": self.handle_ns,
        }


class Summary:
    """Adds up traced exits: `Tracer(machine, summary.add)`."""

    def __init__(self) -> None:
        self._rows: dict[tuple[object, ...], SummaryRow] = {}
        self.total = SummaryRow("total", "", "", None, "", "")

    def add(self, traced: TracedExit) -> None:
        """Counts one exit."""
        record = traced.record
        key: tuple[object, ...] = (
            record.reason, record.address, record.is_write, record.size, traced.address,
        )  # fmt: skip
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS:
                key = ("others",)
                row = self._rows.setdefault(key, SummaryRow("others", "", "", None, "", ""))
            else:
                row = self._rows[key] = SummaryRow(
                    record.name,
                    _access(traced),
                    traced.place,
                    traced.address,
                    traced.symbol,
                    traced.instruction,
                )
        for target in (row, self.total):
            target.count += 1
            target.run_ns += record.run_ns
            target.handle_ns += record.handle_ns

    def rows(self) -> list[SummaryRow]:
        """Most frequent first."""
        return sorted(self._rows.values(), key=lambda row: (-row.count, row.address or 0))


def _access(traced: TracedExit) -> str:
    record = traced.record
    if record.name == "KVM_EXIT_IO":
        return f"{'out' if record.is_write else 'in'} {record.address:#x}"
    if record.name == "KVM_EXIT_MMIO":
        return f"mmio {'write' if record.is_write else 'read'} {record.address:#x}"
    if record.name in ("KVM_EXIT_X86_RDMSR", "KVM_EXIT_X86_WRMSR"):
        return f"{record.name[-5:].lower()} {record.address:#x}"
    return ""
