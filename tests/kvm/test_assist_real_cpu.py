"""What the assist completes in ring 0, held against the real CPU's result in ring 3.

Every case runs twice with the same registers, flags, vector state and memory; all of that must be
equal afterwards. The processor itself is the authority: nothing here says what a result should be.
"""

from __future__ import annotations

import pathlib
import random
import struct
from collections.abc import Iterator

import pytest
from assist_oracle import (
    COMPONENTS,
    DATA,
    GS_BASE,
    NAMES,
    PAGES,
    Native,
    Ring0,
    State,
    assemble,
    usable_xcr0,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.kvm import Kvm

# Registers with addresses: RDI and RSI aligned, RBX three bytes before a page's end, RBP and R12
# room for an XSAVE area, R12's across a page's end.
POINTERS = {
    "rdi": DATA + 0x400, "rsi": DATA + 0x600, "rbx": DATA + 0xFFD, "rbp": DATA + 0x2400,
    "r12": DATA + 0x1C40, "r13": 3, "r14": (1 << 64) - 0x40,
}  # fmt: skip

GENERAL = """
popcnt eax, ecx
popcnt rax, rcx
popcnt ax, cx
popcnt r8, r15
popcnt rax, [rdi]
popcnt eax, [rdi + r13*8 - 8]
popcnt ax, [rbx]
popcnt rax, [rbx]
popcnt r10, [rip - 0xfffff00]
popcnt rdx, gs:[0x40]
popcnt rdx, gs:[r13*4 + 0x80]
popcnt eax, [rdi + r14]
popcnt eax, [edi]
popcnt r9d, [esi + r13d*4]
crc32 eax, cl
crc32 eax, cx
crc32 eax, ecx
crc32 rax, rcx
crc32 r9d, byte ptr [rdi]
crc32 r9, qword ptr [rbx]
adcx eax, ecx
adcx rax, [rdi]
adcx r8, [rbx]
adox eax, ecx
adox rax, r11
adox r15, [rsi + 8]
andn eax, ecx, edx
andn rax, rcx, [rdi]
bextr eax, ecx, edx
bextr rax, [rsi], rdx
blsi rax, rcx
blsi eax, [rdi]
blsmsk rax, rcx
blsr rax, rcx
blsr r9, r10
bzhi rax, rcx, rdx
bzhi eax, [rdi], ecx
mulx rax, r8, rcx
mulx eax, r9d, [rdi]
pdep rax, rcx, rdx
pdep eax, ecx, [rsi]
pext rax, rcx, rdx
pext r8, r9, [rbx]
rorx rax, rcx, 13
rorx eax, [rdi], 3
sarx rax, rcx, rdx
shlx rax, [rdi], rcx
shrx r8d, r9d, r10d
cmpxchg16b [rdi]
lock cmpxchg16b [rsi + 256]
lock cmpxchg16b gs:[0x80]
movnti [rdi], eax
movnti [rbx], rax
movdiri [rdi], rax
movdir64b rsi, [rdi]
""".strip().splitlines()

SSE = """
movq xmm0, rax
movq rax, xmm0
movq xmm1, [rbx]
movd xmm3, ecx
movd [rdi], xmm4
movdqa xmm0, [rdi]
movdqa [rdi], xmm8
movdqu xmm9, [rbx]
movdqu [rbx], xmm9
movaps xmm1, xmm2
movups [rdi + 4], xmm15
movss xmm1, [rdi]
movsd [rbx], xmm7
movhlps xmm1, xmm2
movmskps eax, xmm3
movntdq [rdi], xmm1
movntdqa xmm1, [rsi]
lddqu xmm2, [rbx]
pxor xmm0, xmm1
paddd xmm0, [rdi]
psubusb xmm2, xmm3
pmaddwd xmm4, xmm5
pshufb xmm1, xmm2
pshufd xmm1, [rdi], 0x1b
palignr xmm1, xmm2, 5
punpcklbw xmm0, xmm1
pmovmskb ecx, xmm1
psllq xmm1, 7
pinsrw xmm1, eax, 3
pextrw eax, xmm1, 6
pextrb [rdi], xmm1, 5
pextrq rax, xmm1, 1
pinsrd xmm1, [rbx], 2
ptest xmm1, xmm2
pcmpeqb xmm1, [rdi]
pcmpistri xmm1, xmm2, 0x0c
pcmpestrm xmm1, [rdi], 0x44
phminposuw xmm1, xmm2
roundps xmm1, xmm2, 3
dpps xmm1, xmm2, 0xf1
blendvpd xmm1, xmm2, xmm0
addps xmm0, xmm1
addsd xmm0, [rdi]
mulpd xmm3, xmm4
divss xmm1, xmm2
sqrtpd xmm1, xmm2
rsqrtps xmm1, xmm2
maxps xmm1, xmm2
cmpltpd xmm1, xmm2
ucomisd xmm0, xmm1
comiss xmm0, [rdi]
cvtsi2sd xmm1, rax
cvttsd2si rax, xmm1
cvtps2pd xmm1, xmm2
cvtdq2ps xmm1, [rdi]
cvtpi2ps xmm1, mm3
haddps xmm1, xmm2
shufps xmm1, xmm2, 0x39
maskmovdqu xmm1, xmm2
aesenc xmm0, xmm1
aesdeclast xmm0, [rdi]
aeskeygenassist xmm0, xmm1, 4
pclmulqdq xmm0, xmm1, 0x11
sha1rnds4 xmm0, xmm1, 2
sha256rnds2 xmm1, xmm2
sha256msg1 xmm1, [rdi]
gf2p8mulb xmm1, xmm2
extrq xmm1, 7, 3
insertq xmm1, xmm2, 5, 9
ldmxcsr [rdi + 532]
stmxcsr [rbx]
""".strip().splitlines()

MMX = """
movq mm0, [rdi]
movq [rbx], mm1
movd mm2, eax
paddw mm0, mm1
pmaddwd mm2, [rdi]
pshufw mm1, mm2, 0x1b
pxor mm3, mm3
psadbw mm1, mm2
maskmovq mm1, mm2
movntq [rdi], mm4
movq2dq xmm1, mm2
cvttps2pi mm1, xmm1
emms
""".strip().splitlines()

X87 = """
fwait
fninit
fnclex
fnop
fld1
fldpi
fld st(3)
fld dword ptr [rdi]
fld qword ptr [rbx]
fld tbyte ptr [rdi + 16]
fild word ptr [rdi]
fild qword ptr [rsi]
fbld [rdi + 32]
fst dword ptr [rdi]
fstp qword ptr [rbx]
fstp tbyte ptr [rsi]
fist word ptr [rdi]
fistp qword ptr [rbx]
fisttp dword ptr [rdi]
fbstp [rsi]
fadd st, st(1)
faddp
fmul dword ptr [rdi]
fdivr st(2), st
fsqrt
fsin
fptan
fyl2x
fprem
frndint
fscale
fxtract
fchs
fabs
fxam
fcom st(1)
fcomi st, st(2)
fucompp
fxch st(4)
fcmovne st, st(2)
fldcw [rdi + 512]
fnstcw [rdi]
fnstsw ax
fnstsw [rbx]
fnstenv [rdi]
fldenv [rdi + 544]
fnsave [rsi]
frstor [rdi + 544]
ffree st(3)
fincstp
fdecstp
""".strip().splitlines()

AVX = """
vmovdqu ymm0, [rdi]
vmovdqu [rbx], ymm9
vmovaps ymm1, ymm2
vmovd xmm1, eax
vaddpd ymm0, ymm1, [rdi]
vaddss xmm1, xmm2, xmm3
vpxor xmm1, xmm2, xmm3
vpaddq ymm8, ymm9, ymm10
vfmadd231pd ymm1, ymm2, ymm3
vpermq ymm1, ymm2, 0x4e
vperm2i128 ymm1, ymm2, ymm3, 0x21
vbroadcastss ymm1, [rdi]
vinserti128 ymm1, ymm2, [rsi], 1
vextracti128 [rbx], ymm5, 1
vpshufb ymm1, ymm2, ymm3
vpmaskmovd ymm1, ymm2, [rdi]
vpmaskmovd [rdi], ymm2, ymm1
vptest ymm1, ymm2
vpsllvd ymm1, ymm2, ymm3
vcvtph2ps ymm1, xmm2
vblendvps ymm1, ymm2, ymm3, ymm4
vaesenc xmm1, xmm2, xmm3
vpclmulqdq ymm1, ymm2, ymm3, 1
vmaskmovdqu xmm1, xmm2
vzeroupper
vzeroall
vstmxcsr [rdi]
""".strip().splitlines()

AVX512 = """
vmovdqu64 zmm0, [rdi]
vmovdqu64 [rbx], zmm17
vmovdqu8 zmm3{k1}, zmm4
vmovdqa32 zmm3{k2}{z}, [rdi]
vpaddq zmm1, zmm18, [rdi]{1to8}
vaddpd zmm1, zmm2, zmm3, {rn-sae}
vpternlogd zmm1, zmm2, zmm3, 0x96
vpcmpud k3, zmm1, zmm2, 1
vpermt2d zmm1, zmm2, [rsi]
vmovdqu32 ymm20, [rsi + 32]
vmovdqu64 zmm5, [rsi + 64]
vpopcntq zmm1, zmm2
vpcompressd [rdi]{k1}, zmm4
kmovw k1, eax
kmovq rax, k2
kandw k3, k1, k2
kortestd k1, k2
kmovb [rdi], k1
vmovd xmm16, ecx
""".strip().splitlines()

XSAVES = """
xgetbv
xsave [rbp]
xsave64 [r12]
xsaveopt [rbp]
xsavec [rbp]
xsavec64 [r12]
xrstor [rbp]
xrstor64 [rbp]
""".strip().splitlines()

XSAVES_RBP, XRSTORS_RBP = bytes.fromhex("0fc76d00"), bytes.fromhex("0fc75d00")

# The start of a case, and the name in /proc/cpuinfo of what it needs beyond SSE2.
FEATURES = {
    "movdiri": "movdiri", "movdir64b": "movdir64b", "sha": "sha_ni", "extrq": "sse4a",
    "insertq": "sse4a", "gf2p8": "gfni", "adcx": "adx", "adox": "adx", "vfmadd": "fma",
    "vcvtph2ps": "f16c", "vpopcntq": "avx512_vpopcntdq", "vpclmulqdq ymm": "vpclmulqdq",
    "aes": "aes", "pclmul": "pclmulqdq", "popcnt": "popcnt", "crc32": "sse4_2", "pcmpi": "sse4_2",
    "pcmpe": "sse4_2", "bzhi": "bmi2", "mulx": "bmi2", "pdep": "bmi2", "pext ": "bmi2",
    "rorx": "bmi2", "sarx": "bmi2", "shlx": "bmi2", "shrx": "bmi2", "andn": "bmi1", "bextr": "bmi1",
    "bls": "bmi1", "vperm": "avx2", "vpaddq ymm": "avx2", "vpsllvd": "avx2", "vpmaskmovd": "avx2",
    "vinserti128": "avx2", "vextracti128": "avx2", "vpshufb ymm": "avx2", "vpcompressd": "avx512f",
    "cmpxchg16b": "cx16", "lock cmpxchg16b": "cx16", "lddqu": "pni", "haddps": "pni",
    "pshufb": "ssse3", "palignr": "ssse3", "fisttp": "pni",
    **dict.fromkeys(("movntdqa", "pextr", "pinsrd", "ptest", "phmin", "round", "dpps", "blendv"),
                    "sse4_1"),
}  # fmt: skip
XCR0 = usable_xcr0()


def _supported() -> dict[tuple[int, int], object]:
    with Kvm() as kvm:
        return {(e.function, e.index): e for e in kvm.supported_cpuid()}


def available(lines: list[str], wanted: int = 3) -> list[str]:
    """The cases that this CPU has."""
    if XCR0 & wanted != wanted:
        return []
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    kept = []
    for line in lines:
        need = next((f for start, f in FEATURES.items() if line.startswith(start)), "")
        if line.startswith("xsave"):
            need = line.split()[0].removesuffix("64")
        if need and need not in flags:
            continue
        kept.append(line)
    return kept


PLAIN = available(GENERAL) + available(SSE) + MMX + X87 + available(AVX, 7)
PLAIN += available(AVX512, 0xE7)
STATES = available(XSAVES)


class Both:
    """The two CPUs, and the machine code of every case."""

    def __init__(self, folder: pathlib.Path) -> None:
        lines = PLAIN + STATES
        self.codes = dict(zip(lines, assemble(lines, folder), strict=True))
        self.native = Native(folder, XCR0)
        self.ring0 = Ring0(XCR0)
        self.native.set_gs(GS_BASE)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    pair = Both(tmp_path_factory.mktemp("oracle"))
    yield pair
    pair.ring0.close()


def extended(value: float) -> bytes:
    """A double as 80-bit extended precision, normal numbers and zero."""
    bits = struct.unpack("<Q", struct.pack("<d", value))[0]
    sign, exponent, fraction = bits >> 63, bits >> 52 & 0x7FF, bits & (1 << 52) - 1
    if not exponent:
        return (sign << 79).to_bytes(10, "little")
    mantissa = 1 << 63 | fraction << 11
    return (sign << 79 | (exponent - 1023 + 16383) << 64 | mantissa).to_bytes(10, "little")


def random_state(seed: int) -> State:
    """A state in which every case is valid: pointers, x87 numbers, vectors with some floats."""
    r = random.Random(seed)
    regs = {name: r.getrandbits(64) for name in NAMES if name != "rsp"} | POINTERS
    if r.random() < 0.3:
        regs |= {"rcx": r.choice((0, 1, (1 << 64) - 1)), "rdx": r.getrandbits(8)}
    area = bytearray(4096)
    area[0:2] = r.choice((0x37F, 0x27F, 0x77F, 0xF7F)).to_bytes(2, "little")
    area[4] = r.getrandbits(8)
    area[2:4] = (r.randrange(8) << 11).to_bytes(2, "little")
    area[24:28] = r.choice((0x1F80, 0x1F80, 0x3F80, 0x9FC0)).to_bytes(4, "little")
    for i in range(8):
        area[32 + 16 * i : 42 + 16 * i] = extended(r.choice((0.0, 1.0, -2.5, r.gauss(0, 1e6))))
    for i in range(160, 416, 16):
        area[i : i + 16] = vector(r)
    for i in range(576, 4096 - 64, 16):
        area[i : i + 16] = vector(r)
    area[512:520] = (XCR0 & COMPONENTS).to_bytes(8, "little")
    data = bytearray(r.randbytes(4096 * PAGES))
    for i in range(0x400, 0x600, 8):
        data[i : i + 8] = struct.pack("<d", r.gauss(0, 1000))
    data[0x410:0x41A] = extended(r.gauss(0, 5))
    data[0x420:0x42A] = bytes.fromhex("21436587092143658700")
    data[0x600:0x602] = b"\x7f\x02"
    data[0x620:0x63C] = struct.pack("<7I", 0xFFFF037F, 0xFFFF0000, 0xFFFFFFFF, 0, 0, 0, 0xFFFF0000)
    data[0x614:0x618] = (0x1F80 | r.choice((0, 0x6000, 0x21))).to_bytes(4, "little")
    if r.random() < 0.5:  # CMPXCHG16B finds what it compares with
        pair = struct.pack("<QQ", regs["rax"], regs["rdx"])
        data[0x700:0x710] = data[0x400:0x410] = pair
    flags = 2 | r.getrandbits(12) & 0x8D5
    return State(regs, flags, bytes(area), bytes(data))


def vector(r: random.Random) -> bytes:
    kind = r.randrange(3)
    if kind == 0:
        return r.randbytes(16)
    if kind == 1:
        return struct.pack("<2d", r.gauss(0, 100), r.choice((0.0, -1.5, float("inf"), 1e300)))
    return struct.pack("<4f", *(r.gauss(0, 100) for _ in range(4)))


def same(both: Both, line: str, state: State) -> None:
    """Runs a case on both and compares everything."""
    code = both.codes[line]
    real = both.native.run(code, state)
    ours = both.ring0.run(code, state)
    assert ours.vector is None, f"{line}: vector {ours.vector}"
    assert ours.regs == real.regs, line
    assert ours.flags == real.flags, line
    for at in range(0, len(real.data), 16):
        assert ours.data[at : at + 16] == real.data[at : at + 16], f"{line}: data at {at:#x}"
    for name, part in PARTS.items():
        assert ours.area[part] == real.area[part], f"{line}: {name}"


def _parts() -> dict[str, slice]:
    """The parts of the XSAVE area by name. FOP, FIP and FDP are left out: they are addresses."""
    parts = {
        "FCW": slice(0, 2), "FSW": slice(2, 4), "FTW": slice(4, 5), "MXCSR": slice(24, 28),
        **{f"ST{i}": slice(32 + 16 * i, 42 + 16 * i) for i in range(8)},
        **{f"XMM{i}": slice(160 + 16 * i, 176 + 16 * i) for i in range(16)},
    }  # fmt: skip
    table = _supported()
    for component, name in ((2, "YMM"), (5, "K"), (6, "ZMM high"), (7, "ZMM16-31")):
        entry = table.get((0xD, component))
        if XCR0 >> component & 1 and entry is not None:
            parts[name] = slice(entry.ebx, entry.ebx + entry.eax)  # type: ignore[attr-defined]
    return parts


PARTS = _parts()


@pytest.mark.parametrize("line", PLAIN)
def test_results_are_the_real_cpus(both: Both, line: str) -> None:
    for seed in range(3):
        same(both, line, random_state(seed))


MASKS = (0, 1, 2, 3, 4, 5, 7, 0xE7, (1 << 64) - 1)


def save_state(seed: int, mask: int) -> State:
    """As `random_state`, with EDX:EAX = `mask`, and a valid XSAVE area where RBP points."""
    state, other = random_state(seed), random_state(seed + 1000)
    state.regs |= {"rax": mask & 0xFFFFFFFF, "rdx": mask >> 32, "rcx": 0}
    data = bytearray(state.data)
    area = bytearray(other.area[: 4096 * PAGES - 0x2400])
    area[512:520] = (XCR0 & random.Random(seed).choice((3, 1, 0xE7, 0, 4))).to_bytes(8, "little")
    data[0x2400 : 0x2400 + len(area)] = area
    state.data = bytes(data)
    return state


@pytest.mark.parametrize("mask", MASKS, ids=hex)
@pytest.mark.parametrize("line", STATES)
def test_saving_and_restoring_state(both: Both, line: str, mask: int) -> None:
    for seed in range(2):
        state = save_state(seed, mask)
        if line == "xgetbv":
            state.regs["rcx"] = 0
            assert both.ring0.run(both.codes[line], state).regs["rax"] == XCR0
            continue
        same(both, line, state)


@pytest.mark.skipif("xsavec [rbp]" not in STATES, reason="this CPU has no compacted XSAVE areas")
@pytest.mark.parametrize("mask", MASKS, ids=hex)
def test_supervisor_forms_do_what_the_compacted_ones_do(both: Both, mask: int) -> None:
    """XSAVES and XRSTORS exist only in ring 0; with IA32_XSS = 0 they equal XSAVEC and XRSTOR."""
    state = save_state(5, mask)
    saved = both.native.run(both.codes["xsavec [rbp]"], state)
    ours = both.ring0.run(XSAVES_RBP, state)
    assert (ours.vector, ours.data) == (None, saved.data)
    state.data = saved.data
    real = both.native.run(both.codes["xrstor [rbp]"], state)
    ours = both.ring0.run(XRSTORS_RBP, state)
    assert ours.vector is None
    assert {n: ours.area[p] for n, p in PARTS.items()} == {
        n: real.area[p] for n, p in PARTS.items()
    }
    state.data = save_state(5, mask).data  # not compacted: #GP
    assert both.ring0.run(XRSTORS_RBP, state).vector == 13


@given(line=st.sampled_from(PLAIN), seed=st.integers(0, 2**32))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_case_with_any_state(both: Both, line: str, seed: int) -> None:
    same(both, line, random_state(seed))


def test_the_cases_reach_the_assist(both: Both) -> None:
    """On a host that refuses instructions, they were completed by the assist and counted."""
    state = random_state(1)
    both.ring0.run(both.codes["popcnt rax, rcx"], state)
    assist = both.ring0.machine.assist
    if assist is None:
        pytest.skip("this host's KVM refuses no instruction: there is nothing to complete")
    assert assist.counts["popcnt"] > 0
