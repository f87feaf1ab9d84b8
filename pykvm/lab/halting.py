"""Stepping HLT.

A KVM in software that steps HLT ends the step, but keeps the halt for some later instruction, which
then sleeps although nothing told it to. So HLT is never stepped: the vCPU is put into the state
that HLT leaves (KVM API 4.38, 4.39; SDM vol. 2, HLT). That is right on every host.
"""

from __future__ import annotations

from pykvm.lab import cpu
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.lab.session import Lab

DETAIL = "halted until an interrupt comes"
_HLT = b"\xf4"
_RUNNABLE, _HALTED = 0, 3


def is_next(lab: Lab) -> bool:
    """Whether the selected vCPU's next instruction is HLT, and it may execute it."""
    vcpu = lab.vcpu
    if cpu.privilege(vcpu) or lab.peek(lab.address, 1) != _HLT:
        return False
    return lab.machine.irqchip == "none" or int(vcpu.get_mp_state()) == _RUNNABLE


def halt(vcpu: Vcpu) -> None:
    """What HLT does on a machine whose LAPIC is in the kernel: an interrupt wakes the vCPU."""
    events = vcpu.get_vcpu_events()
    if events.interrupt_shadow:  # STI; HLT
        vcpu.set_vcpu_events(events.replace(interrupt_shadow=0))
    vcpu.regs.rip += 1
    vcpu.set_mp_state(_HALTED)
