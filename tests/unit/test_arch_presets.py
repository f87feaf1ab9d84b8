from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from pykvm.arch.bits import CR0, CR4, EFER, PTE, SystemType
from pykvm.arch.descriptors import Gate, decode_idt, segment_from_table
from pykvm.arch.errors import ArchError, DescriptorError, PagingError
from pykvm.arch.paging import PAGE_1G, PAGE_4K, mappings, paging_registers, read_virtual, walk
from pykvm.arch.presets import (
    KERNEL_CODE,
    PRESETS,
    USER_CODE64,
    USER_DATA,
    long64,
    pae32,
    paged32,
    protected32,
    real_mode,
    ring3_64,
    tables_size,
)
from pykvm.arch.state import CpuState
from pykvm.arch.tss import Tss32, Tss64
from pykvm.memory import GuestMemory

PROTECTED = [name for name in PRESETS if name != "real_mode"]
PAGED = ["paged32", "pae32", "long64", "ring3_64"]


def place(state: CpuState, size: int = 1 << 20) -> GuestMemory:
    memory = GuestMemory.anonymous([(0, size)])
    for gpa, data in state.memory:
        memory.write(gpa, data)
    return memory


@pytest.mark.parametrize("name", PROTECTED)
def test_segments_are_those_of_the_gdt(name: str) -> None:
    state = PRESETS[name](0x1000)
    gdt = place(state).read(state.gdt.base, state.gdt.limit + 1)
    long_mode = name in ("long64", "ring3_64")
    assert gdt[:8] == bytes(8)
    for register, segment in state.segments.items():
        if register == "ldt":
            assert segment.unusable
            continue
        assert segment_from_table(gdt, segment.selector, long_mode=long_mode) == segment, register


@pytest.mark.parametrize("name", PROTECTED)
@pytest.mark.parametrize("tables", [0x80000, 0x1000, 0x40000])
def test_tables_stay_in_their_room(name: str, tables: int) -> None:
    state = PRESETS[name](0x200000, tables=tables)
    start, end = state.memory_span()
    assert start == tables
    assert end <= tables + tables_size(name)
    assert tables_size(name) % PAGE_4K == 0
    assert end > tables + tables_size(name) - PAGE_4K
    pieces = sorted((gpa, gpa + len(data)) for gpa, data in state.memory)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(pieces))


def test_tables_size_counts_what_the_options_need() -> None:
    assert tables_size("real_mode") == 0
    assert tables_size("protected32") == PAGE_4K
    # GDT and TSS, then PML4, PDPT and one page directory a GiB.
    assert tables_size("long64") == (1 + 1 + 1 + 4) * PAGE_4K
    assert tables_size("long64", levels=5) == tables_size("long64") + PAGE_4K
    assert tables_size("long64", page_size=PAGE_1G) == 3 * PAGE_4K
    assert tables_size("long64", identity=1 << 30) == 4 * PAGE_4K
    assert tables_size("long64", handlers={0: 0}) == tables_size("long64") + 4096
    high = [(0xFFFFFFFF80000000, 0x100000, 0x3000)]
    assert tables_size("long64", map=high) == tables_size("long64") + 3 * PAGE_4K
    with pytest.raises(ArchError, match="no preset"):
        tables_size("long65")


@pytest.mark.parametrize("name", PAGED)
def test_four_gib_are_identity_mapped(name: str) -> None:
    state = PRESETS[name](0x1000)
    memory = place(state)
    user = name == "ring3_64"
    found = list(mappings(memory, **paging_registers(state)))
    assert len(found) == 1
    assert (found[0].va, found[0].gpa, found[0].size) == (0, 0, 4 << 30)
    assert (found[0].writable, found[0].user, found[0].nx) == (True, user, False)
    assert found[0].page_size == (4 << 20 if name == "paged32" else 2 << 20)


@pytest.mark.parametrize("levels", [4, 5])
def test_higher_half_mapping(levels: int) -> None:
    va, pa = 0xFFFF_FFFF_8010_0000, 0x23000
    state = long64(
        va,
        levels=levels,
        map=[(va, pa, 0x5000), (va + 0x5000, pa + 0x5000, 0x1000, PTE.XD | PTE.RW)],
    )
    memory = place(state)
    memory.write(pa + 0x4FF0, b"x" * 32)
    registers = paging_registers(state)
    assert read_virtual(memory, va + 0x4FF0, 32, **registers) == b"x" * 32
    code = walk(memory, va + 0x4FFF, **registers)
    assert (code.gpa, code.writable, code.nx) == (pa + 0x4FFF, True, False)
    data = walk(memory, va + 0x5000, **registers)
    assert (data.gpa, data.nx) == (pa + 0x5000, True)
    assert not walk(memory, va + 0x6000, **registers).ok
    assert state.efer == EFER.LME | EFER.LMA | EFER.NXE
    assert bool(state.cr4 & CR4.LA57) == (levels == 5)
    assert len(code.levels) == levels


def test_nxe_is_set_only_when_a_mapping_needs_it() -> None:
    assert not long64(0x1000).efer & EFER.NXE
    assert pae32(0x1000, map=[(0x1000, 0x1000, 0x1000, PTE.XD)]).efer == EFER.NXE
    with pytest.raises(PagingError, match="flags"):
        paged32(0x1000, map=[(0x1000, 0x1000, 0x1000, PTE.XD)])


def test_tables_outside_the_identity_mapping_are_mapped_for_the_cpu() -> None:
    state = long64(0x400000, identity=0, tables=0x300000, map=[(0x400000, 0, 0x1000)])
    memory = place(state, 8 << 20)
    for address in (state.gdt.base, state.segments["tr"].base):
        assert walk(memory, address, **paging_registers(state)).gpa == address


