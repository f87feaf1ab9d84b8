"""`Machine.reset()`: back to how everything was after `load()`.

The reset state of the vCPUs and of the interrupt controllers is read from a scratch VM made the
same way, so that machines that are never reset pay nothing for it at start.
"""

from __future__ import annotations

from pykvm.kvm import Vcpu, Vm
from pykvm.kvm.msrs import MsrError
from pykvm.machine.boards import parts
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

MSR_TSC = 0x10
CHIPS = (0, 1, 2)  # PIC master, PIC slave, IOAPIC (KVM API 4.26)


class VcpuImage:
    """Everything of one vCPU that a guest can change."""

    def __init__(self, vcpu: Vcpu, irqchip: bool) -> None:
        self.sregs = vcpu.get_sregs()
        self.regs = vcpu.get_regs()
        self.events = vcpu.get_vcpu_events()
        self.debugregs = vcpu.get_debugregs()
        self.xsave = vcpu.get_xsave()
        self.xcrs = vcpu.get_xcrs()
        self.msrs = vcpu.get_msrs()
        self.msrs.pop(MSR_TSC, None)  # the TSC runs on through a reset here
        self.mp_state = vcpu.get_mp_state() if irqchip else None
        self.lapic = vcpu.get_lapic() if irqchip else None

    def put(self, vcpu: Vcpu) -> None:
        """Into a vCPU. What KVM lets nobody write (some MSRs) stays as it is."""
        while vcpu.pending and vcpu.complete() is not None:
            pass
        vcpu.set_sregs(self.sregs)
        vcpu.set_xcrs(self.xcrs)
        vcpu.set_xsave(self.xsave)
        _put_msrs(vcpu, self.msrs)
        if self.lapic is not None:
            vcpu.set_lapic(self.lapic)
        if self.mp_state is not None:
            vcpu.set_mp_state(self.mp_state)
        vcpu.set_debugregs(self.debugregs)
        vcpu.set_regs(self.regs)
        vcpu.set_vcpu_events(self.events)


def _put_msrs(vcpu: Vcpu, values: dict[int, int]) -> None:
    left = list(values.items())
    while left:
        try:
            vcpu.set_msrs(dict(left))
            return
        except MsrError as error:
            left = left[error.done + 1 :]


class ResetImage:
    """The reset state of all vCPUs and interrupt controllers of a machine."""

    def __init__(self, machine: Machine) -> None:
        with machine.kvm.create_vm() as vm:
            parts.add_irqchip(vm, machine.irqchip, len(machine.vcpus))
            vcpus = parts.make_vcpus(vm, len(machine.vcpus), machine.kvm, machine.cpus)
            irqchip = machine.irqchip != "none"
            self.vcpus = [VcpuImage(vcpu, irqchip) for vcpu in vcpus]
            self.chips: list[Any] = []
            self.pit: Any = None
            if machine.irqchip == "kernel":
                self.chips = [vm.get_irqchip(chip) for chip in CHIPS]
                self.pit = vm.get_pit2()

    def put(self, machine: Machine) -> None:
        """Into the machine, whose vCPUs are outside their loops."""
        vm: Vm = machine.vm
        for chip in self.chips:
            vm.set_irqchip(chip)
        if self.pit is not None:
            vm.set_pit2(self.pit)
        for image, vcpu in zip(self.vcpus, machine.vcpus, strict=True):
            image.put(vcpu)


def reset_cpus(machine: Machine) -> None:
    """vCPUs and interrupt controllers as after power-on, devices reset. RAM stays."""
    if machine.reset_image is None:
        machine.reset_image = ResetImage(machine)
    machine.reset_image.put(machine)
    if machine.assist is not None:
        machine.assist.reset()
    for device in machine.devices:
        reset = getattr(device, "reset", None)
        if reset is not None:
            reset()


def reset_machine(machine: Machine) -> None:
    """As `reset_cpus`, with empty RAM and the image placed again."""
    reset_cpus(machine)
    for region in machine.memory.regions:
        if region.kind != "file":  # what is persistent stays
            region.fill(0, region.size, 0)
    if machine.image is not None:
        from pykvm.machine.loading import place

        place(machine, machine.image)
    for vcpu in machine.vcpus:
        vcpu.reset_stats()
