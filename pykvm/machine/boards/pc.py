"""The pc board: PCI, ACPI and the legacy devices of a PC.

The chipset that software sees is a Q35 with an ICH9; `pykvm.machine.boards.layout` has the map.
"""

from __future__ import annotations

from pykvm.devices.debugcon import DebugCon
from pykvm.devices.display import PciVga, Screen, Vga, legacy_ranges, read_vgabios
from pykvm.devices.display.pci_vga import VgaRomError
from pykvm.devices.pc import I8042, A20Gate, AcpiPm, Cmos, FwCfg, Port92, PvPanic, ResetControl
from pykvm.devices.pc.pvpanic import PANICKED
from pykvm.devices.pci import (
    BusMapper,
    Ich9Lpc,
    IntxRouter,
    PciBus,
    PciDevice,
    PciHost,
    Q35HostBridge,
    RamBlock,
    Window,
    assign_bars,
)
from pykvm.machine.boards import Microvm, layout
from pykvm.machine.boards.power import route_timer
from pykvm.machine.boards.videomode import switch_on, video_modes
from pykvm.machine.msi import MappedRam, MsiSender
from pykvm.machine.result import StopReason
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.boot.environment import FramebufferInfo
    from pykvm.bus import Range
    from pykvm.devices.ide import IdeController
    from pykvm.machine.machine import Machine

VGA_SLOT, LPC_SLOT, FIRST_FREE_SLOT = 2, 0x1F, 3
PCI_PORTS = Window(0xC000, 0x4000)


class Host(PciHost):
    """The host bridge's ports and ECAM; tells the board when that moves."""

    def __init__(self, board: PcBoard) -> None:
        super().__init__(board.pci, board.reset_control)
        self._board = board

    def place_ecam(self, address: int | None, buses: int = 256) -> None:
        """As `PciHost.place_ecam`."""
        super().place_ecam(address, buses)
        self._board.ecam_moved(self.ecam_place)