@pytest.mark.parametrize(
    ("preset", "size", "tss"),
    [(protected32, 8, Tss32), (pae32, 8, Tss32), (long64, 16, Tss64), (ring3_64, 16, Tss64)],
)
def test_handlers_and_tss(
    preset: Callable[..., CpuState], size: int, tss: type[Tss32] | type[Tss64]
) -> None:
    gate = Gate(0x3000, selector=KERNEL_CODE, type=SystemType.TRAP_GATE, dpl=3)
    state = preset(0x1000, handlers={14: 0x2000, 0x80: gate}, kernel_stack=0x60000, io_ports=[0x80])
    memory = place(state)
    assert state.idt.limit == 256 * size - 1
    idt = decode_idt(memory.read(state.idt.base, 256 * size), bits=64 if size == 16 else 32)
    assert idt == {14: Gate(0x2000, selector=KERNEL_CODE), 0x80: gate}
    task = state.segments["tr"]
    assert task.type == SystemType.TSS_BUSY
    read = tss.from_bytes(memory.read(task.base, task.limit + 1))
    stack = read.rsp0 if isinstance(read, Tss64) else read.esp0
    assert stack == 0x60000
    assert read.bitmap[0x80 // 8] == 0xFE
    assert read.bitmap[0] == 0xFF
    assert preset(0x1000).idt.limit == 0


def test_interrupt_stacks() -> None:
    state = long64(0x1000, ist=[0x5000, 0x6000])
    task = state.segments["tr"]
    raw = place(state).read(task.base, task.limit + 1)
    assert Tss64.from_bytes(raw).ist == [0x5000, 0x6000, 0, 0, 0, 0, 0]
    with pytest.raises(ArchError, match="7"):
        long64(0x1000, ist=[0] * 8)


def test_ring3_selectors_and_rights() -> None:
    state = ring3_64(0x40_0000, user=[(0x40_0000, 0x2000)], stack=0x40_2000)
    assert state.cpl == 3
    assert state.segments["cs"].selector == USER_CODE64
    assert state.segments["ss"].selector == USER_DATA
    memory = place(state)
    registers = paging_registers(state)
    assert walk(memory, 0x40_1FFF, **registers).user
    for supervisor in (0x40_2000, 0x3F_FFFF, state.gdt.base):
        assert not walk(memory, supervisor, **registers).user


def test_syscall_option() -> None:
    state = ring3_64(0x1000, syscall=0x5000)
    assert state.efer & EFER.SCE
    star = state.msrs[0xC0000081]
    assert star >> 32 & 0xFFFF == KERNEL_CODE
    # SYSRET to 64-bit code: CS = STAR[63:48] + 16, SS = STAR[63:48] + 8, both with RPL 3.
    assert (star >> 48) + 16 | 3 == USER_CODE64
    assert (star >> 48) + 8 | 3 == USER_DATA
    assert state.msrs[0xC0000082] == 0x5000


def test_defaults() -> None:
    for name, preset in PRESETS.items():
        state = preset(0x1000)
        assert state.regs["rflags"] == 2, name
        assert state.regs["rip"] == 0x1000
        assert state.msrs == {}
        assert all(v == 0 for r, v in state.regs.items() if r not in ("rip", "rsp", "rflags"))
        assert type(state.cr0) is type(state.cr4) is type(state.efer) is int
    assert long64(0x1000).cr0 & CR0.PG
    assert real_mode().regs["rsp"] == 0xFFF0


def test_initial_registers() -> None:
    state = long64(0x1000, regs={"rdi": 7, "rflags": 0x202})
    assert (state.regs["rdi"], state.regs["rflags"]) == (7, 0x202)
    with pytest.raises(ArchError, match="edi"):
        long64(0x1000, regs={"edi": 7})


def test_real_mode_addresses() -> None:
    boot = real_mode(0x7C00, stack=0x7C00)
    assert (boot.segments["cs"].selector, boot.regs["rip"]) == (0, 0x7C00)
    far = real_mode(0xFFFF0, segment=0xF000, stack=0x90000)
    assert (far.segments["cs"].base, far.regs["rip"]) == (0xF0000, 0xFFF0)
    assert (far.segments["ss"].base, far.regs["rsp"]) == (0x90000, 0)
    for bad in (0x110000, -1):
        with pytest.raises(ArchError):
            real_mode(bad)
    with pytest.raises(ArchError, match="offset"):
        real_mode(0x20000, segment=0)
    with pytest.raises(ArchError, match="stack"):
        real_mode(0x1000, stack=0x100000)


@pytest.mark.parametrize("name", PROTECTED)
@pytest.mark.parametrize("tables", [0x80001, -0x1000, 1 << 32])
def test_tables_address_is_checked(name: str, tables: int) -> None:
    with pytest.raises(ArchError, match="page-aligned"):
        PRESETS[name](0x1000, tables=tables)


def test_other_refusals() -> None:
    with pytest.raises(ArchError, match="4 GiB"):
        protected32(1 << 32)
    with pytest.raises(ArchError, match="stack"):
        pae32(0x1000, stack=1 << 32)
    with pytest.raises(PagingError, match="levels"):
        long64(0x1000, levels=3)
    with pytest.raises(DescriptorError, match="256"):
        long64(0x1000, handlers={256: 0})
    with pytest.raises(PagingError, match="whole pages"):
        long64(0x1000, map=[(0x1234, 0, 0x1000)])
    with pytest.raises(PagingError, match="canonical"):
        pae32(0x1000, identity=8 << 30)
