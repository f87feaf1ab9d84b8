"""What all ACPI tables share: the header, the checksum, generic addresses, pointers to tables."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pykvm.arch.acpi.config import AcpiConfig
from pykvm.typed import NamedTuple

HEADER_SIZE = 36
CREATOR_ID, CREATOR_REVISION = b"PKVM", 1


class Pointer(NamedTuple):
    """A little-endian field of `size` bytes that holds the address of another table."""

    offset: int
    size: int
    target: str


class Checksum(NamedTuple):
    """The byte at `offset` makes the sum of [start, start + length) zero."""

    offset: int
    start: int
    length: int


@dataclass(slots=True)
class Table:
    """One table, not placed yet: its pointers hold 0 and its checksums are to be made."""

    key: str
    """Signature, unique among the tables of a machine."""
    data: bytes
    pointers: list[Pointer] = field(default_factory=list)
    checksums: list[Checksum] = field(default_factory=list)
    align: int = 16


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all zero."""
    return -sum(data) & 0xFF


def sdt(
    config: AcpiConfig,
    signature: str,
    revision: int,
    body: bytes,
    pointers: list[Pointer] | None = None,
) -> Table:
    """A table with the common header (ACPI 6.5 5.2.6). Pointers' offsets are into the body."""
    length = HEADER_SIZE + len(body)
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature.encode(), length, revision, 0,
        config.oem_id.ljust(6), config.oem_table_id.ljust(8), 1, CREATOR_ID, CREATOR_REVISION,
    )  # fmt: skip
    moved = [p._replace(offset=p.offset + HEADER_SIZE) for p in pointers or []]
    return Table(signature, header + body, moved, [Checksum(9, 0, length)])


# Generic address structure (ACPI 6.5 5.2.3.2).
GAS_MEMORY, GAS_IO = 0, 1


def gas(address: int, bits: int, *, space: int = GAS_IO, access: int = 0) -> bytes:
    """A register's address: width in bits; `access` 1 byte, 2 word, 3 dword, 0 undefined."""
    if not address:
        return bytes(12)
    return struct.pack("<BBBBQ", space, bits, 0, access, address)
