"""`pykvm trace IMAGE`: boots an image and shows every VM exit, as text, JSON lines or a table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from pykvm.cli.common import Interrupt, Parser, UsageError, end_on_signals, number, settle
from pykvm.cli.image_options import (
    IMAGE_FORMATS,
    add_image_options,
    add_machine_options,
    add_serial_options,
    make_machine,
)
from pykvm.typed import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.cli.trace_output import Writer
    from pykvm.machine import Machine

EXAMPLES = """examples:
  pykvm trace hello64                            each exit on a line, the serial output among them
  pykvm trace kernel.elf --format summary        a table: reason, address, instruction, time
  pykvm trace kernel.elf --format json --limit 1000 --output exits.jsonl
  pykvm trace smp --serial file:console.log
  pykvm trace hello64 --explain                  why each kind of exit happens, who did what
  pykvm trace io --html io.html                  open io.html in a browser; nothing else is needed
  pykvm trace smp --cpus 2 --perfetto smp.json.gz    open it on https://ui.perfetto.dev
  pykvm trace hello64 --csv exits.csv --format text

Exit status: as of `pykvm run`."""

STYLES = ("text", "json", "summary")


class _Format(argparse.Action):
    """`--format` says how the trace looks; the image's format, as in `run`, is taken as well."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, "style" if values in STYLES else "format", values)


def main(arguments: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("trace", "Boots an image and shows every VM exit.", EXAMPLES)
    add_image_options(parser, "--image-format")
    add_machine_options(parser)
    add_serial_options(parser, "stderr, or among the exits")
    group = parser.add_argument_group("trace")
    group.add_argument(
        "--format",
        action=_Format,
        dest="style",
        default=None,
        choices=STYLES + IMAGE_FORMATS,
        metavar="{text,json,summary}",
        help="each exit as a line (default) or as a JSON object on a line, or a table at the end",
    )
    group.add_argument(
        "--json", action="store_const", const="json", dest="style", help="the same as --format json"
    )
    group.add_argument(
        "--output", "-o", metavar="FILE", help="write the trace to FILE instead of stdout"
    )
    group.add_argument(
        "--explain", action="store_true", help="explain the first exit of each kind in full"
    )
    group.add_argument("--limit", type=number, metavar="N", help="stop the guest after N exits")
    reports = parser.add_argument_group("files, written at the end; instead of lines, or with them")
    reports.add_argument("--html", metavar="FILE", help="a page with timeline, list and texts")
    reports.add_argument(
        "--perfetto", metavar="FILE", help="for ui.perfetto.dev (compressed if FILE ends in .gz)"
    )
    reports.add_argument("--csv", metavar="FILE", help="a table, one line an exit")
    return trace(parser.parse_args(arguments))


def trace(options: Namespace) -> int:
    """Boots the image and writes the trace; returns the exit status."""
    from pykvm.cli.console import Console
    from pykvm.cli.run import ending, explain
    from pykvm.cli.trace_output import make_writer
    from pykvm.cli.trace_reports import ExplainingWriter, Reports
    from pykvm.lab.tracing import Tracer

    if options.explain and options.style == "summary":
        raise UsageError("--explain has no place in a summary; use it with --format text or json")
    reports = Reports(options)
    quiet = reports.wanted and not (options.style or options.explain or options.output)
    style = options.style or "text"
    end_on_signals()
    with ExitStack() as stack:
        reports.check()
        stream: TextIO = sys.stdout
        if options.output is not None:
            stream = stack.enter_context(open(options.output, "w", encoding="utf-8"))
        inline = options.serial is None and style == "text" and _shared(stream) and not quiet
        console = Console.for_trace(options, None if inline else 2)
        machine = stack.enter_context(
            make_machine(
                options, serial=console.serial, debugcon=console.debugcon, trace=Tracer.RING
            )
        )
        writer = make_writer("none" if quiet else style, stream, machine, inline)
        if options.explain:
            writer = ExplainingWriter(writer, stream, machine, style)
        writer.begin(options.image or options.firmware)
        tracer: Tracer
        if reports.wanted:
            from pykvm.lab.report import Recorder

            tracer = Recorder(machine, None if quiet else writer.add, limit=options.limit)
            recording = stack.enter_context(tracer.recording)
        else:
            tracer, recording = Tracer(machine, _limited(writer, machine, options.limit)), None
        interrupt = Interrupt(machine.stop)
        try:
            with interrupt, console.attached(machine), tracer:
                settle()
                result = machine.run(timeout=options.timeout)
            writer.end(result)
        finally:
            writer.flush()
        if recording is not None:
            reports.write(recording, machine, result)
        explain(result)
        return ending(result, console, interrupt)


def _limited(writer: Writer, machine: Machine, limit: int | None) -> Any:
    """What the tracer calls: the writer, and the brake after `limit` exits."""
    if limit is None:
        return writer.add
    left = limit

    def add(traced: Any) -> None:
        nonlocal left
        if left > 0:
            writer.add(traced)
        left -= 1
        if left <= 0:
            machine.stop()

    return add


def _shared(stream: TextIO) -> bool:
    """Whether the trace and stderr end up in the same place, so that the two would mix."""
    try:
        one, other = os.fstat(stream.fileno()), os.fstat(2)
    except (OSError, ValueError):
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
