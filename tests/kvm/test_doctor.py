"""The doctor on a real /dev/kvm: what it says about this host is true of this host."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pykvm.kvm import Kvm
from pykvm.machine.doctor import Mark, Report, examine
from pykvm.machine.doctor.probe import DONE, Probe
from pykvm.machine.doctor.trials import TRIALS


@pytest.fixture(scope="module")
def report() -> Report:
    return examine()


def test_the_host_is_usable_and_the_examination_is_quick(report: Report) -> None:
    assert report.usable
    assert report.summary.startswith("usable: ")
    assert report.seconds < 10  # 0.4 s on an idle machine


def test_no_examination_ended_early(report: Report) -> None:
    assert report.find("examination") is None
    keys = [finding.key for section in report.sections for finding in section.findings]
    assert len(keys) == len(set(keys))
    titles = {section.key for section in report.sections}
    assert titles == {
        "device", "modes", "exits", "debugging", "memory", "interrupts", "instructions",
        "capabilities", "host",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["real", "protected", "long", "ring3"])
def test_modes_are_measured(report: Report, mode: str) -> None:
    finding = report.find(f"mode_{mode}")
    assert finding is not None
    assert finding.mark is Mark.OK
    how, ns = finding.value["how"], finding.value["ns_per_instruction"]
    assert how in ("native", "emulated", "slow")
    assert (ns < 20) == (how == "native")


def test_hardware_virtualization_runs_everything_natively(report: Report) -> None:
    module = report.find("module")
    assert module is not None
    if not module.value["hardware"]:
        # Software decodes ring 0 here: then some instructions are refused, and that is found.
        refused = report.find("instructions_refused")
        assert refused is not None
        assert {"fwait", "int3"} & set(refused.value)
        return
    for mode in ("real", "protected", "pae", "long", "ring3"):
        finding = report.find(f"mode_{mode}")
        assert finding is not None
        assert finding.value["how"] == "native"


def test_every_instruction_is_accounted_for_once(report: Report) -> None:
    names: list[str] = []
    for kind in ("working", "refused", "wrong", "faulting", "absent"):
        finding = report.find(f"instructions_{kind}")
        if finding is not None:
            names += list(finding.value)
    assert sorted(names) == sorted(trial.name for trial in TRIALS)
    working = report.find("instructions_working")
    assert working is not None
    assert {"add, mul, div", "rdtsc", "cpuid", "in, out", "ud2"} <= set(working.value)


def test_what_pykvm_itself_counts_on_works(report: Report) -> None:
    for key in ("sync_regs", "dirty_log", "irqchip", "pit", "irqfd", "ioeventfd", "split_irqchip"):
        finding = report.find(key)
        assert finding is not None
        assert finding.mark is Mark.OK, f"{key}: {finding.text}"


def test_costs_are_plausible(report: Report) -> None:
    cost = report.find("exit_cost")
    assert cost is not None
    assert 0.1 < cost.value["native_us"] < 10_000
    step = report.find("singlestep_long")
    assert step is not None
    assert step.mark is Mark.OK
    assert 0.1 < step.value["us_per_step"] < 10_000


def test_nothing_is_left_behind() -> None:
    examine()
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    examine()
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_probe_tells_ends_apart() -> None:
    with Kvm() as kvm, Probe(kvm) as probe:
        probe.prepare("long", DONE)
        assert probe.go().kind == "done"
        probe.prepare("long", b"\x0f\x0b")  # ud2
        end = probe.go()
        assert (end.kind, end.vector) == ("vector", 6)
        assert "#UD" in end.text
        probe.prepare("real", b"\xcd\x21")  # int 0x21
        assert probe.go().vector == 0x21
        probe.prepare("protected", b"\xf4")
        assert probe.go().kind == "halt"
        for mode in ("real", "long", "ring3"):
            probe.prepare(mode, b"\xeb\xfe")  # jmp .
            started = time.monotonic()
            assert probe.go(0.05).kind == "timeout"
            assert time.monotonic() - started >= 0.05
        probe.prepare("long", DONE)  # a time-out leaves nothing behind
        assert probe.go().kind == "done"


def test_a_probe_tells_a_triple_fault() -> None:
    with Kvm() as kvm, Probe(kvm) as probe:
        # lidt with limit 0; ud2
        probe.prepare("protected", b"\x0f\x01\x1f\x0f\x0b")
        assert probe.go().kind == "shutdown"
