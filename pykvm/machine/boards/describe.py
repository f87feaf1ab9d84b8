"""How a board describes itself: ACPI, MP and SMBIOS tables, and the memory map.

Made anew for each load, from what is on the board then. Without firmware the tables lie in the BIOS
area, 0xE0000-0xFFFFF, where kernels that are not told look for them; with firmware the ACPI tables
go to it as fw_cfg files instead.
"""

from __future__ import annotations

from pykvm.arch import acpi, mptable, smbios
from pykvm.arch.e820 import E820Entry, build_e820
from pykvm.machine.boards import layout
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.devices.pci import PciBus
    from pykvm.machine.machine import Machine

SLEEP_TYPE_S5 = 7  # PM1_CNT.SLP_TYP for power-off (ICH9; the PM device's SLEEP_TYPES)
APM_CONTROL, ACPI_ENABLE, ACPI_DISABLE = 0xB2, 2, 3
MP_TABLE = 0xF_0000  # within the last 64 KiB, where MP tables are looked for
MP_SIZE = 0x2000
SMBIOS = MP_TABLE + MP_SIZE

Blob = tuple[int, bytes]


def acpi_config(machine: Machine) -> acpi.AcpiConfig:
    """What the ACPI tables of this machine have to say."""
    board = machine.board
    cpus = apic_ids(machine)
    pm = acpi.PmConfig(
        event=layout.PM_EVENT,
        control=layout.PM_CONTROL,
        timer=layout.PM_TIMER,
        gpe0=layout.PM_GPE0,
        sci=layout.SCI_IRQ,
        sleep_type_s5=SLEEP_TYPE_S5,
        smi_command=APM_CONTROL,
        acpi_enable=ACPI_ENABLE,
        acpi_disable=ACPI_DISABLE,
    )
    common: dict[str, Any] = {
        "cpus": cpus,
        "pm": pm,
        "lapic_base": layout.LAPIC,
        "ioapic": acpi.IoApicConfig(0, layout.IOAPIC),
        "reset": acpi.ResetConfig(layout.RESET_CONTROL, 6),
    }
    if board.name != "pc":
        return acpi.AcpiConfig(
            **common,
            legacy=frozenset({"com1", "pit", "pic"}),
            pci=None,
            fw_cfg=None,
            virtio_mmio=[
                acpi.MmioDevice(gpa, layout.VIRTIO_MMIO_SIZE, gsi)
                for gpa, gsi in machine.virtio_mmio
            ],
        )
    base64 = layout.pci_window64(machine.memory_size)
    ecam, window2 = _ecam(machine), (layout.PCI_WINDOW2, layout.PCI_WINDOW2_SIZE)
    if ecam.last < layout.PCI_WINDOW:  # firmware moved it out of the way: one window, in two parts
        window2 = (layout.ECAM, layout.ECAM_SIZE + layout.PCI_WINDOW2_SIZE)
    pci = acpi.PciConfig(
        ecam=ecam,
        mmio32=(acpi.Window(layout.PCI_WINDOW, layout.PCI_WINDOW_SIZE), acpi.Window(*window2)),
        mmio64=acpi.Window(base64, layout.PCI_WINDOW64_SIZE),
        pins=_pins(machine),
    )
    legacy = {"com1", "pit", "pic", "vga", "speaker", *board.legacy_devices}
    return acpi.AcpiConfig(
        **common, legacy=frozenset(legacy), pci=pci, fw_cfg=layout.FW_CFG, pvpanic=layout.PVPANIC
    )


def _pins(machine: Machine) -> list[tuple[int, int]]:
    """(slot, pin) of the PCI devices that interrupt: none comes later, and others cost time."""
    bus: PciBus = getattr(machine.board, "pci")  # noqa: B009 - only the pc board has one
    pins = ((device.slot, device.config.data[0x3D]) for device in bus)
    return sorted({(slot, pin - 1) for slot, pin in pins if 1 <= pin <= 4})


def _ecam(machine: Machine) -> acpi.Window:
    place = machine.board.ecam if machine.board.has_firmware else None
    return acpi.Window(*place) if place else acpi.Window(layout.ECAM, layout.ECAM_SIZE)


def apic_ids(machine: Machine) -> list[int]:
    """The APIC IDs of the vCPUs; KVM takes a vCPU's id for it."""
    return [vcpu.id for vcpu in machine.vcpus]


def acpi_tables(machine: Machine) -> acpi.AcpiTables:
    """The tables, placed in the BIOS area."""
    return acpi.build_tables(acpi_config(machine), layout.BIOS_AREA)


def tables(machine: Machine) -> tuple[list[Blob], int | None]:
    """All tables with their guest-physical addresses, and where the RSDP is (None: no ACPI)."""
    if machine.irqchip == "none":
        return [], None  # there is no interrupt controller that they could describe
    blobs: list[Blob] = []
    rsdp = None
    if machine.acpi:
        found = acpi_tables(machine)
        blobs += found.blobs
        rsdp = found.rsdp_gpa
    blobs.append((MP_TABLE, mp_table(machine)))
    blobs += smbios_tables(machine).blobs
    return blobs, rsdp


def smbios_tables(machine: Machine) -> smbios.SmbiosTables:
    """What DMI tells about the machine."""
    cpus = machine.cpus
    ram = machine.memory.ram
    config = smbios.SmbiosConfig(memory=ram)
    if cpus is not None:
        signature, features = cpus.signature
        config = smbios.SmbiosConfig(
            memory=ram,
            topology=cpus.topology,
            cpu_signature=signature,
            cpu_features=features,
            product=f"pykvm {machine.board.name}",
        )
    return smbios.build(config, SMBIOS)


def mp_table(machine: Machine) -> bytes:
    """The MP table, for kernels that read no ACPI."""
    pci: list[mptable.PciInterrupt] = []
    if machine.board.name == "pc":
        pirqs = [layout.PIRQ_GSI + n for n in range(layout.PIRQS)]
        pci = mptable.pci_interrupts(pirqs, _pins(machine))
    signature, features = (0, 0) if machine.cpus is None else machine.cpus.signature
    return mptable.build(
        apic_ids(machine),
        MP_TABLE,
        signature=signature,
        features=features,
        ioapic_base=layout.IOAPIC,
        lapic_base=layout.LAPIC,
        pci=pci,
    )


def memory_map(machine: Machine) -> list[E820Entry]:
    """The e820 map of the machine as a PC's firmware would give it."""
    ram = machine.memory.ram
    reserved = [(layout.IDENTITY_MAP, 0x4000)]
    if machine.board.name == "pc":
        reserved.append((layout.ECAM, layout.ECAM_SIZE))
    return build_e820(ram, reserved)
