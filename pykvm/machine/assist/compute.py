"""Instructions that compute: which there are, what they need, and running them in the engine.

The guest's FPU and vector state travels to the engine and back as an XSAVE area; instructions that
use general registers alone skip that. Exceptions of the kind that depend on control registers (#UD
and #NM of FPU, SSE and AVX; SDM vol. 3A 2.5, 14.1) are found here, all others by the processor.
"""

from __future__ import annotations

from functools import cache

from pykvm._native import ffi
from pykvm.arch.pagewalk import Walk
from pykvm.machine.assist import xstate
from pykvm.machine.assist.cpu import (
    CR0_EM,
    CR0_MP,
    CR0_TS,
    CR4_OSFXSR,
    CR4_OSXSAVE,
    GP,
    MASK,
    NM,
    PAGE,
    UD,
    Cpu,
    Fault,
    Refused,
)
from pykvm.machine.assist.decode import EVEX, VEX, Instruction, relocated
from pykvm.machine.assist.engine import (
    CODE,
    GENERAL,
    PAGES,
    SCRATCH,
    WINDOW,
    Engine,
    EngineError,
    Frame,
)
from pykvm.machine.assist.events import finished
from pykvm.typed import Any

_PAGE_FAULT = 14
_STEPS = 3 * PAGES  # page faults that one instruction may need
_CODED = frozenset((12, 13, 17))  # exceptions with an error code
_MXCSR_INITIAL = b"\x80\x1f\x00\x00"
_READONLY = 1 << 1  # KVM_MEM_READONLY

GPR, X87, FWAIT, FX, MMX, SSE, AVX, MASKS, AVX512, BMI, XSAVE = (
    "gpr", "x87", "fwait", "fx", "mmx", "sse", "avx", "masks", "avx512", "bmi", "xsave",
)  # fmt: skip
_NO_STATE = frozenset((GPR, BMI))
_SSE_0F = frozenset((*range(0x10, 0x18), *range(0x28, 0x30), *range(0x50, 0x60), *range(0x60, 0x77),
                     *range(0x78, 0x80), 0xC2, 0xC4, 0xC5, 0xC6, *range(0xD0, 0xFF)))  # fmt: skip
_MMX_0F = frozenset((*range(0x60, 0x6C), 0x6E, 0x6F, *range(0x70, 0x77), 0x7E, 0x7F, 0xC4, 0xC5,
                     *range(0xD1, 0xFF), 0x2A, 0x2C, 0x2D))  # fmt: skip
_BMI_0F38 = frozenset((0xF2, 0xF3, 0xF5, 0xF6, 0xF7))
_MASK_0F = frozenset((*range(0x41, 0x4C), 0x90, 0x91, 0x92, 0x93, 0x98, 0x99))
_AMX_0F38 = frozenset((0x49, 0x4B, *range(0x5C, 0x60), 0x6C, 0x6D))


def kind_of(insn: Instruction) -> str | None:
    """What an instruction needs, None if the engine is not for it."""
    if insn.encoding is EVEX:
        return AVX512
    if insn.encoding is VEX:
        return _vex_kind(insn)
    opcode = insn.opcode
    if insn.map == 0:
        return FWAIT if opcode == 0x9B else X87 if 0xD8 <= opcode <= 0xDF else None
    if insn.map == 1:
        return _kind_0f(insn, opcode)
    if insn.map == 2:
        if opcode >= 0xF0:
            return GPR if opcode in (0xF0, 0xF1, 0xF6, 0xF9) else None
        if opcode in (0x80, 0x81, 0x82):
            return None
    plain_mmx = not insn.prefix and (opcode < 0x20 if insn.map == 2 else opcode == 0x0F)
    return MMX if plain_mmx else SSE


def _vex_kind(insn: Instruction) -> str | None:
    opcode = insn.opcode
    if (insn.map == 2 and opcode in _BMI_0F38) or (insn.map == 3 and opcode == 0xF0):
        return BMI
    if insn.map == 2 and opcode in _AMX_0F38:
        return None
    masks = (insn.map == 1 and opcode in _MASK_0F) or (insn.map == 3 and 0x30 <= opcode <= 0x33)
    return MASKS if masks else AVX


def _kind_0f(insn: Instruction, opcode: int) -> str | None:
    reg = insn.reg & 7
    if opcode == 0xAE:
        if insn.memory:
            plain = insn.prefix == 0
            return (
                {0: FX, 1: FX, 2: SSE, 3: SSE, 4: XSAVE, 5: XSAVE, 6: XSAVE}.get(reg)
                if (plain)
                else None
            )
        return GPR if insn.prefix == 0 and reg >= 5 else None  # fences
    if opcode == 0xC7:
        if insn.memory:
            return GPR if reg == 1 else XSAVE if reg == 4 else None
        return GPR if reg in (6, 7) and insn.prefix in (0, 0x66) else None
    if opcode in (0xB8, 0xBC, 0xBD):
        return GPR if insn.rep == 0xF3 else None
    if opcode == 0xC3:
        return GPR  # MOVNTI
    if opcode == 0x77:
        return MMX
    if opcode not in _SSE_0F:
        return None
    return MMX if opcode in _MMX_0F and insn.prefix == 0 else SSE


