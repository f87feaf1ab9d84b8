"""SMBIOS 3.0 structures that describe the machine to inventory tools (DSP0134).

Both entry points are made: the 32-bit one (2.8) that every system and firmware reads, and the
64-bit one (3.0). Systems look for them at multiples of 16 in 0xF0000-0xFFFFF.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from pykvm.arch.cpumodel.topology import Topology
from pykvm.arch.errors import ArchError

DEFAULT_BASE = 0xF4000
"""Guest-physical address in the area that systems search, behind the MP table."""
ENTRY_2_SIZE, ENTRY_3_SIZE = 31, 24
TABLES_FILE, ANCHOR_FILE = "etc/smbios/smbios-tables", "etc/smbios/smbios-anchor"
MAX_LENGTH = 0xFFFF
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Handles, as firmware commonly gives them: the type in the high byte.
SYSTEM, CHASSIS, CPU, MEMORY_ARRAY, MEMORY, MEMORY_MAP = 0x100, 0x300, 0x400, 0x1000, 0x1100, 0x1300
NO_HANDLE, NOT_PROVIDED = 0xFFFF, 0xFFFE
DIMM_SIZE = 16 * GIB
"""More memory than this is described as several modules."""
UNKNOWN, OTHER = 2, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SmbiosConfig:
    """What is said about the machine. Sizes in bytes, addresses guest-physical."""

    memory: Sequence[tuple[int, int]] = ((0, 64 * MIB),)
    """RAM as (address, size) pieces."""
    topology: Topology = field(default_factory=Topology)
    cpu_signature: int = 0
    """EAX of CPUID leaf 1."""
    cpu_features: int = 0
    """EDX of CPUID leaf 1."""
    cpu_vendor: str = "pykvm"
    cpu_version: str = "virtual CPU"
    cpu_mhz: int = 0
    manufacturer: str = "pykvm"
    product: str = "pykvm virtual PC"
    version: str = "1.0"
    serial: str = ""
    uuid: bytes = bytes(16)
    """16 bytes in network order; all zero is "not set"."""
    bios_vendor: str = "pykvm"
    bios_version: str = "1.0"
    bios_date: str = "01/01/2026"
    """Month, day, year. From 2023 on Linux trusts the PCI windows that ACPI tells of."""


@dataclass(frozen=True, slots=True)
class SmbiosTables:
    """What `build` made."""

    entry_gpa: int
    """Guest-physical address of the 32-bit entry point."""
    blobs: list[tuple[int, bytes]]
    """(address, contents) for a direct boot."""
    fw_cfg_files: dict[str, bytes]
    """The files that firmware such as SeaBIOS installs."""

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return max(gpa + len(data) for gpa, data in self.blobs)


class _Strings:
    """The strings behind a structure: numbered from 1, 0 is none."""

    def __init__(self) -> None:
        self._known: list[bytes] = []

    def __call__(self, text: str) -> int:
        raw = text.encode("ascii", "replace").replace(b"\0", b"")
        if not raw:
            return 0
        if raw not in self._known:
            self._known.append(raw)
        return self._known.index(raw) + 1

    def pack(self) -> bytes:
        return b"".join(raw + b"\0" for raw in self._known) + b"\0" * (1 if self._known else 2)


def _structure(kind: int, handle: int, body: bytes, strings: _Strings | None = None) -> bytes:
    head = struct.pack("<BBH", kind, 4 + len(body), handle)
    return head + body + (strings or _Strings()).pack()


def structures(config: SmbiosConfig) -> list[bytes]:
    """All structures with their strings, in ascending types, the end last."""
    found = [_bios(config), _system(config), _chassis(config)]
    found += [_processor(config, n) for n in range(config.topology.sockets)]
    found += _memory(config)
    # Type 32, system boot: no errors detected.
    found.append(_structure(32, 0x2000, bytes(7)))
    found.append(_structure(127, 0x7F00, b""))
    return found


def _bios(config: SmbiosConfig) -> bytes:
    """Type 0 (7.1): ACPI, a virtual machine, no firmware to be updated."""
    s = _Strings()
    body = struct.pack("<BBHBB", s(config.bios_vendor), s(config.bios_version), 0xE800,
                       s(config.bios_date), 0)  # fmt: skip
    # Characteristics are not known; bytes: ACPI is supported; this is a virtual machine (bit 4).
    body += struct.pack("<QBBBBBB", 1 << 3, 1, 1 << 4, 1, 0, 0xFF, 0xFF)
    return _structure(0, 0, body, s)


def _system(config: SmbiosConfig) -> bytes:
    """Type 1 (7.2); the UUID's first three fields are little-endian."""
    if len(config.uuid) != 16:
        raise ArchError(f"a UUID has 16 bytes, not {len(config.uuid)}")
    s = _Strings()
    body = bytes((s(config.manufacturer), s(config.product), s(config.version), s(config.serial)))
    raw = config.uuid
    body += raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]
    body += bytes((6, 0, s("Virtual Machine")))  # woken by the power switch
    return _structure(1, SYSTEM, body, s)


def _chassis(config: SmbiosConfig) -> bytes:
    """Type 3 (7.4): of type Other, all states safe."""
    s = _Strings()
    body = bytes((s(config.manufacturer), OTHER, s(config.version), 0, 0, 3, 3, 3, UNKNOWN))
    body += struct.pack("<IBBBBB", 0, 0, 0, 0, 0, 0)
    return _structure(3, CHASSIS, body, s)


