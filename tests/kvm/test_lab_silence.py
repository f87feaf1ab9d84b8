"""What a silent guest is seen to do: spinning, halted, polling; once for each quiet period."""

from __future__ import annotations

import threading
import time

import pytest

from pykvm import Machine
from pykvm.boot.symbols import Symbol, SymbolTable
from pykvm.devices.chardev import BufferChardev
from pykvm.lab.silence import SilenceReport, SilenceWatcher, look_at
from pykvm.machine import MachineError

pytestmark = pytest.mark.kvm

SPIN = b"\xeb\xfe"  # 1: jmp 1b
POLL = b"\xba\xfd\x03\xec\xeb\xfd"  # mov dx, 0x3fd; 1: in al, dx; jmp 1b
UNHEARD = b"\xba\x34\x12\xec\xeb\xfd"  # the same at port 0x1234, where nothing is
WAIT = b"\xfb\xf4\xeb\xfd"  # sti; 1: hlt; jmp 1b
PRINT_AND_SPIN = b"\xba\xf8\x03\xb0\x41\xee\xeb\xfe"  # 'A' to COM1; 1: jmp 1b


def started(m: Machine, code: bytes) -> None:
    m.load(code, load=0x1000, entry=0x1000, mode="real")
    m.start(timeout=60)
    deadline = time.monotonic() + 20
    while m.vcpus[0].stats().entries == 0 and time.monotonic() < deadline:
        time.sleep(0.002)


def look(code: bytes, **options: object) -> SilenceReport:
    with Machine(memory="1M") as m:
        started(m, code)
        report = look_at(m, samples=8, interval=0.005, **options)  # type: ignore[arg-type]
        assert m.status == "running"
        m.stop()
        m.wait(20)
    return report


def test_spinning_guest_with_symbol():
    symbols = SymbolTable(lambda: ([Symbol("forever", 0x1000, 2, True)], ""))
    report = look(SPIN, symbols=symbols)
    (view,) = report.vcpus
    assert view.places == [("0x1000 forever", 8)]
    assert view.states == {"running": 8}
    assert view.mode == "16-bit code, ring 0"
    assert not report.is_idle
    assert report.likely == "the guest spins on one instruction"
    assert "0x1000 forever (8)" in report.text()


def test_guest_that_polls_a_device():
    report = look(POLL)
    assert "polls a device (KVM_EXIT_IO" in report.likely
    assert any("0x3fd" in line and "COM1" in line for line in report.last_exits)


def test_guest_that_asks_nobody():
    report = look(UNHEARD)
    assert report.unanswered[0][0] == "port 0x1234"
    assert "nobody answers: port 0x1234" in report.text()


def test_guest_that_waits_for_an_interrupt():
    report = look(WAIT)
    assert report.is_idle
    assert "waits for an interrupt" in report.likely


def test_paused_machine_stays_paused():
    with Machine(memory="1M") as m:
        started(m, SPIN)
        m.pause()
        report = look_at(m)
        assert m.status == "paused"
        assert sum(report.vcpus[0].states.values()) == 1
        m.resume()
        m.stop()
        m.wait(20)


def test_machine_that_does_not_run():
    with Machine(memory="1M") as m:
        report = look_at(m)
    assert report.vcpus == []
    assert "could not be stopped" in report.likely


def test_several_vcpus_and_one_that_was_never_started():
    with Machine(memory="1M", cpus=2) as m:
        started(m, SPIN)
        report = look_at(m, samples=4)
        m.stop()
        m.wait(20)
    assert [v.is_idle for v in report.vcpus] == [False, True]
    assert "vCPU 1: not started" in report.text()


def reports(code: bytes, *, wait_for: int, **options: object) -> list[SilenceReport]:
    got: list[SilenceReport] = []
    enough = threading.Event()

    def take(report: SilenceReport) -> None:
        got.append(report)
        if len(got) >= wait_for:
            enough.set()

    with Machine(memory="1M", serial=BufferChardev()) as m:
        started(m, code)
        with SilenceWatcher(m, take, after=0.1, **options):  # type: ignore[arg-type]
            enough.wait(20 if wait_for else 0.6)
            time.sleep(0.3)  # time for a second report that must not come
        m.stop()
        m.wait(20)
    return got


def test_watcher_reports_once():
    (report,) = reports(PRINT_AND_SPIN, wait_for=1)
    assert report.quiet_s >= 0.1


def test_watcher_leaves_a_guest_alone_that_waits_for_input():
    prompt = PRINT_AND_SPIN[:6] + WAIT
    assert reports(prompt, wait_for=0) == []
    assert len(reports(prompt, wait_for=1, idle=True)) == 1


def test_watcher_reports_an_idle_guest_that_never_printed():
    assert len(reports(WAIT, wait_for=1)) == 1


def test_quiet_period_must_be_one():
    with Machine(memory="1M") as m, pytest.raises(MachineError, match="quiet period"):
        SilenceWatcher(m, print, after=0)
