"""Power management for boards without a chipset: the ACPI PM block and the reset register."""

from __future__ import annotations

from pykvm.devices.pc import AcpiPm, ResetControl
from pykvm.machine.boards import layout
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine


def add_power_management(machine: Machine) -> AcpiPm:
    """The PM block with its SCI, and the register at port 0xcf9."""
    pm = AcpiPm(
        machine.wiring.line(layout.SCI_IRQ), machine.clock, power_off=machine.guest_power_off
    )
    machine.add_ranges(pm)
    machine.add_ranges(ResetControl(machine.guest_reset))
    return pm
