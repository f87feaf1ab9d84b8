"""Interrupt controllers, the PIT, lines, messages and routes."""

from __future__ import annotations

import errno

import pytest
from driver_guest import (
    CLI,
    HLT,
    IRET,
    NOP,
    STI,
    expect_out,
    guest,
    out,
    pic_init,
    set_vector,
)

from pykvm.kvm import InvalidArgument, IrqchipRoute, Kvm, KvmError, MpState, MsiRoute, Vm
from pykvm.kvm.exits import IrqWindowOpenExit

EOI = out(0x20, 0x20)
WAIT = STI + HLT + CLI + out(0x11, 0xEE) + b"\xeb\xf7"  # jumps back to STI


def interrupt_guest(mask: int) -> bytes:
    return CLI + pic_init(0x20, mask) + out(0x11, 0) + WAIT


@pytest.fixture
def vm():
    with Kvm() as kvm, kvm.create_vm() as made:
        yield made


def test_a_line_reaches_the_guest_through_the_pic() -> None:
    with guest(interrupt_guest(0xEF), prepare=Vm.create_irqchip) as (vm, vcpu):
        set_vector(vm, 0x24, out(0x12, 4) + EOI + IRET)
        expect_out(vcpu, 0x11, 0)
        for _ in range(3):
            vm.irq_line(4, True)
            vm.irq_line(4, False)
            expect_out(vcpu, 0x12, 4)
            expect_out(vcpu, 0x11, 0xEE)


def test_line_status_tells_taken_merged_and_masked() -> None:
    with guest(interrupt_guest(0xEF), prepare=Vm.create_irqchip) as (vm, vcpu):
        set_vector(vm, 0x24, out(0x12, 4) + EOI + IRET)
        expect_out(vcpu, 0x11, 0)
        assert vm.irq_line_status(4, True) >= 1
        vm.irq_line_status(4, False)
        assert vm.irq_line_status(4, True) == 0  # still pending: merged
        vm.irq_line_status(4, False)
        expect_out(vcpu, 0x12, 4)


def test_the_pit_interrupts_the_guest() -> None:
    def prepare(vm: Vm) -> None:
        vm.create_irqchip()
        vm.create_pit2(speaker=True)

    # counter 0, mode 2 (rate generator), every 0x300 ticks: about 0.6 ms
    program = CLI + pic_init(0x20, 0xFE) + out(0x43, 0x34) + out(0x40, 0) + out(0x40, 3) + WAIT
    with guest(program, prepare=prepare) as (vm, vcpu):
        set_vector(vm, 0x20, out(0x12, 1) + EOI + IRET)
        ticks = awake = 0
        while ticks < 3 or not awake:  # a slow host may see several ticks before the guest goes on
            exit_ = vcpu.run()
            assert (exit_.port, exit_.value) in ((0x12, 1), (0x11, 0xEE)), str(exit_)
            ticks += exit_.port == 0x12
            awake += exit_.port == 0x11
        state = vm.get_pit2()
        assert (state.channels[0].mode, state.channels[0].count) == (2, 0x300)


def test_pit_state_round_trip(vm: Vm) -> None:
    vm.create_irqchip()
    vm.create_pit2()
    assert vm.has_pit
    state = vm.get_pit2()
    state.channels[2].mode = 3
    state.channels[2].count = 1193
    vm.set_pit2(state)
    again = vm.get_pit2()
    assert (again.channels[2].mode, again.channels[2].count) == (3, 1193)
    vm.set_pit_reinject(False)
    vm.set_pit_reinject(True)


def test_order_of_creation(vm: Vm) -> None:
    assert (vm.irqchip, vm.has_pit) == ("none", False)
    with pytest.raises(InvalidArgument, match=r"the PIT .*call create_irqchip\(\) first"):
        vm.create_pit2()
    for use in (vm.get_pit2, lambda: vm.set_pit_reinject(True)):
        with pytest.raises(InvalidArgument, match=r"no PIT; call create_pit2\(\) first"):
            use()
    for use in (
        lambda: vm.irq_line(4, True),
        lambda: vm.irq_line_status(4, True),
        lambda: vm.get_irqchip(0),
        lambda: vm.signal_msi(0xFEE00000, 0x40),
        lambda: vm.set_gsi_routing([]),
    ):
        with pytest.raises(InvalidArgument, match=r"call create_irqchip\(\) first") as info:
            use()
        assert info.value.errno == errno.ENXIO
    vm.create_irqchip()
    vm.create_pit2()
    with pytest.raises(InvalidArgument, match="has a PIT already"):
        vm.create_pit2()
    for again in (vm.create_irqchip, vm.create_split_irqchip):
        with pytest.raises(InvalidArgument, match="its kernel irqchip already"):
            again()


