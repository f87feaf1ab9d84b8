"""ACPI tables for a virtual PC, made from a plain description of it.

`build_tables(AcpiConfig(...), base_gpa)` gives them placed in guest memory and as the fw_cfg files
that firmware installs. Source: ACPI Specification 6.5.
"""

from __future__ import annotations

from pykvm.arch.acpi.config import (
    LEGACY_DEVICES,
    AcpiConfig,
    IoApicConfig,
    IrqOverride,
    MmioDevice,
    NumaNode,
    PciConfig,
    PmConfig,
    ResetConfig,
    SleepConfig,
    Window,
)
from pykvm.arch.acpi.place import DEFAULT_BASE, build_tables
from pykvm.arch.acpi.tables import AcpiTables

__all__ = [
    "DEFAULT_BASE",
    "LEGACY_DEVICES",
    "AcpiConfig",
    "AcpiTables",
    "IoApicConfig",
    "IrqOverride",
    "MmioDevice",
    "NumaNode",
    "PciConfig",
    "PmConfig",
    "ResetConfig",
    "SleepConfig",
    "Window",
    "build_tables",
]
