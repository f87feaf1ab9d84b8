"""Boards: what is on a machine's bus when it is made, and how the machine describes itself.

- `bare`: nothing but what you add; no interrupt controller unless asked for.
- `microvm`: COM1, debug devices, the in-kernel interrupt controllers and timer; disks are
  virtio-mmio devices. The default.
- `pc`: a PC with PCI, ACPI and legacy devices (`pykvm.machine.boards.pc`).
"""

from __future__ import annotations

from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.boot.environment import BootEnvironment, FramebufferInfo
    from pykvm.devices.pc import AcpiPm
    from pykvm.machine.attached import Irqchip
    from pykvm.machine.machine import Machine

BOARDS = ("microvm", "pc", "bare")


class Board:
    """The bare board, and what the others build upon."""

    name = "bare"
    default_irqchip: Irqchip = "none"
    vga_window = False  # whether 0xA0000-0xBFFFF is a window instead of RAM

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.has_firmware = False
        self.tables: list[tuple[int, bytes]] = []  # guest-physical address, contents
        self.ecam: tuple[int, int] | None = None  # PCI configuration space: address, bytes
        self.legacy_devices: list[str] = []  # for the ACPI tables; see pykvm.arch.acpi

    def populate(self, serial: Any, debugcon: Any) -> None:
        """Puts the board's devices on the buses of the new machine."""

    def prepare(self) -> None:
        """Adds what a kernel that knows PCs looks for; called by `load()`, before it."""

    def environment(self, kind: str, options: dict[str, Any]) -> BootEnvironment:
        """What the loader of a kernel (an image of that kind) needs to know of the machine."""
        from pykvm.machine.boards.bootenv import environment

        return environment(self.machine, kind, options)

    def video_modes(self) -> Callable[[int, int, int], FramebufferInfo | None] | None:
        """How a kernel that wants a video mode gets one; None on a board without a display."""
        return None

    def show(self, screen: FramebufferInfo) -> None:
        """Turns on the screen that the kernel was told of; after a load and after a reset."""

    def place(self) -> None:
        """What firmware would have done: tables in memory; after a load and after a reset."""
        for gpa, data in self.tables:
            self.machine.memory.write(gpa, data)
        if self.tables and not self.has_firmware:
            from pykvm.machine.cpus import set_up_mtrrs

            for vcpu in self.machine.vcpus:
                set_up_mtrrs(vcpu)


class Microvm(Board):
    """Serial port and debug devices, no legacy; disks on virtio-mmio."""

    name = "microvm"
    default_irqchip: Irqchip = "kernel"
    pm: AcpiPm
    _prepared = False

    def populate(self, serial: Any, debugcon: Any) -> None:
        """COM1, debug-exit, debugcon, POST port."""
        from pykvm.machine.boards.standard import add_standard_devices

        self.machine.standard = add_standard_devices(self.machine, serial, debugcon)

    def prepare(self) -> None:
        """Power-off, reset and the power button, for kernels that find them through ACPI."""
        machine = self.machine
        if self._prepared or machine.irqchip == "none":
            return
        self._prepared = True
        from pykvm.machine.boards import power

        power.route_timer(machine)
        if machine.acpi:
            self.pm = power.add_power_management(machine)
        else:
            power.add_without_acpi(machine)


def make_board(machine: Machine, name: str) -> Board:
    """The board of that name. Raises `MachineError`."""
    if name == "microvm":
        return Microvm(machine)
    if name == "bare":
        return Board(machine)
    if name == "pc":
        from pykvm.machine.boards.pc import PcBoard

        return PcBoard(machine)
    raise MachineError(f"there is no board {name!r}; choose microvm, pc or bare")
