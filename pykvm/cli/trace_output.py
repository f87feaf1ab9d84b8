"""How a trace looks: lines for people, JSON for programs, a table for an overview."""

from __future__ import annotations

import json
import re

from pykvm.cli.style import use_colour
from pykvm.lab.totals import duration
from pykvm.lab.tracing import Summary, SummaryRow, TracedExit
from pykvm.typed import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from pykvm.machine import Machine, RunResult

_WHAT, _PLACE = 28, 12  # column widths; longer text moves the rest
_MAX_LINE = 4096  # characters of serial output without a newline that are kept for a line


class Writer(Protocol):
    """One style of output."""

    def begin(self, image: str) -> None:
        """Before the first exit."""

    def add(self, traced: TracedExit) -> None:
        """One exit."""

    def end(self, result: RunResult) -> None:
        """After the last one."""

    def flush(self) -> None:
        """Hands over what is buffered."""


def make_writer(style: str, stream: TextIO, machine: Machine, inline: bool) -> Writer:
    """The writer for a style: text, json, summary or none. `inline`: serial among the exits."""
    if style == "none":
        return NoWriter()
    if style == "json":
        return JsonWriter(stream)
    if style == "summary":
        return SummaryWriter(stream)
    return TextWriter(stream, machine, inline)


class NoWriter:
    """Nothing: a report is written instead."""

    def begin(self, image: str) -> None:
        """Nothing to say."""

    def add(self, traced: TracedExit) -> None:
        """Nothing to say."""

    def end(self, result: RunResult) -> None:
        """Nothing to say."""

    def flush(self) -> None:
        """Nothing to hand over."""


class JsonWriter:
    """One object a line: `"type": "exit"` for each exit, one `"type": "end"` at last."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def begin(self, image: str) -> None:
        """Nothing to say yet."""

    def add(self, traced: TracedExit) -> None:
        """One exit."""
        self._write({"type": "exit"} | traced.as_dict())

    def end(self, result: RunResult) -> None:
        """How the run ended."""
        self._write(
            {
                "type": "end",
                "reason": str(result.reason),
                "detail": result.detail,
                "exit_code": result.exit_code,
                "elapsed": round(result.elapsed, 6),
                "exits": result.exits,
                "serial": result.text,
            }
        )

    def _write(self, value: dict[str, object]) -> None:
        self._stream.write(json.dumps(value, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Hands over what is buffered."""
        self._stream.flush()


class TextWriter:
    """A line an exit, with what the guest printed between them."""

    def __init__(self, stream: TextIO, machine: Machine, inline: bool) -> None:
        self._stream = stream
        self._machine = machine
        self._inline = inline
        self._colour = use_colour(stream)
        self._many = len(machine.vcpus) > 1
        self._seen = 0
        self._line = ""

    def begin(self, image: str) -> None:
        """What runs where."""
        machine = self._machine
        loaded = machine.image
        parts = [f"{machine.memory_size >> 20} MiB", f"{len(machine.vcpus)} vCPU"]
        if loaded is not None:
            start = loaded.symbol_at(loaded.entry)
            entry = f"{loaded.entry:#x}" + (f" ({start})" if start else "")
            parts = [f"{loaded.format}, {loaded.mode} mode, entry {entry}", *parts]
        print(self._paint(f"{image}: {', '.join(parts)}", "1"), file=self._stream)
        cpu = f"{'cpu':>4}" if self._many else ""
        head = (
            f"{'exit':>6}{cpu}{'time ms':>11}{'in guest':>10}{'handled':>9}  "
            f"{'what':<{_WHAT}}{'device':<{_PLACE}}guest code"
        )
        print(self._paint(head, "2"), file=self._stream)

    def add(self, traced: TracedExit) -> None:
        """One exit, and the serial output that it completed."""
        record = traced.record
        cpu = f"{record.vcpu:>4}" if self._many else ""
        code = _code(traced)
        handled = duration(record.handle_ns) if record.handle_ns else "-"
        times = f"{duration(record.run_ns):>10}{handled:>9}"
        left = self._paint(f"{record.sequence:>6}{cpu}{traced.time_ns / 1e6:>11.3f}{times}  ", "2")
        self._stream.write(f"{left}{_pad(traced.what, _WHAT)}{_pad(traced.place, _PLACE)}{code}\n")
        if self._inline:
            self._serial()

    def _serial(self) -> None:
        """Lines that the guest has printed since, each behind a bar."""
        standard = self._machine.standard
        if standard is None or standard.captured.total == self._seen:
            return
        fresh = standard.captured.since(self._seen)
        self._seen = standard.captured.total
        self._line += fresh.decode("utf-8", "replace")
        while "\n" in self._line or len(self._line) > _MAX_LINE:
            line, newline, rest = self._line.partition("\n")
            if not newline or len(line) > _MAX_LINE:
                line, rest = self._line[:_MAX_LINE], self._line[_MAX_LINE:]
            self._show(line.rstrip("\r"))
            self._line = rest

    def _show(self, line: str) -> None:
        bar = f"{'serial':>{39 if self._many else 35}} │ "
        self._stream.write(self._paint(bar + _clean(line), "1;32") + "\n")

    def end(self, result: RunResult) -> None:
        """How the run ended, and what it took."""
        if self._inline:
            self._serial()
            if self._line:
                self._show(self._line)
                self._line = ""
        stats = [vcpu.stats() for vcpu in self._machine.vcpus]
        run = sum(c.run_ns for s in stats for c in s.reasons.values())
        handled = sum(c.handle_ns for s in stats for c in s.reasons.values())
        kinds = ", ".join(
            f"{n} {name.removeprefix('KVM_EXIT_').lower().replace('_', ' ')}"
            for name, n in sorted(result.exits.items(), key=lambda item: -item[1])
        )
        why = f"{result.reason}: {result.detail}" if result.detail else str(result.reason)
        text = (
            f"{why}; exit status {result.exit_code}; {kinds or 'no exits'}; "
            f"{duration(run)} in the guest, {duration(handled)} in devices"
        )
        print(self._paint(text, "1"), file=self._stream)

    def flush(self) -> None:
        """Hands over what is buffered."""
        self._stream.flush()

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def _pad(text: str, width: int) -> str:
    """Padded to a column; at least one space follows."""
    return text.ljust(width) if len(text) < width else text + " "


