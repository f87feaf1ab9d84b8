from __future__ import annotations

from typing import Any

import pytest
from arch_fakes import FakeVcpu

from pykvm.arch.bits import RFLAGS
from pykvm.arch.descriptors import code_segment, data_segment
from pykvm.arch.presets import PRESETS, long64, protected32, real_mode, ring3_64
from pykvm.arch.state import GENERAL_REGISTERS, SEGMENT_REGISTERS, CpuState, SegmentState
from pykvm.memory import GuestMemory


@pytest.mark.parametrize("name", PRESETS)
def test_apply_then_capture_gives_the_state_back(name: str) -> None:
    state = PRESETS[name](0x1000)
    vcpu, memory = FakeVcpu(), GuestMemory.anonymous([(0, 1 << 20)])
    state.apply(vcpu, memory)
    back = CpuState.capture(vcpu)
    for gpa, data in state.memory:
        assert memory.read(gpa, len(data)) == data
    expected = state.copy()
    expected.memory = []
    assert back == expected
    assert vcpu.sregs.apic_base == 0xFEE00900


def test_apply_sets_msrs_and_leaves_absent_registers_alone() -> None:
    state = long64(0x1000, msrs={0x277: 0x0007040600070406})
    del state.regs["r15"]
    vcpu: Any = FakeVcpu()
    state.apply(vcpu)
    assert vcpu.msrs == {0x277: 0x0007040600070406}
    assert vcpu.regs.r15 == 0xDEAD
    assert vcpu.regs.r14 == 0
    assert CpuState.capture(vcpu, [0x277, 0x10]).msrs == {0x277: 0x0007040600070406, 0x10: 0}


def test_copy_is_independent() -> None:
    state = real_mode()
    other = state.copy()
    other.regs["rax"] = 5
    other.segments["ds"] = SegmentState.null()
    other.msrs[1] = 1
    other.memory.append((0, b""))
    assert state == real_mode()


def test_modes() -> None:
    assert (real_mode().mode, real_mode().code_bits, real_mode().cpl) == ("real", 16, 0)
    flat = protected32(0x1000)
    assert (flat.mode, flat.code_bits, flat.cpl) == ("protected", 32, 0)
    flat.segments["cs"] = code_segment(16)
    assert flat.code_bits == 16
    flat.regs["rflags"] |= int(RFLAGS.VM)
    assert (flat.mode, flat.code_bits, flat.cpl) == ("vm86", 16, 3)
    user = ring3_64(0x1000)
    assert (user.mode, user.code_bits, user.cpl) == ("long", 64, 3)
    user.segments["cs"] = code_segment(32, dpl=3)
    assert (user.mode, user.code_bits) == ("compatibility", 32)


def test_linear_rip_adds_the_base_outside_long_mode() -> None:
    high = real_mode(0x12345)
    assert high.segments["cs"].selector == 0x1000
    assert high.linear_rip == 0x12345
    long = long64(0xFFFF_8000_0000_1000)
    assert long.linear_rip == 0xFFFF_8000_0000_1000
    flat = protected32(0xFFFF_F000)
    flat.segments["cs"] = flat.segments["cs"].replace(base=0x2000)
    assert flat.linear_rip == 0x1000


def test_memory_span() -> None:
    assert CpuState().memory_span() == (0, 0)
    assert CpuState(memory=[(0x3000, b"ab"), (0x1000, b"c")]).memory_span() == (0x1000, 0x3002)


def test_descriptions_name_everything() -> None:
    text = long64(0x1234).describe()
    for word in (*GENERAL_REGISTERS[:4], *SEGMENT_REGISTERS, "LME|LMA", "PE|MP", "mode long"):
        assert word in text
    assert SegmentState.null(8).describe() == "0x0008 unusable"
    assert "code64" in code_segment(64).describe()
    assert "expand-down" in data_segment().replace(type=7).describe()
    assert "not-present" in data_segment().replace(present=0).describe()
    assert "conforming" in code_segment(16).replace(type=15).describe()
