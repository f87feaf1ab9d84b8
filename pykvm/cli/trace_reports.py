"""The files that `pykvm trace` writes beside its output, and explanations among the exits."""

from __future__ import annotations

import json
import os
import sys
import textwrap

from pykvm.typed import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.cli.trace_output import Writer
    from pykvm.lab.report import Recording
    from pykvm.lab.tracing import TracedExit
    from pykvm.machine import Machine, RunResult

_MAX_KINDS = 20_000
_WIDTH = 76


class Reports:
    """--html, --perfetto and --csv."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        names = (options.html, options.perfetto, options.csv)
        self._paths: list[str] = [name for name in names if name is not None]

    @property
    def wanted(self) -> bool:
        """Whether there is any."""
        return bool(self._paths)

    def check(self) -> None:
        """Makes the files, empty: a wrong name is found before the guest runs, not after."""
        for path in self._paths:
            with open(path, "w", encoding="utf-8"):
                pass

    def write(self, recording: Recording, machine: Machine, result: RunResult) -> None:
        """Writes all of them, and says so on stderr."""
        from pykvm.lab.report import write_csv, write_html, write_perfetto

        options = self._options
        title = options.image or options.firmware
        if options.html is not None:
            write_html(recording, options.html, title=title, result=result, facts=facts(machine))
        if options.perfetto is not None:
            write_perfetto(recording, options.perfetto, title=title)
        if options.csv is not None:
            write_csv(recording, options.csv)
        for path in self._paths:
            size = os.path.getsize(path) / 1024
            print(f"pykvm: {recording.count} exits in {path} ({size:.0f} KiB)", file=sys.stderr)


def facts(machine: Machine) -> dict[str, str]:
    """What runs where, for the head of the page."""
    told = {}
    image = machine.image
    if image is not None:
        start = image.symbol_at(image.entry)
        told[f"{image.format},"] = f"{image.mode} mode"
        told["entry"] = f"{image.entry:#x}" + (f" ({start})" if start else "")
    told["memory"] = f"{machine.memory_size >> 20} MiB"
    told["vCPUs"] = str(len(machine.vcpus))
    return told


class ExplainingWriter:
    """A writer that explains the first exit of each kind behind it."""

    def __init__(self, writer: Writer, stream: TextIO, machine: Machine, style: str) -> None:
        self._writer = writer
        self._stream = stream
        self._machine = machine
        self._json = style == "json"
        self._seen: set[tuple[object, ...]] = set()

    def begin(self, image: str) -> None:
        """Before the first exit."""
        self._writer.begin(image)

    def add(self, traced: TracedExit) -> None:
        """One exit, and its explanation if it is the first of its kind."""
        from pykvm.lab.explain import explain_record

        self._writer.add(traced)
        record = traced.record
        key = (
            record.name, record.address, record.is_write, record.size, traced.address, record.native
        )  # fmt: skip
        if key in self._seen or len(self._seen) >= _MAX_KINDS:
            return
        self._seen.add(key)
        told = explain_record(traced, self._machine)
        if self._json:
            line = {"type": "explanation", "sequence": record.sequence, "vcpu": record.vcpu}
            self._stream.write(json.dumps(line | told.as_dict(), ensure_ascii=False) + "\n")
        else:
            self._stream.write(textwrap.indent(told.text(_WIDTH), "    ") + "\n")

    def end(self, result: RunResult) -> None:
        """After the last one."""
        self._writer.end(result)

    def flush(self) -> None:
        """Hands over what is buffered."""
        self._writer.flush()
