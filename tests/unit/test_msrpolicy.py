"""Which MSRs a guest may touch: what is not shown is not answered."""

from __future__ import annotations

import pytest
from cpuid_hosts import ALL, host

from pykvm.arch import msrs
from pykvm.arch.cpumodel import CpuModelError, resolve
from pykvm.arch.cpumodel.msrpolicy import FILTER_SPAN, GROUPS, initial_msrs, policy_for, tolerated


def test_groups_name_features_that_exist() -> None:
    for group in GROUPS:
        assert group.features <= ALL, group
        assert group.numbers
        assert not any(0x800 <= n < 0x900 for n in group.numbers)  # KVM cannot filter those


def test_hidden_and_tolerated_do_not_meet() -> None:
    hidden = policy_for([]).hidden
    assert not hidden.keys() & tolerated().keys()


@pytest.mark.parametrize("unknown", ["fault", "ignore"])
def test_what_a_minimal_cpu_may_not_touch(unknown: str) -> None:
    policy = policy_for(resolve("minimal", host("intel")).features, unknown)
    for name in ("IA32_VMX_BASIC", "IA32_MTRRCAP", "IA32_TSC_ADJUST", "IA32_XSS", "IA32_MCG_CAP"):
        number = msrs.number(name)
        assert policy.read(number) is None, name
        assert not policy.write(number, 0), name
        assert "the CPU model does not show it" in policy.explain(number)
    for number in (msrs.number("IA32_TSC_DEADLINE"), msrs.EFER, 0x4B564D00):
        assert number not in policy.hidden


def test_a_full_cpu_keeps_its_msrs() -> None:
    policy = policy_for(ALL)
    assert {policy.hidden[n] for n in policy.hidden} == {"system management mode", "debug store"}


def test_what_systems_touch_on_any_cpu_reads_zero() -> None:
    policy = policy_for([])
    for name in ("IA32_PLATFORM_ID", "SMI_COUNT", "PLATFORM_INFO", "IA32_THERM_STATUS"):
        assert policy.read(msrs.number(name)) == 0
        assert policy.write(msrs.number(name), 5)
        assert "reads 0" in policy.explain(msrs.number(name))


def test_unknown_msrs_fault_or_are_ignored() -> None:
    strict, loose = policy_for(ALL), policy_for(ALL, "ignore")
    assert strict.read(0x9999) is None
    assert not strict.write(0x9999, 1)
    assert loose.read(0x9999) == 0
    assert loose.write(0x9999, 1)
    assert strict.explain(0x9999) == "MSR_0x9999: #GP, KVM does not know it"
    with pytest.raises(CpuModelError, match="fault or ignore, not 'x'"):
        policy_for(ALL, "x")


def test_the_filter_takes_the_ranges() -> None:
    policy = policy_for([], hide=[0xDEAD])
    assert len(policy.denied) <= 16
    assert sorted(n for part in policy.denied for n in part) == sorted(policy.hidden)
    assert all(part[-1] - part[0] < FILTER_SPAN for part in policy.denied)
    assert 0xDEAD in policy.hidden


def test_amds_constant_tsc_is_said_to_be_one() -> None:
    assert initial_msrs({"invtsc"}, "AuthenticAMD") == {0xC0010015: 1 << 24}
    assert initial_msrs({"invtsc"}, "GenuineIntel") == {}
    assert initial_msrs({"tsc"}, "AuthenticAMD") == {}
