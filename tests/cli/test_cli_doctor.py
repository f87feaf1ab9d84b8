"""`pykvm doctor`: text and JSON, with a device and without one."""

from __future__ import annotations

import json
import pathlib

import pytest
from cli_command import pykvm


@pytest.mark.kvm
def test_text_has_a_mark_on_every_line_and_a_summary() -> None:
    done = pykvm("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pykvm doctor: ")
    assert "/dev/kvm" in lines
    assert any(line.startswith("  ✓ access ") for line in lines)
    assert any(line.startswith("✓ usable: ") for line in lines)
    assert "\x1b" not in done.stdout


@pytest.mark.kvm
def test_json_agrees_with_the_text() -> None:
    done = pykvm("doctor", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["usable"] is True
    assert {"kernel", "cpu", "cpus", "python"} <= set(told["host"])
    findings = {f["key"]: f for section in told["sections"] for f in section["findings"]}
    assert findings["api_version"]["value"] == 12
    assert {f["mark"] for f in findings.values()} <= {"ok", "no", "note"}
    assert findings["mode_ring3"]["value"]["ns_per_instruction"] > 0


@pytest.mark.kvm
def test_brief_is_brief() -> None:
    done = pykvm("doctor", "--brief")
    assert done.returncode == 0
    assert 5 < len(done.stdout.splitlines()) < 15
    assert "64-bit ring 3" in done.stdout


def test_without_a_device_there_is_a_remedy_and_status_125(tmp_path: pathlib.Path) -> None:
    device = tmp_path / "kvm"
    done = pykvm("doctor", "--device", device)
    assert done.returncode == 125
    assert f"✗ access         there is no {device}" in " ".join(done.stdout.split(" "))
    assert "→ " in done.stdout
    assert "TUN/TAP" in done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"pykvm: {device} is not usable: ")
    told = json.loads(pykvm("doctor", "--device", device, "--json").stdout)
    assert told["usable"] is False
    assert told["remedy"]


def test_a_device_that_is_none() -> None:
    done = pykvm("doctor", "--device", "/dev/null", "--brief")
    assert done.returncode == 125
    assert "not the KVM device" in done.stdout
