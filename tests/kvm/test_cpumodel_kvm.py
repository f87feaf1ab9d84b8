"""CPU models on the real /dev/kvm: every table is taken, and the guest reads what was said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pykvm import Machine
from pykvm.arch import cpuid, msrs
from pykvm.arch.cpumodel import MODELS, CpuTable, forced, resolve, topology_for
from pykvm.arch.cpumodel.msrpolicy import GROUPS, policy_for
from pykvm.kvm import CpuidEntry, Kvm, MsrFilterRange, Vm
from pykvm.machine.doctor.instructions import try_all
from pykvm.machine.doctor.probe import DONE, Probe
from pykvm.machine.doctor.refusals import find, host_refuses

TSC_KHZ = 2_000_000


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm() as found:
        yield found


def table(kvm: Kvm, spec: str, cpus: int = 1, topology: str = "") -> CpuTable:
    supported = kvm.supported_cpuid()
    model = resolve(spec, supported, host_refuses=host_refuses(kvm), tsc_deadline=True)
    return CpuTable(model, supported, topology_for(cpus, topology), tsc_khz=TSC_KHZ)


@pytest.mark.parametrize("cpus", [1, 2, 3, 64])
@pytest.mark.parametrize("spec", MODELS)
def test_kvm_takes_every_model(kvm: Kvm, spec: str, cpus: int) -> None:
    found = table(kvm, spec, cpus, "threads=2" if cpus == 64 else "")
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        for apic_id in found.topology.apic_ids():
            leaves = found.leaves(apic_id)
            vcpu = vm.create_vcpu(apic_id)
            vcpu.set_cpuid([CpuidEntry(*leaf) for leaf in leaves])
            back = {(e.function, e.index): e for e in vcpu.get_cpuid()}
            assert back.keys() >= {(leaf.function, leaf.index) for leaf in leaves}
            assert back[0xB, 0].edx == back[0xB, 1].edx == apic_id
            assert back[1, 0].ebx >> 24 == apic_id


@pytest.mark.parametrize("spec", MODELS)
def test_the_guest_reads_the_table(kvm: Kvm, spec: str) -> None:
    """CPUID in ring 0 gives the table, less or more what KVM said when the table was read back."""
    leaves = table(kvm, spec).leaves(0)
    with Probe(kvm, cpuid=[CpuidEntry(*leaf) for leaf in leaves]) as probe:
        back = {(e.function, e.index): e for e in probe.vcpu.get_cpuid()}
        for leaf in leaves:
            if leaf.function == 0xD:  # follows XCR0
                continue
            code = b"\x0f\xa2" + DONE
            probe.prepare("long", code, rax=leaf.function, rcx=leaf.index)
            assert probe.go().kind == "done"
            regs = probe.vcpu.regs
            got = tuple(r & 0xFFFFFFFF for r in (regs.rax, regs.rbx, regs.rcx, regs.rdx))
            entry = back[leaf.function, leaf.index]
            said = (entry.eax, entry.ebx, entry.ecx, entry.edx)
            if leaf.function == 1:  # OSXSAVE follows CR4
                mask = ~(1 << 27)
                got, said = ((t[0], t[1], t[2] & mask, t[3]) for t in (got, said))
            elif (leaf.function, leaf.index) == (7, 0):  # OSPKE follows CR4
                mask = ~(1 << 4)
                got, said = ((t[0], t[1], t[2] & mask, t[3]) for t in (got, said))
            assert got == said, hex(leaf.function)


@pytest.mark.parametrize("spec", MODELS)
def test_what_kvm_shows_besides_is_known(kvm: Kvm, spec: str) -> None:
    """Nothing that the model shows gets lost; what cannot be hidden is what ring 3 has anyway."""
    found = table(kvm, spec)
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid([CpuidEntry(*leaf) for leaf in found.leaves(0)])
        back = vcpu.get_cpuid()
    # Without an in-kernel LAPIC, KVM takes these back.
    assert found.model.features - cpuid.features(back) <= {"x2apic", "tsc_deadline", "apic"}
    with open("/proc/cpuinfo") as info:
        native = next(line for line in info if line.startswith("flags")).split()
    extra = forced(found.model, back)
    names = {"sse3": "pni", "aes": "aes"}
    assert {names.get(f, f) for f in extra} <= {*native, "ht"}


def test_refusals_agree_with_the_doctor(kvm: Kvm) -> None:
    """Found twice, they are the same; and nothing is refused that the doctor saw working."""
    refused = find(kvm)
    assert refused == find(kvm) == host_refuses(kvm)
    assert refused <= frozenset(cpuid.known_features())
    outcomes = try_all(kvm)
    announced = cpuid.features(kvm.supported_cpuid())
    always = {"", "fpu", "mmx", "sse", "sse2", "fxsr", "clflush"}
    gave_up = {o.trial.feature for o in outcomes if o.kind == "refused"} - always
    assert gave_up & announced <= refused
    if not any(outcome.kind == "refused" for outcome in outcomes):
        assert refused <= {"pcid", "la57", "umip", "smep", "smap", "pku", "fsgsbase"}


def test_the_msr_policy_is_kvms_filter(kvm: Kvm) -> None:
    """What the model hides raises #GP; what it shows does not."""
    found = table(kvm, "minimal")
    policy = policy_for(found.model.features)

    def setup(vm: Vm) -> None:
        vm.set_msr_filter([MsrFilterRange.of(part) for part in policy.denied])

    leaves = [CpuidEntry(*leaf) for leaf in found.leaves(0)]
    with Probe(kvm, setup=setup, cpuid=leaves) as probe:
        for name, end in (
            ("IA32_MTRRCAP", "vector"),
            ("IA32_MCG_CAP", "vector"),
            ("IA32_PAT", "vector"),
            ("IA32_EFER", "done"),
            ("IA32_APIC_BASE", "done"),
        ):
            probe.prepare("long", b"\x0f\x32" + DONE, rcx=msrs.number(name))
            got = probe.go()
            assert (got.kind, got.vector) == (end, 13 if end == "vector" else None), name


@pytest.mark.parametrize("spec", MODELS)
def test_what_a_vcpu_announces_has_its_msrs(spec: str) -> None:
    """Also where the host announces more than the model: kernels believe CPUID."""
    with Machine(cpus=2, cpu=spec) as machine:
        assert machine.cpus is not None
        for vcpu in machine.vcpus:
            shown = cpuid.features(vcpu.get_cpuid())
            for group in GROUPS:
                if group.features & shown:
                    assert not group.numbers & machine.cpus.policy.hidden.keys(), group