def check_enabled(cpu: Cpu, kind: str) -> None:
    """Raises the #UD or #NM that control registers ask for."""
    cr0, cr4 = cpu.sregs.cr0, cpu.sregs.cr4
    if kind == GPR:
        return
    if kind in (X87, FX):
        if cr0 & (CR0_EM | CR0_TS):
            raise Fault(NM)
        return
    if kind == FWAIT:
        if cr0 & CR0_MP and cr0 & CR0_TS:
            raise Fault(NM)
        return
    if kind in (BMI, AVX, MASKS, AVX512) and cpu.legacy:
        raise Fault(UD)
    if kind == BMI:
        return
    if kind in (MMX, SSE) and cr0 & CR0_EM:
        raise Fault(UD)
    if kind == SSE and not cr4 & CR4_OSFXSR:
        raise Fault(UD)
    if kind in (AVX, MASKS, AVX512, XSAVE) and not cr4 & CR4_OSXSAVE:
        raise Fault(UD)
    if kind in (AVX, MASKS, AVX512):
        wanted = 6 if kind == AVX else 0xE6
        if xstate.xcr0(cpu.vcpu) & wanted != wanted:
            raise Fault(UD)
    if cr0 & CR0_TS:
        raise Fault(NM)


@cache
def _operand_size(raw: bytes, bits: int) -> int:
    """Bytes of the memory operand, as capstone's tables have it; 0 if unknown."""
    import capstone
    from capstone import x86

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    engine.detail = True
    for found in engine.disasm(raw, 0, 1):
        for operand in found.operands:
            if operand.type == x86.X86_OP_MEM:
                return int(operand.size)
    return 0


