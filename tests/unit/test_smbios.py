"""SMBIOS structures, read back by dmidecode."""

from __future__ import annotations

import pathlib
import struct
import subprocess

import pytest
from debian_tools import need

from pykvm.arch import smbios
from pykvm.arch.cpumodel import Topology
from pykvm.arch.errors import ArchError
from pykvm.arch.smbios import SmbiosConfig

GIB = 1 << 30
CONFIG = SmbiosConfig(
    memory=[(0, 3 * GIB), (4 * GIB, 37 * GIB)],
    topology=Topology(sockets=2, cores=2, threads=2),
    cpu_mhz=2600, cpu_vendor="AuthenticAMD", serial="A-1",
    uuid=bytes(range(16)),
)  # fmt: skip


def dmidecode(tmp_path: pathlib.Path, entry: bytes, table: bytes, *arguments: str) -> str:
    """What it says of a dump: the entry point at 0, the table where the entry says, 32."""
    program = need("dmidecode", package="dmidecode")
    dump = tmp_path / "dump.bin"
    dump.write_bytes(entry.ljust(32, b"\0") + table)
    result = subprocess.run(
        [program, "--from-dump", str(dump), *arguments],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    return result.stdout


def test_dmidecode_reads_every_structure(tmp_path: pathlib.Path) -> None:
    parts = smbios.structures(CONFIG)
    said = dmidecode(tmp_path, smbios.entry_point_2(32, parts), b"".join(parts))
    assert "SMBIOS 2.8 present." in said
    assert f"{len(parts)} structures occupying {sum(map(len, parts))} bytes." in said
    for wrong in ("OUT OF SPEC", "BAD INDEX", "TRUNCATED", "Wrong DMI", "checksum"):
        assert wrong not in said
    for right in (
        "System is a virtual machine",
        "Product Name: pykvm virtual PC",
        "Serial Number: A-1",
        "UUID: 00010203-0405-0607-0809-0a0b0c0d0e0f",
        "Maximum Capacity: 40 GB",
        "Number Of Devices: 3",
        "Starting Address: 0x00100000000",
        "Ending Address: 0x00A3FFFFFFF",
        "Status: No errors detected",
        "End Of Table",
    ):
        assert right in said, said
    cpus = dmidecode(
        tmp_path, smbios.entry_point_2(32, parts), b"".join(parts), "--type", "processor"
    )
    assert cpus.count("Socket Designation: CPU ") == 2
    assert cpus.count("Core Count: 2") == cpus.count("Thread Count: 4") == 2
    assert "Current Speed: 2600 MHz" in cpus
    modules = dmidecode(
        tmp_path, smbios.entry_point_2(32, parts), b"".join(parts), "--type", "memory"
    )
    assert modules.count("Size: 16 GB") == 2
    assert modules.count("Size: 8 GB") == 1


def test_the_64_bit_entry_point_leads_to_the_same(tmp_path: pathlib.Path) -> None:
    table = b"".join(smbios.structures(CONFIG))
    said = dmidecode(tmp_path, smbios.entry_point_3(32, len(table)), table)
    assert "SMBIOS 3.0.0 present." in said
    assert "End Of Table" in said


def test_small_and_huge_memory(tmp_path: pathlib.Path) -> None:
    for size, capacity in ((32 << 20, "32 MB"), (3 << 40, "3 TB")):
        parts = smbios.structures(SmbiosConfig(memory=[(0, size)]))
        said = dmidecode(tmp_path, smbios.entry_point_2(32, parts), b"".join(parts))
        assert f"Maximum Capacity: {capacity}" in said
        assert f"Range Size: {capacity}" in said


def test_the_blob_and_the_firmware_files() -> None:
    tables = smbios.build(CONFIG, 0xF2000)
    ((gpa, blob),) = tables.blobs
    assert gpa == tables.entry_gpa == 0xF2000
    assert tables.end == gpa + len(blob)
    assert blob[:4] == b"_SM_"
    assert sum(blob[:31]) & 0xFF == sum(blob[16:31]) & 0xFF == 0
    length, at = struct.unpack_from("<HI", blob, 0x16)
    raw = blob[at - gpa :]
    assert len(raw) == length
    assert blob[32:37] == b"_SM3_"
    assert sum(blob[32:56]) & 0xFF == 0
    assert struct.unpack_from("<IQ", blob, 32 + 12) == (length, at)
    files = tables.fw_cfg_files
    assert files["etc/smbios/smbios-tables"] == raw
    assert len(files["etc/smbios/smbios-anchor"]) == 31


def test_what_it_refuses() -> None:
    with pytest.raises(ArchError, match="16 bytes, not 3"):
        smbios.build(SmbiosConfig(uuid=b"abc"))
    with pytest.raises(ArchError, match="multiple of 16"):
        smbios.build(SmbiosConfig(), 0xF0001)
    with pytest.raises(ArchError, match="65535"):
        smbios.build(SmbiosConfig(memory=[(n << 44, 1 << 40) for n in range(40)]))
