from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from arch_fakes import cpuid_entry as entry

from pykvm.arch.bits import CR0, CR4, EFER, RFLAGS
from pykvm.arch.checker import check, explain_vcpu
from pykvm.arch.limits import CpuLimits
from pykvm.arch.presets import PRESETS, long64, pae32, protected32, real_mode, ring3_64
from pykvm.arch.state import CpuState, SegmentState, TableState


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("unrestricted", [True, False])
def test_presets_have_no_problems(name: str, unrestricted: bool) -> None:
    limits = CpuLimits(unrestricted_guest=unrestricted)
    assert check(PRESETS[name](0x1000), limits=limits) == []
    if name.endswith("64"):
        state = PRESETS[name](0x1000, levels=5, syscall=0x2000, handlers={3: 0x3000})
        assert check(state) == []


def mutated(state: CpuState, path: str, value: int) -> CpuState:
    """Set `cr4`, `rip`, `cs.type` or `gdt.base`."""
    state = state.copy()
    first, _, part = path.partition(".")
    if not part and first in state.regs:
        state.regs[first] = value
    elif not part:
        setattr(state, first, value)
    elif first in state.segments:
        state.segments[first] = state.segments[first].replace(**{part: value})
    else:
        table: TableState = getattr(state, first)
        numbers = {"base": table.base, "limit": table.limit, part: value}
        setattr(state, first, TableState(**numbers))
    return state


KVM = [
    (long64(0), "cr4", int(CR4.OSFXSR), "cr4", "needs CR4.PAE"),
    (long64(0), "efer", int(EFER.LME), "efer", "LMA must be set"),
    (long64(0), "cr3", 1 << 52, "cr3", "52 bits"),
    (long64(0), "cr0", int(CR0.PG), "cr0", "PG is set without PE"),
    (long64(0), "cr0", int(CR0.PE), "efer", "LMA is set without CR0.PG"),
    (long64(0), "efer", 0, "cs.l", "64-bit code segment"),
    (pae32(0), "efer", int(EFER.LMA), "efer", "LMA is set without EFER.LME"),
    (protected32(0), "cs.l", 1, "cs.l", "CR0.PG is clear"),
    (protected32(0), "cr0", int(CR0.PE | CR0.NW), "cr0", "NW is set without CD"),
    (protected32(0), "cr0", int(CR0.PE) | 1 << 32, "cr0", "63:32"),
    (protected32(0), "cr4", int(CR4.SMXE), "cr4", "SMXE is reserved"),
    (protected32(0), "cr4", 1 << 15, "cr4", "bit15"),
    (protected32(0), "efer", 1 << 1, "efer", "bit1"),
]
VMX = [
    (long64(0), "cs.db", 1, "cs.db", "must be 0"),
    (long64(0), "cs.type", 1, "cs.type", None),
    (long64(0), "cs.dpl", 3, "cs.dpl", "SS.DPL"),
    (long64(0), "cs.s", 0, "cs.s", "system"),
    (long64(0), "cs.present", 0, "cs.present", "usable"),
    (long64(0), "cs.unusable", 1, "cs.present", "usable"),
    (long64(0), "cs.base", 1 << 32, "cs.base", "63:32"),
    (long64(0), "cs.g", 0, "cs.g", "granularity must be 1"),
    (protected32(0), "ds.limit", 0xFFFFF000, "ds.g", "granularity must be 0"),
    (long64(0), "ss.type", 11, "ss.type", "writable"),
    (long64(0), "ds.type", 9, "ds.type", "readable"),
    (long64(0), "fs.base", 1 << 47, "fs.base", "canonical"),
    (long64(0), "gs.base", 1 << 63, "gs.base", "canonical"),
    (long64(0), "tr.type", 9, "tr.type", "busy"),
    (long64(0), "tr.type", 3, "tr.type", "busy 64-bit"),
    (protected32(0), "tr.type", 1, "tr.type", "3 or 11"),
    (long64(0), "tr.unusable", 1, "tr.present", "busy TSS"),
    (long64(0), "tr.selector", 0x34, "tr.selector", "TI"),
    (long64(0), "tr.s", 1, "tr.s", "system"),
    (long64(0), "tr.base", 1 << 50, "tr.base", "canonical"),
    (real_mode(), "ldt.type", 3, "ldt.type", "LDT"),
    (real_mode(), "ldt.s", 1, "ldt.s", "system"),
    (real_mode(), "ldt.selector", 4, "ldt.selector", "TI"),
    (long64(0), "gdt.base", 1 << 48, "gdt.base", "canonical"),
    (long64(0), "idt.limit", 1 << 16, "idt.limit", "31:16"),
    (long64(0), "rip", 1 << 47, "rip", "canonical"),
    (protected32(0), "rip", 1 << 32, "rip", "63:32"),
    (protected32(0), "rflags", 1 << 15, "rflags", "reserved"),
    (long64(0), "rflags", int(RFLAGS.VM) | 2, "rflags", "virtual-8086"),
    (real_mode(), "rflags", int(RFLAGS.VM) | 2, "rflags", "virtual-8086"),
    (real_mode(), "ss.dpl", 1, "ss.dpl", "real mode"),
    (pae32(0), "cr4", int(CR4.PAE | CR4.PCIDE), "cr4", "long mode"),
    (protected32(0), "cr4", int(CR4.CET), "cr0", "CR0.WP"),
    (protected32(0), "efer", int(EFER.SVME), "efer", "Intel"),
    (protected32(0), "cr3", 1 << 52, "cr3", "52 bits"),
]
SVM = [
    (long64(0), "cs.db", 1, "cs.db", "must be 0"),
    (protected32(0), "cr4", int(CR4.CET), "cr0", "CR0.WP"),
    (protected32(0), "cr3", 1 << 52, "cr3", "52 bits"),
    (protected32(0), "efer", 1 << 22, "efer", "must be zero"),
]


