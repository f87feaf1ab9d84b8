"""A recording as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.

Format: "Trace Event Format" (Google), complete events ("X") with times in µs.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from os import PathLike

from pykvm.lab.report.recording import Recording, Site
from pykvm.typed import TextIO


def write_perfetto(recording: Recording, path: str | PathLike[str], *, title: str = "") -> None:
    """One track a vCPU; every exit is a slice as long as it was handled. Gzip for names in .gz."""
    if os.fspath(path).endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=5) as raw, io.TextIOWrapper(raw, "utf-8") as text:
            _write(recording, text, title)
        return
    with open(path, "w", encoding="utf-8") as text:
        _write(recording, text, title)


def _write(recording: Recording, stream: TextIO, title: str) -> None:
    write = stream.write
    write('{"displayTimeUnit":"ns","traceEvents":[\n')
    heads = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": title or "guest"}}]
    for vcpu in range(recording.vcpus):
        thread = {"ph": "M", "pid": 1, "tid": vcpu + 1}
        heads.append({**thread, "name": "thread_name", "args": {"name": f"vCPU {vcpu}"}})
        heads.append({**thread, "name": "thread_sort_index", "args": {"sort_index": vcpu}})
    write(",\n".join(json.dumps(head) for head in heads))
    starts = [_start(site) for site in recording.sites]
    for number, row in enumerate(recording.rows()):
        start, has_value = starts[row.site]
        value = f'"value":"{row.value:#x}",' if has_value else ""
        write(
            f',\n{start}"exit":{number},{value}"elements":{row.count},'
            f'"in_guest_ns":{row.run_ns}}},"tid":{row.vcpu + 1},'
            f'"ts":{row.time_ns / 1000:.3f},"dur":{row.handle_ns / 1000:.3f}}}'
        )
    write("\n]}\n")


def _start(site: Site) -> tuple[str, bool]:
    """The part of an event that all exits of a site share, up to the open `args`."""
    args = {"device": site.place, "instruction": site.instruction, "symbol": site.symbol}
    if site.rip is not None:
        args["rip"] = f"{site.rip:#x}"
    told = json.dumps({name: text for name, text in args.items() if text})[1:-1]
    name = site.access + (f" [{site.place}]" if site.place else "")
    head = f'{{"ph":"X","pid":1,"name":{json.dumps(name)},"cat":{json.dumps(site.name)},"args":{{'
    return head + (told + "," if told else ""), site.has_value