def test_irqchip_after_a_vcpu(vm: Vm) -> None:
    vm.create_vcpu(0)
    for late in (vm.create_irqchip, vm.create_split_irqchip):
        with pytest.raises(InvalidArgument, match="has 1 vCPUs already; do this before"):
            late()


def test_chip_state_round_trip(vm: Vm) -> None:
    vm.create_irqchip()
    vm.create_vcpu(0)
    pic = vm.get_irqchip(1)
    pic.irq_base = 0x70
    pic.imr = 0x5A
    vm.set_irqchip(pic)
    assert vm.get_irqchip(1) == pic
    assert vm.get_irqchip(0).irq_base == 0
    ioapic = vm.get_irqchip(2)
    assert ioapic.base_address == 0xFEC00000
    assert len(ioapic.redirtbl) == 24
    table = list(ioapic.redirtbl)
    table[5] = 0x0100_0000_0001_0035  # masked, vector 0x35, to APIC 1
    ioapic.redirtbl = tuple(table)
    vm.set_irqchip(ioapic)
    assert vm.get_irqchip(2).redirtbl[5] == table[5]
    with pytest.raises(InvalidArgument, match=r"chip=3 .*0, 1 or 2"):
        vm.get_irqchip(3)


def test_messages(vm: Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    assert vm.signal_msi(0xFEE00000, 0x41) == 0  # the LAPIC is switched off by software
    lapic = vcpu.get_lapic()
    lapic["spiv"] = 0x1FF
    vcpu.set_lapic(lapic)
    assert vm.signal_msi(0xFEE00000, 0x41) == 1
    assert vcpu.lapic.irr == [0x41]
    assert vm.signal_msi(0xFEE05000, 0x41) == 0  # no such APIC
    for bad in ({"address": 1 << 64, "data": 0}, {"address": 0, "data": 1 << 32}):
        with pytest.raises(InvalidArgument, match="must be in"):
            vm.signal_msi(**bad)


def test_routes(vm: Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    lapic = vcpu.get_lapic()
    lapic["spiv"] = 0x1FF
    vcpu.set_lapic(lapic)
    assert len(vm.gsi_routes) == 40
    with pytest.raises(InvalidArgument, match=r"gsi=100 .*no route leads from this GSI"):
        vm.irq_line(100, True)
    routes = [IrqchipRoute(4, 0, 4), MsiRoute(100, 0xFEE00000, 0x55)]
    vm.set_gsi_routing(routes)
    assert vm.gsi_routes == routes
    vm.irq_line(100, True)
    assert vcpu.lapic.irr == [0x55]
    with pytest.raises(InvalidArgument, match="no route"):
        vm.irq_line(5, True)


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ([MsiRoute(1 << 20, 0xFEE00000, 1)], "gsi=1048576 .*must be below"),
        ([IrqchipRoute(1, 0, 8)], "GSI 1: chip 0 has no pin 8"),
        ([IrqchipRoute(1, 7, 0)], "GSI 1: chip 7 has no pin 0"),
        (
            [MsiRoute(9, 0xFEE00000, 1), IrqchipRoute(9, 2, 9)],
            "GSI 9 leads to a message and to something else",
        ),
    ],
)
def test_impossible_routes(vm: Vm, routes: list, words: str) -> None:
    vm.create_irqchip()
    before = vm.gsi_routes
    with pytest.raises(KvmError, match=words):
        vm.set_gsi_routing(routes)
    assert vm.gsi_routes == before


def test_split_irqchip(vm: Vm) -> None:
    vm.create_split_irqchip()
    assert vm.irqchip == "split"
    vcpu = vm.create_vcpu(0)
    lapic = vcpu.get_lapic()
    lapic["spiv"] = 0x1FF
    vcpu.set_lapic(lapic)
    assert vm.signal_msi(0xFEE00000, 0x61) == 1
    assert vcpu.get_lapic().irr == [0x61]
    for use in (vm.create_pit2, lambda: vm.get_irqchip(0)):
        with pytest.raises(InvalidArgument, match="with a split irqchip it belongs to user space"):
            use()
    with pytest.raises(InvalidArgument, match="no route"):
        vm.irq_line(4, True)
    with pytest.raises(KvmError, match="only messages can be routed"):
        vm.set_gsi_routing([IrqchipRoute(4, 2, 4)])
    vm.set_gsi_routing([MsiRoute(4, 0xFEE00000, 0x62)])
    vm.irq_line(4, True)
    assert vcpu.get_lapic().irr == [0x61, 0x62]
    vcpu.interrupt(0x40)  # from user space's PIC
    with pytest.raises(KvmError, match=r"vector=0x41 .*is queued already"):
        vcpu.interrupt(0x41)


