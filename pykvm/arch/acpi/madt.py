"""Interrupt controllers and CPUs: the MADT, and for NUMA the SRAT and SLIT (ACPI 6.5 5.2.12-17)."""

from __future__ import annotations

import struct

from pykvm.arch.acpi.config import LIMIT_XAPIC, AcpiConfig, IrqOverride
from pykvm.arch.acpi.table import Table, sdt
from pykvm.arch.errors import ArchError

PCAT_COMPAT = 1
"""MADT flag: two 8259s, which must be masked when the APICs are used."""
ENABLED = 1
ALL_XAPIC, ALL_X2APIC = 0xFF, 0xFFFFFFFF
NMI_LINT = 1


def irq_overrides(config: AcpiConfig) -> list[IrqOverride]:
    """ISA interrupts that differ from the bus's rule, the configured ones or what a PC has."""
    if config.overrides is not None:
        return list(config.overrides)
    found = []
    if "pit" in config.legacy:
        found.append(IrqOverride(0, 2))
    if config.pm is not None and not config.hardware_reduced:
        found.append(IrqOverride(config.pm.sci, config.pm.sci, level=True))
    return found


def override_flags(override: IrqOverride) -> int:
    """Polarity and trigger as the MADT and the MP table have them; 0 where they are the bus's."""
    if not override.level and not override.low:
        return 0
    return (3 if override.low else 1) | (3 if override.level else 1) << 2


def madt(config: AcpiConfig) -> Table:
    """Multiple APIC description table, revision 5."""
    flags = PCAT_COMPAT if "pic" in config.legacy else 0
    body = struct.pack("<II", config.lapic_base, flags)
    small = large = False
    for uid, apic_id in enumerate(config.cpus):
        if apic_id < LIMIT_XAPIC and uid < LIMIT_XAPIC:
            body += struct.pack("<BBBBI", 0, 8, uid, apic_id, ENABLED)
            small = True
        else:
            body += struct.pack("<BBHIII", 9, 16, 0, apic_id, ENABLED, uid)
            large = True
    if config.ioapic is not None:
        ioapic = config.ioapic
        body += struct.pack("<BBBBII", 1, 12, ioapic.id, 0, ioapic.base, ioapic.gsi_base)
        for override in irq_overrides(config):
            body += struct.pack(
                "<BBBBIH", 2, 10, 0, override.irq, override.gsi, override_flags(override)
            )
    if small:
        body += struct.pack("<BBBHB", 4, 6, ALL_XAPIC, 0, NMI_LINT)
    if large:
        body += struct.pack("<BBHIB3x", 10, 12, 0, ALL_X2APIC, NMI_LINT)
    return sdt(config, "APIC", 5, body)


def node_of_cpu(config: AcpiConfig) -> dict[int, int]:
    """CPU index → NUMA node. Raises `ArchError` for a CPU in two nodes, or one that is not there.

    CPUs that no node names are in node 0.
    """
    found: dict[int, int] = {}
    for number, node in enumerate(config.numa):
        for cpu in node.cpus:
            if not 0 <= cpu < len(config.cpus):
                raise ArchError(f"NUMA node {number} names CPU {cpu}; there are {len(config.cpus)}")
            if cpu in found:
                raise ArchError(f"CPU {cpu} is in the NUMA nodes {found[cpu]} and {number}")
            found[cpu] = number
    return {cpu: found.get(cpu, 0) for cpu in range(len(config.cpus))}


def srat(config: AcpiConfig) -> Table:
    """System resource affinity table, revision 3."""
    body = struct.pack("<I8x", 1)
    for cpu, node in node_of_cpu(config).items():
        apic_id = config.cpus[cpu]
        if apic_id < LIMIT_XAPIC:
            body += struct.pack("<BBBBIB", 0, 16, node & 0xFF, apic_id, ENABLED, 0)
            body += struct.pack("<3sI", (node >> 8).to_bytes(3, "little"), 0)
        else:
            body += struct.pack("<BBHIIII4x", 2, 24, 0, node, apic_id, ENABLED, 0)
    for number, numa in enumerate(config.numa):
        for base, size in numa.memory:
            body += struct.pack("<BBIHQQIIQ", 1, 40, number, 0, base, size, 0, ENABLED, 0)
    return sdt(config, "SRAT", 3, body)


LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20


def slit(config: AcpiConfig) -> Table:
    """System locality distance table."""
    count = len(config.numa)
    rows = config.distances or [
        [LOCAL_DISTANCE if i == j else REMOTE_DISTANCE for j in range(count)] for i in range(count)
    ]
    if len(rows) != count or any(len(row) != count for row in rows):
        raise ArchError(f"NUMA distances must be {count} rows of {count} values")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if (value != LOCAL_DISTANCE) if i == j else not LOCAL_DISTANCE <= value <= 254:
                raise ArchError(
                    f"NUMA distance {value} from node {i} to {j}: 10 to itself, else 10 to 254"
                )
    return sdt(config, "SLIT", 1, struct.pack("<Q", count) + bytes(v for row in rows for v in row))
