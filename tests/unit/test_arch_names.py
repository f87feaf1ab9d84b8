from __future__ import annotations

import struct
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from arch_fakes import FakeVcpu
from arch_fakes import cpuid_entry as entry

from pykvm.arch import cpuid, msrs, registers
from pykvm.arch.cpuid_table import FEATURE_WORDS
from pykvm.arch.disasm import disassemble, disassemble_one
from pykvm.arch.errors import ArchError, UnknownRegister
from pykvm.arch.presets import long64
from pykvm.arch.state import GENERAL_REGISTERS

# ---- MSRs


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("IA32_TIME_STAMP_COUNTER", 0x10),
        ("IA32_APIC_BASE", 0x1B),
        ("IA32_PAT", 0x277),
        ("IA32_MTRR_PHYSBASE0", 0x200),
        ("IA32_MTRR_PHYSMASK7", 0x20F),
        ("IA32_MC3_STATUS", 0x40D),
        ("IA32_X2APIC_ICR", 0x830),
        ("IA32_X2APIC_ISR7", 0x817),
        ("IA32_EFER", 0xC0000080),
        ("IA32_KERNEL_GS_BASE", 0xC0000102),
        ("VM_HSAVE_PA", 0xC0010117),
        ("PERF_CTR5", 0xC001020B),
        ("KVM_SYSTEM_TIME_NEW", 0x4B564D01),
        ("HV_HYPERCALL", 0x40000001),
        ("HV_SINT15", 0x4000009F),
        ("HV_STIMER1_COUNT", 0x400000B3),
    ],
)
def test_msr_numbers(name: str, number: int) -> None:
    assert msrs.number(name) == number
    assert msrs.name(number) == name
    assert f"{name} ({number:#x}): " in msrs.describe(number)


def test_msr_names_are_unique_and_described() -> None:
    names = [m.name for m in msrs.table().values()]
    assert len(names) == len(set(names)) > 600
    assert all(m.meaning and "{" not in m.name for m in msrs.table().values())
    assert {m.group for m in msrs.table().values()} == {
        *("intel", "x2apic", "x86-64", "amd", "kvm", "hyper-v")
    }


@pytest.mark.parametrize("asked", ["efer", "EFER", "ia32_efer", "MSR_EFER", "0xc0000080"])
def test_msr_look_up_is_lenient(asked: str) -> None:
    assert msrs.number(asked) == msrs.EFER


def test_unknown_msrs() -> None:
    assert msrs.name(0x12345) == "MSR_0x12345"
    assert msrs.number("MSR_0x12345") == 0x12345
    assert msrs.describe(0x12345) == "MSR 0x12345"
    with pytest.raises(UnknownRegister, match=r"EFER") as caught:
        msrs.number("EFERR")
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith("'")
    with pytest.raises(UnknownRegister, match="32 bits"):
        msrs.number(1 << 32)


# ---- CPUID


