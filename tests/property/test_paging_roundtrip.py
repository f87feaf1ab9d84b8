"""What the builder maps, the walker finds: every mode, every page size, overlaps and splits."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pykvm.arch.bits import CR0, CR4, EFER, PTE
from pykvm.arch.paging import (
    PAGE_1G,
    PAGE_2M,
    PAGE_4K,
    PAGE_4M,
    FaultReason,
    PageTables,
    PagingError,
    PagingMode,
    mappings,
    walk,
)
from pykvm.memory import GuestMemory

MODES = [m for m in PagingMode if m is not PagingMode.NONE]
BASE = 0x10_0000
RIGHTS = int(PTE.RW | PTE.US | PTE.XD)


def registers(mode: PagingMode, cr3: int) -> dict[str, int]:
    cr4 = {
        PagingMode.BITS32: CR4.PSE,
        PagingMode.PAE: CR4.PAE,
        PagingMode.LEVEL4: CR4.PAE,
        PagingMode.LEVEL5: CR4.PAE | CR4.LA57,
    }[mode]
    efer = EFER.LME | EFER.LMA | EFER.NXE if mode.is_long else EFER.NXE
    return {"cr0": int(CR0.PE | CR0.PG), "cr3": cr3, "cr4": int(cr4), "efer": int(efer)}


def in_memory(tables: PageTables) -> GuestMemory:
    memory = GuestMemory.anonymous([(tables.base, tables.size)])
    for gpa, data in tables.memory():
        memory.write(gpa, data)
    return memory


@dataclass(frozen=True)
class Op:
    """`flags` None unmaps."""

    va: int
    pa: int
    size: int
    flags: int | None
    max_page: int


def canonical(mode: PagingMode, va: int) -> int:
    va &= (1 << mode.va_bits) - 1
    if mode.is_long and va >> (mode.va_bits - 1):
        va |= (1 << 64) - (1 << mode.va_bits)
    return va


@st.composite
def operations(draw: st.DrawFn, mode: PagingMode) -> list[Op]:
    """Maps and unmaps that crowd around a few places, so that they meet and overlap."""
    places = [0, 0x40_0000, 0x3FFF_F000, 0x4000_0000, 0xC000_0000]
    if mode.is_long:
        places += [1 << 39, (1 << mode.va_bits - 1) - PAGE_1G, 1 << mode.va_bits - 1, -PAGE_1G]
    ops = []
    for _ in range(draw(st.integers(1, 7))):
        unit = draw(st.sampled_from([PAGE_4K, PAGE_4K, PAGE_2M, PAGE_4M, PAGE_1G]))
        va = draw(st.sampled_from(places)) + draw(st.integers(0, 5)) * unit
        va = va & (1 << mode.va_bits) - 1 & -PAGE_4K
        size = draw(st.integers(1, 4)) * unit
        # Ranges must not leave their half of the address space.
        half = 1 << mode.va_bits - (1 if mode.is_long else 0)
        size = min(size, half - va % half)
        pa = draw(st.sampled_from([0, PAGE_1G, 5 * PAGE_2M, 0x7F_F000, 1 << 32, 3 << 38]))
        pa += draw(st.integers(0, 3)) * unit
        if size > 4 * PAGE_4M:
            pa &= -PAGE_4M  # gigabytes of 4 KiB pages take too long
        if mode is PagingMode.BITS32:
            pa &= (1 << 36) - 1
        flags = draw(st.none() | st.integers(0, 7))
        if flags is not None:
            wanted = int(PTE.RW) * (flags & 1) | int(PTE.US) * (flags >> 1 & 1)
            if mode is not PagingMode.BITS32:
                wanted |= int(PTE.XD) * (flags >> 2)
            flags = wanted
        page = draw(st.sampled_from([PAGE_4K, PAGE_4M, PAGE_1G]))
        page = page if size <= 2 * PAGE_4M else max(page, PAGE_4M)
        ops.append(Op(canonical(mode, va), pa, size, flags, page))
    return ops


def expected(ops: list[Op], va: int) -> tuple[int, bool, bool, bool] | None:
    """(gpa, writable, user, nx): the last operation that covers the address decides."""
    for op in reversed(ops):
        if op.va <= va < op.va + op.size:
            if op.flags is None:
                return None
            rights = (bool(op.flags & b) for b in (PTE.RW, PTE.US, PTE.XD))
            return (op.pa + va - op.va, *rights)  # type: ignore[return-value]
    return None


def probes(ops: list[Op], mode: PagingMode) -> set[int]:
    """Addresses around the borders of everything that was mapped."""
    found = set()
    for op in ops:
        for at in (op.va, op.va + op.size, op.va + op.size // 2 // PAGE_4K * PAGE_4K):
            for step in (-PAGE_2M, -PAGE_4K, -1, 0, 1, 0xABC, PAGE_4K, PAGE_2M, PAGE_4M):
                va = (at + step) % (1 << 64)
                if mode.is_canonical(va):
                    found.add(va)
    return found


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_walk_finds_what_was_mapped(mode: PagingMode, data: Any) -> None:
    tables = PageTables(mode, BASE)
    done: list[Op] = []
    for op in data.draw(operations(mode)):
        try:
            if op.flags is None:
                tables.unmap(op.va, op.size)
            else:
                tables.map(op.va, op.pa, op.size, op.flags, max_page=op.max_page)
        except PagingError:
            # Only 32-bit paging has mappings that it cannot make; they must change nothing.
            assert mode is PagingMode.BITS32
            continue
        done.append(op)
    memory = in_memory(tables)
    where = registers(mode, tables.cr3)
    for va in probes(done, mode):
        found, want = walk(memory, va, **where), expected(done, va)
        if want is None:
            assert found.fault is not None, found
            assert found.fault.reason is FaultReason.NOT_PRESENT, found.describe()
        else:
            assert (found.gpa, found.writable, found.user, found.nx) == want, found.describe()
            assert found.page_size in mode.page_sizes
            assert found.dirty == found.writable
    # The enumeration of everything agrees with the model, from the other side.
    everything = list(mappings(memory, **where))
    for mapping in everything:
        for va in (mapping.va, mapping.va + mapping.size - 1):
            assert expected(done, va) == (
                *(mapping.gpa + va - mapping.va, mapping.writable, mapping.user, mapping.nx),
            )
    assert sum(m.size for m in everything) == covered(done)


def covered(ops: list[Op]) -> int:
    """Bytes of linear address space that end up mapped."""
    cuts = sorted({edge for op in ops for edge in (op.va, op.va + op.size)})
    return sum(
        high - low for low, high in itertools.pairwise(cuts) if expected(ops, low) is not None
    )


@pytest.mark.parametrize("mode", MODES)
@given(
    index=st.integers(0, 3),
    page=st.integers(0, 2),
    offset=st.integers(0, PAGE_1G - 1),
    number=st.integers(0, 1 << 20),
    pat=st.booleans(),
)
@settings(max_examples=30, deadline=None)
@example(index=0, page=2, offset=0, number=0, pat=True)
def test_each_page_size_alone(
    mode: PagingMode, index: int, page: int, offset: int, number: int, pat: bool
) -> None:
    sizes = mode.page_sizes
    size = sizes[page % len(sizes)]
    limit = 1 << 32 if mode is PagingMode.BITS32 else 1 << 52
    va = index * PAGE_1G
    pa = number * size % limit
    flags = PTE.RW | PTE.PCD | PTE.G | (PTE.PAT_LARGE if pat else 0)
    tables = PageTables(mode, BASE)
    tables.map(va, pa, size, flags, max_page=size)
    where = registers(mode, tables.cr3)
    where["cr4"] |= int(CR4.PGE)
    offset %= size
    found = walk(in_memory(tables), va + offset, **where)
    assert found.gpa == pa + offset
    assert found.page_size == size
    assert found.global_page
    leaf = found.levels[-1].raw
    assert bool(leaf >> (7 if size == PAGE_4K else 12) & 1) == pat
    assert leaf & PTE.PCD
    assert not found.user


@given(start=st.integers(0, 1023), pages=st.integers(1, 600), room=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_failed_map_changes_nothing(start: int, pages: int, room: int) -> None:
    tables = PageTables(PagingMode.LEVEL4, BASE, room=room * PAGE_4K)
    with contextlib.suppress(PagingError):
        tables.map(0, 0, PAGE_1G)
    before = tables.memory()
    try:
        tables.map(start * PAGE_4K, 0x5000, pages * PAGE_4K, PTE.US | PTE.XD, max_page=PAGE_4K)
    except PagingError:
        assert tables.memory() == before
        assert not tables.uses_nx
    else:
        assert tables.uses_nx
    assert tables.size <= room * PAGE_4K


@pytest.mark.parametrize("mode", MODES)
@given(
    va=st.integers(-(1 << 65), 1 << 65),
    size=st.integers(-(1 << 20), 1 << 22).map(lambda n: n * PAGE_4K),
    pa=st.integers(-(1 << 53), 1 << 53),
    flags=st.integers(0, (1 << 64) - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_arguments_map_or_raise_paging_error(
    mode: PagingMode, va: int, size: int, pa: int, flags: int
) -> None:
    tables = PageTables(mode, BASE, room=8 * PAGE_4K)
    for address in (va, va & -PAGE_4K, (va & -PAGE_4K) % (1 << 32)):
        for target in (pa, pa & -PAGE_4K):
            for bits in (flags, flags & RIGHTS, 0):
                with contextlib.suppress(PagingError):
                    tables.map(address, target, size, bits)
                assert tables.size <= 8 * PAGE_4K


def test_accessed_and_dirty_can_be_left_to_the_cpu() -> None:
    tables = PageTables(PagingMode.LEVEL4, BASE, accessed=False)
    tables.map(0, 0, PAGE_2M)
    found = walk(in_memory(tables), 0, **registers(PagingMode.LEVEL4, tables.cr3))
    assert all(not level.raw & (PTE.A | PTE.D) for level in found.levels)
    tables = PageTables(PagingMode.LEVEL4, BASE)
    tables.map(0, 0, PAGE_4K, 0)
    found = walk(in_memory(tables), 0, **registers(PagingMode.LEVEL4, tables.cr3))
    assert all(level.raw & PTE.A for level in found.levels)
    assert not found.dirty  # read-only


def test_pse36_reaches_above_4_gib_and_refuses_to_split_there() -> None:
    tables = PageTables(PagingMode.BITS32, BASE)
    tables.map(0, 0xF_FFC0_0000, PAGE_4M)
    where = registers(PagingMode.BITS32, tables.cr3)
    assert walk(in_memory(tables), 0x12345, **where).gpa == 0xF_FFC1_2345
    with pytest.raises(PagingError, match="4 KiB page"):
        tables.map(0x1000, 0, PAGE_4K)
    with pytest.raises(PagingError, match="PAE"):
        tables.map(0, 1 << 36, PAGE_4M)
    with pytest.raises(PagingError, match="PAE"):
        tables.map(0, 1 << 32, PAGE_4K)
    wide = PageTables(PagingMode.BITS32, BASE, pse_bits=40)
    wide.map(0, 0xFF_FFC0_0000, PAGE_4M)
    where = registers(PagingMode.BITS32, wide.cr3)
    assert walk(in_memory(wide), 0, **where).gpa == 0xFF_FFC0_0000


def test_construction_is_checked() -> None:
    with pytest.raises(PagingError, match="page-aligned"):
        PageTables(PagingMode.PAE, 0x1234)
    with pytest.raises(PagingError, match="without paging"):
        PageTables(PagingMode.NONE, 0)
