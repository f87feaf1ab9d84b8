"""The checker against the kernel: what KVM_SET_SREGS refuses, the checker explains."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest

from pykvm.arch.bits import CR0, CR4, EFER
from pykvm.arch.checker import APIC_BASE_ENABLE, APIC_BASE_X2APIC, check
from pykvm.arch.cpuid import features
from pykvm.arch.limits import CR4_ALWAYS, CpuLimits
from pykvm.arch.presets import PRESETS, long64, pae32, protected32
from pykvm.kvm import Kvm, KvmError, Vcpu

PRESET_NAMES = list(PRESETS)


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm() as kvm:
        yield kvm


@pytest.fixture(params=["cpuid", "no-cpuid"])
def vcpu(kvm: Kvm, request: pytest.FixtureRequest) -> Iterator[Vcpu]:
    with kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20)
        vcpu = vm.create_vcpu(0)
        if request.param == "cpuid":
            vcpu.set_cpuid(kvm.supported_cpuid())
        yield vcpu


def load(vcpu: Vcpu, name: str) -> Any:
    """A preset's sregs, as the value that KVM_SET_SREGS takes."""
    PRESETS[name](0x1000).apply(vcpu)
    vcpu.flush()
    return vcpu.get_sregs()


def refused(vcpu: Vcpu, sregs: Any) -> KvmError | None:
    try:
        vcpu.set_sregs(sregs)
    except KvmError as error:
        return error
    return None


def problems(vcpu: Vcpu, sregs: Any) -> list[Any]:
    limits = CpuLimits.from_cpuid(vcpu.get_cpuid())
    return check(sregs, limits=limits, refusers=("kvm",))


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_kvm_takes_every_preset_and_the_checker_agrees(vcpu: Vcpu, name: str) -> None:
    sregs = load(vcpu, name)
    assert problems(vcpu, sregs) == []
    assert refused(vcpu, sregs) is None
    assert check(vcpu, limits=CpuLimits.from_cpuid(vcpu.get_cpuid())) == []


MUTATIONS = [
    ("long64", "cr4", 0, "cr4"),
    ("long64", "efer", int(EFER.LME), "efer"),
    ("long64", "efer", 0, "cs.l"),
    ("long64", "cr3", 1 << 52, "cr3"),
    ("long64", "cr3", 1 << 63, "cr3"),
    ("long64", "cr0", int(CR0.PG), "cr0"),
    ("long64", "cr0", int(CR0.PE), "efer"),
    ("pae32", "efer", int(EFER.LMA), "efer"),
    ("pae32", "cs.l", 1, "cs.l"),
    ("protected32", "cs.l", 1, "cs.l"),
    ("protected32", "efer", int(EFER.LMA), "efer"),
    ("protected32", "cr0", int(CR0.PE | CR0.NW), "cr0"),
    ("protected32", "cr0", 1 << 32 | 1, "cr0"),
    ("protected32", "cr0", int(CR0.PG), "cr0"),
    ("protected32", "cr4", 1 << 15, "cr4"),
    ("protected32", "cr4", 1 << 40, "cr4"),
    ("protected32", "cr4", int(CR4.SMXE), "cr4"),
    ("real_mode", "apic_base", 0xFEE00901, "apic_base"),
    ("real_mode", "apic_base", 0xFEE00B00, "apic_base"),
    ("real_mode", "apic_base", 0xFEE00500, "apic_base"),
    ("real_mode", "apic_base", 1 << 52 | 0x900, "apic_base"),
]


@pytest.mark.parametrize(("name", "path", "value", "field"), MUTATIONS)
def test_what_kvm_refuses_is_named(
    vcpu: Vcpu, name: str, path: str, value: int, field: str
) -> None:
    sregs = load(vcpu, name)
    target, _, part = path.rpartition(".")
    setattr(getattr(sregs, target) if target else sregs, part, value)
    error = refused(vcpu, sregs)
    assert error is not None
    assert field in {p.field for p in problems(vcpu, sregs)}
    # The driver says it too, in the exception.
    assert f"{field} = " in str(error)


def test_lazily_written_registers_are_explained_too(vcpu: Vcpu) -> None:
    long64(0x1000).apply(vcpu)
    vcpu.sregs.cr4 = 0
    with pytest.raises(KvmError, match=r"needs CR4\.PAE"):
        vcpu.flush()


def mutate(rng: random.Random, sregs: Any) -> None:
    """Change a few registers the way a confused VMM might."""
    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(8):
            case 0:
                sregs.cr0 ^= 1 << rng.choice([0, 16, 29, 30, 31, 31, 32, 63])
            case 1:
                sregs.cr4 ^= 1 << rng.randrange(30)
            case 2:
                sregs.cr4 ^= int(CR4.PAE)
            case 3:
                sregs.efer ^= int(rng.choice([EFER.LME, EFER.LMA, EFER.NXE, EFER.SCE]))
            case 4:
                sregs.cs.l ^= 1
            case 5:
                sregs.cr3 ^= 1 << rng.randrange(64)
            case 6:
                sregs.apic_base ^= 1 << rng.randrange(64)
            case 7:
                sregs.apic_base ^= APIC_BASE_X2APIC
                sregs.apic_base |= rng.choice([0, APIC_BASE_ENABLE])


def test_every_refusal_is_explained(vcpu: Vcpu) -> None:
    """Random mutations: KVM refuses only what the checker names.

    The other way round the checker may be stricter: it judges CR4 by the vCPU's CPUID, as
    upstream KVM does once a CPUID is set; and newer kernels refuse EFER bits that older ones take.
    """
    rng = random.Random(3)
    count = {"refused": 0, "taken": 0}
    limits = CpuLimits.from_cpuid(vcpu.get_cpuid())
    bases = {name: load(vcpu, name) for name in PRESET_NAMES}
    for _ in range(1500):
        name = rng.choice(PRESET_NAMES)
        sregs = copy.deepcopy(bases[name])
        mutate(rng, sregs)
        error = refused(vcpu, sregs)
        found = check(sregs, limits=limits, refusers=("kvm",))
        if error is not None:
            count["refused"] += 1
            assert found, (name, str(error), sregs)
        else:
            count["taken"] += 1
            strict = [p for p in found if not (p.field == "cr4" and "CPUID" in p.why)]
            assert [p for p in strict if p.field != "efer" or "LMA" in p.why] == []
            assert not sregs.cr4 & ~limits.cr4 & ~known_cr4()
    assert min(count.values()) > 200, count


def known_cr4() -> int:
    """CR4 bits that some KVM accepts."""
    return CpuLimits().cr4 | CR4_ALWAYS


def test_five_levels_need_la57(vcpu: Vcpu) -> None:
    """A vCPU without any CPUID gets what the host has; the checker does not know that."""
    sregs = load(vcpu, "long64")
    sregs.cr4 |= int(CR4.LA57)
    error = refused(vcpu, sregs)
    if "la57" in features(vcpu.get_cpuid()):
        assert error is None
        assert problems(vcpu, sregs) == []
    else:
        assert [p.field for p in problems(vcpu, sregs)] == ["cr4"]
        assert error is None or "LA57" in str(error)


def test_presets_from_library_calls_have_no_problems() -> None:
    assert check(protected32(0x1000)) == check(pae32(0x1000)) == check(long64(0x1000)) == []
