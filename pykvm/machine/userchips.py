"""PIC, IOAPIC and PIT in this process, for machines whose KVM has only the local APICs (split).

The IOAPIC's interrupts go to the LAPICs as messages; its table is mirrored in KVM's GSI routes, so
that KVM knows whose end-of-interrupt it has to report (KVM API, KVM_CAP_SPLIT_IRQCHIP). The PIC's
output is LINT0 of the boot processor: KVM is asked for an exit as soon as the guest can take an
interrupt, and the vector is injected then (KVM_INTERRUPT).
"""

from __future__ import annotations

from contextlib import suppress

from pykvm.devices.pc import IoApic, Pic8259, Pit8254, Speaker
from pykvm.kvm import Vcpu
from pykvm.kvm.errors import KvmError
from pykvm.kvm.irqchip import MsiRoute, Route
from pykvm.machine.boards import layout
from pykvm.machine.missed_eoi import MissedEoi
from pykvm.machine.msi import MsiSender
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

_FIRST_VECTOR = 16  # lower ones are exceptions; the table holds 0 where nothing was set up
_TIMER_PIN = 2  # where ISA interrupt 0 goes; the ACPI and MP tables say so


class UserChips:
    """The three chips, wired to a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pic = Pic8259(self)
        self.missed_eoi = MissedEoi(machine, MsiSender(machine.vm))
        self.ioapic = self.missed_eoi.ioapic = IoApic(self.missed_eoi)
        self.ioapic.on_change = self._mirror
        self._routes: list[Route] = []

    def populate(self) -> None:
        """Puts the chips on the machine's buses."""
        machine = self.machine
        self.pit = Pit8254(machine.wiring.line(0), machine.clock)
        for device in (self.pic, self.ioapic, self.pit, Speaker(machine.clock, self.pit)):
            machine.add_ranges(device)

    def drive(self, gsi: int, level: bool) -> None:
        """One GSI's level, to the pins that it leads to."""
        if gsi < 16:
            self.pic.set_irq(gsi, level)
        pin = _TIMER_PIN if gsi == 0 else gsi
        if pin < layout.IOAPIC_PINS:
            self.ioapic.set_pin(pin, level)

    def _mirror(self) -> None:
        routes: list[Route] = [
            MsiRoute(entry.pin, entry.address, entry.data)
            for entry in self.ioapic.entries()
            if entry.level and entry.data & 0xFF >= _FIRST_VECTOR
        ]
        if routes != self._routes:
            with suppress(KvmError):  # a message that KVM refuses is the guest's own affair
                self.machine.routes.set_pins(routes)
                self._routes = routes

    # -- the PIC's output, as an IrqLine ---------------------------------------------------------

    def set(self, level: bool) -> None:
        """INTR rises: the boot processor is to take it."""
        if level and self.machine.vcpus:
            vcpu = self.machine.vcpus[0]
            vcpu.request_interrupt_window = True
            if self.machine.handling is not vcpu:
                vcpu.kick()

    def pulse(self) -> None:
        """The PIC has no edges at its output."""

    def inject(self, vcpu: Vcpu) -> None:
        """The vCPU is outside the guest: gives it the PIC's interrupt if it can take one."""
        self.missed_eoi.look(vcpu)
        if vcpu.id != self.machine.vcpus[0].id:
            return
        vcpu.request_interrupt_window = False
        if self.pic.pending and vcpu.ready_for_interrupt:
            vcpu.interrupt(self.pic.acknowledge())
        if self.pic.pending:
            vcpu.request_interrupt_window = True
