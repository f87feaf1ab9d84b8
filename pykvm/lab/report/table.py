"""A recording as CSV."""

from __future__ import annotations

import csv
from os import PathLike

from pykvm.lab.report.recording import Recording

COLUMNS = (
    "number", "time_ns", "vcpu", "reason", "access", "address", "size", "count", "value",
    "device", "rip", "symbol", "instruction", "native", "run_ns", "handle_ns",
)  # fmt: skip


def write_csv(recording: Recording, path: str | PathLike[str]) -> None:
    """One line an exit, with a head. Numbers are decimal, addresses and values hexadecimal."""
    fixed = [
        (
            (site.reason, site.access, f"{site.address:#x}", site.size),
            (site.place, "" if site.rip is None else f"{site.rip:#x}", site.symbol,
             site.instruction, int(site.native)),
        )
        for site in recording.sites
    ]  # fmt: skip
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, row in enumerate(recording.rows()):
            left, right = fixed[row.site]
            value = f"{row.value:#x}" if recording.sites[row.site].has_value else ""
            writer.writerow(
                (number, row.time_ns, row.vcpu, *left, row.count, value, *right, row.run_ns,
                 row.handle_ns)
            )  # fmt: skip
