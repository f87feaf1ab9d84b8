"""The lab's verbs over shipped guests, on whatever /dev/kvm is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pykvm import Machine
from pykvm.lab import EventKind, Lab, LabError


@contextmanager
def lab_of(name: str, **options: object) -> Iterator[tuple[Lab, bytearray]]:
    """A lab over a loaded guest, and what it writes to COM1."""
    written = bytearray()
    with Machine(serial=written.extend, **options) as machine:  # type: ignore[arg-type]
        machine.load(name)
        with Lab(machine) as lab:
            yield lab, written


def whole(name: str, **options: object) -> tuple[bytes, int]:
    """What a guest writes, and its exit status, with nobody looking."""
    written = bytearray()
    with Machine(serial=written.extend, **options) as machine:  # type: ignore[arg-type]
        machine.load(name)
        status = machine.run(timeout=30).exit_code
    return bytes(written), status


@pytest.mark.parametrize("name", ["hello64", "hello16", "hello32"])
def test_every_instruction_is_a_step(name: str) -> None:
    with lab_of(name) as (lab, written):
        steps = 0
        while not (event := lab.step()).ended:
            assert event.kind is EventKind.STEP
            assert event.steps == 1
            steps += 1
            assert steps < 10_000
        assert event.result is not None
        assert event.result.exit_code == 0
        assert lab.status == "ended"
        assert steps > 3 * len(written)
    alone, _ = whole(name)
    assert bytes(written) == alone


def test_many_steps_are_as_many_single_ones() -> None:
    with lab_of("hello64") as (lab, _):
        for _ in range(40):
            one = lab.step()
        registers = lab.registers()
    with lab_of("hello64") as (lab, _):
        event = lab.step(40)
        assert event.steps == 40
        assert event.address == one.address
        assert lab.registers() == registers


def test_next_exit_is_answered_and_complete() -> None:
    with lab_of("hello64") as (lab, written):
        event = lab.next_exit()
        assert event.kind is EventKind.EXIT
        assert event.exit.port == 0x3F8
        assert written == b"H"
        assert lab.address == event.address > event.exit.address
        assert lab.next_exit("io", write=True).exit.port == 0x3F8
        assert written == b"He"
        assert lab.next_exit(port=0x99).ended
        alone, _ = whole("hello64")
        assert bytes(written) == alone


def test_next_exit_that_is_mmio() -> None:
    with lab_of("mmio-loop") as (lab, _):
        event = lab.next_exit("mmio", timeout=20)
        gpa = event.exit.gpa
        again = lab.next_exit(gpa=gpa, timeout=20)
        assert again.exit.gpa <= gpa < again.exit.gpa + again.exit.size
    with lab_of("hello64") as (lab, _), pytest.raises(LabError, match="nonsense"):
        lab.next_exit("nonsense")


@pytest.mark.parametrize("kind", ["auto", "hardware", "software", "step"])
def test_a_breakpoint_of_each_kind(kind: str) -> None:
    with lab_of("compute") as (lab, written):
        point = lab.break_at("main", kind=kind)
        event = lab.cont(timeout=30)
        assert event.kind is EventKind.BREAKPOINT
        assert event.breakpoint is point
        assert point.hits == 1
        assert event.address == lab.resolve("main") == lab.address
        code = lab.read(lab.address, 16)
        lab_bytes = lab.read_physical(lab.gpa(lab.address) or 0, 16)
        point.delete()
        assert lab.read(lab.address, 16) == code == lab_bytes
        assert code[0] != 0xCC
        assert lab.cont(timeout=30).kind is EventKind.ENDED
    assert written.split(b",")[:2] == whole("compute")[0].split(b",")[:2]  # then it tells ticks


def test_conditions_counts_and_once() -> None:
    with lab_of("hello64") as (lab, written):
        out = lab.next_exit().exit.address  # of the OUT that writes each letter
        point = lab.break_at(out, condition="rax & 0xff == 0x6c")  # 'l'
        assert lab.cont(timeout=20).breakpoint is point
        assert written == b"He"
        assert lab.cont(timeout=20).breakpoint is point
        assert written == b"Hel"
        point.delete()
        point = lab.break_at(out, condition=lambda lab: lab.registers()["rax"] & 0xFF == ord("g"))
        lab.cont(timeout=20)
        assert written.endswith(b"64-bit lon")
        point.delete()
        once = lab.break_at(out, temporary=True, ignore=1)
        assert lab.cont(timeout=20).breakpoint is once
        assert written.endswith(b"64-bit long ")
        assert lab.breakpoints == []
        assert lab.cont(timeout=20).ended


def test_until_over_and_out() -> None:
    with lab_of("interrupts") as (lab, _):
        assert lab.until("main", timeout=20).address == lab.resolve("main")
        while b"call" not in _mnemonic(lab):
            lab.step()
        here = lab.address
        event = lab.step_over()
        assert event.kind is EventKind.STEP
        assert here < event.address < here + 16
        assert lab.until("pic_mask", timeout=20).kind is EventKind.BREAKPOINT
        inside = lab.registers()["rsp"]
        lab.step_out()
        assert lab.registers()["rsp"] == inside + 8
        assert lab.symbols.name(lab.address).split("+")[0] != "pic_mask"


def _mnemonic(lab: Lab) -> bytes:
    from pykvm.lab import stepping

    found = stepping.instruction(lab)
    return b"" if found is None else found.mnemonic.encode()


def test_run_until() -> None:
    with lab_of("hello64") as (lab, written):
        event = lab.run_until(lambda _: written == b"Hell")
        assert event.kind is EventKind.STEP
        assert written == b"Hell"
        with pytest.raises(LabError, match="come true in 10 steps"):
            lab.run_until(lambda _: False, max_steps=10)
        assert lab.run_until(lambda _: False, every=16).ended


@pytest.mark.parametrize("physical", [False, True])
def test_a_watchpoint_tells_old_and_new(physical: bool) -> None:
    with lab_of("interrupts") as (lab, _):
        lab.until("main", timeout=20)
        where = lab.resolve("pit_ticks")
        point = lab.watch(where, 4, physical=physical)
        event = lab.cont(timeout=60)
        assert event.kind is EventKind.WATCHPOINT
        assert event.breakpoint is point
        assert event.watch is not None
        assert event.watch.old != event.watch.new == lab.read(where, 4)


def test_two_vcpus_meet_the_same_breakpoint() -> None:
    with lab_of("smp", cpus=2) as (lab, written):
        lab.break_at("lapic_read")
        seen = set()
        while (event := lab.cont(timeout=30)).kind is EventKind.BREAKPOINT:
            assert lab.vcpu.id == event.vcpu
            assert lab.address == lab.resolve("lapic_read")
            seen.add(event.vcpu)
        assert event.kind is EventKind.ENDED
        assert seen == {0, 1}
    text = written.decode()
    assert "counter 600, atomic counter 600, expected 600" in text


def test_one_of_two_vcpus_steps_alone() -> None:
    with lab_of("smp", cpus=2) as (lab, written):
        lab.until("ap_work" if lab.symbols.address("ap_work") else "work", timeout=30)
        other = 1 - lab.vcpu.id
        before = lab.machine.vcpus[other].regs.rip
        lab.step(20)
        assert lab.machine.vcpus[other].regs.rip == before
        assert lab.cont(timeout=30).kind is EventKind.ENDED
    assert "expected 600" in written.decode()


def test_interrupt_and_timeout() -> None:
    with lab_of("spin") as (lab, _):
        started = time.monotonic()
        assert lab.cont(timeout=0.2).kind is EventKind.TIMEOUT
        assert time.monotonic() - started < 20
        threading.Timer(0.2, lab.interrupt).start()
        assert lab.cont(timeout=60).kind is EventKind.INTERRUPTED
        here = lab.address
        assert lab.step(3).kind is EventKind.STEP
        assert lab.symbols.name(here) == "" or lab.symbols.name(here)


def test_a_crash_is_the_end() -> None:
    with lab_of("triplefault") as (lab, _):
        event = lab.cont(timeout=20)
        assert event.kind is EventKind.CRASHED
        assert event.result is not None
        assert event.result.exit_code == 126
        assert lab.status == "ended"
        assert lab.registers()["rip"] == event.rip  # it can still be looked at
        with pytest.raises(LabError, match="reset"):
            lab.cont()
        with pytest.raises(LabError, match="reset"):
            lab.step()
        lab.reset()
        assert lab.step().kind is EventKind.STEP


def test_halted_for_good() -> None:
    with lab_of("halt") as (lab, _):
        assert lab.step().kind is EventKind.STEP
        event = lab.step()
        assert event.kind in (EventKind.STEP, EventKind.ENDED)
        assert lab.cont(timeout=20).kind is EventKind.ENDED


def test_memory_and_registers() -> None:
    with lab_of("hello64") as (lab, _):
        lab.step()
        lab.set_register("rbx", 0x1234_5678_9ABC_DEF0)
        assert lab.registers()["rbx"] == 0x1234_5678_9ABC_DEF0
        assert lab.resolve("$rbx + 0x10") == 0x1234_5678_9ABC_DF00
        lab.write(0x200000 - 2, b"abcd")  # over a page's border
        assert lab.read(0x200000 - 2, 4) == b"abcd"
        with pytest.raises(LabError, match="no register"):
            lab.set_register("nope", 1)
        with pytest.raises(LabError):
            lab.set_register("rax", 1 << 64)
        with pytest.raises(LabError, match="nothing is mapped"):
            lab.read(0x7FFF_0000_0000, 1)
        assert lab.peek(0x7FFF_0000_0000, 1) == b""


def test_what_is_asked_wrongly() -> None:
    with lab_of("hello64") as (lab, _):
        lab.machine.debugger = object()  # type: ignore[assignment]
        with pytest.raises(LabError, match="another lab session"):
            Lab(lab.machine)
        lab.machine.debugger = None
        with pytest.raises(LabError, match="0 to 0"):
            lab.select(1)
        with pytest.raises(LabError, match="no symbol"):
            lab.break_at("nowhere")
        with pytest.raises(LabError, match="kind='funny'"):
            lab.break_at(0x1000, kind="funny")
        with pytest.raises(LabError):
            lab.break_at(0x1000, condition="import os")
        with pytest.raises(LabError, match="1 or more"):
            lab.step(0)


def test_the_machine_goes_on_without_the_lab() -> None:
    with lab_of("hello64") as (lab, written):
        lab.break_at(lab.address + 1, kind="software")
        lab.next_exit()
        lab.close()
        assert lab.machine.run(timeout=10).exit_code == 0
    assert bytes(written) == whole("hello64")[0]