# Linux's asm/cpufeatures.h and the SDM, as an independent list.
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("fpu", (1, 0, "edx", 0)),
        ("apic", (1, 0, "edx", 9)),
        ("sep", (1, 0, "edx", 11)),
        ("pse36", (1, 0, "edx", 17)),
        ("sse2", (1, 0, "edx", 26)),
        ("pbe", (1, 0, "edx", 31)),
        ("vmx", (1, 0, "ecx", 5)),
        ("cx16", (1, 0, "ecx", 13)),
        ("pcid", (1, 0, "ecx", 17)),
        ("x2apic", (1, 0, "ecx", 21)),
        ("popcnt", (1, 0, "ecx", 23)),
        ("tsc_deadline", (1, 0, "ecx", 24)),
        ("xsave", (1, 0, "ecx", 26)),
        ("hypervisor", (1, 0, "ecx", 31)),
        ("arat", (6, 0, "eax", 2)),
        ("pts", (6, 0, "eax", 6)),
        ("hwp_pkg_req", (6, 0, "eax", 11)),
        ("hfi", (6, 0, "eax", 19)),
        ("fsgsbase", (7, 0, "ebx", 0)),
        ("smep", (7, 0, "ebx", 7)),
        ("erms", (7, 0, "ebx", 9)),
        ("invpcid", (7, 0, "ebx", 10)),
        ("mpx", (7, 0, "ebx", 14)),
        ("smap", (7, 0, "ebx", 20)),
        ("clwb", (7, 0, "ebx", 24)),
        ("sha_ni", (7, 0, "ebx", 29)),
        ("avx512vl", (7, 0, "ebx", 31)),
        ("umip", (7, 0, "ecx", 2)),
        ("pku", (7, 0, "ecx", 3)),
        ("shstk", (7, 0, "ecx", 7)),
        ("avx512_vpopcntdq", (7, 0, "ecx", 14)),
        ("la57", (7, 0, "ecx", 16)),
        ("rdpid", (7, 0, "ecx", 22)),
        ("movdir64b", (7, 0, "ecx", 28)),
        ("fsrm", (7, 0, "edx", 4)),
        ("md_clear", (7, 0, "edx", 10)),
        ("tsx_force_abort", (7, 0, "edx", 13)),
        ("pconfig", (7, 0, "edx", 18)),
        ("ibt", (7, 0, "edx", 20)),
        ("amx_int8", (7, 0, "edx", 25)),
        ("spec_ctrl", (7, 0, "edx", 26)),
        ("ssbd", (7, 0, "edx", 31)),
        ("avx512_bf16", (7, 1, "eax", 5)),
        ("lass", (7, 1, "eax", 6)),
        ("fred", (7, 1, "eax", 17)),
        ("lam", (7, 1, "eax", 26)),
        ("avx10", (7, 1, "edx", 19)),
        ("bhi_ctrl", (7, 2, "edx", 4)),
        ("xsaves", (0xD, 1, "eax", 3)),
        ("syscall", (0x80000001, 0, "edx", 11)),
        ("nx", (0x80000001, 0, "edx", 20)),
        ("pdpe1gb", (0x80000001, 0, "edx", 26)),
        ("lm", (0x80000001, 0, "edx", 29)),
        ("svm", (0x80000001, 0, "ecx", 2)),
        ("topoext", (0x80000001, 0, "ecx", 22)),
        ("mwaitx", (0x80000001, 0, "ecx", 29)),
        ("smca", (0x80000007, 0, "ebx", 3)),
        ("invtsc", (0x80000007, 0, "edx", 8)),
        ("wbnoinvd", (0x80000008, 0, "ebx", 9)),
        ("ibpb", (0x80000008, 0, "ebx", 12)),
        ("amd_ssbd", (0x80000008, 0, "ebx", 24)),
        ("nrip_save", (0x8000000A, 0, "edx", 3)),
        ("avic", (0x8000000A, 0, "edx", 13)),
        ("vgif", (0x8000000A, 0, "edx", 16)),
        ("vnmi", (0x8000000A, 0, "edx", 25)),
        ("sev_es", (0x8000001F, 0, "eax", 3)),
        ("autoibrs", (0x80000021, 0, "eax", 8)),
        ("srso_no", (0x80000021, 0, "eax", 29)),
        ("kvmclock2", (0x40000001, 0, "eax", 3)),
        ("kvm_pv_unhalt", (0x40000001, 0, "eax", 7)),
        ("kvm_migration_control", (0x40000001, 0, "eax", 17)),
        ("kvmclock_stable", (0x40000001, 0, "eax", 24)),
    ],
)
def test_feature_places(name: str, place: tuple[int, int, str, int]) -> None:
    assert cpuid.feature(name)[1:] == place


def test_feature_table_is_consistent() -> None:
    names = [n for words in FEATURE_WORDS.values() for n in words.split() if n != "-"]
    assert len(names) == len(set(names)) == len(cpuid.known_features())
    assert all(len(words.split()) <= 32 for words in FEATURE_WORDS.values())


def test_features_of_entries() -> None:
    entries = [entry(1, ecx=1 << 13 | 1 << 31, edx=1), entry(7, 1, eax=1 << 26), entry(7)]
    assert cpuid.features(entries) == {"cx16", "hypervisor", "fpu", "lam"}
    assert cpuid.has_feature(entries, "CX16")
    assert not cpuid.has_feature(entries, "nx")
    assert cpuid.set_feature(entries, "cx16", False)
    assert cpuid.set_feature(entries, "umip")
    assert not cpuid.set_feature(entries, "nx")
    assert cpuid.features(entries) == {"umip", "hypervisor", "fpu", "lam"}
    with pytest.raises(ArchError, match="did you mean avx512f"):
        cpuid.feature("avx512ff")


