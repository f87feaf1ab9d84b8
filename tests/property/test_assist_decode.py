"""The assist's decoder held against capstone: lengths, memory operands, and the relocated form."""

from __future__ import annotations

import capstone
import pytest
from capstone import x86
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pykvm.machine.assist.compute import kind_of
from pykvm.machine.assist.decode import Instruction, Undecodable, relocated
from pykvm.machine.assist.table import find

MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
# Most random bytes are no instruction that is completed here.
FILTERED = [HealthCheck.filter_too_much]
ENGINES = {bits: capstone.Cs(capstone.CS_ARCH_X86, mode) for bits, mode in MODES.items()}
for _engine in ENGINES.values():
    _engine.detail = True

tails = st.binary(min_size=12, max_size=12)
legacy = st.builds(
    lambda prefixes, rex, opcode, tail: b"".join(prefixes) + rex + opcode + tail,
    st.lists(st.sampled_from([b"\x66", b"\xf2", b"\xf3", b"\x67", b"\x64", b"\x65"]), max_size=2),
    st.sampled_from([b"", b"", b"\x48", b"\x41", b"\x4f", b"\x44"]),
    st.one_of(
        st.integers(0xD8, 0xDF).map(lambda n: bytes([n])),
        st.integers(0x10, 0xFE).map(lambda n: bytes([0x0F, n])),
        st.integers(0x00, 0xFF).map(lambda n: bytes([0x0F, 0x38, n])),
        st.integers(0x00, 0xFF).map(lambda n: bytes([0x0F, 0x3A, n])),
    ),
    tails,
)
vex = st.builds(
    lambda head, opcode, tail: head + bytes([opcode]) + tail,
    st.one_of(
        st.integers(0, 255).map(lambda n: bytes([0xC5, n])),
        st.tuples(st.integers(0, 7), st.integers(1, 3), st.integers(0, 255)).map(
            lambda t: bytes([0xC4, t[0] << 5 | t[1], t[2]])
        ),
    ),
    st.integers(0, 255),
    tails,
)


@given(code=st.one_of(legacy, vex), bits=st.sampled_from([64, 64, 32]))
@settings(max_examples=500, deadline=None, suppress_health_check=FILTERED)
def test_as_capstone_has_it(code: bytes, bits: int) -> None:
    found = next(ENGINES[bits].disasm(code, 0x1000, 1), None)
    assume(found is not None)
    assert found is not None
    try:
        insn = Instruction(code, bits)
    except Undecodable:
        return
    assume(kind_of(insn) is not None)
    # Capstone 5 reads the immediate of a prefixed 0F 78 (EXTRQ) and skips repeated prefixes
    # otherwise than a CPU does.
    assume(insn.key != (1, 0x78) and not (insn.rex and bits != 64))
    assert insn.length == found.size, found.mnemonic
    memory = [o for o in found.operands if o.type == x86.X86_OP_MEM]
    if not memory or insn.vsib:
        return
    operand = memory[0].mem
    if operand.base in (x86.X86_REG_RIP, x86.X86_REG_EIP):
        assert insn.rip_relative
    elif insn.memory and found.addr_size * 8 == insn.address_size:
        ours = [insn.base, insn.index].count(None)
        # RIZ and EIZ are its names for "no index" where the byte could have been left out.
        none = (0, x86.X86_REG_RIZ, x86.X86_REG_EIZ)
        assert ours == sum(register in none for register in (operand.base, operand.index))
        mask = (1 << insn.address_size) - 1
        assert insn.disp & mask == operand.disp & mask


@given(code=st.one_of(legacy, vex))
@settings(max_examples=400, deadline=None, suppress_health_check=FILTERED)
def test_the_relocated_form_is_the_same_instruction(code: bytes) -> None:
    found = next(ENGINES[64].disasm(code, 0x1000, 1), None)
    assume(found is not None)
    assert found is not None
    try:
        insn = Instruction(code, 64)
    except Undecodable:
        return
    assume(kind_of(insn) is not None and insn.memory and not insn.vsib and insn.opcode != 0x78)
    moved = relocated(insn, 0x12345)
    again = next(ENGINES[64].disasm(moved, 0x1000, 1), None)
    assert again is not None
    assert (again.size, again.mnemonic) == (len(moved), found.mnemonic)
    memory = [o for o in again.operands if o.type == x86.X86_OP_MEM]
    if memory:
        assert memory[0].mem.disp + len(moved) == 0x12345
    others = [o.reg for o in found.operands if o.type == x86.X86_OP_REG]
    assert others == [o.reg for o in again.operands if o.type == x86.X86_OP_REG]


@given(code=st.binary(max_size=18), bits=st.sampled_from([16, 32, 64]))
@settings(max_examples=500, deadline=None, suppress_health_check=FILTERED)
def test_any_bytes(code: bytes, bits: int) -> None:
    """Whatever the guest runs: an instruction of at most 15 bytes, or the one exception."""
    try:
        insn = Instruction(code, bits)
    except Undecodable:
        return
    assert 0 < insn.length <= 18
    assert insn.raw == code[: insn.length]
    find(insn)


@pytest.mark.parametrize(
    ("code", "bits", "name"),
    [
        ("cc", 64, "int3"), ("cd80", 32, "int"), ("ce", 16, "into"), ("f1", 64, "int1"),
        ("cf", 32, "iret"), ("480f07", 64, "sysret"), ("0f01cb", 64, "stac"),
        ("0f01ca", 64, "clac"), ("f30fb8c1", 64, "popcnt"), ("480fc70f", 64, "cmpxchg16b"),
        ("f0480fc70f", 64, "cmpxchg16b"), ("0fae2f", 64, "xrstor"), ("0fc72f", 64, "xsaves"),
        ("0fc71f", 64, "xrstors"), ("660f388207", 64, "invpcid"), ("f30fc7f8", 64, "rdpid"),
        ("0f0b", 64, "ud2"), ("9b", 64, "wait"), ("d9e8", 32, "fld1"), ("660fae37", 64, "clwb"),
        ("0f01f9", 64, "rdtscp"), ("0f00e9", 64, "verw"), ("f00f58c1", 64, "lock"),
    ],
)  # fmt: skip
def test_names(code: str, bits: int, name: str) -> None:
    entry = find(Instruction(bytes.fromhex(code), bits))
    assert entry is not None
    assert entry.name == name


@pytest.mark.parametrize("code", ["90", "e800000000", "0f8400000000", "ff25", "0f"])
def test_what_it_does_not_know(code: str) -> None:
    with pytest.raises(Undecodable):
        Instruction(bytes.fromhex(code), 64)
