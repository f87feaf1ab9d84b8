"""The walker against tables that mean harm: it always answers, and answers consistently."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.arch.bits import CR0, CR4, EFER, PTE, Vector
from pykvm.arch.paging import (
    PAGE_4K,
    FaultReason,
    PageTables,
    PagingError,
    PagingMode,
    Walk,
    mappings,
    read_virtual,
    walk,
)
from pykvm.memory import GuestMemory

PAGES = 8
SIZE = PAGES * PAGE_4K
U64 = st.integers(0, (1 << 64) - 1)


@st.composite
def entries(draw: st.DrawFn) -> int:
    """Page-table entries of every kind of bad: mostly present, often pointing into memory."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(U64)
    if kind == 1:
        return 0
    frame = draw(st.integers(0, PAGES + 1)) << 12
    flags = draw(st.integers(0, 0xFFF)) | (1 if kind < 5 else 0)
    if kind == 2:
        flags &= ~0x80 & 0xFFF  # a table, not a large page
    if kind == 3:
        frame |= 1 << draw(st.integers(12, 63))
    return frame | flags


@st.composite
def memories(draw: st.DrawFn) -> bytes:
    """A few pages of entries, most of them repeated, so that walks get deep."""
    palette = draw(st.lists(entries(), min_size=1, max_size=6))
    picks = random.Random(draw(st.integers(0, 1 << 32))).choices(palette, k=SIZE // 8)
    return struct.pack(f"<{SIZE // 8}Q", *picks)


@st.composite
def control(draw: st.DrawFn) -> dict[str, int]:
    return {
        "cr0": draw(st.sampled_from([int(CR0.PE | CR0.PG), int(CR0.PE), int(CR0.PG)])),
        "cr3": draw(st.integers(0, PAGES + 1).map(lambda n: n << 12) | U64),
        "cr4": draw(st.sampled_from([0, int(CR4.PSE), int(CR4.PAE), int(CR4.PAE | CR4.LA57)])),
        "efer": draw(st.sampled_from([0, int(EFER.LME | EFER.LMA), int(EFER.NXE), 0xD00])),
    }


addresses = U64 | st.integers(0, (1 << 32) - 1) | st.integers(0, (1 << 47) - 1)


def check_walk(found: Walk, memory: GuestMemory, where: dict[str, int]) -> None:
    """What must hold of every walk, whatever was in memory."""
    assert (found.gpa is None) == (found.fault is not None)
    assert len(found.levels) <= 5
    table = found.mode.root_of(where["cr3"])
    for spec, level in zip(found.mode.levels, found.levels, strict=False):
        assert level.name == spec.name
        size = found.mode.entry_size
        assert level.entry_gpa == table + level.index * size
        assert level.raw == int.from_bytes(memory.read(level.entry_gpa, size), "little")
        table = level.raw & (0xFFFFF000 if size == 4 else (1 << 52) - PAGE_4K)
    if found.gpa is not None and found.mode is not PagingMode.NONE:
        assert found.page_size in found.mode.page_sizes
        assert (found.gpa ^ found.va) % found.page_size == 0
        assert found.gpa >> 52 == 0
        assert all(level.raw & 1 for level in found.levels)
    if found.fault is not None:
        assert str(found.fault)
        last = found.levels[-1].raw if found.levels else None
        match found.fault.reason:
            case FaultReason.NOT_PRESENT:
                assert last is not None
                assert not last & 1
            case FaultReason.RESERVED_BIT:
                assert last is not None
                assert last & 1
            case FaultReason.UNREADABLE:
                assert not memory.contains(table, PAGE_4K)
            case FaultReason.NON_CANONICAL:
                assert not found.levels
    assert found.describe()
    assert (found.exception() is None) == (
        found.fault is None and (found.mode is PagingMode.NONE or found.exception() is None)
    )


@given(memory=memories(), where=control(), vas=st.lists(addresses, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_walks_of_hostile_tables_end_cleanly(
    memory: bytes, where: dict[str, int], vas: list[int]
) -> None:
    guest = GuestMemory.anonymous([(0, SIZE)])
    guest.write(0, memory)
    for va in vas:
        found = walk(guest, va, **where)
        check_walk(found, guest, where)
        for access in ({}, {"write": True}, {"fetch": True, "user": True}):
            result = found.exception(**access)
            assert result is None or result[0] in (Vector.PF, Vector.GP)
        data = read_virtual(guest, va, 5000, **where)
        assert len(data) <= 5000
        if found.gpa is None:
            assert data == b""


@given(memory=memories(), where=control())
@settings(max_examples=40, deadline=None)
def test_enumeration_of_hostile_tables_is_bounded(memory: bytes, where: dict[str, int]) -> None:
    guest = GuestMemory.anonymous([(0, SIZE)])
    guest.write(0, memory)
    with contextlib.suppress(PagingError):  # raised after 20 tables
        for mapping in itertools.islice(mappings(guest, **where, max_tables=20), 50):
            found = walk(guest, mapping.va, **where)
            assert (found.gpa, found.page_size) == (mapping.gpa, mapping.page_size)
            assert (found.writable, found.user, found.nx) == (
                *(mapping.writable, mapping.user, mapping.nx),
            )


def test_a_table_that_points_at_itself() -> None:
    guest = GuestMemory.anonymous([(0, PAGE_4K)])
    guest.write(0, struct.pack("<512Q", *([3] * 512)))
    where = {"cr0": int(CR0.PE | CR0.PG), "cr3": 0, "cr4": int(CR4.PAE), "efer": 0x500}
    found = walk(guest, 0xFFFF_8000_1234_5678, **where)
    assert found.gpa == 0x678
    assert [level.entry_gpa for level in found.levels] == [
        *(0x100 * 8, 0, 0x91 * 8, 0x145 * 8),
    ]
    with pytest.raises(PagingError, match="more than 100"):
        list(mappings(guest, **where, max_tables=100))


class Reader:
    """Guest memory by a function, to misbehave in every way."""

    def __init__(self, read: Callable[[int, int], Any]) -> None:
        self.read = read


@pytest.mark.parametrize("error", [KeyError, IndexError, ValueError, OSError, PagingError])
def test_memory_that_cannot_be_read(error: type[Exception]) -> None:
    def fail(gpa: int, n: int) -> bytes:
        raise error("no")

    where = {"cr0": int(CR0.PE | CR0.PG), "cr3": 0x5000, "cr4": int(CR4.PAE), "efer": 0x500}
    for read in (fail, lambda gpa, n: b"", lambda gpa, n: b"\xff" * (n - 1)):
        found = walk(Reader(read), 0x1000, **where)
        assert found.fault is not None
        assert found.fault.reason is FaultReason.UNREADABLE
        assert found.fault.level == "PML4E"
        assert "0x5000" in found.fault.why


@pytest.mark.parametrize("va", [-1, 1 << 64])
def test_the_one_documented_exception(va: int) -> None:
    with pytest.raises(PagingError, match="64 bits"):
        walk(Reader(lambda gpa, n: bytes(n)), va, cr0=0, cr3=0, cr4=0, efer=0)


LONG = {"cr0": int(CR0.PE | CR0.PG), "cr4": int(CR4.PAE), "efer": int(EFER.LME | EFER.LMA)}
PAE = {"cr0": int(CR0.PE | CR0.PG), "cr4": int(CR4.PAE), "efer": 0}
BITS32 = {"cr0": int(CR0.PE | CR0.PG), "cr4": int(CR4.PSE), "efer": 0}


def chain(mode: PagingMode, level: int, extra: int) -> GuestMemory:
    """A 4 KiB page at linear 0, with bits added to the entry of one level."""
    memory = GuestMemory.anonymous([(0, SIZE)])
    size = mode.entry_size
    for n, spec in enumerate(mode.levels):
        last = spec.number == 1
        entry = (n + 1) << 12 | (1 if mode is PagingMode.PAE and not n else 7)
        if spec.number == level:
            entry |= extra
        memory.write(n << 12, (entry | (0x60 if last else 0)).to_bytes(size, "little"))
    return memory


@pytest.mark.parametrize(
    ("mode", "where", "level", "bit", "reserved"),
    [
        # SDM vol. 3A tables 4-14 to 4-20: reserved bits of 4-level paging.
        (PagingMode.LEVEL4, LONG, 4, 7, True),
        (PagingMode.LEVEL4, LONG, 4, 8, False),
        (PagingMode.LEVEL4, LONG, 4, 51, True),
        (PagingMode.LEVEL4, LONG, 3, 50, True),
        (PagingMode.LEVEL4, LONG, 1, 40, True),
        (PagingMode.LEVEL4, LONG, 2, 52, False),
        (PagingMode.LEVEL4, LONG, 1, 62, False),
        (PagingMode.LEVEL4, LONG, 1, 63, True),  # XD without NXE
        # Tables 4-8 to 4-11: PAE.
        (PagingMode.PAE, PAE, 3, 1, True),
        (PagingMode.PAE, PAE, 3, 2, True),
        (PagingMode.PAE, PAE, 3, 5, True),
        (PagingMode.PAE, PAE, 3, 8, True),
        (PagingMode.PAE, PAE, 3, 9, False),
        (PagingMode.PAE, PAE, 3, 63, True),
        (PagingMode.PAE, PAE, 2, 55, True),
        (PagingMode.PAE, PAE, 1, 62, True),
        (PagingMode.PAE, PAE, 1, 63, True),
        # 32-bit paging has none in entries that are no large page.
        (PagingMode.BITS32, BITS32, 2, 8, False),
        (PagingMode.BITS32, BITS32, 1, 11, False),
    ],
)
def test_reserved_bits(
    mode: PagingMode, where: dict[str, int], level: int, bit: int, reserved: bool
) -> None:
    found = walk(chain(mode, level, 1 << bit), 0, cr3=0, maxphyaddr=40, **where)
    assert found.mode is mode
    if reserved:
        assert found.fault is not None
        assert found.fault.reason is FaultReason.RESERVED_BIT
        assert f"{1 << bit:#x}" in found.fault.why
        code = found.exception(user=True)
        assert code == (Vector.PF, 0b1101)
    else:
        assert found.ok, found.describe()


def test_xd_is_a_right_with_nxe() -> None:
    memory = chain(PagingMode.LEVEL4, 2, 1 << 63)
    where = LONG | {"efer": LONG["efer"] | int(EFER.NXE)}
    found = walk(memory, 0, cr3=0, **where)
    assert found.nx
    assert found.exception(fetch=True) == (Vector.PF, 0x11)
    assert found.exception() is None


def test_options_of_the_rules() -> None:
    big = GuestMemory.anonymous([(0, SIZE)])
    big.write_u64(0, 0x1007)
    big.write_u64(0x1000, 0x40000087)
    assert walk(big, 0x123, cr3=0, **LONG).gpa == 0x40000123
    assert not walk(big, 0, cr3=0, gbpages=False, **LONG).ok
    big.write_u64(0x1000, 0x40002087)
    assert not walk(big, 0, cr3=0, **LONG).ok
    amd = chain(PagingMode.LEVEL4, 4, 1 << 8)
    assert not walk(amd, 0, cr3=0, amd=True, **LONG).ok
    pse = GuestMemory.anonymous([(0, SIZE)])
    pse.write_u32(0, 0x00420087)  # bit 17: address bit 36
    assert walk(pse, 0, cr3=0, **BITS32).gpa == 0x10_0040_0000
    assert not walk(pse, 0, cr3=0, pse_bits=36, **BITS32).ok
    assert not walk(pse, 0, cr3=0, maxphyaddr=36, **BITS32).ok
    # Without CR4.PSE the same entry points to a table, outside memory here.
    found = walk(pse, 0, cr3=0, **(BITS32 | {"cr4": 0}))
    assert found.fault is not None
    assert found.fault.reason is FaultReason.UNREADABLE


RWU = int(PTE.RW | PTE.US)


@pytest.mark.parametrize(
    ("flags", "cr0", "cr4", "access", "code"),
    [
        (RWU, 0, 0, {"write": True, "user": True}, None),
        (int(PTE.US), 0, 0, {"write": True, "user": True}, 7),
        (int(PTE.US), 0, 0, {"write": True}, None),
        (int(PTE.US), int(CR0.WP), 0, {"write": True}, 3),
        (int(PTE.RW), 0, 0, {"user": True}, 5),
        (RWU, 0, int(CR4.SMEP), {"fetch": True}, 0x11),
        (RWU, 0, int(CR4.SMEP), {"fetch": True, "user": True}, None),
        (RWU, 0, int(CR4.SMAP), {}, 1),
        (RWU, 0, int(CR4.SMAP), {"write": True}, 3),
        (RWU, 0, int(CR4.SMAP), {"ac": True}, None),
        (RWU, 0, int(CR4.SMAP), {"fetch": True}, None),
        (int(PTE.RW), 0, int(CR4.SMAP | CR4.SMEP), {"fetch": True}, None),
        (RWU | 5 << 59, 0, int(CR4.PKE), {"user": True, "pkru": 1 << 10}, 0x25),
        (RWU | 5 << 59, 0, int(CR4.PKE), {"user": True, "pkru": 1 << 11}, None),
        (RWU | 5 << 59, 0, int(CR4.PKE), {"user": True, "write": True, "pkru": 1 << 11}, 0x27),
        (RWU | 5 << 59, 0, int(CR4.PKE), {"write": True, "pkru": 1 << 11}, None),
        (RWU | 5 << 59, int(CR0.WP), int(CR4.PKE), {"write": True, "pkru": 1 << 11}, 0x23),
        (RWU | 5 << 59, 0, int(CR4.PKE), {"fetch": True, "user": True, "pkru": 1 << 10}, None),
        (RWU | 5 << 59, 0, 0, {"user": True, "pkru": 1 << 10}, None),
    ],
)
def test_access_rights(
    flags: int, cr0: int, cr4: int, access: dict[str, Any], code: int | None
) -> None:
    tables = PageTables(PagingMode.LEVEL4, 0)
    tables.map(0x1000, 0x5000, 0x1000, flags)
    memory = GuestMemory.anonymous([(0, tables.size)])
    memory.write(0, tables.memory()[0][1])
    where = LONG | {"cr0": LONG["cr0"] | cr0, "cr4": LONG["cr4"] | cr4}
    found = walk(memory, 0x1000, cr3=0, **where)
    assert found.exception(**access) == (None if code is None else (Vector.PF, code))


def test_exceptions_of_unmapped_addresses() -> None:
    memory = GuestMemory.anonymous([(0, PAGE_4K)])
    found = walk(memory, 0x1000, cr3=0, **LONG)
    assert found.exception(write=True, user=True) == (Vector.PF, 6)
    assert found.exception(fetch=True) == (Vector.PF, 0x10)
    assert walk(memory, 1 << 47, cr3=0, **LONG).exception() == (Vector.GP, 0)
    flat = walk(memory, 0x1000, cr3=0, cr0=int(CR0.PE), cr4=0, efer=0)
    assert (flat.gpa, flat.exception(write=True, user=True)) == (0x1000, None)
    assert not walk(memory, 1 << 32, cr3=0, cr0=int(CR0.PE), cr4=0, efer=0).ok
