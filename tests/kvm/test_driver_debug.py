"""Guest debug and address translation through the driver."""

from __future__ import annotations

import pytest
from driver_guest import ENTRY, HLT, NOP, expect_out, guest, out, store

from pykvm.kvm import HardwareBreakpoint, InvalidArgument, KvmError
from pykvm.kvm.exits import DebugExit, HltExit, IoExit


def test_single_steps_stop_at_each_instruction() -> None:
    with guest(NOP + out(0x10, 1) + NOP + HLT) as (_, vcpu):
        vcpu.set_guest_debug(singlestep=True)
        assert vcpu.guest_debug.singlestep
        stops = []
        for _ in range(2):
            exit_ = vcpu.run()
            assert isinstance(exit_, DebugExit), str(exit_)
            stops.append(vcpu.regs.rip)
        assert stops == [ENTRY + 1, ENTRY + 3]
        vcpu.clear_guest_debug()
        assert not vcpu.guest_debug.singlestep
        expect_out(vcpu, 0x10, 1)
        assert isinstance(vcpu.run(), HltExit)


def test_stepping_starts_where_the_registers_say() -> None:
    with guest(HLT + NOP * 10) as (_, vcpu):
        vcpu.set_guest_debug(singlestep=True)
        vcpu.regs.rip = ENTRY + 4  # not yet in the kernel when stepping is switched on again
        vcpu.set_guest_debug(singlestep=True)
        assert isinstance(vcpu.run(), DebugExit)
        assert vcpu.regs.rip == ENTRY + 5


def test_hardware_breakpoint_on_execution() -> None:
    with guest(NOP * 8 + out(0x10, 1)) as (_, vcpu):
        vcpu.set_guest_debug(hardware_breakpoints=[HardwareBreakpoint(ENTRY + 5)])
        exit_ = vcpu.run()
        assert isinstance(exit_, DebugExit)
        assert vcpu.regs.rip == ENTRY + 5
        vcpu.clear_guest_debug()
        expect_out(vcpu, 0x10, 1)


def test_software_breakpoint_stops_on_the_int3() -> None:
    with guest(NOP + b"\xcc" + out(0x10, 1)) as (vm, vcpu):
        vcpu.set_guest_debug(software_breakpoints=True)
        assert vcpu.guest_debug.software_breakpoints
        vm.regions[0].write(3 * 4, (0x2000).to_bytes(4, "little"))
        vm.regions[0].write(0x2000, out(0x12, 3))
        exit_ = vcpu.run()
        if isinstance(exit_, IoExit):
            # An emulating KVM gives a real-mode INT3 to the guest whatever it is told.
            assert (exit_.port, exit_.value) == (0x12, 3)
            return
        assert isinstance(exit_, DebugExit)
        assert vcpu.regs.rip == ENTRY + 1
        vm.regions[0].write(ENTRY + 1, NOP)
        vcpu.clear_guest_debug()
        expect_out(vcpu, 0x10, 1)


def test_an_injected_debug_exception_reaches_the_guest() -> None:
    with guest(out(0x10, 1)) as (vm, vcpu):
        region = vm.regions[0]
        region.write(1 * 4, (0x2000).to_bytes(4, "little"))
        region.write(0x2000, out(0x12, 1))
        vcpu.set_guest_debug(inject_db=True)
        with pytest.raises(KvmError, match="an exception is pending"):
            vcpu.set_guest_debug(inject_db=True)
        assert not vcpu.guest_debug.control & 0x40000  # it is done once
        expect_out(vcpu, 0x12, 1)


def test_impossible_breakpoints_are_named() -> None:
    with guest(HLT) as (_, vcpu):
        with pytest.raises(InvalidArgument, match=r"breakpoint at 0x1003 .*not aligned"):
            vcpu.set_guest_debug(hardware_breakpoints=[HardwareBreakpoint(0x1003, "write", 4)])
        assert vcpu.guest_debug.control == 0


def test_translate_without_paging_is_the_identity() -> None:
    with guest(HLT) as (_, vcpu):
        found = vcpu.translate(0x1234)
        assert (found.gva, found.gpa, found.valid) == (0x1234, 0x1234, True)
        with pytest.raises(InvalidArgument, match="gva=-0x1"):
            vcpu.translate(-1)


def test_translate_follows_page_tables() -> None:
    with guest(HLT) as (vm, vcpu):
        region = vm.regions[0]
        # 4-level paging: tables at 0x4000 to 0x7000, the last one maps page 7 to frame 0x42
        for at in (0x4000, 0x5000, 0x6000):
            region.write(at, (at + 0x1003).to_bytes(8, "little"))
        region.write(0x7000 + 7 * 8, (0x4_2003).to_bytes(8, "little"))
        sregs = vcpu.sregs
        sregs.cr3, sregs.cr4, sregs.efer = 0x4000, 0x20, 0x500
        sregs.cr0 = 0x8000_0011
        sregs.cs.l, sregs.cs.type = 1, 11
        assert vcpu.translate(0x7ABC).gpa == 0x4_2ABC
        missing = vcpu.translate(0x8000)
        assert (missing.valid, missing.gpa) == (False, None)


def test_stores_do_not_disturb_stepping() -> None:
    with guest(store(0x3000, 1) * 3 + HLT) as (vm, vcpu):
        vcpu.set_guest_debug(singlestep=True)
        for i in range(1, 4):
            assert isinstance(vcpu.run(), DebugExit)
            assert vcpu.regs.rip == ENTRY + 5 * i
        assert vm.regions[0].read(0x3000, 1) == b"\1"
