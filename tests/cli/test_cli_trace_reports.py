"""`pykvm trace --html`, `--perfetto`, `--csv` and `--explain`."""

from __future__ import annotations

import gzip
import json
import pathlib

import pytest
from cli_command import HALT, image, leave, pykvm

pytestmark = pytest.mark.kvm


def test_the_files_are_written_and_nothing_else_is_shown(tmp_path: pathlib.Path) -> None:
    page, trace, table = tmp_path / "x.html", tmp_path / "x.json.gz", tmp_path / "x.csv"
    done = pykvm(
        "trace", "hello64", "--irqchip", "none", "--html", str(page), "--perfetto", str(trace),
        "--csv", str(table),
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.startswith("Hello from 64-bit long mode\n")
    assert f"pykvm: 29 exits in {page} (" in done.stderr
    assert "<h1" in page.read_text()
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 29
    assert len(table.read_text().splitlines()) == 30


def test_with_a_format_there_are_lines_as_well(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "x.html"
    done = pykvm("trace", "hello64", "--html", str(page), "--json", "--limit", "5")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["exit"] * 5 + ["end"]
    assert "pykvm: 5 exits in" in done.stderr


def test_a_crash_has_a_report_too(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "x.html"
    done = pykvm("trace", "triplefault", "--html", str(page))
    assert done.returncode == 126
    assert "triple fault" in done.stderr
    assert "Triple fault: the processor shut down" in page.read_text()


def test_a_file_that_cannot_be_written_is_said_before_the_guest_runs(
    tmp_path: pathlib.Path,
) -> None:
    done = pykvm("trace", "hello64", "--csv", str(tmp_path / "no" / "x.csv"))
    assert done.returncode == 125
    assert "x.csv: No such file or directory" in done.stderr
    assert "Hello" not in done.stderr


def test_each_kind_is_explained_once(tmp_path: pathlib.Path) -> None:
    # out 0x10, al (twice); in al, 0x60; debug-exit with 0
    path = image(tmp_path, b"\xe6\x10\xeb\x00\xe6\x10\xe4\x60" + leave(0))
    done = pykvm("trace", path, "--explain")
    assert done.stdout.count("OUT to port 0x10") == 2  # two instructions
    assert done.stdout.count("A PC has its keyboard there") == 1
    assert "KVM API, section 5" in done.stdout
    done = pykvm("trace", path, "--explain", "--json")
    kinds = [json.loads(line)["type"] for line in done.stdout.splitlines()]
    assert kinds[:2] == ["exit", "explanation"]
    assert kinds[-1] == "end"


def test_a_summary_has_no_room_for_explanations(tmp_path: pathlib.Path) -> None:
    done = pykvm("trace", image(tmp_path, HALT), "--explain", "--format", "summary")
    assert done.returncode == 125
    assert "use it with --format text or json" in done.stderr