def test_identity_strings() -> None:
    brand = struct.pack("<48s", b"  Some CPU @ 3.00GHz")
    words = struct.unpack("<12I", brand)
    entries = [
        entry(0, ebx=0x756E6547, edx=0x49656E69, ecx=0x6C65746E),
        entry(0x40000000, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D),
        *(
            entry(
                0x80000002 + n,
                **dict(zip(("eax", "ebx", "ecx", "edx"), words[4 * n : 4 * n + 4], strict=True)),
            )
            for n in range(3)
        ),
        entry(1, eax=0x00A00F11),
    ]
    assert cpuid.vendor(entries) == "GenuineIntel"
    assert cpuid.hypervisor(entries) == "KVMKVMKVM"
    assert cpuid.brand(entries) == "Some CPU @ 3.00GHz"
    assert cpuid.signature(entries) == (25, 1, 1)
    assert cpuid.signature([entry(1, eax=0x000306C3)]) == (6, 0x3C, 3)
    assert cpuid.vendor([]) == cpuid.brand([]) == cpuid.hypervisor([]) == ""
    assert cpuid.signature([]) is None


def test_widths_and_frequency() -> None:
    assert (cpuid.physical_bits([]), cpuid.linear_bits([])) == (36, 32)
    wide = [entry(0x80000000, eax=0x80000008), entry(0x80000008, eax=0x3930)]
    assert (cpuid.physical_bits(wide), cpuid.linear_bits(wide)) == (48, 57)
    assert cpuid.tsc_hz([entry(0x15, eax=2, ebx=200, ecx=25_000_000)]) == 2_500_000_000
    assert cpuid.tsc_hz([entry(0x15, eax=2, ebx=200), entry(0x16, eax=2400)]) == 2_400_000_000
    assert cpuid.tsc_hz([entry(0x15, eax=2, ebx=200)]) is None
    assert cpuid.tsc_hz([]) is None
    assert cpuid.xsave_components(0x7 | 1 << 9 | 1 << 40) == [
        *("x87", "sse", "avx", "pkru", "component40")
    ]


# ---- disassembly


@pytest.mark.parametrize(
    ("bits", "code", "text"),
    [
        (16, "e610", "out 0x10, al"),
        (16, "b83412", "mov ax, 0x1234"),
        (32, "b878563412", "mov eax, 0x12345678"),
        (64, "4889e5", "mov rbp, rsp"),
        (64, "f4", "hlt"),
    ],
)
def test_disassembles(bits: int, code: str, text: str) -> None:
    data = bytes.fromhex(code)
    found = disassemble(data, 0x1000, bits)
    assert [(i.address, i.data, i.text, i.size) for i in found] == [
        (0x1000, data, text, len(data)),
    ]
    assert str(found[0]).startswith("0x1000: ")


def test_disassembly_stops_at_bytes_that_are_no_instruction() -> None:
    found = disassemble(bytes.fromhex("90 90 06 90"), 0x2000, 64)
    assert [i.text for i in found] == ["nop", "nop"]
    assert disassemble_one(b"\x06", 0, 64) is None
    assert disassemble_one(b"", 0, 64) is None
    one = disassemble_one(b"\xf4" * 20, 5, 16)
    assert one is not None
    assert one.text == "hlt"
    assert len(disassemble(b"\x90" * 10, 0, 32, count=3)) == 3
    with pytest.raises(ArchError, match="128"):
        disassemble(b"\x90", 0, 128)


def test_capstone_is_loaded_late() -> None:
    code = "import sys, pykvm.arch.disasm, pykvm.arch.presets; print('capstone' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- registers by name


