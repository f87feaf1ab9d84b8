"""What a machine is made of, as far as ACPI describes it. Plain data, made by the board.

Addresses are guest-physical; GSIs are global system interrupts (IOAPIC input numbers); slots and
functions are those of PCI bus 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pykvm.typed import NamedTuple

LEGACY_DEVICES = ("com1", "com2", "keyboard", "mouse", "rtc", "pit", "pic", "vga", "speaker")
"""Names for `AcpiConfig.legacy`. `pic` says that two 8259s are wired beside the APICs; `vga` that
the legacy VGA window belongs to the PCI host (ACPI tells OSes not to probe for VGA without it)."""


class Window(NamedTuple):
    """A range of addresses."""

    base: int
    size: int

    @property
    def last(self) -> int:
        """The last address inside."""
        return self.base + self.size - 1


class IoApicConfig(NamedTuple):
    """One IOAPIC: its ID, registers, and the GSI of its pin 0."""

    id: int = 0
    base: int = 0xFEC0_0000
    gsi_base: int = 0


class IrqOverride(NamedTuple):
    """An ISA interrupt that is not edge-triggered, active high, on the pin of its own number."""

    irq: int
    gsi: int
    level: bool = False
    low: bool = False


class PmConfig(NamedTuple):
    """I/O ports of the ACPI PM hardware: first port of each block; 0 where a block is absent."""

    event: int = 0x600
    """PM1a event block: status, enable, 2 bytes each."""
    control: int = 0x604
    """PM1a control register, 2 bytes."""
    timer: int = 0x608
    """24- or 32-bit timer at 3.579545 MHz, 4 bytes."""
    gpe0: int = 0x620
    gpe0_length: int = 16
    """Bytes of the GPE0 block, status and enable together."""
    sci: int = 9
    """ISA interrupt number of the SCI; level-triggered, active high."""
    timer_32bit: bool = True
    sleep_type_s5: int = 0
    """What SLP_TYP must hold for power-off."""
    smi_command: int = 0
    """SMI command port; 0: there is no SMM, the machine is always in ACPI mode."""
    acpi_enable: int = 0
    acpi_disable: int = 0


class SleepConfig(NamedTuple):
    """Sleep control and status registers of a hardware-reduced machine (ACPI 6.5 4.8.3.7)."""

    control: int
    status: int
    io: bool = True
    """I/O ports; otherwise guest-physical addresses."""
    sleep_type_s5: int = 5
    """What SLP_TYP must hold for power-off."""


class ResetConfig(NamedTuple):
    """Writing `value` to I/O port `port` resets the machine."""

    port: int = 0xCF9
    value: int = 6


ALL_PINS = tuple((slot, pin) for slot in range(32) for pin in range(4))


class PciConfig(NamedTuple):
    """The PCI host bridge: configuration space and the windows for BARs."""

    ecam: Window | None = Window(0xE000_0000, 256 << 20)
    """1 MiB a bus; None with configuration mechanism 1 (ports 0xcf8, 0xcfc) only."""
    mmio32: Sequence[Window] = (Window(0xC000_0000, 0x2000_0000), Window(0xF000_0000, 0xEB0_0000))
    mmio64: Window | None = None
    pirq_gsis: Sequence[int] = (16, 17, 18, 19, 20, 21, 22, 23)
    """GSI of PIRQ A, B, …: pin p (0: INTA) of slot s asserts PIRQ (s + p) mod their number."""
    pins: Sequence[tuple[int, int]] = ALL_PINS
    """(slot, pin) of the devices that have an interrupt pin: the fewer, the less to read."""
    lpc_slot: int | None = 0x1F
    """Slot of the bridge with PIRQ routing registers (0x60 to 0x63, 0x68 to 0x6b) for PIC mode."""
    pic_irqs: Sequence[int] = (5, 10, 11)
    """ISA interrupts that PIC mode may route a PIRQ to."""


class MmioDevice(NamedTuple):
    """A virtio-mmio device: registers and an edge-triggered interrupt."""

    base: int
    size: int
    gsi: int


class NumaNode(NamedTuple):
    """CPUs (by index in `AcpiConfig.cpus`) and memory that are close to each other."""

    cpus: Sequence[int]
    memory: Sequence[Window]


@dataclass(frozen=True, kw_only=True, slots=True)
class AcpiConfig:
    """Everything that the tables say. The defaults are the `pc` board with one CPU."""

    cpus: Sequence[int] = (0,)
    """APIC IDs; the position is the ACPI processor UID."""
    lapic_base: int = 0xFEE0_0000
    ioapic: IoApicConfig | None = field(default_factory=IoApicConfig)
    overrides: Sequence[IrqOverride] | None = None
    """None: IRQ 0 → GSI 2 where there is a PIT, and the SCI as level, active high."""
    pm: PmConfig | None = field(default_factory=PmConfig)
    """PM hardware; must be None for a hardware-reduced machine."""
    sleep: SleepConfig | None = None
    """Power-off of a hardware-reduced machine."""
    reset: ResetConfig | None = field(default_factory=ResetConfig)
    hardware_reduced: bool = False
    legacy: frozenset[str] = field(default_factory=lambda: frozenset(LEGACY_DEVICES) - {"com2"})
    """Which of `LEGACY_DEVICES` there are."""
    power_button: bool = True
    """A fixed-hardware button where there is PM hardware (hardware-reduced: none)."""
    pci: PciConfig | None = field(default_factory=PciConfig)
    virtio_mmio: Sequence[MmioDevice] = ()
    fw_cfg: int | None = 0x510
    """First I/O port of fw_cfg (12 ports, with DMA); None without it."""
    pvpanic: int | None = None
    """I/O port of the pvpanic device, 0x505 by convention."""
    hpet: int | None = None
    """Address of an HPET's registers; None without one."""
    numa: Sequence[NumaNode] = ()
    """No SRAT and SLIT when empty."""
    distances: Sequence[Sequence[int]] = ()
    """Relative distances between nodes, 10 to itself; empty: 10 and 20."""
    waet: bool = True
    """Tell guests (Windows) that the RTC and the PM timer need no double reads."""
    oem_id: bytes = b"PYKVM"
    oem_table_id: bytes = b"PYKVMPC"


LIMIT_XAPIC = 255
"""APIC IDs from here on take x2APIC entries in the MADT (ACPI 6.5 5.2.12.12)."""