def test_split_irqchip_with_too_many_pins(vm: Vm) -> None:
    with pytest.raises(InvalidArgument, match="ioapic_pins=0x1001"):
        vm.create_split_irqchip(4097)
    assert vm.irqchip == "none"


def test_interrupts_without_an_irqchip() -> None:
    # The guest waits in a loop: an emulating KVM looks for the window only now and then.
    with guest(out(0x10, 1) + STI + NOP + b"\xeb\xfe") as (vm, vcpu):
        set_vector(vm, 0x40, out(0x12, 9) + IRET)
        expect_out(vcpu, 0x10, 1)
        assert not vcpu.interrupts_enabled
        assert not vcpu.ready_for_interrupt
        vcpu.request_interrupt_window = True
        assert isinstance(vcpu.run(), IrqWindowOpenExit)
        assert vcpu.ready_for_interrupt
        assert vcpu.interrupts_enabled
        vcpu.request_interrupt_window = False
        vcpu.interrupt(0x40)
        expect_out(vcpu, 0x12, 9)
        with pytest.raises(InvalidArgument, match="vector=0x100"):
            vcpu.interrupt(256)


def test_interrupt_with_an_irqchip_is_refused(vm: Vm) -> None:
    vm.create_irqchip()
    with pytest.raises(KvmError, match=r"use vm.irq_line or vm.signal_msi"):
        vm.create_vcpu(0).interrupt(0x20)


def test_nmi() -> None:
    with guest(out(0x10, 1) + NOP + out(0x10, 2)) as (vm, vcpu):
        set_vector(vm, 2, out(0x12, 2) + IRET)
        expect_out(vcpu, 0x10, 1)
        vcpu.nmi()
        assert vcpu.get_vcpu_events().nmi_pending == 1
        expect_out(vcpu, 0x12, 2)
        assert vcpu.events.nmi_masked == 1  # until IRET
        expect_out(vcpu, 0x10, 2)


def test_smi_or_a_clear_refusal() -> None:
    with guest(HLT) as (vm, vcpu):
        if vm.check_extension("KVM_CAP_X86_SMM"):
            vcpu.smi()
            assert vcpu.events.smi_pending or vcpu.events.smi_smm
        else:
            with pytest.raises(KvmError, match="lacks KVM_CAP_X86_SMM"):
                vcpu.smi()


def test_states_of_vcpus(vm: Vm) -> None:
    vm.create_irqchip()
    boot, second = vm.create_vcpu(0), vm.create_vcpu(1)
    assert boot.mp_state is MpState.RUNNABLE
    assert second.mp_state is MpState.UNINITIALIZED
    boot.mp_state = MpState.HALTED
    assert boot.get_mp_state() is MpState.HALTED
    second.set_mp_state(MpState.RUNNABLE)
    assert second.mp_state is MpState.RUNNABLE
    for bad in (6, 77):
        with pytest.raises(KvmError, match=f"state={bad} .*states of MpState only"):
            boot.set_mp_state(bad)
    with pytest.raises(InvalidArgument, match="state=-1"):
        boot.set_mp_state(-1)


def test_without_an_irqchip_a_vcpu_only_runs(vm: Vm) -> None:
    vcpu = vm.create_vcpu(0)
    with pytest.raises(KvmError, match=r"state=HALTED .*without an in-kernel LAPIC"):
        vcpu.set_mp_state(MpState.HALTED)
    with pytest.raises(KvmError, match=r"LAPIC .*call create_irqchip\(\) first"):
        vcpu.get_lapic()


def test_boot_cpu(vm: Vm) -> None:
    vm.create_irqchip()
    vm.set_boot_cpu_id(1)
    first, boot = vm.create_vcpu(0), vm.create_vcpu(1)
    assert (first.mp_state, boot.mp_state) == (MpState.UNINITIALIZED, MpState.RUNNABLE)
    assert boot.sregs.apic_base & 0x100
    with pytest.raises(InvalidArgument, match="vCPUs already"):
        vm.set_boot_cpu_id(0)


def test_lapic_round_trip(vm: Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    lapic = vcpu.lapic
    lapic["tpr"] = 0x30
    lapic["lvt_timer"] = 0x1_0045
    vcpu.lapic = lapic
    again = vcpu.lapic
    assert (again["tpr"], again["lvt_timer"]) == (0x30, 0x1_0045)
    assert vcpu.sregs.cr8 == 3  # the same register, seen from the other side
