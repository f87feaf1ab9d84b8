"""/dev/kvm: capabilities, CPUID, MSR lists, new VMs."""

from __future__ import annotations

import pathlib

import pytest

from pykvm.kvm import CpuidEntry, InvalidArgument, Kvm, KvmError, MsrError, Unsupported
from pykvm.kvm import constants as c


@pytest.fixture
def kvm():
    with Kvm() as opened:
        yield opened


def test_version_and_size(kvm: Kvm) -> None:
    assert kvm.api_version == 12
    assert kvm.vcpu_mmap_size >= 4096
    assert kvm.vcpu_mmap_size % 4096 == 0


def test_every_capability_by_name(kvm: Kvm) -> None:
    found = kvm.capabilities()
    assert set(found) == set(c.capabilities())
    assert found["KVM_CAP_USER_MEMORY"] == 1
    assert found["KVM_CAP_NR_MEMSLOTS"] >= 32
    assert all(value >= 0 for value in found.values())
    for name in ("KVM_CAP_NR_MEMSLOTS", "nr_memslots", c.capability("nr_memslots")):
        assert kvm.check_extension(name) == found["KVM_CAP_NR_MEMSLOTS"]


def test_unknown_capabilities(kvm: Kvm) -> None:
    assert kvm.check_extension(0x7FFF) == 0  # a number of a newer kernel: simply not there
    with pytest.raises(ValueError, match="no capability 'KVM_CAP_NOPE'"):
        kvm.check_extension("KVM_CAP_NOPE")


def test_supported_cpuid_is_the_hosts(kvm: Kvm) -> None:
    table = kvm.supported_cpuid()
    leaves = {(entry.function, entry.index): entry for entry in table}
    vendor = leaves[0, 0]
    name = b"".join(r.to_bytes(4, "little") for r in (vendor.ebx, vendor.edx, vendor.ecx))
    assert name.decode() in pathlib.Path("/proc/cpuinfo").read_text()
    signature = leaves[0x40000000, 0]
    assert signature.ebx.to_bytes(4, "little") == b"KVMK"
    assert vendor.eax >= 0xD


def test_emulated_cpuid(kvm: Kvm) -> None:
    table = kvm.emulated_cpuid()
    assert table
    assert all(isinstance(entry, CpuidEntry) for entry in table)
    assert any(entry.function == 1 and entry.ecx & 1 << 22 for entry in table)  # MOVBE


def test_hyperv_cpuid_or_a_clear_refusal(kvm: Kvm) -> None:
    if kvm.check_extension("KVM_CAP_SYS_HYPERV_CPUID"):
        assert any(entry.function == 0x40000000 for entry in kvm.supported_hv_cpuid())
    else:
        with pytest.raises(Unsupported, match="does not imitate Hyper-V"):
            kvm.supported_hv_cpuid()


def test_msr_lists(kvm: Kvm) -> None:
    state = kvm.msr_index_list()
    assert 0x10 in state  # TSC
    assert len(set(state)) == len(state)
    features = kvm.msr_feature_index_list()
    values = kvm.msr_features()
    assert set(values) == set(features)
    assert values == {index: kvm.msr_features([index])[index] for index in features}


def test_a_refused_feature_msr_is_named(kvm: Kvm) -> None:
    good = kvm.msr_feature_index_list()[0]
    with pytest.raises(MsrError, match="KVM_GET_MSRS refused MSR 0xdead") as info:
        kvm.msr_features([good, 0xDEAD, good])
    assert (info.value.index, info.value.done, info.value.value) == (0xDEAD, 1, None)


def test_machine_check_and_xsave_features(kvm: Kvm) -> None:
    assert kvm.mce_cap_supported() & 1 << 8  # MCG_CTL_P, which KVM always has
    assert kvm.has_attribute(0, c.KVM_X86_XCOMP_GUEST_SUPP)
    assert kvm.xcomp_guest_supported() & 3 == 3  # x87 and SSE
    assert not kvm.has_attribute(77, 0)
    with pytest.raises(KvmError, match="group=77 attr=0"):
        kvm.get_attribute(77, 0)


def test_kinds_of_vm(kvm: Kvm) -> None:
    with kvm.create_vm(c.KVM_X86_DEFAULT_VM) as vm:
        assert vm.type == 0
        assert vm.check_extension("KVM_CAP_USER_MEMORY") == 1
    with pytest.raises(Unsupported, match=r"vm_type=63 .*this host has the types 0") as info:
        kvm.create_vm(63)
    assert info.value.argument == "vm_type=63"


def test_a_vm_outlives_its_kvm() -> None:
    kvm = Kvm()
    with kvm.create_vm() as vm:
        kvm.close()
        vm.add_memory(0, 4096)
        assert vm.create_vcpu(0).get_regs().rflags == 2


def test_vcpu_ids(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu(3)
        assert (vcpu.id, vcpu.vm) == (3, vm)
        assert vm.vcpus == [vcpu]
        limit = vm.check_extension("KVM_CAP_MAX_VCPU_ID")
        for bad, words in ((3, "has had a vCPU"), (-1, "from 0 to"), (limit, f"to {limit - 1}")):
            with pytest.raises(InvalidArgument, match=f"vcpu_id={bad} .*{words}"):
                vm.create_vcpu(bad)
        vcpu.close()
        assert vm.vcpus == []
        with pytest.raises(InvalidArgument, match="has had a vCPU"):
            vm.create_vcpu(3)  # the kernel keeps the id, too


def test_devices(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        with pytest.raises(Unsupported, match=r"device_type=4711 .*no such device"):
            vm.create_device(4711)
        assert vm.create_device(c.KVM_DEV_TYPE_VFIO, test=True) is None
        device = vm.create_device(c.KVM_DEV_TYPE_VFIO)
        assert device is not None
        assert device.has_attribute(c.KVM_DEV_VFIO_GROUP, c.KVM_DEV_VFIO_GROUP_ADD)
        assert not device.has_attribute(c.KVM_DEV_VFIO_GROUP, 99)
        with pytest.raises(KvmError, match="group=1 attr=1"):
            device.set_attribute(c.KVM_DEV_VFIO_GROUP, c.KVM_DEV_VFIO_GROUP_ADD, b"\xff" * 4)
        assert not device.closed
    assert device.closed
