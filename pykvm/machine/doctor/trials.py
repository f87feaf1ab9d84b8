"""The instructions that the doctor tries: source, bytes, and the CPUID bit that announces them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trial:
    """Some instructions, the last of which is meant.

    `source` is for `as` (Intel syntax, 64-bit), `code` what it makes of it. RDI points to a zeroed
    page, RSP to a stack. `feature` is a key of `FEATURES`, "" for what every 64-bit CPU has.
    `expect` is the vector that a CPU raises for it, None if it completes; `rax` is what RAX must
    hold then, None if that does not tell.
    """

    name: str
    source: str
    code: bytes
    feature: str = ""
    expect: int | None = None
    rax: int | None = None


def _t(
    name: str,
    source: str,
    code: str,
    feature: str = "",
    expect: int | None = None,
    rax: int | None = None,
) -> Trial:
    return Trial(name, source, bytes.fromhex(code), feature, expect, rax)


# CPUID leaf, subleaf, register, bit (SDM vol. 2A, CPUID; APM vol. 3, appendix E).
FEATURES: dict[str, tuple[int, int, str, int]] = {
    "cx16": (1, 0, "ecx", 13),
    "popcnt": (1, 0, "ecx", 23),
    "abm": (0x80000001, 0, "ecx", 5),
    "bmi1": (7, 0, "ebx", 3),
    "sse4_2": (1, 0, "ecx", 20),
    "adx": (7, 0, "ebx", 19),
    "bmi2": (7, 0, "ebx", 8),
    "movbe": (1, 0, "ecx", 22),
    "rdrand": (1, 0, "ecx", 30),
    "rdseed": (7, 0, "ebx", 18),
    "rdtscp": (0x80000001, 0, "edx", 27),
    "rdpid": (7, 0, "ecx", 22),
    "invpcid": (7, 0, "ebx", 10),
    "fsgsbase": (7, 0, "ebx", 0),
    "smap": (7, 0, "ebx", 20),
    "pku": (7, 0, "ecx", 3),
    "monitor": (1, 0, "ecx", 3),
    "clflush": (1, 0, "edx", 19),
    "clflushopt": (7, 0, "ebx", 23),
    "clwb": (7, 0, "ebx", 24),
    "clzero": (0x80000008, 0, "ebx", 0),
    "xsave": (1, 0, "ecx", 26),
    "xsaveopt": (0xD, 1, "eax", 0),
    "xsavec": (0xD, 1, "eax", 1),
    "xsaves": (0xD, 1, "eax", 3),
    "fxsr": (1, 0, "edx", 24),
    "fpu": (1, 0, "edx", 0),
    "mmx": (1, 0, "edx", 23),
    "sse": (1, 0, "edx", 25),
    "sse2": (1, 0, "edx", 26),
    "aes": (1, 0, "ecx", 25),
    "pclmulqdq": (1, 0, "ecx", 1),
    "avx": (1, 0, "ecx", 28),
}

# fmt: off
TRIALS: tuple[Trial, ...] = (
    _t("add, mul, div", "mov eax, 7; mov ecx, 3; add eax, ecx; mul ecx; div ecx",
       "b807000000b90300000001c8f7e1f7f1", rax=10),
    _t("bsf, bswap", "mov eax, 8; bsf eax, eax; bswap eax", "b8080000000fbcc00fc8", rax=0x3000000),
    _t("xadd, cmpxchg", "xadd ecx, eax; cmpxchg ecx, edx", "0fc1c10fb1d1"),
    _t("rep movsb", "lea rsi, [rdi + 64]; mov ecx, 16; rep movsb", "488d7740b910000000f3a4"),
    _t("rep stosq", "mov ecx, 4; rep stosq", "b904000000f348ab"),
    _t("lock inc", "lock inc qword ptr [rdi]", "f048ff07"),
    _t("lock cmpxchg8b", "lock cmpxchg8b [rdi]", "f00fc70f"),
    _t("cmpxchg16b", "cmpxchg16b [rdi]", "480fc70f", "cx16"),
    _t("popcnt", "mov ecx, 7; popcnt eax, ecx", "b907000000f30fb8c1", "popcnt", rax=3),
    _t("lzcnt", "mov ecx, 1; lzcnt eax, ecx", "b901000000f30fbdc1", "abm", rax=31),
    _t("tzcnt", "mov eax, 7; xor ecx, ecx; tzcnt eax, ecx",
       "b80700000031c9f30fbcc1", "bmi1", rax=32),
    _t("crc32", "crc32 eax, ecx", "f20f38f1c1", "sse4_2"),
    _t("adcx", "adcx eax, ecx", "660f38f6c1", "adx"),
    _t("andn", "andn eax, ecx, edx", "c4e270f2c2", "bmi1"),
    _t("shlx", "shlx eax, ecx, edx", "c4e269f7c1", "bmi2"),
    _t("rorx", "mov ecx, 8; rorx eax, ecx, 3", "b908000000c4e37bf0c103", "bmi2", rax=1),
    _t("mulx", "mulx eax, ecx, edx", "c4e273f6c2", "bmi2"),
    _t("pdep", "mov ecx, 3; mov edx, 0x11; pdep eax, ecx, edx",
       "b903000000ba11000000c4e273f5c2", "bmi2", rax=0x11),
    _t("movbe", "mov byte ptr [rdi], 1; movbe eax, [rdi]",
       "c607010f38f007", "movbe", rax=0x1000000),
    _t("rdrand", "rdrand eax", "0fc7f0", "rdrand"),
    _t("rdseed", "rdseed eax", "0fc7f8", "rdseed"),
    _t("int3", "int3", "cc", expect=3),
    _t("int n", "int 0x40", "cd40", expect=64),
    _t("ud2", "ud2", "0f0b", expect=6),
    _t("ud1", "ud1 eax, ecx", "0fb9c1", expect=6),
    _t("ud0", "ud0 eax, ecx", "0fffc1", expect=6),
    _t("enter, leave", "enter 16, 0; leave", "c8100000c9"),
    _t("iretq", "mov rax, rsp; push 0x10; push rax; pushfq; push 8; "
       "lea rcx, [rip + 1f]; push rcx; iretq; 1:",
       "4889e06a10509c6a08488d0d030000005148cf"),
    _t("endbr64", "endbr64", "f30f1efa"),
    _t("pause", "pause", "f390"),
    _t("cli, sti", "sti; nop; cli", "fb90fa"),
    _t("pushf, popf", "pushfq; popfq", "9c9d"),
    _t("cpuid", "xor eax, eax; cpuid", "31c00fa2"),
    _t("rdtsc", "rdtsc", "0f31"),
    _t("rdtscp", "rdtscp", "0f01f9", "rdtscp"),
    _t("rdpid", "rdpid rax", "f30fc7f8", "rdpid"),
    _t("rdmsr, wrmsr", "mov ecx, 0xc0000102; rdmsr; wrmsr", "b9020100c00f320f30"),
    _t("mov cr", "mov rax, cr3; mov cr3, rax; mov rax, cr0; mov cr0, rax",
       "0f20d80f22d80f20c00f22c0"),
    _t("mov dr", "mov rax, dr7; mov dr7, rax", "0f21f80f23f8"),
    _t("clts, smsw", "clts; smsw eax", "0f060f01e0"),
    _t("invlpg", "invlpg [rdi]", "0f013f"),
    _t("invpcid", "mov eax, 2; invpcid rax, [rdi]", "b802000000660f388207", "invpcid"),
    _t("wbinvd", "wbinvd", "0f09"),
    _t("swapgs", "swapgs", "0f01f8"),
    _t("rdfsbase", "rdfsbase rax", "f3480faec0", "fsgsbase"),
    _t("sgdt, sidt", "sgdt [rdi]; sidt [rdi]", "0f01070f010f"),
    _t("str, sldt", "str ax; sldt ax", "660f00c8660f00c0"),
    _t("lar", "mov ecx, 8; lar eax, ecx", "b9080000000f02c1"),
    _t("lsl", "mov ecx, 8; lsl eax, ecx", "b9080000000f03c1"),
    _t("verr", "mov ecx, 16; verr cx", "b9100000000f00e1"),
    _t("verw", "mov ecx, 16; verw cx", "b9100000000f00e9"),
    _t("stac", "stac", "0f01cb", "smap"),
    _t("clac", "clac", "0f01ca", "smap"),
    _t("rdpkru", "xor ecx, ecx; rdpkru", "31c90f01ee", "pku"),
    _t("wrpkru", "xor eax, eax; xor ecx, ecx; xor edx, edx; wrpkru", "31c031c931d20f01ef", "pku"),
    _t("monitor", "mov rax, rdi; xor ecx, ecx; xor edx, edx; monitor",
       "4889f831c931d20f01c8", "monitor"),
    _t("mwait", "mov rax, rdi; xor ecx, ecx; xor edx, edx; monitor; xor eax, eax; mwait",
       "4889f831c931d20f01c831c00f01c9", "monitor"),
    _t("clflush", "clflush [rdi]", "0fae3f", "clflush"),
    _t("clflushopt", "clflushopt [rdi]", "660fae3f", "clflushopt"),
    _t("clwb", "clwb [rdi]", "660fae37", "clwb"),
    _t("clzero", "mov rax, rdi; clzero", "4889f80f01fc", "clzero"),
    _t("lfence, mfence", "lfence; mfence; sfence", "0faee80faef00faef8"),
    _t("xgetbv", "xor ecx, ecx; xgetbv", "31c90f01d0", "xsave"),
    _t("xsave", "mov eax, 3; xor edx, edx; xsave [rdi]", "b80300000031d20fae27", "xsave"),
    _t("xrstor", "mov eax, 3; xor edx, edx; xrstor [rdi]", "b80300000031d20fae2f", "xsave"),
    _t("xsaveopt", "mov eax, 3; xor edx, edx; xsaveopt [rdi]", "b80300000031d20fae37", "xsaveopt"),
    _t("xsavec", "mov eax, 3; xor edx, edx; xsavec [rdi]", "b80300000031d20fc727", "xsavec"),
    _t("xsaves", "mov eax, 3; xor edx, edx; xsaves [rdi]", "b80300000031d20fc72f", "xsaves"),
    _t("xrstors", "mov byte ptr [rdi + 527], 0x80; mov eax, 3; xor edx, edx; xrstors [rdi]",
       "c6870f02000080b80300000031d20fc71f", "xsaves"),
    _t("fxsave", "fxsave [rdi]", "0fae07", "fxsr"),
    _t("fxrstor", "fxsave [rdi]; fxrstor [rdi]", "0fae070fae0f", "fxsr"),
    _t("fninit", "fninit", "dbe3", "fpu"),
    _t("fnclex", "fnclex", "dbe2", "fpu"),
    _t("fwait", "fwait", "9b", "fpu"),
    _t("fld", "fld dword ptr [rdi]", "d907", "fpu"),
    _t("fldcw", "mov word ptr [rdi], 0x37f; fldcw [rdi]", "66c7077f03d92f", "fpu"),
    _t("fnstcw", "fnstcw [rdi]", "d93f", "fpu"),
    _t("fnstsw", "fnstsw ax", "dfe0", "fpu"),
    _t("emms", "emms", "0f77", "mmx"),
    _t("ldmxcsr", "mov dword ptr [rdi], 0x1f80; ldmxcsr [rdi]", "c707801f00000fae17", "sse"),
    _t("stmxcsr", "stmxcsr [rdi]", "0fae1f", "sse"),
    _t("movups", "movups xmm0, [rdi]; movups [rdi], xmm0", "0f10070f1107", "sse"),
    _t("movdqa", "movdqa xmm0, [rdi]; movdqa [rdi], xmm0", "660f6f07660f7f07", "sse2"),
    _t("movq", "mov eax, 5; movq xmm0, rax; xor eax, eax; movq rax, xmm0",
       "b80500000066480f6ec031c066480f7ec0", "sse2", rax=5),
    _t("pxor", "pxor xmm0, xmm1", "660fefc1", "sse2"),
    _t("addsd", "addsd xmm0, xmm1", "f20f58c1", "sse2"),
    _t("aesenc", "aesenc xmm0, xmm1", "660f38dcc1", "aes"),
    _t("pclmulqdq", "pclmulqdq xmm0, xmm1, 0", "660f3a44c100", "pclmulqdq"),
    _t("vmovdqu", "vmovdqu ymm0, [rdi]", "c5fe6f07", "avx"),
    _t("vzeroupper", "vzeroupper", "c5f877", "avx"),
    _t("in, out", "mov dx, 0x80; in al, dx; out dx, al", "66ba8000ecee"),
    _t("rep outsb", "mov dx, 0x80; mov rsi, rdi; mov ecx, 3; rep outsb",
       "66ba80004889feb903000000f36e"),
)
# fmt: on
