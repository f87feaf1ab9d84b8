"""The command line's small parts: numbers, one-line errors, columns of a trace."""

from __future__ import annotations

import argparse
import io

import pytest

from pykvm.cli import common
from pykvm.cli.common import UsageError, memory, number, one_line, printable, seconds
from pykvm.cli.trace_output import SummaryWriter, _clean, _code
from pykvm.errors import PykvmError
from pykvm.kvm.accounting import TraceRecord
from pykvm.kvm.errors import KvmError
from pykvm.lab.totals import duration
from pykvm.lab.tracing import Summary, TracedExit
from pykvm.lab.tracing.summary import MAX_ROWS
from pykvm.lab.tracing.tracer import access_text
from pykvm.machine import RunResult, StopReason
from pykvm.machine.result import Outcome

RECORD = TraceRecord(
    sequence=0, vcpu=0, time_ns=1000, reason=2, name="KVM_EXIT_IO", rip=0x1000, cs_base=0,
    address=0x3F8, value=0x48, size=1, count=1, is_write=True, native=False, run_ns=900,
    handle_ns=100,
)  # fmt: skip


def record(**changes: object) -> TraceRecord:
    return RECORD._replace(**changes)


def traced(**changes: object) -> TracedExit:
    return TracedExit(record(**changes), 5, "what", "COM1 THR", 0x1000, "out dx, al", "_start+0x2")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("4096", 4096), ("0x7C00", 0x7C00), ("0b11", 3), ("1_000", 1000)]
)
def test_numbers(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "0x", "1.5", "0x1000g", "\x1b[2J"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write it like 0x1000 or 4096") as caught:
        number(text)
    assert "\x1b" not in str(caught.value)


def test_times_and_sizes() -> None:
    assert seconds("0.25") == 0.25
    for text in ("0", "-1", "inf", "nan", "1e99", "soon"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"like 5 or 0\.5"):
            seconds(text)
    assert memory("64M") == "64M"
    assert memory("0x4000000") == 64 << 20


def test_words_in_messages_are_harmless() -> None:
    assert printable("hello64") == "hello64"
    assert printable("two words") == "'two words'"
    assert "\x1b" not in printable("\x1b[31m")
    assert len(printable("x" * 10_000)) < 100
    assert printable("") == "''"


def test_errors_in_one_line() -> None:
    assert one_line(UsageError("do this")) == "do this"
    assert one_line(PykvmError("two\nlines\x07")) == "two lines "
    assert one_line(FileNotFoundError(2, "No such file or directory", "/a b")) == (
        "'/a b': No such file or directory"
    )
    assert one_line(KvmError("KVM_RUN", 14)).startswith("KVM_RUN refused (EFAULT, ")
    assert "--memory" in one_line(MemoryError())
    assert one_line(KeyError("x")) == "internal error, please report it: KeyError: 'x'"


def test_complaints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKVM_TRACEBACK", raising=False)
    assert common.complain(UsageError("no")) == 125
    assert capsys.readouterr() == ("", "pykvm: no\n")
    monkeypatch.setenv("PYKVM_TRACEBACK", "1")
    common.complain(UsageError("no"))
    shown = capsys.readouterr().err
    assert "UsageError" in shown
    assert shown.endswith("pykvm: no\n")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "out 0x3f8 ← 'H'"),
        ({"value": 0x20}, "out 0x3f8 ← ' '"),
        ({"value": 0x0A}, r"out 0x3f8 ← '\n'"),
        ({"value": 0x1B}, "out 0x3f8 ← 0x1b"),
        ({"value": 0x48, "size": 2}, "out 0x3f8 ← 0x0048"),
        ({"is_write": False, "value": 0xFF}, "in 0x3f8 → 0xff"),
        ({"is_write": False, "value": None}, "in 0x3f8"),
        ({"count": 3}, "outs 0x3f8 ← 'H', … (3 × 1)"),
        (
            {"name": "KVM_EXIT_MMIO", "address": 0xD0000000, "size": 4, "value": 1},
            "mmio write 0xd0000000 ← 0x00000001",
        ),
    ],
)
def test_accesses_in_words(changes: dict[str, object], text: str) -> None:
    assert access_text(record(**changes)) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"), (999, "999 ns"), (1000, "1.00 µs"), (12_345, "12.3 µs"), (123_456, "123 µs"),
        (1_500_000, "1.50 ms"), (2e9, "2.00 s"), (120e9, "120 s"),
    ],
)  # fmt: skip
def test_durations(ns: float, text: str) -> None:
    assert duration(ns) == text


def test_code_column() -> None:
    assert _code(traced()) == "0x1000 _start+0x2: out dx, al"
    plain = TracedExit(RECORD, 5, "what", "", None, "", "")
    assert _code(plain) == ""
    string = TracedExit(RECORD, 5, "", "", 16, "rep outsb dx, byte ptr [rsi]", "")
    assert _code(string) == "0x10: rep outsb"
    move = TracedExit(RECORD, 5, "", "", 16, "mov dword ptr [rdi], eax", "\x1b]0;title\x07")
    assert _code(move) == r"0x10 \x1b]0;title\x07: mov dword ptr [rdi], eax"
    assert _clean("ok\x7f") == r"ok\x7f"


def test_summary_adds_up_by_reason_access_and_instruction() -> None:
    summary = Summary()
    for _ in range(3):
        summary.add(traced())
    summary.add(traced(is_write=False))
    first, second = summary.rows()
    assert (first.count, first.run_ns, first.handle_ns) == (3, 2700, 300)
    assert (first.access, first.place, first.symbol) == ("out 0x3f8", "COM1 THR", "_start+0x2")
    assert second.access == "in 0x3f8"
    assert (summary.total.count, summary.total.run_ns) == (4, 3600)
    assert set(first.as_dict()) >= {"reason", "access", "rip", "count", "run_ns", "handle_ns"}


def test_a_guest_cannot_make_the_summary_grow_without_end() -> None:
    summary = Summary()
    for address in range(MAX_ROWS + 50):
        summary.add(traced(name="KVM_EXIT_MMIO", address=address))
    rows = summary.rows()
    assert len(rows) == MAX_ROWS + 1
    assert rows[0].reason == "others"
    assert rows[0].count == 50
    assert summary.total.count == MAX_ROWS + 50


def test_summary_as_aligned_text() -> None:
    out = io.StringIO()
    writer = SummaryWriter(out)
    writer.begin("image")
    writer.add(traced())
    writer.end(RunResult(Outcome(StopReason.HALTED, 0), 0.5, {"KVM_EXIT_IO": 1}))
    head, row, total, _ = out.getvalue().splitlines()
    assert head.index("device") == row.index("COM1 THR")
    assert total.startswith("total")
