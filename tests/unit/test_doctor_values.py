"""The doctor's own knowledge: remedies for each reason, and instructions that are what they say."""

from __future__ import annotations

import errno
import grp
import os
import pathlib
import pwd
import stat
import subprocess
from types import SimpleNamespace

import pytest

from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.errors import KvmUnavailable
from pykvm.machine.doctor import Mark, Report, Section, access, examine
from pykvm.machine.doctor.instructions import guest_features
from pykvm.machine.doctor.trials import FEATURES, TRIALS

MISC = "232 kvm\n200 tun\n"


@pytest.mark.parametrize(
    ("misc", "flags", "modules", "words"),
    [
        (MISC, {"vmx"}, ["kvm_intel"], "mknod /dev/kvm c 10 232"),
        ("", {"vmx"}, [], "sudo modprobe kvm_intel"),
        ("", {"svm", "hypervisor"}, [], "sudo modprobe kvm_amd"),
        ("", {"vmx"}, ["kvm_intel"], "dmesg"),
        ("", {"hypervisor"}, [], "nested virtualization"),
        ("", set(), [], "firmware"),
    ],
)
def test_why_there_is_no_device(misc: str, flags: set[str], modules: list[str], words: str) -> None:
    assert words in access._missing("/dev/kvm", misc, flags, modules)


def test_another_path_than_the_device() -> None:
    assert access._missing("/dev/kmv", MISC, set(), []).startswith("use /dev/kvm")


@pytest.mark.parametrize(
    ("mode", "gid", "groups", "members", "words"),
    [
        (0o660, 104, [], [], "sudo usermod -aG kvm ann, then log in again"),
        (0o660, 104, [], ["ann"], "log in again"),
        (0o660, 104, [104], ["ann"], "container or security module"),
        (0o600, 104, [], [], "give group kvm access"),
        (0o660, 0, [], [], "give group kvm access"),
    ],
)
def test_why_the_device_may_not_be_opened(
    monkeypatch: pytest.MonkeyPatch,
    mode: int, gid: int, groups: list[int], members: list[str], words: str,
) -> None:  # fmt: skip
    status = SimpleNamespace(st_mode=stat.S_IFCHR | mode, st_gid=gid)
    monkeypatch.setattr(os, "stat", lambda path: status)
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    group = SimpleNamespace(gr_name="kvm", gr_mem=members)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: group)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ann"))
    error = KvmUnavailable("/dev/kvm", errno.EACCES, "closed", "general remedy")
    assert words in access.remedy("/dev/kvm", error)


def test_a_remedy_for_other_reasons_is_the_errors_own() -> None:
    error = KvmUnavailable("/dev/kvm", errno.EBUSY, "taken", "stop the other one")
    assert access.remedy("/dev/kvm", error) == "stop the other one"


def test_instructions_are_what_they_say(tmp_path: pathlib.Path) -> None:
    """The assembler makes of each source the bytes that are tried."""
    lines = [".intel_syntax noprefix"]
    for number, trial in enumerate(TRIALS):
        lines.append(f'.section .t{number}, "ax"')
        lines += trial.source.split("; ")
    (tmp_path / "t.s").write_text("\n".join(lines) + "\n")
    subprocess.run(["as", "--64", "-o", tmp_path / "t.o", tmp_path / "t.s"], check=True)
    for number, trial in enumerate(TRIALS):
        out = tmp_path / f"{number}.bin"
        subprocess.run(
            ["objcopy", "-O", "binary", "-j", f".t{number}", tmp_path / "t.o", out], check=True
        )
        assert out.read_bytes() == trial.code, trial.name


def test_trials_have_different_names_and_known_features() -> None:
    assert len({trial.name for trial in TRIALS}) == len(TRIALS)
    used = {trial.feature for trial in TRIALS if trial.feature}
    assert used == set(FEATURES)


def test_features_are_read_from_the_cpuid_table() -> None:
    table = [CpuidEntry(function=1, ecx=1 << 23), CpuidEntry(function=7, ebx=1 << 20)]
    assert guest_features(table) == {"popcnt", "smap"}
    assert guest_features([]) == set()


def test_without_a_device_the_rest_is_still_examined(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "kvm", tmp_path, pathlib.Path("/dev/null")):
        report = examine(str(path))
        assert not report.usable
        assert report.summary.startswith("not usable: ")
        assert str(path) in report.summary
        assert report.remedy
        found = report.find("access")
        assert found is not None
        assert found.mark is Mark.NO
        assert report.find("ksm") is not None
        assert report.find("mode_long") is None


def test_a_report_as_json_leaves_out_what_is_empty() -> None:
    section = Section("a", "A")
    section.add("x", "X", True, "fine")
    section.add("y", "Y", False, "not fine", "do this", value=[1])
    section.add("z", "Z", None, "so so")
    report = Report("/dev/kvm", {"kernel": "1"}, [section])
    findings = report.as_dict()["sections"][0]["findings"]
    assert findings[0] == {"key": "x", "title": "X", "mark": "ok", "text": "fine"}
    assert (findings[1]["mark"], findings[1]["remedy"], findings[1]["value"]) == (
        "no", "do this", [1],
    )  # fmt: skip
    assert findings[2]["mark"] == "note"
    assert report.find("y") is section.findings[1]
    assert report.find("nothing") is None
