"""Target descriptions: which registers the stub has, told to GDB as XML.

Sources: the GDB manual, appendix G "Target Descriptions", G.5.6 "i386 Features": the names and
the order within a feature are GDB's own; `org.pykvm.*` features are ours and hold what GDB only
shows. The registers' numbers follow their order here, over all features.

`org.gnu.gdb.i386.linux` (orig_rax) is left out: it is state of a Linux process, no register.
"""

from __future__ import annotations

from functools import cache

from pykvm.enums import StrEnum
from pykvm.typed import NamedTuple


class Arch(StrEnum):
    """GDB's names of the three ways to look at an x86 CPU."""

    X86_64 = "i386:x86-64"
    I386 = "i386"
    I8086 = "i8086"


class Register(NamedTuple):
    """One register as GDB sees it: little-endian, `bits` wide, in a group of `info registers`."""

    name: str
    bits: int
    type: str
    group: str = ""

    @property
    def size(self) -> int:
        """Bytes in packets."""
        return self.bits // 8


class Feature(NamedTuple):
    """A named set of registers, with the types that it defines."""

    name: str
    types: str
    registers: tuple[Register, ...]


class Description(NamedTuple):
    """What GDB is told of one connection's CPUs."""

    arch: Arch
    features: tuple[Feature, ...]

    @property
    def registers(self) -> tuple[Register, ...]:
        """All registers; the place in it is the register's number."""
        return tuple(r for feature in self.features for r in feature.registers)

    @property
    def xml(self) -> str:
        """The target description (`qXfer:features:read:target.xml`)."""
        parts = [_HEAD.format(arch=self.arch)]
        for name, types, registers in self.features:
            parts.append(f'<feature name="{name}">\n{types}')
            parts += (_tag(register) for register in registers)
            parts.append("</feature>\n")
        return "".join([*parts, "</target>\n"])


_HEAD = """<?xml version="1.0"?>
<!DOCTYPE target SYSTEM "gdb-target.dtd">
<target version="1.0">
<architecture>{arch}</architecture>
<osabi>none</osabi>
"""


def _tag(register: Register) -> str:
    group = f' group="{register.group}"' if register.group else ""
    name, bits, kind, _ = register
    return f'<reg name="{name}" bitsize="{bits}" type="{kind}"{group}/>\n'


def _flags(name: str, size: int, bits: str) -> str:
    """A flags type: `bits` is "CF:0 PF:2 IOPL:12-13"."""
    fields = []
    for field in bits.split():
        label, _, span = field.partition(":")
        low, _, high = span.partition("-")
        fields.append(f'<field name="{label}" start="{low}" end="{high or low}"/>\n')
    return f'<flags id="{name}" size="{size}">\n{"".join(fields)}</flags>\n'


_EFLAGS = _flags(
    "i386_eflags",
    4,
    "CF:0 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 IOPL:12-13 NT:14 RF:16 VM:17 AC:18 VIF:19 "
    "VIP:20 ID:21",
)
_MXCSR = _flags(
    "i386_mxcsr", 4, "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 FZ:15"
)
_VECTORS = """<vector id="v8bf16" type="bfloat16" count="8"/>
<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v8_bfloat16" type="v8bf16"/>
<field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
"""
_CONTROL = (
    _flags("x86_cr0", 8, "PE:0 MP:1 EM:2 TS:3 ET:4 NE:5 WP:16 AM:18 NW:29 CD:30 PG:31")
    + _flags(
        "x86_cr4",
        8,
        "VME:0 PVI:1 TSD:2 DE:3 PSE:4 PAE:5 MCE:6 PGE:7 PCE:8 OSFXSR:9 OSXMMEXCPT:10 UMIP:11 "
        "LA57:12 VMXE:13 SMXE:14 FSGSBASE:16 PCIDE:17 OSXSAVE:18 SMEP:20 SMAP:21 PKE:22 CET:23",
    )
    + _flags("x86_efer", 8, "SCE:0 LME:8 LMA:10 NXE:11 SVME:12 LMSLE:13 FFXSR:14 TCE:15")
)
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
# GDB's order; r8 to r15 follow in long mode.
_GENERAL = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_GENERAL_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_X87 = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")


