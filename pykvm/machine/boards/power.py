"""Power management for boards without a chipset: the ACPI PM block and the reset register."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.base import Device
from pykvm.devices.pc import AcpiPm, Cmos, ResetControl
from pykvm.kvm.constants import KVM_IRQCHIP_IOAPIC as IOAPIC
from pykvm.kvm.irqchip import IrqchipRoute, default_routes
from pykvm.machine.boards import layout
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

TIMER_PIN = 2


def route_timer(machine: Machine) -> None:
    """ISA interrupt 0 to IOAPIC pin 2, as on PCs and as the tables say; KVM's default is pin 0."""
    if machine.irqchip != "kernel":
        return
    routes = []
    for route in default_routes():
        if isinstance(route, IrqchipRoute) and route.irqchip == IOAPIC:
            if route.gsi == TIMER_PIN:
                continue
            if route.gsi == 0:
                route = IrqchipRoute(0, IOAPIC, TIMER_PIN)
        routes.append(route)
    machine.routes.set_pins(routes)


class ResetLine(Device):
    """What is left of a keyboard controller where there is none: writing 0xfe to port 0x64 resets.

    Status reads 0xfd: a full output buffer that never empties tells a driver that there is no
    controller, and a free input buffer tells who wants a reset to go ahead.
    """

    name = "reset-line"
    PULSE, STATUS = 0xFE, 0xFD

    def __init__(self, reset: Callable[[], object]) -> None:
        self._reset = reset

    def read(self, offset: int, size: int) -> int:
        """The status."""
        return self.STATUS

    def write(self, offset: int, size: int, value: int) -> None:
        """Commands; there is one."""
        if value == self.PULSE:
            self._reset()


def add_without_acpi(machine: Machine) -> None:
    """For kernels that cannot be told what is missing: an RTC, and a way to reset."""
    machine.add_ranges(Cmos(machine.wiring.line(layout.RTC_IRQ), machine.clock))
    machine.add_device(ResetLine(machine.guest_reset), pio=layout.KEYBOARD_COMMAND)


def add_power_management(machine: Machine) -> AcpiPm:
    """The PM block with its SCI, and the register at port 0xcf9."""
    pm = AcpiPm(
        machine.wiring.line(layout.SCI_IRQ), machine.clock, power_off=machine.guest_power_off
    )
    machine.add_ranges(pm)
    machine.add_ranges(ResetControl(machine.guest_reset))
    return pm
