"""Explanations of real exits: machines that work, that triple-fault, that say nothing."""

from __future__ import annotations

import threading
import time

import pytest

from pykvm import Machine
from pykvm.lab.explain import Explanation, explain, explain_record, explain_silence
from pykvm.lab.tracing import TracedExit, Tracer
from pykvm.machine import StopReason

pytestmark = pytest.mark.kvm


def test_live_exits_of_the_driver_are_explained() -> None:
    from pykvm.kvm import Kvm

    with Kvm() as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(0, 1 << 20)
        memory.write(0x1000, b"\xe4\x10\xa0\x00\x00\xf4")  # in al, 0x10; mov al, [0]; hlt
        vcpu = vm.create_vcpu(0)
        vcpu.regs.rip, vcpu.regs.rflags = 0x1000, 2
        sregs = vcpu.sregs
        sregs.cs.base = sregs.cs.selector = 0
        exit_ = vcpu.run()
        told = explain(exit_)
        assert told.title == "IN from port 0x10"
        assert told.instruction == "0x1000: in al, 0x10"
        assert "find out who owns port 0x10" in told.user
        exit_.value = 0x42  # type: ignore[attr-defined]
        assert "0x42" in explain(exit_).title
        halted = explain(vcpu.run())
        assert halted.title.startswith("HLT")
        assert halted.instruction.endswith("hlt")


def test_traced_exits_are_explained_where_they_happen() -> None:
    told: list[Explanation] = []
    with Machine(irqchip="none", trace=Tracer.RING) as machine:
        machine.load("hello64")

        def look(traced: TracedExit) -> None:
            told.append(explain_record(traced, machine))

        with Tracer(machine, look):
            machine.run(timeout=10)
    assert told[0].title == "OUT to port 0x3f8 (COM1 THR): 0x48 ('H')"
    assert "_start" in told[0].instruction or "out dx, al" in told[0].instruction
    assert told[-1].title.startswith("HLT")
    assert "for good" in told[-1].guest_next


def test_a_triple_fault_says_why_nothing_could_be_delivered() -> None:
    with Machine() as machine:
        machine.load("triplefault")
        result = machine.run(timeout=10)
        assert result.reason is StopReason.SHUTDOWN
        assert result.exit is not None
        told = explain(result.exit, machine)
    assert told.title.startswith("Triple fault")
    # On AMD the vCPU is reset before anybody can look at it; elsewhere the empty IDT is found.
    assert "IDTR.limit is 0x0" in told.why or "reset the vCPU already" in told.why


def test_exits_of_a_closed_machine_are_still_explained() -> None:
    with Machine(irqchip="none") as halted, Machine() as crashed:
        halted.load("hello64")
        crashed.load("triplefault")
        ends = [m.run(timeout=10).exit for m in (halted, crashed)]
    for exit_, machine in zip(ends, (halted, crashed), strict=True):
        assert exit_ is not None
        assert explain(exit_, machine).guest_next
    assert ends[0] is not None
    assert explain(ends[0], halted).instruction.endswith("hlt")


def test_a_silent_guest_is_explained() -> None:
    with Machine(irqchip="none") as machine:
        machine.load(b"\xeb\xfe")  # jmp .
        runner = threading.Thread(target=machine.run, kwargs={"timeout": 30})
        runner.start()
        while machine.status != "running":
            time.sleep(0.001)
        told = explain_silence(machine)
        machine.stop()
        runner.join()
    assert told.likely == "the guest spins on one instruction"
    assert "lock" in told.advice
    assert "Likely reason" in told.text()
    assert told.as_dict()["vcpus"]


def test_a_machine_that_does_not_run_is_no_riddle() -> None:
    with Machine() as machine:
        machine.load(b"\xf4")
        told = explain_silence(machine)
    assert "does not run" in told.likely
    assert "Run it first" in told.advice
