"""`Machine.reset()`: back to how everything was after `load()`.

The reset state of a vCPU and of the interrupt controllers is taken from a scratch VM made the same
way, so that nothing has to be saved while machines start that are never reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm.kvm import Vcpu, Vm
from pykvm.machine import board

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine


class VcpuState:
    """Everything of one vCPU that a guest can change."""

    def __init__(self, vcpu: Vcpu, irqchip: bool) -> None:
        self.regs = vcpu.regs.as_dict()
        self.sregs = vcpu.get_sregs2() if vcpu.vm.check_extension("KVM_CAP_SREGS2") else None
        self.events = vcpu.get_events()
        self.debugregs = vcpu.get_debugregs()
        self.fpu = vcpu.get_fpu()
        self.xcrs = vcpu.get_xcrs()
        self.msrs = vcpu.get_msrs(vcpu.vm.kvm.msr_index_list())
        self.mp_state = vcpu.mp_state if irqchip else None
        self.lapic = vcpu.get_lapic() if irqchip else None

    def restore(self, vcpu: Vcpu) -> None:
        """Puts the state into another vCPU."""
        while vcpu.complete() is not None:
            pass
        vcpu.set_sregs2(self.sregs)
        vcpu.regs.update(**self.regs)
        vcpu.set_events(self.events)
        vcpu.set_debugregs(self.debugregs)
        vcpu.set_fpu(self.fpu)
        vcpu.set_xcrs(self.xcrs)
        vcpu.set_msrs(self.msrs)


def reset_machine(machine: Machine) -> None:
    """Resets RAM, vCPUs, interrupt controllers and devices, and places the image again."""
    raise NotImplementedError
