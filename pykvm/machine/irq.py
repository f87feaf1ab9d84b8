"""Interrupt lines into KVM's in-kernel interrupt controllers."""

from __future__ import annotations

from pykvm.kvm import Vm


class GsiLine:
    """One GSI as a device's interrupt line (KVM API 4.25 KVM_IRQ_LINE)."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self.gsi = gsi
        self.level = False

    def set(self, level: bool) -> None:
        """Drives the line; unchanged levels cost nothing."""
        if level != self.level:
            self.level = level
            self._vm.irq_line(self.gsi, level)

    def pulse(self) -> None:
        """An edge: up, then down."""
        self._vm.irq_line(self.gsi, True)
        self._vm.irq_line(self.gsi, False)
        self.level = False


class UnconnectedLine:
    """A line on a machine without an interrupt controller; remembers its level for polling."""

    def __init__(self, gsi: int) -> None:
        self.gsi = gsi
        self.level = False

    def set(self, level: bool) -> None:
        """Remembers the level."""
        self.level = level

    def pulse(self) -> None:
        """Nothing is there to see an edge."""