def _core(arch: Arch) -> Feature:
    registers: list[Register] = []
    if arch is Arch.X86_64:
        for name in (*(f"r{n}" for n in _GENERAL), *(f"r{i}" for i in range(8, 16))):
            kind = "data_ptr" if name in ("rbp", "rsp") else "int64"
            registers.append(Register(name, 64, kind, "general"))
        registers.append(Register("rip", 64, "code_ptr", "general"))
    else:
        for name in _GENERAL_32:
            kind = "data_ptr" if name in ("ebp", "esp") else "int32"
            registers.append(Register(name, 32, kind, "general"))
        registers.append(Register("eip", 32, "code_ptr", "general"))
    registers.append(Register("eflags", 32, "i386_eflags", "general"))
    registers += (Register(name, 32, "int32", "general") for name in _SEGMENTS)
    registers += (Register(f"st{i}", 80, "i387_ext", "float") for i in range(8))
    registers += (Register(name, 32, "int", "float") for name in _X87)
    return Feature("org.gnu.gdb.i386.core", _EFLAGS, tuple(registers))


def _sse(count: int) -> Feature:
    registers = [Register(f"xmm{i}", 128, "vec128", "vector") for i in range(count)]
    registers.append(Register("mxcsr", 32, "i386_mxcsr", "vector"))
    return Feature("org.gnu.gdb.i386.sse", _VECTORS + _MXCSR, tuple(registers))


def _avx(count: int) -> Feature:
    registers = tuple(Register(f"ymm{i}h", 128, "uint128", "vector") for i in range(count))
    return Feature("org.gnu.gdb.i386.avx", "", registers)


def _control(bases: tuple[Register, ...]) -> Feature:
    group = "system"
    registers = (
        *bases,
        Register("cr0", 64, "x86_cr0", group),
        Register("cr2", 64, "uint64", group),
        Register("cr3", 64, "uint64", group),
        Register("cr4", 64, "x86_cr4", group),
        Register("cr8", 64, "uint64", group),
        Register("efer", 64, "x86_efer", group),
    )
    return Feature("org.pykvm.x86.control", _CONTROL, registers)


HIDDEN = (
    *(f"{name}_{part}" for name in ("cs", "ss", "ds", "es") for part in ("base", "limit")),
    *("fs_limit", "gs_limit", "tr", "tr_base", "tr_limit", "ldtr", "ldtr_base", "ldtr_limit"),
    *("gdtr_base", "gdtr_limit", "idtr_base", "idtr_limit"),
)
"""Segments' hidden parts and the tables, as GDB may name them: `$cs_base`, `$idtr_base`."""


def _hidden() -> Feature:
    registers = []
    for name in HIDDEN:
        bits = 64 if name.endswith("_base") else 32
        registers.append(Register(name, bits, f"uint{bits}", "system"))
    return Feature("org.pykvm.x86.tables", "", tuple(registers))


@cache
def describe(arch: Arch, avx: bool) -> Description:
    """The description of CPUs looked at as `arch`; `avx`: they have YMM registers."""
    wide = arch is Arch.X86_64
    count = 16 if wide else 8
    features = [_core(arch), _sse(count)]
    if avx:
        features.append(_avx(count))
    if wide:
        bases = tuple(Register(name, 64, "int64", "system") for name in ("fs_base", "gs_base"))
        features.append(Feature("org.gnu.gdb.i386.segments", "", bases))
        extra: tuple[Register, ...] = (Register("k_gs_base", 64, "uint64", "system"),)
    else:  # GDB knows that feature in 64-bit descriptions only
        extra = tuple(Register(name, 32, "uint32", "system") for name in ("fs_base", "gs_base"))
    features += [_control(extra), _hidden()]
    return Description(arch, tuple(features))
