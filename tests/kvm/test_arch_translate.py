"""The page walker agrees with KVM_TRANSLATE: built tables and random ones, in every paging mode."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from pykvm.arch.bits import CR0, CR4, EFER, PTE
from pykvm.arch.cpuid import features, leaf, physical_bits, vendor
from pykvm.arch.paging import (
    PAGE_1G,
    PAGE_4K,
    PageTables,
    PagingMode,
    Walk,
    paging_registers,
    walk,
)
from pykvm.arch.presets import long64, pae32, paged32, protected32
from pykvm.arch.state import CpuState
from pykvm.kvm import Kvm, KvmError, Vcpu
from pykvm.memory import GuestMemory

SIZE = 1 << 20
TABLES = 0x40000
MODES = [PagingMode.BITS32, PagingMode.PAE, PagingMode.LEVEL4, PagingMode.LEVEL5]


class Rig(NamedTuple):
    """A vCPU that never runs: it only translates."""

    vcpu: Vcpu
    memory: GuestMemory
    rules: dict[str, Any]


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm() as kvm:
        yield kvm


@pytest.fixture(params=[None, 40], ids=["host-width", "40-bit"])
def rig(kvm: Kvm, request: pytest.FixtureRequest) -> Iterator[Rig]:
    with kvm.create_vm() as vm:
        vm.add_memory(0, SIZE)
        entries = kvm.supported_cpuid()
        if request.param:
            widths = leaf(entries, 0x80000008)
            assert widths is not None
            widths.eax = widths.eax & ~0xFF | request.param
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(entries)
        rules = {
            "maxphyaddr": physical_bits(entries),
            "gbpages": "pdpe1gb" in features(entries),
            "amd": vendor(entries) in ("AuthenticAMD", "HygonGenuine"),
            "pse_bits": 36,  # what KVM implements
        }
        yield Rig(vcpu, GuestMemory(vm.regions), rules)


def state_for(mode: PagingMode, *, nx: bool = True, pse: bool = True) -> CpuState:
    """A state in the mode; its tables are replaced by the test's own."""
    if mode is PagingMode.BITS32:
        state = paged32(0x1000, tables=0x80000)
        state.cr4 = int(CR4.PSE) if pse else 0
    elif mode is PagingMode.PAE:
        state = pae32(0x1000, tables=0x80000)
    else:
        state = long64(0x1000, tables=0x80000, levels=5 if mode is PagingMode.LEVEL5 else 4)
    if nx:
        state.efer |= int(EFER.NXE)
    state.memory = []
    return state


def enter(rig: Rig, mode: PagingMode, state: CpuState) -> bool:
    """Give the vCPU its registers; False when this host's KVM does not have the paging mode.

    KVM says so either by refusing CR4.LA57, or (one without VMX and SVM, outside long mode) by
    going on as if CR0.PG were clear.
    """
    has_la57 = "la57" in features(rig.vcpu.get_cpuid())
    state.apply(rig.vcpu, rig.memory)
    if mode is PagingMode.LEVEL5 and not has_la57:
        with pytest.raises(KvmError, match="LA57"):
            rig.vcpu.flush()
        return False
    rig.vcpu.flush()
    return mode.is_long or has_paging32(rig, state)


def has_paging32(rig: Rig, state: CpuState) -> bool:
    """Whether an empty page directory keeps an address from translating, as it must."""
    spare = SIZE - 2 * PAGE_4K
    kept = rig.memory.read(spare, PAGE_4K)
    rig.memory.fill(spare, PAGE_4K, 0)
    probe = state.copy()
    probe.cr3 = spare
    probe.apply(rig.vcpu)
    rig.vcpu.flush()
    found = rig.vcpu.translate(0x12345)
    rig.memory.write(spare, kept)
    state.apply(rig.vcpu)
    rig.vcpu.flush()
    if found.valid:
        assert found.gpa == 0x12345
    return not found.valid


def compare(rig: Rig, state: CpuState, addresses: list[int]) -> tuple[int, int]:
    """Translate the addresses both ways; returns how many were mapped and how many not.

    All walks come first: KVM_TRANSLATE sets Accessed bits in the tables.
    """
    where = paging_registers(state)
    walks = [walk(rig.memory, va, **where, **rig.rules) for va in addresses]
    for found in walks:
        assert rig.vcpu.translate(found.va).gpa == found.gpa, explain(found)
    mapped = sum(found.ok for found in walks)
    return mapped, len(walks) - mapped


def explain(found: Walk) -> str:
    return "KVM_TRANSLATE differs from " + found.describe()


def canonical(mode: PagingMode, va: int) -> int:
    va &= (1 << mode.va_bits) - 1
    if mode.is_long and va >> (mode.va_bits - 1):
        va |= (1 << 64) - (1 << mode.va_bits)
    return va


