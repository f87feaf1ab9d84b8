"""The tables with fixed layouts: RSDP, RSDT, XSDT, FADT, FACS, MCFG, HPET, WAET (ACPI 6.5 5.2)."""

from __future__ import annotations

import struct

from pykvm.arch.acpi.config import AcpiConfig, PmConfig, Window
from pykvm.arch.acpi.table import (
    GAS_IO,
    GAS_MEMORY,
    Checksum,
    Pointer,
    Table,
    gas,
    sdt,
)

RSDP = "RSD PTR "


def rsdp(config: AcpiConfig) -> Table:
    """Root pointer, revision 2: to the RSDT for old systems and the XSDT (5.2.5.3)."""
    data = struct.pack("<8sB6sBIIQB3x", RSDP.encode(), 0, config.oem_id.ljust(6), 2, 0, 36, 0, 0)
    # The first checksum covers what revision 0 had; the second all of it, the first included.
    return Table(
        RSDP, data,
        [Pointer(16, 4, "RSDT"), Pointer(24, 8, "XSDT")],
        [Checksum(8, 0, 20), Checksum(32, 0, 36)],
    )  # fmt: skip


def rsdt(config: AcpiConfig, keys: list[str]) -> Table:
    """Root table with 32-bit pointers (5.2.7)."""
    pointers = [Pointer(4 * i, 4, key) for i, key in enumerate(keys)]
    return sdt(config, "RSDT", 1, bytes(4 * len(keys)), pointers)


def xsdt(config: AcpiConfig, keys: list[str]) -> Table:
    """Root table with 64-bit pointers (5.2.8)."""
    pointers = [Pointer(8 * i, 8, key) for i, key in enumerate(keys)]
    return sdt(config, "XSDT", 1, bytes(8 * len(keys)), pointers)


def facs() -> Table:
    """Firmware ACPI control structure: the global lock and waking vectors, unused (5.2.10)."""
    data = struct.pack("<4sI4IQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)
    return Table("FACS", data, align=64)


# FADT flags (table 5.10).
WBINVD, PROC_C1, PWR_BUTTON, SLP_BUTTON, FIX_RTC = 1 << 0, 1 << 2, 1 << 4, 1 << 5, 1 << 6
TMR_VAL_EXT, RESET_REG_SUP, HEADLESS, HW_REDUCED = 1 << 8, 1 << 10, 1 << 12, 1 << 20
# IA-PC boot architecture flags (table 5.11).
LEGACY, I8042, NO_VGA, NO_ASPM, NO_RTC = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 5

NO_C2, NO_C3 = 0x65, 0x3E9
"""Latencies in microseconds that say a C-state is not supported (5.2.9: > 100, > 1000)."""
CENTURY_INDEX = 0x32
FADT_REVISION, FADT_MINOR = 6, 3


def fadt(config: AcpiConfig) -> Table:
    """Fixed ACPI description table, full or hardware-reduced (5.2.9)."""
    reduced = config.hardware_reduced
    pm = config.pm or PmConfig(0, 0, 0, 0, 0, 0)
    reset = config.reset
    rtc = "rtc" in config.legacy
    # From offset 36, in the order of table 5.9.
    body = struct.pack(
        "<IIBBHIBBBBIIIIIIII",
        0, 0, 0, 0 if reduced else 1,  # FACS, DSDT: pointers; desktop
        pm.sci, pm.smi_command, pm.acpi_enable, pm.acpi_disable, 0, 0,
        pm.event, 0, pm.control, 0, 0, pm.timer, pm.gpe0, 0,
    )  # fmt: skip
    body += struct.pack(
        "<BBBBBBBBHHHHBBBBBHBI",
        4 if pm.event else 0, 2 if pm.control else 0, 0, 4 if pm.timer else 0,
        pm.gpe0_length if pm.gpe0 else 0, 0, 0, 0,
        NO_C2, NO_C3, 0, 0, 0, 0,
        0, 0, CENTURY_INDEX if rtc else 0,
        _boot_flags(config), 0, _flags(config),
    )  # fmt: skip
    body += gas(reset.port if reset else 0, 8, access=1)
    body += struct.pack("<BHBQQ", reset.value if reset else 0, 0, FADT_MINOR, 0, 0)
    body += gas(pm.event, 32, access=2) + gas(0, 0)
    body += gas(pm.control, 16, access=2) + gas(0, 0) + gas(0, 0)
    body += gas(pm.timer, 32, access=3)
    body += gas(pm.gpe0, 8 * pm.gpe0_length, access=1) + gas(0, 0)
    sleep = config.sleep if reduced else None
    space = GAS_IO if sleep is None or sleep.io else GAS_MEMORY
    body += gas(sleep.control if sleep else 0, 8, space=space, access=1)
    body += gas(sleep.status if sleep else 0, 8, space=space, access=1)
    body += bytes(8)  # hypervisor vendor identity: no hibernation, so nothing to compare
    pointers = [Pointer(4, 4, "DSDT"), Pointer(104, 8, "DSDT")]
    if not reduced:
        pointers.insert(0, Pointer(0, 4, "FACS"))
    return sdt(config, "FACP", FADT_REVISION, body, pointers)


def _flags(config: AcpiConfig) -> int:
    flags = WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC
    if config.reset:
        flags |= RESET_REG_SUP
    if config.hardware_reduced:
        return flags | HW_REDUCED | PWR_BUTTON
    if config.pm is None or not config.power_button:
        flags |= PWR_BUTTON  # set: there is none in fixed hardware
    if config.pm is not None and config.pm.timer_32bit:
        flags |= TMR_VAL_EXT
    return flags


def _boot_flags(config: AcpiConfig) -> int:
    legacy = config.legacy
    flags = NO_ASPM
    if legacy & {"com1", "com2", "speaker"} or config.pci is not None:
        flags |= LEGACY
    if legacy & {"keyboard", "mouse"}:
        flags |= I8042
    if "vga" not in legacy:
        flags |= NO_VGA
    if "rtc" not in legacy:
        flags |= NO_RTC
    return flags


def mcfg(config: AcpiConfig, ecam: Window) -> Table:
    """Where PCI configuration space is in memory (PCI Firmware 3.3, 4.1.2)."""
    last_bus = (ecam.size >> 20) - 1
    return sdt(config, "MCFG", 1, bytes(8) + struct.pack("<QHBB4x", ecam.base, 0, 0, last_bus))


def hpet(config: AcpiConfig, base: int) -> Table:
    """High-precision event timers (IA-PC HPET 1.0a, 3.2.4): block ID of three 64-bit timers."""
    body = struct.pack("<I", 0x8086A201) + gas(base, 0, space=GAS_MEMORY)
    return sdt(config, "HPET", 1, body + struct.pack("<BHB", 0, 0x80, 0))


def waet(config: AcpiConfig) -> Table:
    """Windows ACPI emulated devices table: RTC and PM timer are good as they are."""
    return sdt(config, "WAET", 1, struct.pack("<I", 3))
