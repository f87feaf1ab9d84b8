"""The tables as fw_cfg files, with the commands by which firmware installs and links them.

Source: QEMU's docs/specs and the format that SeaBIOS (`romfile_loader`) and OVMF execute: entries
of 128 bytes, each a command number and its arguments, little-endian.
"""

from __future__ import annotations

import struct

from pykvm.arch.acpi.table import Table

TABLES_FILE, RSDP_FILE, LOADER_FILE = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"

ALLOCATE, ADD_POINTER, ADD_CHECKSUM = 1, 2, 3
ZONE_HIGH, ZONE_FSEG = 1, 2
"""Anywhere below 4 GiB, or in 0xF0000-0xFFFFF."""
ENTRY_SIZE, NAME_SIZE = 128, 56


def loader_files(tables: list[Table], rsdp: Table, places: dict[str, int]) -> dict[str, bytes]:
    """The three files. `places`: offset of each table in the file of tables, first at 0.

    Pointers hold the offset of their target in its file; the firmware adds the file's address.
    """
    blob = bytearray()
    commands = [
        _allocate(TABLES_FILE, max(table.align for table in tables), ZONE_HIGH),
        _allocate(RSDP_FILE, rsdp.align, ZONE_FSEG),
    ]
    pointers, checksums = [], []
    for table, file in [*((t, TABLES_FILE) for t in tables), (rsdp, RSDP_FILE)]:
        at = 0 if table is rsdp else places[table.key]
        data = bytearray(table.data)
        for offset, size, target in table.pointers:
            data[offset : offset + size] = places[target].to_bytes(size, "little")
            pointers.append(_pointer(file, TABLES_FILE, at + offset, size))
        for offset, start, length in table.checksums:
            data[offset] = 0
            checksums.append(_checksum(file, at + offset, at + start, length))
        if table is rsdp:
            root = bytes(data)
        else:
            blob += bytes(at - len(blob)) + data
    return {
        TABLES_FILE: bytes(blob),
        RSDP_FILE: root,
        LOADER_FILE: b"".join([*commands, *pointers, *checksums]),
    }


def _entry(command: int, arguments: bytes) -> bytes:
    return (struct.pack("<I", command) + arguments).ljust(ENTRY_SIZE, b"\0")


def _name(file: str) -> bytes:
    return file.encode().ljust(NAME_SIZE, b"\0")


def _allocate(file: str, align: int, zone: int) -> bytes:
    return _entry(ALLOCATE, _name(file) + struct.pack("<IB", align, zone))


def _pointer(file: str, target: str, offset: int, size: int) -> bytes:
    return _entry(ADD_POINTER, _name(file) + _name(target) + struct.pack("<IB", offset, size))


def _checksum(file: str, offset: int, start: int, length: int) -> bytes:
    return _entry(ADD_CHECKSUM, _name(file) + struct.pack("<III", offset, start, length))