@pytest.mark.parametrize("mode", MODES)
def test_built_tables(rig: Rig, mode: PagingMode) -> None:
    rng = random.Random(1)
    state = state_for(mode)
    tables = PageTables(mode, TABLES)
    state.cr3 = tables.cr3
    places = []
    for n in range(40):
        size = rng.choice(mode.page_sizes)
        if size == PAGE_1G and not rig.rules["gbpages"]:
            size = mode.page_sizes[1]
        va = canonical(mode, rng.choice([0, 1 << 30, 3 << 30, 1 << 45, -1 << 40]) + n * size)
        pa = rng.randrange(1 << (32 if mode is PagingMode.BITS32 else 39)) & -size
        flags = rng.choice([0, PTE.RW, PTE.US, PTE.RW | PTE.US | PTE.PCD, PTE.G])
        if mode is not PagingMode.BITS32 and rng.random() < 0.3:
            flags |= PTE.XD
        tables.map(va, pa, size, flags, max_page=size)
        places += [va, va + size - 1, va + rng.randrange(size)]
        if rng.random() < 0.2:
            tables.unmap(va & -PAGE_4K, PAGE_4K)
    assert TABLES + tables.size <= SIZE
    for gpa, data in tables.memory():
        rig.memory.write(gpa, data)
    if not enter(rig, mode, state):
        return
    places += [canonical(mode, p + rng.randrange(-(1 << 22), 1 << 22)) for p in places * 8]
    places += [canonical(mode, rng.getrandbits(64)) for _ in range(300)]
    mapped, unmapped = compare(rig, state, places)
    assert mapped > 200
    assert unmapped > 200


def hostile(rng: random.Random, mode: PagingMode, rig: Rig, malice: float) -> list[int]:
    """A palette of entries: tables in memory, pages anywhere, stray and reserved bits."""
    palette = []
    for _ in range(rng.randrange(4, 24)):
        frame = rng.randrange(64 if rng.random() > malice / 5 else 300) << 12
        entry = frame | rng.getrandbits(12) & ~(0x80 if rng.random() > malice / 4 else 0)
        entry |= 1 if rng.random() > malice / 8 else 0
        if rng.random() < malice / 6:
            entry |= 1 << rng.randrange(12, 32 if mode is PagingMode.BITS32 else 64)
        if rng.random() < malice / 10:
            entry = rng.getrandbits(32 if mode is PagingMode.BITS32 else 64)
        if rng.random() < malice / 5:  # a well-formed large page
            entry = entry & 0xFFF | 0x81 | rng.randrange(4) << 30
        if rig.rules["amd"] and rng.random() > malice / 5:
            entry &= ~0x100  # bit 8 is reserved in upper entries there
        palette.append(entry)
    return palette


@pytest.mark.parametrize("mode", MODES)
def test_random_tables(rig: Rig, mode: PagingMode) -> None:
    rng = random.Random(2)
    total = [0, 0]
    for turn in range(40):
        palette = hostile(rng, mode, rig, malice=turn % 5 / 4)
        size = mode.entry_size
        code = "I" if size == 4 else "Q"
        words = rng.choices(palette, k=64 * PAGE_4K // size)
        rig.memory.write(0, struct.pack(f"<{len(words)}{code}", *words))
        state = state_for(mode, nx=turn % 3 != 0, pse=turn % 4 != 0)
        state.cr3 = rng.randrange(64) << 12 | rng.choice([0, 0x18])
        if mode is PagingMode.PAE:
            state.cr3 = rng.randrange(64) << 12 | rng.randrange(128) << 5
            make_loadable(rig, state)
        if not enter(rig, mode, state):
            return
        addresses = [canonical(mode, rng.getrandbits(64)) for _ in range(60)]
        addresses += [canonical(mode, a ^ 1 << rng.randrange(64)) for a in addresses[:20]]
        for n, count in enumerate(compare(rig, state, addresses)):
            total[n] += count
    assert min(total) > 200, total


def make_loadable(rig: Rig, state: CpuState) -> None:
    """PAE's four PDPTEs are checked when CR3 is loaded, and kept from before when one is bad."""
    reserved = 0x1E6 | 1 << 63 | (1 << 63) - (1 << rig.rules["maxphyaddr"])
    for n in range(4):
        entry = rig.memory.read_u64(state.cr3 + 8 * n)
        rig.memory.write_u64(state.cr3 + 8 * n, entry & ~reserved)


def test_without_paging_addresses_translate_to_themselves(rig: Rig) -> None:
    state = protected32(0x1000)
    state.apply(rig.vcpu, rig.memory)
    rig.vcpu.flush()
    addresses = [0, 0x1234, 0xFFFFF000, 0xFFFFFFFF]
    assert compare(rig, state, addresses) == (len(addresses), 0)


def test_non_canonical_addresses_are_the_known_difference(rig: Rig) -> None:
    """KVM_TRANSLATE ignores the upper bits; the walker refuses them as the CPU would."""
    state = long64(0x1000)
    state.apply(rig.vcpu, rig.memory)
    rig.vcpu.flush()
    va = 1 << 62 | 0x1234
    assert rig.vcpu.translate(va).gpa == 0x1234
    found = walk(rig.memory, va, **paging_registers(state), **rig.rules)
    assert found.fault is not None
    assert "not canonical" in str(found.fault)
    assert state.cr0 & CR0.PG