class PcBoard(Microvm):
    """A PC as software has expected it since the ICH9.

    `pci` is its bus; `fw_cfg`, `pm`, `vga`, `keyboard` (the 8042) and `cmos` are those devices.
    """

    name = "pc"
    vga_window = True

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._pm_ranges: list[Range] = []
        self._ide: IdeController | None = None
        #: (kind, PCI slot, IDE drive) of the disks, in the order in which they were added.
        self.bootable: list[tuple[str, int, int]] = []

    def populate(self, serial: Any, debugcon: Any) -> None:
        """All of the board's devices, in the order in which they are reset."""
        super().populate(serial, debugcon)
        machine = self.machine
        self._legacy()
        self._pci()
        self.vga = Vga()
        machine.add_ranges(self.vga, legacy_ranges(self.vga))
        self._vga_function = PciVga(self.vga, _option_rom())
        self.add_pci(self._vga_function, VGA_SLOT)
        machine.screen = Screen(self.vga)

    def _legacy(self) -> None:
        machine = self.machine
        standard = machine.standard
        assert standard is not None
        machine.add_device(DebugCon(standard.firmware_log), pio=layout.FIRMWARE_DEBUG)
        self.a20 = A20Gate()
        self.reset_control = ResetControl(machine.guest_reset)
        machine.add_device(Port92(self.a20, machine.guest_reset), pio=layout.PORT_92)
        self.pm = AcpiPm(
            machine.wiring.line(layout.SCI_IRQ), machine.clock, power_off=machine.guest_power_off
        )
        machine.add_ranges(self.pm, self.pm.ranges()[1:])
        line = machine.wiring.line
        self.keyboard = I8042(
            line(layout.KEYBOARD_IRQ), line(layout.MOUSE_IRQ), machine.clock,
            a20=self.a20, reset=machine.guest_reset,
        )  # fmt: skip
        machine.add_ranges(self.keyboard)
        ram = machine.memory_size
        low = layout.low_ram(ram, pc=True)
        self.cmos = Cmos(
            line(layout.RTC_IRQ), machine.clock,
            ram_below_4g=low, ram_above_4g=ram - low,
        )  # fmt: skip
        self.cmos.on_alarm = self.pm.rtc_alarm
        machine.add_ranges(self.cmos)
        self.legacy_devices += ["keyboard", "mouse", "rtc"]
        self.fw_cfg = FwCfg(machine.memory)
        machine.add_ranges(self.fw_cfg)
        machine.add_ranges(PvPanic(self._panicked))

    def _panicked(self, events: int) -> None:
        if not events & PANICKED:
            return  # a crash kernel takes over: the guest goes on
        self.machine.request_stop(StopReason.PANIC, detail="the guest told the pvpanic device")

    def _pci(self) -> None:
        machine = self.machine
        self.mapper = BusMapper(
            machine.pio, machine.mmio, machine.memory, self._map_ram, reserved=_reserved(machine)
        )
        wiring = machine.wiring
        self.router = IntxRouter(
            [wiring.line(layout.PIRQ_GSI + n) for n in range(layout.PIRQS)],
            {irq: wiring.line(irq) for irq in (3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15)},
        )
        self.msi = MsiSender(machine.vm)
        self.pci = PciBus(self.mapper, self.router, self.msi)
        self.host = Host(self)
        machine.add_device(self.host, pio=layout.PCI_CONFIG, length=8)
        machine.devices.append(self.reset_control)  # its port is inside the host bridge's
        self.add_pci(Q35HostBridge(self.host, layout.ECAM), 0)
        self.add_pci(Ich9Lpc(self.router, self._pm_moved, layout.PM_EVENT), LPC_SLOT)

    def prepare(self) -> None:
        """Everything is there already; interrupts go where the tables say."""
        route_timer(self.machine)

    def add_pci(self, device: PciDevice, slot: int | None = None, function: int = 0) -> int:
        """Puts a function on bus 0, in the first free slot unless told; returns the slot."""
        if slot is None:
            slot = self.pci.free_slot(FIRST_FREE_SLOT)
        self.pci.add(slot, function, device)
        self.machine.devices.append(device)
        return slot

    @property
    def ide(self) -> IdeController:
        """The IDE controller; it is there from the first drive on."""
        if self._ide is None:
            from pykvm.machine.disks import add_controller

            self._ide = add_controller(self.machine)
            self.add_pci(self._ide, LPC_SLOT, 1)
        return self._ide

    def ecam_moved(self, place: tuple[int, int] | None) -> None:
        """Firmware has put configuration space elsewhere: the ACPI tables must say so."""
        if place == self.ecam:
            return
        self.ecam = place
        if self.has_firmware and self.machine.acpi:
            from pykvm.machine.firmware import add_acpi

            add_acpi(self.machine)

    def _map_ram(self, address: int, block: RamBlock, readonly: bool) -> MappedRam:
        return MappedRam(self.machine.vm, address, block, readonly)

    def _pm_moved(self, base: int | None) -> None:
        for claimed in self._pm_ranges:
            claimed.remove()
        self._pm_ranges = []
        if base is not None:
            self._pm_ranges = self.machine.claim(self.pm.ranges(base)[:1])

    def place(self) -> None:
        """Assigns BARs, as firmware would, unless there is firmware to do it."""
        super().place()
        if not self.has_firmware:
            self._assign_bars()

    def video_modes(self) -> Callable[[int, int, int], FramebufferInfo | None]:
        """The VGA's linear modes."""
        return video_modes(self)

    def show(self, screen: FramebufferInfo) -> None:
        """Sets the VGA's mode."""
        switch_on(self, screen)

    def frame_buffer(self) -> int | None:
        """Where the VGA's frame buffer will be (guest-physical) when a kernel starts without
        firmware; None if there is no room for it."""
        placed = self._assign_bars()
        own = (self._vga_function, 0)
        return next((at for device, bar, at in placed if (device, bar) == own), None)

    def _assign_bars(self) -> list[tuple[PciDevice, int, int]]:
        return assign_bars(
            self.pci,
            PCI_PORTS,
            [
                Window(layout.PCI_WINDOW, layout.PCI_WINDOW_SIZE),
                Window(layout.PCI_WINDOW2, layout.PCI_WINDOW2_SIZE),
            ],
            Window(layout.pci_window64(self.machine.memory_size), layout.PCI_WINDOW64_SIZE),
        )


def _option_rom() -> bytes | None:
    """The VGA's option ROM, for firmware; a host without SeaBIOS does without."""
    try:
        return read_vgabios()
    except VgaRomError:
        return None


def _reserved(machine: Machine) -> list[tuple[int, int]]:
    """What answers without being on the bus: (guest-physical address, bytes)."""
    reserved = [(layout.IDENTITY_MAP, 16 * layout.KIB)]
    if machine.irqchip != "none":
        reserved += [(layout.LAPIC, layout.MIB), (layout.IOAPIC, layout.IOAPIC_SIZE)]
    return reserved
