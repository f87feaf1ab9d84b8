"""`AcpiTables`: the tables placed in guest memory, and the same as files for firmware."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """What `build_tables` made. Addresses are guest-physical."""

    rsdp_gpa: int
    """Where the RSDP is: what PVH and 64-bit boot protocols pass on."""
    blobs: list[tuple[int, bytes]]
    """(address, contents): to be written to guest memory before a direct boot."""
    tables: dict[str, tuple[int, bytes]]
    """Signature → (address, contents), for inspection; the RSDP is `RSD PTR `."""
    fw_cfg_files: dict[str, bytes]
    """`etc/acpi/tables`, `etc/acpi/rsdp` and `etc/table-loader` for firmware such as SeaBIOS."""

    @property
    def end(self) -> int:
        """The address after the last table."""
        return max(gpa + len(data) for gpa, data in self.blobs)