@pytest.mark.parametrize(
    ("refuser", "state", "path", "value", "field", "says"),
    [(r, *case) for r, cases in (("kvm", KVM), ("vmx", VMX), ("svm", SVM)) for case in cases],
)
def test_a_mutated_field_is_named(
    refuser: str, state: CpuState, path: str, value: int, field: str, says: str | None
) -> None:
    limits = CpuLimits(efer=-1) if refuser == "svm" else None
    problems = check(mutated(state, path, value), refusers=(refuser,), limits=limits)
    named = [p for p in problems if p.field == field]
    assert named, problems
    assert all(p.refuser == refuser for p in problems)
    assert all(p.source for p in problems)
    if says is not None:
        assert any(says in p.why for p in named), problems
        assert says in "; ".join(map(str, named))


def test_canonical_depends_on_the_width() -> None:
    state = mutated(long64(0), "fs.base", 1 << 47)
    assert [p.field for p in check(state)] == ["fs.base"]
    state.cr4 |= int(CR4.LA57)
    assert check(state) == []


def test_msrs_are_judged() -> None:
    state = long64(0, msrs={0x176: 1 << 60, 0x277: 0x0207040600070406})
    assert {p.field for p in check(state)} == {"msrs[0x176]", "msrs[0x277]"}


def test_virtual_8086_segments() -> None:
    segment = SegmentState(0x12340, 0xFFFF, 0x1234, 3, 1, 3, 0, 1, 0, 0, 0)
    state = protected32(0)
    state.regs["rflags"] |= int(RFLAGS.VM)
    state.segments |= dict.fromkeys(("cs", "ss", "ds", "es", "fs", "gs"), segment)
    assert check(state) == []
    for part in ("base", "limit", "type"):
        assert [p.field for p in check(mutated(state, f"ds.{part}", 5))] == [f"ds.{part}"]


