"""Clock, set-up addresses, MSR filters and exits, and other behaviour of a VM."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from driver_guest import HLT, expect_out, guest, out

from pykvm.kvm import InvalidArgument, Kvm, KvmError, MsrFilterRange, Unsupported, Vm
from pykvm.kvm import constants as c
from pykvm.kvm.exits import InternalErrorExit, RdmsrExit, ShutdownExit, WrmsrExit

RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"


def set_ecx(value: int) -> bytes:
    """mov ecx, value"""
    return b"\x66\xb9" + value.to_bytes(4, "little")


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Kvm() as kvm, kvm.create_vm() as made:
        yield made


def test_clock(vm: Vm) -> None:
    vm.set_clock(5_000_000_000)
    clock = vm.get_clock()
    assert 5_000_000_000 <= clock.clock < 8_000_000_000
    time.sleep(0.01)
    assert vm.get_clock().clock - clock.clock >= 9_000_000
    vm.set_clock(clock)
    assert clock.clock <= vm.get_clock().clock < clock.clock + 3_000_000_000
    with pytest.raises(ValueError, match=r"Clock\.clock"):
        vm.set_clock(-1)


def test_addresses_for_old_intel_hosts(vm: Vm) -> None:
    vm.set_tss_addr(0xFFFBD000)
    vm.set_identity_map_addr(0xFFFBC000)
    for bad in (0x1234, 1 << 32, 0xFFFFF000, -4096):
        with pytest.raises(InvalidArgument, match=r"gpa=-?0x"):
            vm.set_tss_addr(bad)
    for bad in (0x1234, 1 << 32, -4096):
        with pytest.raises(InvalidArgument, match=r"gpa=-?0x"):
            vm.set_identity_map_addr(bad)
    vm.create_vcpu(0)
    with pytest.raises(InvalidArgument, match="vCPUs already"):
        vm.set_identity_map_addr(0)


def test_limits(vm: Vm) -> None:
    vm.set_nr_mmu_pages(128)
    with pytest.raises(InvalidArgument, match="pages=0x1"):
        vm.set_nr_mmu_pages(1)
    if vm.check_extension("KVM_CAP_MAX_VCPU_ID"):
        vm.set_max_vcpu_id(4)
        with pytest.raises(KvmError, match="vcpu_id=4"):
            vm.create_vcpu(4)
        vm.create_vcpu(3)


def test_enable_cap_by_hand(vm: Vm) -> None:
    assert vm.enable_cap("KVM_CAP_EXCEPTION_PAYLOAD", 1) == 0
    with pytest.raises(KvmError, match=r"KVM_CAP_SPLIT_IRQCHIP\(0xffffff\)"):
        vm.enable_cap("split_irqchip", 0xFFFFFF)
    with pytest.raises(InvalidArgument, match="at most 4 arguments"):
        vm.enable_cap("exception_payload", 1, 2, 3, 4, 5)
    with pytest.raises(InvalidArgument, match="argument 0 does not fit"):
        vm.enable_cap("exception_payload", -1)
    with pytest.raises(KvmError, match=r"capability 32000\(\)"):
        vm.enable_cap(32000)


def test_unknown_msrs_come_to_user_space() -> None:
    code = set_ecx(0xDEAD) + RDMSR + b"\x66\x40" + WRMSR + out(0x10, 1)  # inc eax
    with guest(code, prepare=Vm.enable_msr_exits) as (_, vcpu):
        read = vcpu.run()
        assert isinstance(read, RdmsrExit)
        assert read.index == 0xDEAD
        read.value = 0x1_0000_0041
        written = vcpu.run()
        assert isinstance(written, WrmsrExit)
        assert (written.index, written.value) == (0xDEAD, 0x1_0000_0042)
        expect_out(vcpu, 0x10, 1)


def test_msr_filter_denies_what_it_lists() -> None:
    def prepare(vm: Vm) -> None:
        vm.enable_msr_exits(invalid=False, unknown=False)
        # IA32_SYSENTER_CS to EIP, without ESP
        vm.set_msr_filter([MsrFilterRange.of([0x174, 0x176])])

    code = set_ecx(0x175) + RDMSR + set_ecx(0x174) + RDMSR + set_ecx(0x176) + WRMSR + out(0x10, 1)
    with guest(code, prepare=prepare) as (vm, vcpu):
        first = vcpu.run()
        assert isinstance(first, RdmsrExit)
        assert first.index == 0x174
        second = vcpu.run()
        assert isinstance(second, WrmsrExit)
        assert second.index == 0x176
        expect_out(vcpu, 0x10, 1)
        vm.set_msr_filter()  # takes it away
        vcpu.regs.rip = 0x1000
        expect_out(vcpu, 0x10, 1)


def test_msr_filter_for_writes_only_and_default_deny() -> None:
    def prepare(vm: Vm) -> None:
        vm.enable_msr_exits()
        vm.set_msr_filter(
            [MsrFilterRange.of([0x174], allow=True, write=False)], default_allow=False
        )

    code = set_ecx(0x174) + RDMSR + WRMSR + set_ecx(0x175) + RDMSR + out(0x10, 1)
    with guest(code, prepare=prepare) as (_, vcpu):
        found = []
        while isinstance(exit_ := vcpu.run(), RdmsrExit | WrmsrExit):
            found.append((type(exit_), exit_.index))
        assert (WrmsrExit, 0x174) in found
        assert (RdmsrExit, 0x175) in found
        assert (RdmsrExit, 0x174) not in found


def test_impossible_msr_filters(vm: Vm) -> None:
    one = MsrFilterRange.of([0x10])
    cases = [
        ([one] * 17, "17 ranges .*at most 16"),
        ([one.replace(count=0)], "0 MSRs are not 1 to 12288"),
        ([one.replace(count=12289)], "12289 MSRs"),
        ([one.replace(count=9)], "bitmap of 1 bytes is too short for 9"),
        ([one.replace(base=1 << 32)], "base=0x100000000"),
        ([one.replace(read=False, write=False)], "neither reads nor writes"),
    ]
    for ranges, words in cases:
        with pytest.raises(InvalidArgument, match=words):
            vm.set_msr_filter(ranges)
    with pytest.raises(InvalidArgument, match="at least one range"):
        vm.set_msr_filter(default_allow=False)
    vm.set_msr_filter([MsrFilterRange.of(range(12288))])


def test_disabled_exits_or_a_clear_refusal(vm: Vm) -> None:
    have = vm.check_extension("KVM_CAP_X86_DISABLE_EXITS")
    names = {"mwait": 1, "hlt": 2, "pause": 4, "cstate": 8, "aperfmperf": 16}
    for name, bit in names.items():
        if have & bit:
            vm.disable_exits(**{name: True})
        else:
            with pytest.raises(Unsupported, match=f"cannot disable {name} exits"):
                vm.disable_exits(**{name: True})
    vm.create_vcpu(0)
    with pytest.raises(InvalidArgument, match="vCPUs already"):
        vm.disable_exits()


def test_exit_on_emulation_failure(vm: Vm) -> None:
    vm.exit_on_emulation_failure()
    vm.exit_on_emulation_failure(False)


def test_emulation_failure_or_shutdown_of_an_impossible_guest() -> None:
    # A guest that jumps into nothing: whatever the host does with it, it is an exit, not a hang.
    code = b"\xea\x00\x00\x00\xf0" + HLT  # jmp far 0xf000:0
    with guest(code, prepare=Vm.exit_on_emulation_failure) as (vm, vcpu):
        vm.resize_memory(vm.regions[0], 0x1_0000)
        assert isinstance(vcpu.run(), InternalErrorExit | ShutdownExit)


@pytest.mark.parametrize(
    ("method", "arguments", "capability"),
    [
        ("enable_bus_lock_exits", (), "KVM_CAP_X86_BUS_LOCK_EXIT"),
        ("enable_notify_exits", (1000,), "KVM_CAP_X86_NOTIFY_VMEXIT"),
        ("disable_pmu", (), "KVM_CAP_PMU_CAPABILITY"),
        ("set_halt_poll", (1000,), "KVM_CAP_HALT_POLL"),
        ("set_apic_bus_cycle_ns", (1,), "KVM_CAP_X86_APIC_BUS_CYCLES_NS"),
        ("get_tsc_khz", (), "KVM_CAP_VM_TSC_CONTROL"),
        ("set_tsc_khz", (1_000_000,), "KVM_CAP_VM_TSC_CONTROL"),
        ("enable_exception_payload", (), "KVM_CAP_EXCEPTION_PAYLOAD"),
        ("enable_triple_fault_event", (), "KVM_CAP_X86_TRIPLE_FAULT_EVENT"),
        ("enable_x2apic_ids", (), "KVM_CAP_X2APIC_API"),
    ],
)
def test_works_exactly_where_the_host_says_so(
    vm: Vm, method: str, arguments: tuple[int, ...], capability: str
) -> None:
    if method == "set_apic_bus_cycle_ns":
        vm.create_irqchip()
    if vm.check_extension(capability):
        getattr(vm, method)(*arguments)
    else:
        with pytest.raises(KvmError, match=f"{capability}|KVM_.* refused"):
            getattr(vm, method)(*arguments)


def test_masks_that_the_host_lacks(vm: Vm) -> None:
    have = vm.check_extension("KVM_CAP_EXIT_HYPERCALL")
    vm.enable_hypercall_exits(have)
    with pytest.raises(Unsupported, match="passes on"):
        vm.enable_hypercall_exits(1 << 63)
    vm.disable_quirks(vm.check_extension("KVM_CAP_DISABLE_QUIRKS2") & c.KVM_X86_QUIRK_CD_NW_CLEARED)
    with pytest.raises(Unsupported, match="can switch off"):
        vm.disable_quirks(1 << 63)


def test_pmu_event_filter_or_a_clear_refusal(vm: Vm) -> None:
    if vm.check_extension("KVM_CAP_PMU_EVENT_FILTER"):
        vm.set_pmu_event_filter([0x00C0, 0x003C], allow=True)
        vm.set_pmu_event_filter([], allow=False, fixed_counters=1)
    else:
        with pytest.raises(Unsupported, match="KVM_CAP_PMU_EVENT_FILTER"):
            vm.set_pmu_event_filter([], allow=True)