class SummaryWriter:
    """One table at the end: drawn by rich on a terminal, aligned text in a pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._summary = Summary()

    def begin(self, image: str) -> None:
        """Nothing to say yet."""

    def add(self, traced: TracedExit) -> None:
        """Counts one exit."""
        self._summary.add(traced)

    def end(self, result: RunResult) -> None:
        """The table."""
        rows = [_cells(row) for row in self._summary.rows()]
        total = self._summary.total
        last = ("total", "", "", "", *_numbers(total))
        if use_colour(self._stream):
            self._draw(rows, last)
        else:
            self._align([_HEAD, *rows, last])
        print(f"{result}", file=self._stream)

    def _align(self, rows: list[tuple[str, ...]]) -> None:
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        for row in rows:
            cells = [
                cell.ljust(width) if i < _TEXT_COLUMNS else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(cells).rstrip(), file=self._stream)

    def _draw(self, rows: list[tuple[str, ...]], last: tuple[str, ...]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        console = Console(file=self._stream, markup=False, highlight=False)
        columns = len(_HEAD) - (console.width < _WIDE)  # the last column can be spared
        table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
        room = 22 if columns == len(_HEAD) else None
        for i in range(columns):
            code = i == _TEXT_COLUMNS - 1
            table.add_column(
                _HEAD[i], last[i], justify="left" if i < _TEXT_COLUMNS else "right",
                overflow="fold", no_wrap=not code, min_width=room if code else None,
            )  # fmt: skip
        for row in rows:
            table.add_row(*row[:columns])
        console.print(table)

    def flush(self) -> None:
        """Hands over what is buffered."""
        self._stream.flush()


_HEAD = ("reason", "access", "device", "guest code", "count", "in guest", "handled", "per exit")
_TEXT_COLUMNS = 4
_WIDE = 110  # columns of a terminal that has room for all of them


_STRING = re.compile(r"((?:rep\w* )?(?:ins|outs|movs|stos|lods|scas|cmps)[bwdq]) .*\[.*")


def _code(where: TracedExit | SummaryRow) -> str:
    """`0x100012 next+0x5: out dx, al`; string instructions without the operands they imply."""
    address = "" if where.address is None else f"{where.address:#x}"
    text = " ".join(filter(None, (address, _clean(where.symbol))))
    if where.instruction:
        implied = _STRING.match(where.instruction)
        text += f": {implied[1] if implied else where.instruction}"
    return text


def _clean(text: str) -> str:
    """What an image or a guest says, without power over the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cells(row: SummaryRow) -> tuple[str, ...]:
    reason = row.reason.removeprefix("KVM_EXIT_")
    return reason, row.access, row.place, _code(row), *_numbers(row)


def _numbers(row: SummaryRow) -> tuple[str, str, str, str]:
    each = (row.run_ns + row.handle_ns) / max(1, row.count)
    return str(row.count), duration(row.run_ns), duration(row.handle_ns), duration(each)
