"""Reports of recordings: CSV, Chrome trace events, and what the page carries."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import pathlib
import re
import tracemalloc
import zlib
from array import array

import pytest
from made_recordings import made

from pykvm.lab.report import Recording, Row, write_csv, write_html, write_perfetto
from pykvm.lab.report.recording import ReportError


def column(page: str, name: str) -> bytes:
    found = re.search(rf'id="column-{name}">([^<]*)</script>', page)
    assert found is not None, name
    return zlib.decompress(base64.b64decode(found[1]))


def test_rows_come_back_as_they_were() -> None:
    with made(40_000) as recording:
        rows = list(recording.rows())
        assert len(rows) == recording.count == 40_000
        assert rows == list(recording.rows())  # reading changes nothing
        recording.add(Row(-1, 2**33, 3, 2**64 - 1, 5, 0, 9, 4095))
        assert list(recording.rows())[-1] == (-1, 2**33, 3, 2**64 - 1, 5, 0, 9, 4095)
    with pytest.raises(ReportError, match="before close"):
        list(recording.rows())


def test_serial_output_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.lab.report.recording._SERIAL_LIMIT", 10)
    with Recording() as recording:
        recording.add_serial(b"12345678")
        recording.add_serial(b"abcdef")
        assert recording.serial() == b"12345678ab"
        assert recording.serial_lost == 4


def test_csv_has_a_line_an_exit(tmp_path: pathlib.Path) -> None:
    with made(30) as recording:
        write_csv(recording, tmp_path / "x.csv")
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 30
    assert rows[0] == {
        "number": "0", "time_ns": "2000", "vcpu": "0", "reason": "KVM_EXIT_IO",
        "access": "out 0x3f8", "address": "0x3f8", "size": "1", "count": "1", "value": "0x48",
        "device": "COM1 THR", "rip": "0x100010", "symbol": "main+0x10",
        "instruction": "out dx, al", "native": "0", "run_ns": "1500", "handle_ns": "900",
    }  # fmt: skip
    assert rows[2]["value"] == ""


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_chrome_trace_events(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    with made(31, vcpus=2) as recording:
        write_perfetto(recording, path, title="a guest")
    raw = path.read_bytes()
    trace = json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)
    events = trace["traceEvents"]
    heads = [e for e in events if e["ph"] == "M"]
    assert {e["args"].get("name") for e in heads} == {"a guest", "vCPU 0", "vCPU 1", None}
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == 31
    assert slices[0] == {
        "ph": "X", "pid": 1, "tid": 1, "name": "out 0x3f8 [COM1 THR]", "cat": "io",
        "ts": 2.0, "dur": 0.9,
        "args": {"exit": 0, "value": "0x48", "elements": 1, "in_guest_ns": 1500,
                 "device": "COM1 THR", "instruction": "out dx, al", "symbol": "main+0x10",
                 "rip": "0x100010"},
    }  # fmt: skip
    assert "value" not in slices[2]["args"]
    assert {e["tid"] for e in slices} == {1, 2}


def test_the_page_carries_every_number(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.html"
    with made(20_000, vcpus=3) as recording:
        rows = list(recording.rows())
        write_html(recording, path, title="<&guest>")
        serial = recording.serial()
    page = path.read_text(encoding="utf-8")
    times = array("d", column(page, "time"))
    assert times[0] == rows[0].time_ns
    assert sum(times) == rows[-1].time_ns
    assert list(array("I", column(page, "site"))) == [row.site for row in rows]
    assert list(array("I", column(page, "low"))) == [row.value for row in rows]
    assert list(array("H", column(page, "vcpu"))) == [row.vcpu for row in rows]
    assert column(page, "serialtext") == serial
    assert path.stat().st_size < 400_000


def test_the_page_is_one_file_and_a_guest_cannot_write_in_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.html"
    with made(3) as recording:
        write_html(recording, path, title="<script>bad()</script>")
    page = path.read_text(encoding="utf-8")
    assert "oops()" in page
    assert "<script>oops()" not in page
    assert "<script>bad()" not in page
    assert not re.search(r"(src|href)\s*=", page.split("<!--", 1)[0])
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page


def test_an_empty_recording_is_a_report_too(tmp_path: pathlib.Path) -> None:
    with Recording() as recording:
        write_html(recording, tmp_path / "x.html")
        write_perfetto(recording, tmp_path / "x.json")
        write_csv(recording, tmp_path / "x.csv")
    assert len(json.loads((tmp_path / "x.json").read_text())["traceEvents"]) == 3
    assert (tmp_path / "x.csv").read_text().count("\n") == 1


def test_memory_does_not_grow_with_the_number_of_exits(tmp_path: pathlib.Path) -> None:
    tracemalloc.start()
    try:
        with made(40_000) as recording:
            write_html(recording, tmp_path / "x.html")
            write_perfetto(recording, tmp_path / "x.json")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A block of 16,384 exits as tuples and columns; all 40,000 would be twice that.
    assert peak < 16 << 20
