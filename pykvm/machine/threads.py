"""Running the vCPUs: one in the caller's thread, or one thread each."""

from __future__ import annotations

import threading
import time

from pykvm._native import lib
from pykvm.kvm.errors import KvmError
from pykvm.machine.result import MachineError, Outcome
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine.machine import Machine


def _watch(vcpu: Vcpu, timeout: float | None, halt_check: bool) -> None:
    nanoseconds = 0 if timeout is None else max(1, min(round(timeout * 1e9), 1 << 62))
    result = lib.pykvm_watch(vcpu._native, nanoseconds, halt_check)
    if result < 0:
        raise KvmError("timer_create", -result)


def run_all(machine: Machine, timeout: float | None) -> Outcome:
    """All vCPUs, until the machine stops: a single one in this thread, several in their own."""
    if len(machine.vcpus) == 1:
        return run_here(machine, machine.vcpus[0], timeout)
    return run_many(machine, timeout)


def run_here(machine: Machine, vcpu: Vcpu, timeout: float | None) -> Outcome:
    """The only vCPU, in this thread. Ctrl-C surfaces as KeyboardInterrupt."""
    control = machine.control
    _watch(vcpu, timeout, machine.irqchip != "none")
    control.enter(vcpu.id)
    outcome: Outcome | None = None
    try:
        outcome = machine.drive_vcpu(vcpu)
    finally:
        lib.pykvm_unwatch(vcpu._native)
        control.leave(vcpu.id, outcome)
        lib.pykvm_unkick(vcpu._native)
    # Somebody else's reason may have come first (a device thread, stop()).
    return control.outcome or outcome


def run_many(machine: Machine, timeout: float | None) -> Outcome:
    """One thread per vCPU; this thread waits, watches the clock and notices a sleeping machine."""
    control = machine.control

    def body(vcpu: Vcpu) -> None:
        outcome: Outcome | None = None
        try:
            _watch(vcpu, None, True)
            outcome = machine.drive_vcpu(vcpu)
        finally:
            lib.pykvm_unwatch(vcpu._native)
            control.leave(vcpu.id, outcome)

    workers = [
        threading.Thread(target=body, args=(v,), name=f"pykvm-vcpu{v.id}", daemon=True)
        for v in machine.vcpus
    ]
    for vcpu, worker in zip(machine.vcpus, workers, strict=True):
        control.enter(vcpu.id)
        worker.start()
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        control.supervise(deadline, lambda: all_asleep(machine))
    finally:
        if control.outcome is None:  # Ctrl-C in this thread
            machine.stop()
        for vcpu, worker in zip(machine.vcpus, workers, strict=True):
            while worker.is_alive():
                vcpu.kick()
                worker.join(0.05)
        for vcpu in machine.vcpus:
            lib.pykvm_unkick(vcpu._native)
    if control.outcome is None:
        raise MachineError("a vCPU thread ended without a reason")
    return control.outcome


def all_asleep(machine: Machine) -> bool:
    """Whether no vCPU can ever run again: halted with interrupts off, or never started."""
    return all(_asleep(vcpu) for vcpu in machine.vcpus)


def _asleep(vcpu: Vcpu) -> bool:
    state = vcpu.get_mp_state()
    if state == lib.KVM_MP_STATE_RUNNABLE:
        return False
    if state == lib.KVM_MP_STATE_HALTED:
        return not vcpu.regs.rflags & 0x200
    return True