def _processor(config: SmbiosConfig, socket: int) -> bytes:
    """Type 4 (7.5), one a socket."""
    s = _Strings()
    topology = config.topology
    cores, threads = topology.dies * topology.cores, topology.per_socket
    mhz = min(config.cpu_mhz, 0xFFFF)
    body = struct.pack(
        "<BBBBIIBBHHHBBHHHBBBBBBHHHHH",
        s(f"CPU {socket}"), 3, 1, s(config.cpu_vendor),  # central processor, family Other
        config.cpu_signature, config.cpu_features, s(config.cpu_version),
        0, 0, mhz, mhz,  # voltage and external clock unknown
        0x41, OTHER,  # socket populated and enabled; upgrade Other
        NO_HANDLE, NO_HANDLE, NO_HANDLE,
        0, 0, 0,
        min(cores, 255), min(cores, 255), min(threads, 255),
        0x04 | (0x10 if topology.threads > 1 else 0) | (0x08 if cores > 1 else 0), 1,  # 64-bit
        cores, cores, threads,
    )  # fmt: skip
    return _structure(4, CPU + socket, body, s)


def _memory(config: SmbiosConfig) -> list[bytes]:
    """Types 16, 17 and 19 (7.17, 7.18, 7.20): an array of modules, and where it is mapped."""
    total = sum(size for _, size in config.memory)
    modules = max(1, -(-total // DIMM_SIZE))
    kib = total // KIB
    small = kib if kib < 1 << 31 else 1 << 31
    array = struct.pack(
        "<BBBIHHQ", 1, 3, 3, small, NOT_PROVIDED, modules, 0 if small == kib else total
    )
    found = [_structure(16, MEMORY_ARRAY, array)]  # other place, system memory, no ECC
    left = total
    for n in range(modules):
        size = min(left, DIMM_SIZE)
        left -= size
        found.append(_module(config, n, size))
    for n, (base, size) in enumerate(config.memory):
        start, end = base // KIB, (base + size) // KIB - 1
        if end < 0xFFFFFFFF:
            body = struct.pack("<IIHBQQ", start, max(end, start), MEMORY_ARRAY, 1, 0, 0)
        else:
            body = struct.pack(
                "<IIHBQQ", 0xFFFFFFFF, 0xFFFFFFFF, MEMORY_ARRAY, 1, base, base + size - 1
            )
        found.append(_structure(19, MEMORY_MAP + n, body))
    return found


def _module(config: SmbiosConfig, number: int, size: int) -> bytes:
    s = _Strings()
    mib = max(1, size // MIB)
    words, extended = (mib, 0) if mib < 0x7FFF else (0x7FFF, mib)
    body = struct.pack(
        "<HHHHHBBBBBHHBBBBBIHHHH",
        MEMORY_ARRAY, NOT_PROVIDED, 0xFFFF, 0xFFFF, words, 9, 0,  # a DIMM, in no set
        s(f"DIMM {number}"), 0, 7, 1 << 1, 0,  # RAM, type detail Other; speed unknown
        s(config.manufacturer), 0, 0, 0, 0, extended, 0, 0, 0, 0,
    )  # fmt: skip
    return _structure(17, MEMORY + number, body, s)


def _checksum(data: bytearray, at: int, start: int = 0) -> None:
    data[at] = 0
    data[at] = -sum(data[start:]) & 0xFF


def entry_point_2(table_gpa: int, parts: Sequence[bytes]) -> bytes:
    """The 32-bit entry point (5.2.1)."""
    length = sum(map(len, parts))
    data = bytearray(
        struct.pack(
            "<4sBBBBHB5s5sBHIHB",
            b"_SM_", 0, ENTRY_2_SIZE, 2, 8, max(map(len, parts)), 0, bytes(5),
            b"_DMI_", 0, length, table_gpa, len(parts), 0x28,
        )
    )  # fmt: skip
    _checksum(data, 0x15, 0x10)
    _checksum(data, 4)
    return bytes(data)


def entry_point_3(table_gpa: int, length: int) -> bytes:
    """The 64-bit entry point (5.2.2)."""
    data = bytearray(
        struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, ENTRY_3_SIZE, 3, 0, 0, 1, 0, length, table_gpa)
    )
    _checksum(data, 5)
    return bytes(data)


def build(config: SmbiosConfig, base_gpa: int = DEFAULT_BASE) -> SmbiosTables:
    """Entry points and structures for guest-physical `base_gpa`, a multiple of 16.

    Raises `ArchError` where they do not fit below 4 GiB or into the 64 KiB that the 32-bit entry
    point can name.
    """
    parts = structures(config)
    raw = b"".join(parts)
    if len(raw) > MAX_LENGTH:
        raise ArchError(f"{len(raw)} bytes of SMBIOS structures; the entry point can say 65535")
    table = base_gpa + 64
    if base_gpa % 16 or not 0 <= base_gpa < (1 << 32) - 64 - len(raw):
        raise ArchError(f"SMBIOS tables start at a multiple of 16 below 4 GiB, not {base_gpa:#x}")
    entries = entry_point_2(table, parts).ljust(32, b"\0") + entry_point_3(table, len(raw))
    return SmbiosTables(
        entry_gpa=base_gpa,
        blobs=[(base_gpa, entries.ljust(64, b"\0") + raw)],
        fw_cfg_files={TABLES_FILE: raw, ANCHOR_FILE: entry_point_2(0, parts)},
    )
