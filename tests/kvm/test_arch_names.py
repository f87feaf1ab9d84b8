"""Registers, MSRs and CPUID by name, against a real vCPU."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import pytest

from pykvm.arch import cpuid, msrs, registers
from pykvm.arch.presets import long64
from pykvm.kvm import Kvm, Vcpu


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm() as kvm:
        yield kvm


@pytest.fixture
def vcpu(kvm: Kvm) -> Iterator[Vcpu]:
    with kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(kvm.supported_cpuid())
        long64(0x1000).apply(vcpu)
        vcpu.flush()
        yield vcpu


def test_every_register_can_be_read(vcpu: Vcpu) -> None:
    values = {name: registers.get(vcpu, name) for name in registers.names()}
    assert values["rip"] == 0x1000
    assert values["cs.l"] == 1
    assert values["efer"] == 0x500
    assert values["dr7"] == 0x400
    assert all(0 <= v < 1 << registers.lookup(n).bits for n, v in values.items())
    assert registers.get_many(vcpu, values) == values


def test_writes_reach_the_kernel(vcpu: Vcpu) -> None:
    wanted = {
        "rax": 0x1122334455667788,
        "r9w": 0xABCD,
        "zf": 1,
        "fs.base": 0x12345000,
        "gdtr.limit": 0x2F,
        "cr2": 0xDEAD000,
        "dr1": 0x7000,
        "IA32_LSTAR": 0xFFFFFFFF80001000,
        "kernel_gs_base": 0x5000,
    }
    for name, value in wanted.items():
        registers.set(vcpu, name, value)
    vcpu.flush()
    assert vcpu.get_regs().rax == 0x1122334455667788
    assert vcpu.get_regs().rflags == 0x42
    assert vcpu.get_sregs().fs.base == 0x12345000
    assert vcpu.get_debugregs().db[1] == 0x7000
    assert vcpu.get_msr(msrs.LSTAR) == 0xFFFFFFFF80001000
    assert {name: registers.get(vcpu, name) for name in wanted} == wanted


def test_most_msrs_of_kvm_have_names(kvm: Kvm, vcpu: Vcpu) -> None:
    numbers = list(vcpu.get_msrs())
    unknown = [hex(n) for n in numbers if msrs.name(n).startswith("MSR_0x")]
    assert len(numbers) > 20
    assert len(unknown) <= len(numbers) // 10, unknown


def test_cpuid_of_the_host(kvm: Kvm) -> None:
    entries = kvm.supported_cpuid()
    info = pathlib.Path("/proc/cpuinfo").read_text()
    vendor = re.search(r"^vendor_id\s*: (\S+)$", info, re.M)
    assert vendor is not None
    assert cpuid.vendor(entries) == vendor[1]
    assert cpuid.hypervisor(entries) == "KVMKVMKVM"
    names = cpuid.features(entries)
    assert {"fpu", "tsc", "msr", "pae", "cx8", "apic", "lm", "nx", "syscall"} <= names
    assert 36 <= cpuid.physical_bits(entries) <= 52
    assert cpuid.linear_bits(entries) in (48, 57)
    for name in names:
        assert cpuid.has_feature(entries, name)
    assert cpuid.set_feature(entries, "cx16", False)
    assert not cpuid.has_feature(entries, "cx16")
