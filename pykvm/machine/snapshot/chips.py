"""KVM's own devices of a machine: PIC, IOAPIC, PIT and the clock of paravirtual guests."""

from __future__ import annotations

from time import monotonic_ns

from pykvm._native import ffi
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

_ORDER = (1, 0, 2)  # the slave first: what it requests shows in the master at once
CHIPS = ("PIC master", "PIC slave", "IOAPIC")  # KVM API 4.26


class ChipImage:
    """The state of KVM's chips as its structures, to be put back as they are."""

    def __init__(self, machine: Machine) -> None:
        vm = machine.vm
        self.chips: list[Any] = []
        self.pit: Any = None
        self.taken_ns = monotonic_ns()
        if vm.irqchip == "kernel":
            for number in range(len(CHIPS)):
                chip = ffi.new("struct kvm_irqchip *")
                chip.chip_id = number
                self.chips.append(chip)
        if vm.has_pit:
            self.pit = ffi.new("struct kvm_pit_state2 *")
        self.clock: Any = ffi.new("struct kvm_clock_data *")

    @classmethod
    def take(cls, machine: Machine) -> ChipImage:
        """The chips now."""
        image = cls(machine)
        vm = machine.vm
        for chip in image.chips:
            vm.ioctl("KVM_GET_IRQCHIP", chip)
        if image.pit is not None:
            vm.ioctl("KVM_GET_PIT2", image.pit)
        vm.ioctl("KVM_GET_CLOCK", image.clock)
        image.clock.flags = 0
        image.taken_ns = monotonic_ns()
        return image

    def put(self, machine: Machine) -> None:
        """The chips become this. Before the vCPUs, whose local APICs the IOAPIC talks to."""
        vm = machine.vm
        for number in _ORDER if self.chips else ():
            vm.ioctl("KVM_SET_IRQCHIP", self.chips[number])
        if self.pit is not None:
            passed = monotonic_ns() - self.taken_ns
            moved = ffi.new("struct kvm_pit_state2 *", self.pit[0])
            for channel in moved.channels:  # KVM starts the first anew, with its count
                channel.count_load_time += passed
            vm.ioctl("KVM_SET_PIT2", moved)
        vm.ioctl("KVM_SET_CLOCK", self.clock)
