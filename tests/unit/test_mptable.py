"""The MP table, read back the way kernels do."""

from __future__ import annotations

import struct

import pytest

from pykvm.arch import mptable
from pykvm.arch.acpi.config import ALL_PINS
from pykvm.arch.errors import ArchError

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def parse(blob: bytes, base: int) -> tuple[dict[str, int], list[bytes]]:
    """Header fields and entries; checks signatures, lengths and checksums."""
    assert blob[:4] == b"_MP_"
    assert sum(blob[:16]) & 0xFF == 0
    pointer, units, version = struct.unpack_from("<IBB", blob, 4)
    assert (units, version) == (1, 4)
    table = blob[pointer - base :]
    assert table[:4] == b"PCMP"
    length, spec = struct.unpack_from("<HB", table, 4)
    assert length == len(table)
    assert spec == 4
    assert sum(table) & 0xFF == 0
    count, lapic = struct.unpack_from("<HI", table, 34)
    found, at = [], 44
    while at < length:
        size = SIZES[table[at]]
        found.append(table[at : at + size])
        at += size
    assert at == length
    assert len(found) == count
    kinds = [e[0] for e in found]
    assert kinds == sorted(kinds)  # the specification's order
    return {"lapic": lapic}, found


def test_cpus_buses_and_interrupts() -> None:
    gsis = range(16, 24)
    blob = mptable.build(
        [0, 1, 4, 5], 0xF0000, signature=0xA10F11, features=0x178BFBFF,
        pci=mptable.pci_interrupts(gsis, [(s, p) for s in (2, 31) for p in range(4)]),
    )  # fmt: skip
    header, found = parse(blob, 0xF0000)
    assert header["lapic"] == 0xFEE0_0000
    cpus = [(e[1], e[3], struct.unpack_from("<II", e, 4)) for e in found if e[0] == 0]
    assert cpus == [
        (0, 3, (0xF11, 0x178BFBFF)),
        (1, 1, (0xF11, 0x178BFBFF)),
        (4, 1, (0xF11, 0x178BFBFF)),
        (5, 1, (0xF11, 0x178BFBFF)),
    ]
    assert [(e[1], e[2:8]) for e in found if e[0] == 1] == [(0, b"PCI   "), (1, b"ISA   ")]
    (ioapic,) = [e for e in found if e[0] == 2]
    assert ioapic[1] == 2  # the first ID that no CPU has
    assert struct.unpack_from("<I", ioapic, 4) == (0xFEC0_0000,)
    lines = [struct.unpack("<BBHBBBB", e) for e in found if e[0] == 3]
    assert {line[5] for line in lines} == {2}
    isa = {(line[4], line[6]): line[2] for line in lines if line[3] == 1}
    assert set(isa) == {(0, 2), *((n, n) for n in range(16) if n not in (0, 2))}
    assert {source for (source, _), flags in isa.items() if flags == 0x0D} == {9}
    pci = {(line[4] >> 2, line[4] & 3): line[6] for line in lines if line[3] == 0}
    assert pci == {(s, p): 16 + (s + p) % 8 for s in (2, 31) for p in range(4)}
    local = [struct.unpack("<BBHBBBB", e)[1:] for e in found if e[0] == 4]
    assert local == [(3, 0, 1, 0, 0, 0), (1, 0, 1, 0, 0xFF, 1)]


def test_without_pci_and_8259s() -> None:
    _, found = parse(mptable.build([0], 0x9FC00, pic=False, timer_pin=0), 0x9FC00)
    assert [(e[1], e[2:8]) for e in found if e[0] == 1] == [(0, b"ISA   ")]
    lines = [struct.unpack("<BBHBBBB", e) for e in found if e[0] == 3]
    assert {(line[4], line[6]) for line in lines} == {(n, n) for n in range(16) if n != 2}
    assert [e[1] for e in found if e[0] == 4] == [1]


def test_64_cpus_fit_a_page() -> None:
    blob = mptable.build(range(64), pci=mptable.pci_interrupts(range(16, 24), ALL_PINS))
    assert len(parse(blob, 0xF0000)[1]) > 64
    assert len(blob) < 4096


@pytest.mark.parametrize("cpus", [[], range(255), [0, 255], [-1]])
def test_cpus_that_it_cannot_name(cpus: list[int]) -> None:
    with pytest.raises(ArchError, match="MP table names 1 to 254 CPUs"):
        mptable.build(cpus)


def test_where_it_cannot_be() -> None:
    with pytest.raises(ArchError, match="multiple of 16"):
        mptable.build([0], 0xF0008)
