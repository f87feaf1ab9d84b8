"""Finding the instruction behind an exit: port opcodes against capstone, ambiguous neighbours."""

from __future__ import annotations

import types
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.kvm import exit_locate
from pykvm.kvm.decode import decode, disassemble
from pykvm.kvm.exit_base import Where
from pykvm.kvm.exit_locate import locate_memory, locate_opcode, locate_port, parse_port_instruction
from pykvm.kvm.exit_site import Site

WORDS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", *map(str, range(8, 16)))
NAMES = [f"r{name}" for name in WORDS]


def registers(**values: int) -> Any:
    return types.SimpleNamespace(**dict.fromkeys(NAMES, 0) | {"rflags": 2} | values)


def site(
    before: str,
    after: str,
    bits: int = 64,
    *,
    paging: bool = False,
    address: int = 0x1000,
    **bases: int,
) -> Site:
    known = dict.fromkeys(("cs", "ds", "es", "fs", "gs", "ss"), 0) | bases
    old, new = bytes.fromhex(before), bytes.fromhex(after)
    return Site(address, address, bits, paging, False, known, old, new, None)


@pytest.fixture(autouse=True)
def no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test learns anew, and asks no real host."""
    monkeypatch.setattr(exit_locate, "_rip_is_behind", {})

    def refuse() -> bool | None:
        raise AssertionError("the host was measured though the exit is not ambiguous")

    monkeypatch.setattr(exit_locate, "_measure", refuse)


OPCODES = [*range(0xE4, 0xE8), *range(0xEC, 0xF0), *range(0x6C, 0x70)]
PREFIXES = [0x66, 0x67, 0xF3, 0x2E, 0x64]


@settings(max_examples=300, deadline=None)
@given(
    bits=st.sampled_from([16, 32, 64]),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3, unique=True),
    rex=st.sampled_from([b"", b"", b"\x40", b"\x48"]),
    opcode=st.sampled_from(OPCODES),
    port=st.integers(0, 255),
)
def test_port_instructions_are_parsed_as_capstone_does(
    bits: int, prefixes: list[int], rex: bytes, opcode: int, port: int
) -> None:
    code = bytes(prefixes) + (rex if bits == 64 else b"") + bytes([opcode, port])
    if rex == b"\x48" and bits == 64 and 0x66 in prefixes:
        return  # REX.W against 66: the processors ignore REX.W here, capstone's text varies
    found = parse_port_instruction(code, bits)
    assert found is not None
    reference = decode(code, 0, bits)
    assert reference is not None
    assert found.length == reference.size
    name = reference.mnemonic.split()[-1]
    assert name.startswith("out" if found.write else "in")
    assert found.string == (opcode & 0xFC == 0x6C)
    if found.string:
        assert found.size == {"b": 1, "w": 2, "d": 4}[name[-1]]
        assert found.rep == ("rep" in reference.mnemonic)
    else:
        first, second = reference.operands.split(", ")
        target, value = (first, second) if found.write else (second, first)
        assert found.size == {"al": 1, "ax": 2, "eax": 4}[value]
        assert found.port == (None if target == "dx" else int(target, 0))


@given(code=st.binary(max_size=16), bits=st.sampled_from([16, 32, 64]))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_told_apart_from_port_instructions(code: bytes, bits: int) -> None:
    found = parse_port_instruction(code, bits)
    reference = decode(code, 0, bits)
    if found is not None and reference is not None:
        assert reference.mnemonic.split()[-1].startswith(("in", "out"))
        assert found.length <= len(code)
    if reference is not None and reference.mnemonic in ("in", "out"):
        assert found is not None


@pytest.mark.parametrize(
    ("before", "after", "port", "size", "address"),
    [
        ("90 90", "ee 90", 0x3F8, 1, 0x1000),  # RIP on it
        ("90 ee", "90 90", 0x3F8, 1, 0xFFF),  # RIP behind it
        ("e6 80", "f4 90", 0x80, 1, 0xFFE),
        ("90 ee", "ef 90", 0x3F8, 4, 0x1000),  # told apart by size
        ("90 66 ef", "ee 90", 0x3F8, 2, 0xFFE),
        ("e6 80", "e6 81", 0x80, 1, 0xFFE),  # by port
        ("e6 80", "e6 81", 0x81, 1, 0x1000),
        ("90 ec", "ee 90", 0x3F8, 1, 0x1000),  # by direction
        ("ee 90", "90 90", 0x3F8, 1, None),  # neither
    ],
)
def test_out_is_found_on_either_side_of_rip(
    before: str, after: str, port: int, size: int, address: int | None
) -> None:
    where = locate_port(site(before, after), registers(rdx=0x3F8), True, port, size, 1)
    assert where.certain == (address is not None)
    assert where.address == (address or 0x1000)
    assert where.text.startswith("out " if address else "")


def test_two_equal_outs_are_told_apart_by_what_the_host_does() -> None:
    regs = registers(rdx=0x3F8)
    for before, after, expected in (("ee", "90", 0xFFF), ("90", "ee", 0x1000)):
        locate_port(site(before, after), regs, True, 0x3F8, 1, 1)  # this one teaches
        assert locate_port(site("ee", "ee"), regs, True, 0x3F8, 1, 1).address == expected


def test_the_host_is_measured_where_nothing_was_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    regs = registers(rdx=0x3F8)
    for measured, expected in ((True, 0xFFF), (False, 0x1000), (None, 0x1000)):
        monkeypatch.setattr(exit_locate, "_rip_is_behind", {})
        monkeypatch.setattr(exit_locate, "_measure", lambda answer=measured: answer)
        assert locate_port(site("ee", "ee"), regs, True, 0x3F8, 1, 1).address == expected


def test_port_7e_is_always_behind_and_teaches_nothing() -> None:
    regs = registers(rdx=0x3F8)
    assert locate_port(site("e6 7e", "e6 7e"), regs, True, 0x7E, 1, 1).address == 0xFFE
    assert locate_port(site("e6 7e", "90"), regs, True, 0x7E, 1, 1).address == 0xFFE
    assert exit_locate._rip_is_behind == {}


@pytest.mark.parametrize("left", [5, 0])
def test_rep_outs_stays_where_it_is(left: int) -> None:
    regs = registers(rdx=0x10, rcx=left)
    for before, address in (("f36e", 0x1000), ("67f36e", 0x1000)):
        where = locate_port(site(before, "f36e"), regs, True, 0x10, 1, 1)
        assert (where.address, where.text[:9]) == (address, "rep outsb")
    where = locate_port(site("67f36e", "90"), regs, True, 0x10, 1, 1)
    assert (where.address, where.certain) == (0xFFD, True)


def test_in_is_always_on_rip() -> None:
    regs = registers(rdx=0x60)
    assert locate_port(site("ec", "ec"), regs, False, 0x60, 1, 1).address == 0x1000
    where = locate_port(site("ec", "90"), regs, False, 0x60, 1, 1)
    assert (where.address, where.certain) == (0x1000, False)


def test_several_elements_need_a_rep_prefix() -> None:
    regs = registers(rdx=0x10, rcx=9)
    assert not locate_port(site("", "6c"), regs, False, 0x10, 1, 4).certain
    assert not locate_port(site("", "ec"), regs, False, 0x10, 1, 4).certain
    assert locate_port(site("", "f36c"), regs, False, 0x10, 1, 4).certain


def test_without_bytes_the_address_stands() -> None:
    assert locate_port(site("", ""), registers(), True, 1, 1, 1) == Where(0x1000, True, b"", 64)


def test_opcodes() -> None:
    assert locate_opcode(site("f4", "f4"), True, b"\xf4").address == 0xFFF
    assert locate_opcode(site("f4", "f4"), False, b"\xf4").address == 0x1000
    assert locate_opcode(site("90", "f4"), True, b"\xf4").address == 0x1000
    assert not locate_opcode(site("90", "90"), True, b"\xf4").certain


GPA = 0xD0000010


@pytest.mark.parametrize(
    ("before", "after", "data", "expected"),
    [
        ("90 8803", "90", "41", "mov byte ptr [rbx], al"),
        ("90 48 8903", "90", "4142000000000000", "mov qword ptr [rbx], rax"),
        ("31d2 b048 8903", "90", "41420000", "mov dword ptr [rbx], eax"),  # four bytes: no REX.W
        ("90 8803", "8803", "41", "mov byte ptr [rbx], al"),
        ("90", "8803", "41", "mov byte ptr [rbx], al"),  # a host that leaves RIP on it
        ("90 8803", "90", "42", ""),  # another value
        ("90 8a03", "90", "41", ""),  # a load
        ("90 880b", "90", "41", ""),  # stores CL, which is 0
        ("90 c60341", "90", "41", "mov byte ptr [rbx], 0x41"),
        ("90 48", "90", "41", ""),
        ("b048 8803", "90", "48", "mov byte ptr [rbx], al"),  # 48: an operand, no REX
        ("90 f0 0fc103", "90", "99990000", "lock xadd dword ptr [rbx], eax"),
        ("90 8844 0bf0", "90", "41", "mov byte ptr [rbx + rcx - 0x10], al"),
        ("90 67 8803", "90", "41", "mov byte ptr [ebx], al"),
        ("90 880425 100000d0", "90", "41", ""),  # sign-extended: not this address
        ("a2 100000d0 00000000", "90", "41", "movabs byte ptr [0xd0000010], al"),
        ("90 aa", "90", "41", "stosb byte ptr [rdi], al"),
        ("90", "f3aa", "41", "rep stosb byte ptr [rdi], al"),
        ("88 47ff", "f3aa", "41", "rep stosb byte ptr [rdi], al"),  # mov [rdi-1], al before it
        ("90 aa", "f3aa", "41", "rep stosb byte ptr [rdi], al"),
        ("90 8803", "aa", "41", "mov byte ptr [rbx], al"),
        ("90 50", "90", "4142000000000000", "push rax"),
        ("90 0f1103", "90", "0102030405060708", "movups xmmword ptr [rbx], xmm0"),
    ],
)
def test_the_store_behind_an_mmio_write(before: str, after: str, data: str, expected: str) -> None:
    # RDI has moved on by one already, as KVM leaves it after a string instruction.
    regs = registers(rax=0x4241, rbx=GPA, rdi=GPA + 1, rsp=GPA)
    if "0bf0" in before:
        regs.rcx = 0x10
    if data == "48":
        regs.rax = 0x48
    where = locate_memory(site(before, after), regs, True, GPA, bytes.fromhex(data))
    assert where.text == expected
    if "b048" in before:
        assert len(where.code) == 2
    assert where.certain == bool(expected)


def test_strings_that_go_down() -> None:
    for rdi, certain in ((GPA - 1, True), (GPA + 1, False)):
        regs = registers(rdi=rdi, rax=0x41, rflags=0x402)
        assert locate_memory(site("90aa", "90"), regs, True, GPA, b"A").certain == certain


def test_page_tables_decide_where_they_are_known() -> None:
    regs = registers(rbx=0x7010, rax=0x41)
    for table, certain in (({0x7010: GPA}, True), ({0x7010: GPA + 0x1000}, False), ({}, False)):
        where = locate_memory(site("8803", "90", paging=True), regs, True, GPA, b"A", table.get)
        assert where.certain == certain


def test_paging_keeps_the_offset_in_the_page() -> None:
    regs = registers(rbx=0xFFFF_8000_0000_0010, rax=0x41)
    where = locate_memory(site("8803", "90", paging=True), regs, True, GPA, b"A")
    assert (where.address, where.certain) == (0xFFE, True)
    where = locate_memory(site("8803", "90", paging=True), regs, True, GPA + 1, b"A")
    assert not where.certain


@pytest.mark.parametrize(("gpa", "data"), [(0xD0000FFD, b"\1\2\3"), (0xD0001000, b"\4\5\6\7\x08")])
def test_both_parts_of_a_store_across_a_page(gpa: int, data: bytes) -> None:
    regs = registers(rbx=0xD0000FFD, rax=0x0807060504030201)
    where = locate_memory(site("90 488903", "90"), regs, True, gpa, data)
    assert (where.address, where.text) == (0xFFD, "mov qword ptr [rbx], rax")


def test_segments_count_in_16_bits() -> None:
    regs = registers(rbx=0xFFF0, rsi=0x20, rbp=0x10, rax=0x41)
    for code, gpa in (
        ("8800", 0xD0000 + 0x10),  # mov [bx+si], al wraps at 64 KiB
        ("884600", 0xE0000 + 0x10),  # mov [bp], al is relative to SS
        ("268807", 0xF0000 + 0xFFF0),  # mov es:[bx], al
    ):
        where = locate_memory(
            site(code, "90", 16, ds=0xD0000, ss=0xE0000, es=0xF0000), regs, True, gpa, b"A"
        )
        assert where.certain, code


def test_reads_are_where_rip_is() -> None:
    where = locate_memory(site("8a03", "8a03"), registers(), False, GPA, b"")
    assert (where.address, where.certain, where.text) == (
        0x1000,
        True,
        "mov al, byte ptr [rbx]",
    )


def test_what_cannot_be_decoded_has_no_text() -> None:
    assert decode(b"", 0, 64) is None
    assert disassemble(b"\x0f", 0, 64) == ""
    assert disassemble(b"\x0f\x0b", 0x1000, 32) == "ud2"
