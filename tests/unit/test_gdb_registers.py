"""Registers as GDB counts them, without a vCPU behind."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from pykvm.lab.gdb.descriptions import Arch, Description, Register, describe
from pykvm.lab.gdb.registers import RegisterFile, has_avx

SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")


class FakeVcpu:
    """The attributes that registers are read through."""

    def __init__(self, **regs: int) -> None:
        self.regs = SimpleNamespace(**{"rax": 0, "rsp": 0, "rip": 0, "rflags": 2} | regs)
        segment = {"base": 0, "limit": 0xFFFF, "selector": 0}
        self.sregs = SimpleNamespace(
            cr0=0x10, cr3=0, efer=0,
            **{name: SimpleNamespace(**segment) for name in SEGMENTS},
            gdt=SimpleNamespace(base=0x1000, limit=0x27), idt=SimpleNamespace(base=0, limit=0x3FF),
        )  # fmt: skip
        self.area = bytearray(4096)
        self.area[0:2] = (0x37F).to_bytes(2, "little")
        self.cpuid: list[Any] = []

    def get_xsave(self) -> bytes:
        return bytes(self.area)

    def set_xsave(self, area: bytes) -> None:
        self.area = bytearray(area)


def one(description: Description, name: str) -> Register:
    return next(r for r in description.registers if r.name == name)


LONG, REAL = describe(Arch.X86_64, True), describe(Arch.I8086, False)


def value(vcpu: FakeVcpu, name: str, description: Description = LONG) -> int:
    file = RegisterFile(vcpu, description.arch)  # type: ignore[arg-type]
    return int.from_bytes(file.read(one(description, name)), "little")


def store(vcpu: FakeVcpu, name: str, number: int, description: Description = LONG) -> None:
    file = RegisterFile(vcpu, description.arch)  # type: ignore[arg-type]
    register = one(description, name)
    file.write(register, number.to_bytes(register.size, "little"))


@pytest.mark.parametrize("name", ["rax", "rip", "eflags", "cs", "fs_base", "cs_limit", "gdtr_base",
                                  "idtr_limit", "tr", "ldtr_base", "cr3", "efer", "xmm7",
                                  "ymm15h", "mxcsr", "fctrl", "fop", "fioff", "st3"])  # fmt: skip
def test_what_is_written_is_read(name: str) -> None:
    vcpu = FakeVcpu()
    before = {r.name: value(vcpu, r.name) for r in LONG.registers if _is_fake(r.name)}
    store(vcpu, name, 0x25)
    assert value(vcpu, name) == 0x25
    after = {n: value(vcpu, n) for n in before}
    assert {n for n in before if after[n] != before[n]} <= {name}


def _is_fake(name: str) -> bool:
    return name in {"rax", "rsp", "rip", "eflags", "cs", "ds", "fs_base", "cs_limit", "gdtr_base",
                    "idtr_limit", "tr", "cr3", "mxcsr", "fctrl", "xmm0", "xmm7", "ymm15h",
                    "ymm0h", "st0", "st3", "fstat"}  # fmt: skip


def test_the_program_counter_of_real_mode_is_linear() -> None:
    vcpu = FakeVcpu(rip=0x12)
    vcpu.sregs.cs.selector, vcpu.sregs.cs.base = 0x7C0, 0x7C00
    assert value(vcpu, "eip", REAL) == 0x7C12
    store(vcpu, "eip", 0x7C34, REAL)
    assert vcpu.regs.rip == 0x34
    offset = RegisterFile(vcpu, Arch.I8086, linear_pc=False)  # type: ignore[arg-type]
    assert offset.read(one(REAL, "eip")) == b"\x34\0\0\0"


def test_a_selector_loads_its_base_in_real_mode_only() -> None:
    vcpu = FakeVcpu()
    store(vcpu, "ds", 0x1234, REAL)
    assert vcpu.sregs.ds.base == 0x12340
    vcpu.sregs.cr0 = 1
    store(vcpu, "ds", 0x10, REAL)
    assert (vcpu.sregs.ds.selector, vcpu.sregs.ds.base) == (0x10, 0x12340)


def test_the_tag_word_has_two_bits_a_register() -> None:
    vcpu = FakeVcpu()
    assert value(vcpu, "ftag") == 0xFFFF
    vcpu.area[4] = 0b1110_0000  # registers 5 to 7 are in use
    vcpu.area[2:4] = (5 << 11).to_bytes(2, "little")  # TOP is 5
    struct.pack_into("<QH", vcpu.area, 32, 1 << 63, 0x3FFF)  # ST0: 1.0
    struct.pack_into("<QH", vcpu.area, 48, 0, 0)  # ST1: 0
    struct.pack_into("<QH", vcpu.area, 64, 1 << 63, 0x7FFF)  # ST2: infinity
    assert value(vcpu, "ftag") == 0b10_01_00_11_11_11_11_11
    store(vcpu, "ftag", 0xFFFC)
    assert vcpu.area[4] == 1


def test_writing_a_vector_marks_it_as_used() -> None:
    vcpu = FakeVcpu()
    store(vcpu, "xmm2", 5)
    assert vcpu.area[512] == 2
    store(vcpu, "ymm2h", 5)
    assert vcpu.area[512] == 6
    store(vcpu, "st0", 5)
    assert vcpu.area[512] == 7


def test_avx_is_what_cpuid_says() -> None:
    vcpu = FakeVcpu()
    assert not has_avx(vcpu)  # type: ignore[arg-type]
    vcpu.cpuid = [SimpleNamespace(function=0xD, index=0, eax=7)]
    assert has_avx(vcpu)  # type: ignore[arg-type]
    vcpu.cpuid = [SimpleNamespace(function=0xD, index=0, eax=3)]
    assert not has_avx(vcpu)  # type: ignore[arg-type]