def test_old_vmx_wants_matching_rpls() -> None:
    strict = CpuLimits(unrestricted_guest=False)
    state = mutated(long64(0), "ss.selector", 0x13)
    assert check(state) == []
    assert {p.field for p in check(state, limits=strict)} == {"ss.dpl", "cs.selector"}
    unaccessed = mutated(long64(0), "ds.type", 2)
    assert check(unaccessed) == []
    assert [p.field for p in check(unaccessed, limits=strict)] == ["ds.type"]


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (0xFEE00900, None),
        (0xFEE00D00, None),
        (0, None),
        (0xFEE00901, "reserved"),
        (0xFEE00B00, "reserved"),
        (0xFEE00500, "needs the APIC enabled"),
        (1 << 52 | 0x900, "reserved"),
    ],
)
def test_apic_base(base: int, says: str | None) -> None:
    problems = check(real_mode(), apic_base=base)
    assert bool(problems) == (says is not None)
    assert all(p.field == "apic_base" and says and says in p.why for p in problems)


def test_limits_from_cpuid() -> None:
    bare = CpuLimits.from_cpuid([])
    assert bare.maxphyaddr == 36
    assert not bare.x2apic
    assert not CR4(bare.cr4) & (CR4.SMEP | CR4.LA57 | CR4.OSXSAVE | CR4.PCIDE)
    rich = CpuLimits.from_cpuid(
        [
            entry(1, ecx=1 << 21 | 1 << 26 | 1 << 17),
            entry(7, ebx=1 << 7, ecx=1 << 16 | 1 << 7),
            entry(0x80000000, eax=0x80000008),
            entry(0x80000008, eax=0x3930),
        ]
    )
    assert (rich.maxphyaddr, rich.x2apic) == (48, True)
    for bit in (CR4.SMEP, CR4.LA57, CR4.OSXSAVE, CR4.PCIDE, CR4.CET):
        assert rich.cr4 & bit
    assert not rich.cr4 & CR4.SMAP
    state = ring3_64(0, levels=5)
    assert check(state, limits=rich) == []
    assert [p.field for p in check(state, limits=bare)] == ["cr4"]
    apic = check(real_mode(), limits=bare, apic_base=0xFEE00D00)
    assert [p.why for p in apic] == ["x2APIC mode (bit 10) is not in the vCPU's CPUID"]


class Sregs(SimpleNamespace):
    """The shape of a vCPU's sregs."""

    def __init__(self, state: CpuState) -> None:
        super().__init__(
            **state.segments,
            gdt=state.gdt,
            idt=state.idt,
            **{n: getattr(state, n) for n in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")},
            apic_base=0xFEE00901,
        )


def test_accepts_sregs_and_vcpus() -> None:
    sregs: Any = Sregs(mutated(long64(0), "cr4", 0))
    assert [p.field for p in check(sregs)] == ["cr4", "apic_base"]
    vcpu = SimpleNamespace(sregs=sregs, regs=SimpleNamespace(rip=1 << 50, rflags=2))
    assert [p.field for p in check(vcpu)] == ["cr4", "apic_base", "rip"]


def test_explain_vcpu() -> None:
    sregs = Sregs(mutated(long64(0), "efer", int(EFER.LME)))
    plain = SimpleNamespace(sregs=sregs)
    assert "LMA must be set" in explain_vcpu(plain)
    assert "apic_base = 0xfee00901" in explain_vcpu(plain)
    sregs = Sregs(long64(0, levels=5))
    sregs.apic_base = 0xFEE00900
    assert explain_vcpu(SimpleNamespace(sregs=sregs)) == ""
    bare = SimpleNamespace(sregs=sregs, get_cpuid=list)
    assert "LA57" in explain_vcpu(bare)


def test_the_same_fact_is_reported_once() -> None:
    state = mutated(long64(0), "cs.db", 1)
    assert [p.refuser for p in check(state)] == ["vmx"]
    assert [p.refuser for p in check(state, refusers=("svm",))] == ["svm"]
