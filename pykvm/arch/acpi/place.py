"""Putting the tables together: at addresses for a direct boot, as files for firmware."""

from __future__ import annotations

from pykvm.arch.acpi.config import AcpiConfig
from pykvm.arch.acpi.dsdt import dsdt
from pykvm.arch.acpi.fixed import RSDP, facs, fadt, hpet, mcfg, rsdp, rsdt, waet, xsdt
from pykvm.arch.acpi.loader import loader_files
from pykvm.arch.acpi.madt import madt, slit, srat
from pykvm.arch.acpi.table import Table, checksum
from pykvm.arch.acpi.tables import AcpiTables
from pykvm.arch.errors import ArchError

DEFAULT_BASE = 0xE0000
"""Old systems look for the RSDP from here to 0xFFFFF, at multiples of 16."""
LIMIT_RSDT = 1 << 32


def make_tables(config: AcpiConfig) -> list[Table]:
    """All tables, not placed, the RSDP last. Raises `ArchError` where the description is wrong."""
    if config.hardware_reduced and config.pm is not None:
        raise ArchError("a hardware-reduced machine has no ACPI PM hardware; leave pm None")
    if not config.hardware_reduced and config.pm is None:
        raise ArchError("without ACPI PM hardware the machine must be hardware_reduced")
    if not config.cpus or len(set(config.cpus)) != len(config.cpus):
        raise ArchError("a machine has at least one CPU, and each an APIC ID of its own")
    listed = [fadt(config), madt(config)]
    if config.pci is not None and config.pci.ecam is not None:
        listed.append(mcfg(config, config.pci.ecam))
    if config.numa:
        listed += [srat(config), slit(config)]
    if config.hpet is not None:
        listed.append(hpet(config, config.hpet))
    if config.waet:
        listed.append(waet(config))
    keys = [table.key for table in listed]
    # The FACS first: it needs the widest alignment.
    found = [] if config.hardware_reduced else [facs()]
    found += [dsdt(config), *listed, rsdt(config, keys), xsdt(config, keys), rsdp(config)]
    return found


def lay_out(tables: list[Table], base: int) -> dict[str, int]:
    """Key → address, one after another from `base`."""
    places = {}
    at = base
    for table in tables:
        at = -(-at // table.align) * table.align
        places[table.key] = at
        at += len(table.data)
    return places


def resolve(table: Table, places: dict[str, int]) -> bytes:
    """The table's contents with pointers and checksums filled in."""
    data = bytearray(table.data)
    for offset, size, target in table.pointers:
        data[offset : offset + size] = places[target].to_bytes(size, "little")
    for offset, start, length in table.checksums:
        data[offset] = 0
        data[offset] = checksum(data[start : start + length])
    return bytes(data)


def build_tables(
    config: AcpiConfig, base_gpa: int = DEFAULT_BASE, *, rsdp_gpa: int | None = None
) -> AcpiTables:
    """All tables that describe a machine.

    `base_gpa`: guest-physical address of the first, a multiple of 64; the RSDP comes first unless
    `rsdp_gpa` (a multiple of 16) puts it elsewhere. Raises `ArchError` where the description
    contradicts itself or an address does not fit.
    """
    tables = make_tables(config)
    *others, root = tables
    if base_gpa < 0 or base_gpa % 64 or (rsdp_gpa or 0) % 16:
        raise ArchError("ACPI tables start at a multiple of 64, the RSDP at one of 16")
    if rsdp_gpa is None:
        places = lay_out([root, *others], base_gpa)
    else:
        places = {**lay_out(others, base_gpa), root.key: rsdp_gpa}
    if any(at + len(t.data) > LIMIT_RSDT for t in tables for at in [places[t.key]]):
        raise ArchError(f"ACPI tables at {base_gpa:#x} do not end below 4 GiB")
    placed = {table.key: (places[table.key], resolve(table, places)) for table in tables}
    return AcpiTables(
        rsdp_gpa=places[RSDP],
        blobs=list(placed.values()),
        tables=placed,
        fw_cfg_files=loader_files(others, root, lay_out(others, 0)),
    )
