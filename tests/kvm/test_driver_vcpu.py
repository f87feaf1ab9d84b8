"""A vCPU's state: everything that can be read, kept and put back, and what is refused."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from driver_guest import HLT, expect_out, guest, out

from pykvm.kvm import CpuidEntry, InvalidArgument, Kvm, KvmError, MsrError, Unsupported, Vcpu
from pykvm.kvm import constants as c
from pykvm.kvm.exits import HltExit
from pykvm.kvm.vcpu_debug import DebugRegs
from pykvm.kvm.vcpu_events import MachineCheck
from pykvm.kvm.vcpu_msrs import SSP_REGISTER, msr_register_id

EFER, FS_BASE, SYSENTER_CS, SYSENTER_EIP = 0xC0000080, 0xC0000100, 0x174, 0x176
KERNEL_GS_BASE = 0xC0000102


@pytest.fixture
def vcpu() -> Iterator[Vcpu]:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.add_memory(0, 1 << 20)
        yield vm.create_vcpu(0)


# -- general and segment registers by value ------------------------------------------------------


def test_register_sets_and_named_registers_agree(vcpu: Vcpu) -> None:
    vcpu.regs.rax = 0x1122334455667788
    vcpu.sregs.fs.base = 0x1234
    assert vcpu.get_regs().rax == 0x1122334455667788
    assert vcpu.get_sregs().fs.base == 0x1234
    assert vcpu.get_sregs2().fs.base == 0x1234
    regs = vcpu.get_regs()
    regs.rbx = 5
    vcpu.set_regs(regs)
    assert (vcpu.regs.rbx, vcpu.regs.rax) == (5, 0x1122334455667788)
    sregs = vcpu.get_sregs()
    sregs.gs.base = 0x99
    vcpu.set_sregs(sregs)
    assert vcpu.sregs.gs.base == 0x99
    sregs2 = vcpu.get_sregs2()
    sregs2.gs.base = 0xAA
    vcpu.set_sregs2(sregs2)
    assert vcpu.sregs.gs.base == 0xAA
    assert vcpu.get_sregs2() == sregs2


def test_pae_pointers_travel_in_sregs2(vcpu: Vcpu) -> None:
    vcpu.set_cpuid(vcpu.vm.kvm.supported_cpuid())
    table = vcpu.vm.regions[0]
    pointers = tuple(0x3000 + 0x1000 * i | 1 for i in range(4))
    table.write(0x2000, b"".join(p.to_bytes(8, "little") for p in pointers))
    state = vcpu.get_sregs2()
    state.cr3, state.cr4 = 0x2000, 0x20
    state.cr0 |= 0x8000_0001
    state.flags, state.pdptrs = c.KVM_SREGS2_FLAGS_PDPTRS_VALID, pointers
    vcpu.set_sregs2(state)
    again = vcpu.get_sregs2()
    assert (again.cr3, again.cr4) == (0x2000, 0x20)
    if again.flags & c.KVM_SREGS2_FLAGS_PDPTRS_VALID:
        assert again.pdptrs == pointers


def test_impossible_sregs_say_why(vcpu: Vcpu) -> None:
    state = vcpu.get_sregs()
    state.cr0 = 0x8000_0000  # PG without PE
    with pytest.raises(KvmError, match=r"KVM_SET_SREGS refused .*(?i:cr0)"):
        vcpu.set_sregs(state)
    state2 = vcpu.get_sregs2()
    state2.flags = 0xF0
    with pytest.raises(KvmError, match=r"KVM_SET_SREGS2 refused sregs"):
        vcpu.set_sregs2(state2)
    state.cr0 = 1 << 64
    with pytest.raises(ValueError, match="cr0 = 0x10000000000000000 does not fit"):
        vcpu.set_sregs(state)


# -- floating point ------------------------------------------------------------------------------


def test_fpu_round_trip(vcpu: Vcpu) -> None:
    state = vcpu.fpu
    assert state.fcw == 0x37F
    state.xmm = tuple(bytes([i]) * 16 for i in range(16))
    state.fpr = tuple(bytes([0x80 + i]) * 10 + bytes(6) for i in range(8))
    state.fcw = 0x27F
    state.ftwx = 0xFF
    vcpu.fpu = state
    again = vcpu.get_fpu()
    assert again.xmm == state.xmm
    assert again.fcw == 0x27F
    assert [r[:10] for r in again.fpr] == [r[:10] for r in state.fpr]


def test_xsave_round_trip_and_agreement_with_the_fpu(vcpu: Vcpu) -> None:
    area = bytearray(vcpu.xsave)
    assert len(area) == vcpu.xsave_size >= 4096
    area[160:176] = b"xmm zero is here"  # SDM vol. 1, 13.4.1
    area[512] |= 2  # XSTATE_BV: SSE
    vcpu.xsave = area
    assert vcpu.get_xsave()[160:176] == b"xmm zero is here"
    assert vcpu.fpu.xmm[0] == b"xmm zero is here"
    with pytest.raises(InvalidArgument, match=f"100 bytes .*{vcpu.xsave_size} bytes here"):
        vcpu.set_xsave(bytes(100))
    area[512:520] = b"\xff" * 8
    with pytest.raises(KvmError, match="XSTATE_BV 0xffffffffffffffff"):
        vcpu.set_xsave(area)


def test_xcrs(vcpu: Vcpu) -> None:
    assert vcpu.xcrs == {0: 1}
    vcpu.set_cpuid(vcpu.vm.kvm.supported_cpuid())
    vcpu.xcrs = {0: 3}
    assert vcpu.get_xcrs() == {0: 3}
    with pytest.raises(KvmError, match=r"XCR0=0x2 .*needs bit 0"):
        vcpu.set_xcrs({0: 2})
    with pytest.raises(InvalidArgument, match="17 registers"):
        vcpu.set_xcrs(dict.fromkeys(range(17), 1))


# -- MSRs ----------------------------------------------------------------------------------------


def test_msrs_round_trip(vcpu: Vcpu) -> None:
    high = 0xFFFF_8000_0000_1000  # not for SYSENTER_EIP: AMD keeps 32 bits of that
    vcpu.set_msrs({SYSENTER_CS: 0x10, KERNEL_GS_BASE: high})
    wanted = vcpu.get_msrs([KERNEL_GS_BASE, SYSENTER_CS])
    assert wanted == {KERNEL_GS_BASE: high, SYSENTER_CS: 0x10}
    vcpu.set_msr(SYSENTER_CS, 8)
    assert vcpu.get_msr(SYSENTER_CS) == 8
    assert vcpu.get_msrs([]) == {}
    vcpu.set_msrs({})


def test_all_msrs_can_be_put_back(vcpu: Vcpu) -> None:
    vcpu.set_cpuid(vcpu.vm.kvm.supported_cpuid())
    state = vcpu.get_msrs()
    assert {0x10, SYSENTER_CS, SYSENTER_EIP} <= set(state)
    writable = {i: v for i, v in state.items() if i in vcpu.vm.kvm.msr_index_list()}
    refused = {}
    for index, value in writable.items():
        try:
            vcpu.set_msr(index, value)
        except MsrError as error:
            refused[error.index] = str(error)
    assert len(refused) <= 3, refused


def test_many_msrs_at_once(vcpu: Vcpu) -> None:
    assert len(vcpu.get_msrs([SYSENTER_CS] * 1000)) == 1
    with pytest.raises(MsrError) as info:
        vcpu.get_msrs([SYSENTER_CS] * 600 + [0xDEAD, SYSENTER_CS])
    assert (info.value.index, info.value.argument) == (0xDEAD, "MSR 0xdead")


def test_a_refused_msr_is_named_and_those_before_it_are_written(vcpu: Vcpu) -> None:
    with pytest.raises(MsrError, match=r"KVM_SET_MSRS refused MSR 0xdead = 0x5") as info:
        vcpu.set_msrs({SYSENTER_CS: 0x20, 0xDEAD: 5, SYSENTER_EIP: 1})
    assert (info.value.index, info.value.value, info.value.done) == (0xDEAD, 5, 1)
    assert vcpu.get_msr(SYSENTER_CS) == 0x20
    assert vcpu.get_msr(SYSENTER_EIP) == 0
    with pytest.raises(MsrError, match=r"IA32_EFER \(0xc0000080\) = 0xffffffffffffffff"):
        vcpu.set_msr(EFER, (1 << 64) - 1)


@pytest.mark.parametrize(("index", "value"), [(1 << 32, 0), (-1, 0), (0x174, 1 << 64), (0x174, -1)])
def test_impossible_msrs(vcpu: Vcpu, index: int, value: int) -> None:
    with pytest.raises(InvalidArgument, match="32 bits and values 64"):
        vcpu.set_msr(index, value)


def test_msrs_and_segment_registers_are_one_state(vcpu: Vcpu) -> None:
    vcpu.set_cpuid(vcpu.vm.kvm.supported_cpuid())
    vcpu.sregs.fs.base = 0x1000
    assert vcpu.get_msr(FS_BASE) == 0x1000
    vcpu.set_msr(FS_BASE, 0x2000)
    assert vcpu.sregs.fs.base == 0x2000
    vcpu.set_msr(EFER, 0x100 | vcpu.get_msr(EFER))
    assert vcpu.sregs.efer & 0x100


def test_numbered_registers_or_a_clear_refusal(vcpu: Vcpu) -> None:
    number = msr_register_id(SYSENTER_CS)
    if vcpu.vm.check_extension("KVM_CAP_ONE_REG"):
        vcpu.set_register(number, 0x1234)
        assert vcpu.get_register(number) == vcpu.get_msr(SYSENTER_CS) == 0x1234
        if SSP_REGISTER not in vcpu.register_list():
            with pytest.raises(Unsupported, match=r"before Linux 6.18"):
                vcpu.get_register(SSP_REGISTER)
    else:
        for use in (vcpu.register_list, lambda: vcpu.get_register(number)):
            with pytest.raises(Unsupported, match="use get_msrs"):
                use()


# -- CPUID ---------------------------------------------------------------------------------------


def test_cpuid_round_trip_and_the_guest_sees_it() -> None:
    # mov eax, 0x40000000 + 0x123; cpuid; out 0x10, al
    code = b"\x66\xb8\x23\x01\x00\x40\x0f\xa2\xe6\x10" + HLT
    with guest(code) as (vm, vcpu):
        assert vcpu.cpuid == []
        table = vm.kvm.supported_cpuid()
        table.append(CpuidEntry(0x40000123, eax=0x5C, ebx=1, ecx=2, edx=3))
        vcpu.cpuid = table
        found = {(e.function, e.index): e for e in vcpu.get_cpuid()}
        assert found[0x40000123, 0].eax == 0x5C
        assert len(found) == len(table)
        expect_out(vcpu, 0x10, 0x5C)
        assert isinstance(vcpu.run(), HltExit)
        vcpu.cpuid = vcpu.get_cpuid()  # the same again is allowed
        with pytest.raises(KvmError, match=r"has run already"):
            vcpu.set_cpuid([CpuidEntry(0, eax=1)])


def test_too_many_cpuid_entries(vcpu: Vcpu) -> None:
    with pytest.raises(InvalidArgument, match=r"300 entries .*at most 256"):
        vcpu.set_cpuid([CpuidEntry(0x40000000 + i) for i in range(300)])
    vcpu.set_cpuid([CpuidEntry(0x40000000 + i) for i in range(200)])
    assert len(vcpu.get_cpuid()) == 200  # more than the first buffer holds


# -- events and machine checks -------------------------------------------------------------------


def test_events_round_trip(vcpu: Vcpu) -> None:
    state = vcpu.events
    state.nmi_pending = 1
    state.interrupt_shadow = c.KVM_X86_SHADOW_INT_STI
    state.flags |= c.KVM_VCPUEVENT_VALID_NMI_PENDING | c.KVM_VCPUEVENT_VALID_SHADOW
    vcpu.events = state
    again = vcpu.get_vcpu_events()
    assert again.nmi_pending == 1
    assert again.interrupt_shadow & c.KVM_X86_SHADOW_INT_STI  # SVM has one flag for both shadows


def test_an_exception_can_be_injected() -> None:
    with guest(out(0x10, 1)) as (vm, vcpu):
        region = vm.regions[0]
        region.write(6 * 4, (0x2000).to_bytes(4, "little"))
        region.write(0x2000, out(0x12, 6))
        state = vcpu.events
        state.exception_injected, state.exception_nr = 1, 6  # #UD
        vcpu.events = state
        expect_out(vcpu, 0x12, 6)


def test_triple_fault_event() -> None:
    def prepare(vm):
        vm.enable_triple_fault_event()

    with guest(HLT, prepare=prepare) as (_, vcpu):
        state = vcpu.events
        state.triple_fault_pending = 1
        state.flags |= c.KVM_VCPUEVENT_VALID_TRIPLE_FAULT
        vcpu.events = state
        assert vcpu.events.triple_fault_pending == 1
        assert vcpu.run().name == "KVM_EXIT_SHUTDOWN"


def test_impossible_events(vcpu: Vcpu) -> None:
    state = vcpu.events
    state.flags |= c.KVM_VCPUEVENT_VALID_TRIPLE_FAULT  # not switched on
    with pytest.raises(KvmError, match=r"flags=0x.*needs its capability"):
        vcpu.set_vcpu_events(state)
    state = vcpu.events
    state.exception_nr = 256
    with pytest.raises(ValueError, match=r"VcpuEvents\.exception_nr"):
        vcpu.set_vcpu_events(state)


def test_machine_checks(vcpu: Vcpu) -> None:
    features = vcpu.vm.kvm.mce_cap_supported()
    vcpu.setup_mce(features | 10)
    assert vcpu.get_msr(0x179) & 0xFF == 10  # IA32_MCG_CAP
    vcpu.inject_mce(MachineCheck(status=1 << 63 | 0x150, addr=0x1000, bank=3))
    assert vcpu.get_msr(0x401 + 4 * 3) == 1 << 63 | 0x150  # IA32_MC3_STATUS
    with pytest.raises(KvmError, match=r"bank=200 .*bank must exist"):
        vcpu.inject_mce(MachineCheck(status=1 << 63, bank=200))
    for bad in (0, 200, 1 << 63 | 1):
        with pytest.raises(KvmError, match=f"mcg_cap={bad:#x}"):
            vcpu.setup_mce(bad)


# -- debug registers -----------------------------------------------------------------------------


def test_debug_registers_round_trip(vcpu: Vcpu) -> None:
    state = vcpu.debugregs
    assert (state.dr6, state.dr7) == (0xFFFF0FF0, 0x400)
    state.db = (0x1000, 0x2000, 0x3000, 0x4000)
    state.dr7 = 0x455
    vcpu.debugregs = state
    assert vcpu.get_debugregs() == state
    with pytest.raises(KvmError, match=r"dr7=0x1000000000 .*fit 32 bits"):
        vcpu.set_debugregs(DebugRegs((0, 0, 0, 0), 0, 1 << 36))


# -- time, signals, nested state, the rest -------------------------------------------------------


def test_tsc(vcpu: Vcpu) -> None:
    khz = vcpu.tsc_khz
    assert 100_000 < khz < 10_000_000
    vcpu.tsc_khz = khz
    if not vcpu.vm.check_extension("KVM_CAP_TSC_CONTROL"):
        with pytest.raises(KvmError, match=r"khz=1000 .*cannot scale the TSC"):
            vcpu.set_tsc_khz(1000)
    with pytest.raises(InvalidArgument, match="khz=0x0"):
        vcpu.set_tsc_khz(0)
    before = vcpu.tsc_offset
    try:
        vcpu.tsc_offset = -(1 << 40)
    except Unsupported as error:
        assert "ignores TSC offsets" in str(error)  # noqa: PT017
        assert vcpu.tsc_offset == before
    else:
        assert vcpu.get_tsc_offset() == (1 << 64) - (1 << 40)


def test_kvmclock_pause_needs_a_guest_that_uses_it(vcpu: Vcpu) -> None:
    with pytest.raises(InvalidArgument, match="does not use kvmclock"):
        vcpu.kvmclock_ctrl()


def test_signal_masks(vcpu: Vcpu) -> None:
    vcpu.set_signal_mask([signal.SIGUSR1, signal.SIGRTMAX])
    vcpu.set_signal_mask([])
    vcpu.set_signal_mask(None)
    for bad in (0, 65, -1):
        with pytest.raises(InvalidArgument, match=f"signal {bad} .*1 to 64"):
            vcpu.set_signal_mask([bad])


def test_nested_state_or_a_clear_refusal(vcpu: Vcpu) -> None:
    if vcpu.vm.check_extension("KVM_CAP_NESTED_STATE"):
        state = vcpu.nested_state
        vcpu.nested_state = state
        assert vcpu.get_nested_state() == state
        with pytest.raises(InvalidArgument, match="cut off"):
            vcpu.set_nested_state(state[:20])
    else:
        for use in (vcpu.get_nested_state, lambda: vcpu.set_nested_state(bytes(128))):
            with pytest.raises(Unsupported, match="no nested virtualization"):
                use()


def test_prefault_or_a_clear_refusal(vcpu: Vcpu) -> None:
    if vcpu.vm.check_extension("KVM_CAP_PRE_FAULT_MEMORY"):
        vcpu.prefault(0, 1 << 20)
        with pytest.raises(InvalidArgument, match="multiples of 4 KiB"):
            vcpu.prefault(0, 5)
    else:
        with pytest.raises(Unsupported, match="KVM_CAP_PRE_FAULT_MEMORY"):
            vcpu.prefault(0, 4096)


def test_task_priority_help(vcpu: Vcpu) -> None:
    vcpu.set_vapic_addr(0)
    vcpu.set_tpr_access_reporting(True)
    vcpu.set_tpr_access_reporting(False)


def test_enable_cap_on_a_vcpu(vcpu: Vcpu) -> None:
    with pytest.raises(KvmError, match=r"KVM_CAP_IRQFD\(0x1\) .*vCPU 0 does not have it"):
        vcpu.enable_cap("KVM_CAP_IRQFD", 1)


def test_raw_ioctls(vcpu: Vcpu) -> None:
    from pykvm._native import ffi

    vcpu.regs.rcx = 0x77
    raw = ffi.new("struct kvm_regs *")
    assert vcpu.ioctl("KVM_GET_REGS", raw) == 0
    assert raw.rcx == 0x77  # what was written before has reached the kernel
    raw.rcx = 0x78
    vcpu.ioctl(0x4090AE82, raw)  # KVM_SET_REGS by number
    assert vcpu.regs.rcx == 0x78