class Computer:
    """One vCPU's engine, made when it is first needed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._area: Any = ffi.new("char[]", 0)
        self._xcr0 = -1

    def run(self, cpu: Cpu, insn: Instruction, kind: str, *, alias: bytes | None = None) -> None:
        """Completes an instruction. Raises `Fault`, `Refused`.

        `alias` is the instruction to execute in its place (after `relocated`).
        """
        check_enabled(cpu, kind)
        regs = {name: getattr(cpu.regs, name) for name in GENERAL}
        operand = _Operand(cpu, insn, regs, self.engine)
        code = alias if alias is not None else relocated(insn, WINDOW + operand.at - CODE)
        stateful = kind not in _NO_STATE
        if stateful:
            self._give_state(cpu, kind in (XSAVE, AVX, MASKS, AVX512))
        try:
            flags = operand.settle(code)
        except EngineError as error:
            raise Refused(str(error)) from None
        if stateful:
            self._take_state(cpu, insn, operand, kind)
        operand.store()
        target = cpu.regs
        for name, value in regs.items():
            setattr(target, name, value)
        target.rflags = flags
        cpu.changed()
        finished(cpu, insn.length)

    def _give_state(self, cpu: Cpu, extended: bool) -> None:
        vcpu = cpu.vcpu
        size = max(vcpu.xsave_size, self.engine.vcpu.xsave_size)
        if len(self._area) != size:
            self._area = ffi.new("char[]", size)
        vcpu.ioctl("KVM_GET_XSAVE2" if vcpu.xsave_size > PAGE else "KVM_GET_XSAVE", self._area)
        if extended:
            wanted = xstate.xcr0(vcpu)
            if wanted != self._xcr0:
                self.engine.vcpu.set_xcrs({0: wanted})
                self._xcr0 = wanted
        self.engine.vcpu.ioctl("KVM_SET_XSAVE", self._area)

    def _take_state(self, cpu: Cpu, insn: Instruction, operand: _Operand, kind: str) -> None:
        vcpu, own = cpu.vcpu, self.engine.vcpu
        own.ioctl("KVM_GET_XSAVE2" if own.xsave_size > PAGE else "KVM_GET_XSAVE", self._area)
        area = ffi.buffer(self._area)
        if not area[512][0] & 2:
            # The kernel leaves a stale MXCSR where SSE is in its initial state.
            area[24:28] = _MXCSR_INITIAL
        if kind == X87:
            if area[8:16] == CODE.to_bytes(8, "little"):
                area[8:16] = int(cpu.regs.rip).to_bytes(8, "little")
            if operand.present and area[16:24] == (WINDOW + operand.at).to_bytes(8, "little"):
                area[16:24] = operand.offset.to_bytes(8, "little")
        vcpu.ioctl("KVM_SET_XSAVE", self._area)


class _Operand:
    """The memory operand of one instruction, behind the engine's window as far as needed."""

    def __init__(self, cpu: Cpu, insn: Instruction, regs: dict[str, int], engine: Engine) -> None:
        self.cpu = cpu
        self.insn = insn
        self.regs = regs
        self.engine = engine
        self.present = insn.memory
        self.at = 0  # offset in the window
        self.offset = 0  # effective address
        self.linear = 0
        self.frames: list[Frame | None] = []
        self._device: tuple[int, int] | None = None  # guest-physical address and length
        self._rdi: int | None = None
        if self.present:
            self.offset = cpu.offset(insn)
            self._place(cpu.segment_of(insn))
        elif insn.key == (1, 0xF7) and insn.encoding is not EVEX:  # MASKMOVQ, MASKMOVDQU: DS:rDI
            self.offset = regs["rdi"] & MASK[insn.address_size]
            self._place(insn.segment or "ds")
            self._rdi, regs["rdi"] = regs["rdi"], WINDOW + self.at

    def _place(self, segment: str) -> None:
        cpu = self.cpu
        size = 1
        if cpu.bits != 64 and getattr(cpu.sregs, segment).limit < 0xFFFFFFFF:
            size = _operand_size(self.insn.raw, cpu.bits) or 1
        self.linear = cpu.linear(segment, self.offset, size)
        self.at = self.linear & PAGE - 1
        self.frames = [None]
        found = cpu.walk(self.linear)
        if found.ok and self._permitted(found, False):
            # Else the engine's own page fault tells whether it is a read or a write.
            assert found.gpa is not None
            if cpu.machine.vm.region_at(found.gpa) is not None:
                self._put(0, found, False)

    def _permitted(self, found: Walk, write: bool) -> bool:
        try:
            self.cpu.permit(found, write=write)
        except Fault:
            return False
        return True

    def _put(self, index: int, found: Walk, write: bool) -> None:
        """Makes a page of the operand reachable: for writes, too, if it is one or may be."""
        cpu = self.cpu
        assert found.gpa is not None
        cpu.mark(found, write)
        page = found.gpa & -PAGE
        region = cpu.machine.vm.region_at(page)
        if region is None or (write and region.flags & _READONLY):
            frame = self._scratch(index, page, write)
        else:
            free = write or (found.dirty and self._permitted(found, True))
            if free:  # the engine writes where KVM's dirty log of this machine does not look
                region.mark(page - region.gpa, PAGE)
            frame = Frame(page, free and not region.flags & _READONLY)
        self.frames += [None] * (index + 1 - len(self.frames))
        self.frames[index] = frame

    def _scratch(self, index: int, page: int, write: bool) -> Frame:
        """An operand that is no memory: its bytes in a scratch page, from and to the bus."""
        size = _operand_size(self.insn.raw, self.cpu.bits)
        if index or not 0 < size <= PAGE - self.at:
            raise Refused("its operand is a device's, and of unknown size or across pages")
        if self._device is None:
            self._device = (page + self.at, size)
            # What writes first does not read, but for CMPXCHG8B and CMPXCHG16B.
            if not write or self.insn.key == (1, 0xC7):
                data = self.cpu.read_physical(*self._device)
                self.engine.memory.write(SCRATCH + self.at, data)
        return Frame(0, write, 0)

    def settle(self, code: bytes) -> int:
        """Runs the instruction until it is complete; returns the flags. Raises its faults."""
        flags = int(self.cpu.regs.rflags)
        for _ in range(_STEPS):
            if self.frames:
                self.engine.map(self.frames)
            after, trap = self.engine.execute(code, self.regs, flags)
            if trap is None:
                if self._rdi is not None:
                    self.regs["rdi"] = self._rdi
                return after
            if trap.vector == UD and self.frames and self._exists(code):
                raise Fault(GP, 0)
            if trap.vector != _PAGE_FAULT:
                raise Fault(trap.vector, trap.error if trap.vector in _CODED else None)
            self._page_fault(trap.address, bool(trap.error & 2))
        raise Refused("it faults in the engine again and again")

    def _exists(self, code: bytes) -> bool:
        """Whether the instruction works on aligned zeros.

        A software KVM looks at a #GP of ring 3 with its emulator, and makes it #UD where that does
        not know the instruction; this tells the two apart.
        """
        regs = dict(self.regs)
        at = WINDOW + self.at
        moved = code.replace(
            (at - CODE - len(code)).to_bytes(4, "little", signed=True),
            (WINDOW - CODE - len(code)).to_bytes(4, "little", signed=True),
        )
        if self._rdi is not None:
            regs["rdi"] = WINDOW
        self.engine.memory.write(SCRATCH, bytes(PAGES * PAGE))
        self.engine.map([Frame(0, True, n) for n in range(PAGES)])
        return self.engine.execute(moved, regs, 2)[1] is None

    def _page_fault(self, engine_address: int, write: bool) -> None:
        cpu, place = self.cpu, engine_address - WINDOW
        if not 0 <= place < PAGES * PAGE or not self.frames:
            raise Refused(f"it touched {engine_address:#x} in the engine")
        address = (self.linear & -PAGE) + place & (MASK[64] if cpu.long else MASK[32])
        if cpu.bits == 64:
            cpu.canonical(address)
        found = cpu.walk(address)
        cpu.permit(found, write=write)
        self._put(place // PAGE, found, write)

    def store(self) -> None:
        """What was written to a device's registers goes there."""
        frame = self.frames[0] if self.frames else None
        if self._device is not None and frame is not None and frame.writable:
            gpa, size = self._device
            self.cpu.write_physical(gpa, self.engine.memory.read(SCRATCH + self.at, size))
