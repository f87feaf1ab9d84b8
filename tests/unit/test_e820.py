"""The e820 map: sorted, without overlaps, the stricter type winning."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.arch import e820
from pykvm.arch.e820 import ACPI, NVS, RAM, RESERVED, E820Entry, build_e820
from pykvm.arch.errors import ArchError

M = 1 << 20


def test_a_pc_with_64_mib() -> None:
    assert build_e820([(0, 64 * M)]) == [
        E820Entry(0, 0x9FC00, RAM),
        E820Entry(0x9FC00, 0x400, RESERVED),
        E820Entry(0xF0000, 0x10000, RESERVED),
        E820Entry(M, 63 * M, RAM),
    ]


def test_memory_on_both_sides_of_the_hole_and_tables_inside() -> None:
    found = build_e820(
        [(0, 0xA0000), (0xC0000, 0xC0000000 - 0xC0000), (1 << 32, 1 << 30)],
        [(0xE0000000, 256 * M)],
        acpi=[(0xBFFE0000, 0x10000)], nvs=[(0xBFFF0000, 0x10000)],
    )  # fmt: skip
    assert [(hex(e.base), hex(e.end), e.type) for e in found[3:]] == [
        ("0x100000", "0xbffe0000", RAM),
        ("0xbffe0000", "0xbfff0000", ACPI),
        ("0xbfff0000", "0xc0000000", NVS),
        ("0xe0000000", "0xf0000000", RESERVED),
        ("0x100000000", "0x140000000", RAM),
    ]
    assert e820.ram_size(found, 1 << 32) == 0x9FC00 + 0xBFFE0000 - M
    assert e820.ram_size(found) - e820.ram_size(found, 1 << 32) == 1 << 30


def test_an_entry_packs_as_int15_has_it() -> None:
    entry = E820Entry(0x100000, 0x3F00000, RAM)
    assert entry.pack() == bytes.fromhex("00001000000000000000f0030000000001000000")
    assert str(entry) == "0x000000100000-0x000003ffffff usable"
    assert str(E820Entry(0, 1, 77)).endswith("type 77")


@pytest.mark.parametrize("bad", [(0, 0), (-1, 5), ((1 << 64) - 1, 2), (5, -1)])
def test_ranges_that_are_none(bad: tuple[int, int]) -> None:
    with pytest.raises(ArchError, match="memory range"):
        build_e820([bad])


RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), max_size=5)


@given(RANGES, RANGES, RANGES, RANGES)
def test_every_byte_has_the_strictest_type_that_claims_it(
    ram: list[tuple[int, int]],
    reserved: list[tuple[int, int]],
    acpi: list[tuple[int, int]],
    nvs: list[tuple[int, int]],
) -> None:
    found = build_e820(ram, reserved, acpi=acpi, nvs=nvs, pc_hole=False)
    wanted: dict[int, int] = {}
    for kind, ranges in ((RAM, ram), (ACPI, acpi), (NVS, nvs), (RESERVED, reserved)):
        for base, size in ranges:
            wanted.update(dict.fromkeys(range(base, base + size), kind))
    said = {at: e.type for e in found for at in range(e.base, e.end)}
    assert said == wanted
    assert sum(e.size for e in found) == len(said)
    for left, right in itertools.pairwise(found):
        assert left.end <= right.base
        assert left.end < right.base or left.type != right.type