@pytest.fixture
def vcpu() -> Any:
    fake = FakeVcpu()
    long64(0x1000).apply(fake)
    fake.regs.rax = 0x1122334455667788
    fake.regs.r8 = 0xA1A2A3A4A5A6A7A8
    fake.debugregs = SimpleNamespace(db=(1, 2, 3, 4), dr6=0xFFFF0FF0, dr7=0x400)
    fake.msrs[0x277] = 0x0007040600070406
    return fake


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rax", 0x1122334455667788),
        ("EAX", 0x55667788),
        ("ax", 0x7788),
        ("ah", 0x77),
        ("al", 0x88),
        ("r8d", 0xA5A6A7A8),
        ("r8w", 0xA7A8),
        ("r8b", 0xA8),
        ("rip", 0x1000),
        ("pc", 0x1000),
        ("spl", 0),
        ("sp", 0),
        ("esp", 0x80000),
        ("cs", 0x08),
        ("cs.l", 1),
        ("ds.limit", 0xFFFFFFFF),
        ("gdtr.base", 0x80070),
        ("gdt.limit", 0x3F),
        ("cr0", 0x80010033),
        ("efer", 0x500),
        ("apic_base", 0xFEE00900),
        ("dr2", 3),
        ("dr7", 0x400),
        ("pat", 0x0007040600070406),
        ("msr.0x277", 0x0007040600070406),
        ("IA32_PAT", 0x0007040600070406),
        ("zf", 0),
        ("iopl", 0),
    ],
)
def test_get_register(vcpu: Any, name: str, value: int) -> None:
    assert registers.get(vcpu, name) == value
    registers.set(vcpu, name, value)
    assert registers.get(vcpu, name) == value


def test_parts_are_written_as_the_cpu_does(vcpu: Any) -> None:
    registers.set(vcpu, "al", 0xFF)
    registers.set(vcpu, "ah", 0x00)
    assert vcpu.regs.rax == 0x11223344556600FF
    registers.set(vcpu, "ax", 0xABCD)
    assert vcpu.regs.rax == 0x112233445566ABCD
    registers.set(vcpu, "eax", 5)
    assert vcpu.regs.rax == 5
    registers.set(vcpu, "cf", 1)
    registers.set(vcpu, "iopl", 3)
    assert vcpu.regs.rflags == 0x3003
    registers.set(vcpu, "dr1", 0x1234)
    assert vcpu.debugregs.db == (1, 0x1234, 3, 4)
    registers.set(vcpu, "dr7", 0x401)
    assert vcpu.debugregs.dr7 == 0x401
    registers.set(vcpu, "cs.base", 0x5000)
    assert vcpu.sregs.cs.base == 0x5000
    registers.set(vcpu, "lstar", 0x1234)
    assert vcpu.msrs[0xC0000082] == 0x1234


def test_register_errors(vcpu: Any) -> None:
    with pytest.raises(UnknownRegister, match=r"did you mean .*rax"):
        registers.get(vcpu, "raxx")
    with pytest.raises(UnknownRegister, match="no register"):
        registers.get(vcpu, "~~~~")
    for name, value in (("al", 256), ("cs", 0x10000), ("zf", 2), ("rax", 1 << 64), ("rax", -1)):
        with pytest.raises(ArchError, match="does not fit"):
            registers.set(vcpu, name, value)


def test_every_listed_register_reads_and_writes(vcpu: Any) -> None:
    everything = registers.names()
    assert set(GENERAL_REGISTERS) <= set(everything)
    assert {"cs.unusable", "tr.type", "idtr.limit", "cr8", "dr6", "zf", "sil", "r15b"} <= set(
        everything
    )
    for name in everything:
        bits = registers.lookup(name).bits
        registers.set(vcpu, name, (1 << bits) - 1)
        assert registers.get(vcpu, name) == (1 << bits) - 1, name
    assert registers.names("debug") == ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"]


def test_get_many_reads_msrs_in_one_call(vcpu: Any) -> None:
    calls: list[list[int]] = []
    inner = vcpu.get_msrs
    vcpu.get_msrs = lambda numbers: calls.append(list(numbers)) or inner(numbers)
    values = registers.get_many(vcpu, ["rip", "IA32_PAT", "lstar", "cr4"])
    assert values == {"rip": 0x1000, "IA32_PAT": 0x0007040600070406, "lstar": 0, "cr4": 0x620}
    assert calls == [[0x277, 0xC0000082]]
