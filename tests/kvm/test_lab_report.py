"""Recording real machines: nothing lost, values and times right, one explanation a kind."""

from __future__ import annotations

import json
import pathlib

import pytest

from pykvm import Machine
from pykvm.lab.report import Recorder, write_html, write_perfetto
from pykvm.lab.tracing import TracedExit
from pykvm.machine import StopReason

pytestmark = pytest.mark.kvm


def test_every_exit_is_recorded_with_its_value_and_the_serial_output() -> None:
    with Machine(irqchip="none", trace=Recorder.RING) as machine:
        machine.load("hello64")
        with Recorder(machine) as recorder:
            result = machine.run(timeout=10)
    with recorder.recording as recording:
        rows = list(recording.rows())
        assert recording.count == len(rows) == sum(result.exits.values())
        assert recording.serial() == result.serial
        letters = [row for row in rows if recording.sites[row.site].reason == "KVM_EXIT_IO"]
        assert bytes(row.value for row in letters) == result.serial
        assert [row.serial for row in letters] == list(range(1, len(letters) + 1))
        assert [row.time_ns for row in rows] == sorted(row.time_ns for row in rows)
        assert [(s.access, s.place) for s in recording.sites] == [
            ("out 0x3f8", "COM1 THR"), ("halted", ""),
        ]  # fmt: skip
        site = recording.sites[0]
        told = recording.explanations[site.explanation]
        assert site.instruction == "out dx, al"
        assert told["title"] == "OUT to port 0x3f8 (COM1 THR)"
        assert "instruction" not in told


def test_a_limit_stops_the_guest() -> None:
    with Machine(trace=Recorder.RING) as machine:
        machine.load(b"\xe6\x10\xeb\xfc")  # out 0x10, al; jmp back
        with Recorder(machine, limit=1000) as recorder:
            result = machine.run(timeout=60)
        assert result.reason is StopReason.STOPPED
        with recorder.recording as recording:
            assert recording.count == 1000
            assert len(recording.sites) == 1


def test_a_listener_gets_every_exit_explained() -> None:
    seen: list[TracedExit] = []
    with Machine(irqchip="none", trace=Recorder.RING) as machine:
        machine.load(b"\xe6\x10\xe4\x11\xf4")
        with Recorder(machine, seen.append) as recorder:
            machine.run(timeout=10)
        recorder.recording.close()
    assert [e.instruction for e in seen] == ["out 0x10, al", "in al, 0x11", "hlt"]


def test_many_kinds_of_exits_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.lab.report.recorder.MAX_SITES", 10)
    # mov dx, 0x300; out dx, al; inc dx; cmp dx, 0x340; jne back; hlt
    code = b"\xba\x00\x03\xee\x42\x81\xfa\x40\x03\x75\xf8\xf4"
    with Machine(irqchip="none", trace=Recorder.RING) as machine:
        machine.load(code)
        with Recorder(machine) as recorder:
            machine.run(timeout=10)
    with recorder.recording as recording:
        assert recording.count == 65
        assert len(recording.sites) == 12  # ten, the other ports, the other reason
        assert recording.sites[10].access == "others"


def test_two_vcpus_have_two_tracks(tmp_path: pathlib.Path) -> None:
    with Machine(cpus=2, trace=Recorder.RING) as machine:
        machine.load("smp")
        with Recorder(machine) as recorder:
            result = machine.run(timeout=30)
    assert result.reason is StopReason.HALTED
    with recorder.recording as recording:
        assert recording.vcpus == 2
        write_html(recording, tmp_path / "x.html", title="smp", result=result)
        write_perfetto(recording, tmp_path / "x.json")
        assert recording.serial() == result.serial
    events = json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"vCPU 0", "vCPU 1"}
