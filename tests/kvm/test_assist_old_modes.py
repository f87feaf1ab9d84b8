"""16-bit and 32-bit code: the same results as the real CPU has for the 64-bit form."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
from assist_oracle import DATA, DONE, DONE_PORT, PAGES, STATUS, Native, assemble, usable_xcr0
from test_assist_real_cpu import PARTS, available, random_state

from pykvm import Machine
from pykvm.arch import presets
from pykvm.arch.bits import CR0, CR4

XCR0 = usable_xcr0()
BASE = 0x60000  # of the data, guest-physical; DS points there in 16-bit code
CODE_GPA = 0x5000

LINES = """
popcnt eax, ecx
popcnt ax, cx
popcnt eax, [edi]
popcnt dx, [ebx]
crc32 eax, cx
crc32 eax, dword ptr [esi + eax*0 + 4]
adcx eax, [edi + 8]
movq xmm1, [edi]
movdqu [ebx], xmm2
paddd xmm1, [esi]
cvtsi2sd xmm1, ecx
ucomisd xmm0, xmm1
pmovmskb eax, xmm3
fld qword ptr [edi]
fistp dword ptr [ebx]
fnstcw [esi]
fcomi st, st(2)
paddw mm1, mm2
stmxcsr [edi]
""".strip().splitlines()
FORMS_64 = {"crc32 eax, dword ptr [esi + eax*0 + 4]": "crc32 eax, dword ptr [esi + 4]"}
LINES = available([FORMS_64.get(line, line) for line in LINES])
GENERAL = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi")
POINTERS = {"rdi": 0x400, "rsi": 0x600, "rbx": 0xFFD}


class Old:
    """A machine in 32-bit protected mode or in real mode."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.machine = Machine("1M", board="bare", devices=False, irqchip="none")
        self.machine.on_pio(DONE_PORT)(lambda access: self.machine.stop())
        self.machine.vcpus[0].set_xcrs({0: XCR0})
        if bits == 16:
            self.state = presets.real_mode(CODE_GPA, stack=0x4000)
            segment = self.state.segments["ds"].replace(base=BASE, selector=BASE >> 4)
            self.state.segments["ds"] = segment
            self.base = 0
        else:
            self.state = presets.protected32(CODE_GPA, stack=0x40000, tables=0x10000)
            self.base = BASE
        self.state.cr0 |= int(CR0.MP | CR0.NE)
        self.state.cr4 |= int(CR4.OSFXSR | CR4.OSXMMEXCPT)


@pytest.fixture(scope="module", params=[32, 16])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Old, Native, dict[str, tuple[bytes, bytes]]]]:
    folder: pathlib.Path = tmp_path_factory.mktemp("old")
    old = Old(request.param)
    codes = zip(assemble(LINES, folder, request.param), assemble(LINES, folder), strict=True)
    yield old, Native(folder, XCR0), dict(zip(LINES, codes, strict=True))
    old.machine.close()


@pytest.mark.parametrize("line", LINES)
def test_the_same_result(
    both: tuple[Old, Native, dict[str, tuple[bytes, bytes]]], line: str
) -> None:
    old, real_cpu, codes = both
    for seed in range(2):
        state = random_state(seed)
        state.regs = {n: v & 0xFFFFFFFF for n, v in state.regs.items()}
        real_state = random_state(seed)
        real_state.regs = dict(state.regs) | {n: DATA + at for n, at in POINTERS.items()}
        real = real_cpu.run(codes[line][1], real_state)
        machine, vcpu = old.machine, old.machine.vcpus[0]
        now = old.state.copy()
        now.regs.update({n: state.regs[n] for n in GENERAL})
        now.regs.update({n: old.base + at for n, at in POINTERS.items()})
        now.regs["rflags"] = state.flags
        machine.memory.write(CODE_GPA, codes[line][0] + DONE)
        machine.memory.write(BASE, state.data)
        now.apply(vcpu, machine.memory)
        area = bytearray(vcpu.xsave_size)
        area[: len(state.area)] = state.area
        vcpu.set_xsave(area)
        result = machine.run(timeout=5)
        assert str(result.reason) == "stopped", result
        for name in GENERAL:
            if name not in POINTERS:
                assert getattr(vcpu.regs, name) & 0xFFFFFFFF == real.regs[name] & 0xFFFFFFFF, name
        assert vcpu.regs.rflags & STATUS == real.flags
        assert machine.memory.read(BASE, 4096 * PAGES) == real.data
        left = vcpu.get_xsave()
        assert {n: left[p] for n, p in PARTS.items()} == {n: real.area[p] for n, p in PARTS.items()}
