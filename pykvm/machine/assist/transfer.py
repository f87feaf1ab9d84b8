"""IRET, SYSCALL, SYSRET, SYSENTER, SYSEXIT where KVM's emulator lacks them.

Sources: SDM vol. 2A IRET, vol. 2B SYSCALL and the others; APM vol. 3.
"""

from __future__ import annotations

from pykvm.arch.descriptors import decode_segment
from pykvm.machine.assist.cpu import (
    EFER_SCE,
    GP,
    IF,
    MASK,
    NP,
    NT,
    RF,
    SS,
    TF,
    UD,
    VM,
    Cpu,
    Fault,
    Refused,
)
from pykvm.machine.assist.decode import Instruction
from pykvm.machine.assist.descriptors import descriptor
from pykvm.machine.assist.events import retired
from pykvm.typed import Any

_STAR, _LSTAR, _CSTAR, _SFMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
_SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP = 0x174, 0x175, 0x176
_IOPL = 3 << 12
_VIF_VIP = 3 << 19
_ALWAYS = 2
_SETTABLE = 0x254DD5  # CF PF AF ZF SF TF DF OF NT RF AC ID; IF and IOPL by privilege
_PARTS = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl",
          "unusable")  # fmt: skip


def flat(target: Any, selector: int, *, code: bool, dpl: int, bits: int) -> None:
    """Loads a segment register as the fast system calls do: flat, whatever the tables say."""
    target.base, target.limit, target.selector = 0, 0xFFFFFFFF, selector
    target.type, target.s, target.dpl, target.present = 11 if code else 3, 1, dpl, 1
    target.l = int(code and bits == 64)
    target.db = int(not code or bits != 64)
    target.g, target.avl, target.unusable = 1, 0, 0


def syscall(cpu: Cpu, insn: Instruction) -> None:
    """SYSCALL."""
    sregs, regs = cpu.sregs, cpu.regs
    if not (sregs.efer & EFER_SCE and cpu.long and cpu.bits == 64):
        raise Fault(UD)
    stepping = bool(regs.rflags & TF)
    enter_system(cpu, regs.rip + insn.length, regs.rflags & ~RF)
    retired(cpu, stepping)


def enter_system(cpu: Cpu, back: int, flags: int) -> None:
    """What SYSCALL does in 64-bit mode, with `back` as the address to return to."""
    sregs, regs = cpu.sregs, cpu.regs
    star = cpu.msr(_STAR)
    mask = cpu.msr(_SFMASK)
    target = cpu.msr(_LSTAR)
    regs.rcx, regs.r11 = back & MASK[64], flags
    regs.rip = target
    regs.rflags = flags & ~mask & ~RF | _ALWAYS
    selector = star >> 32 & 0xFFFC
    flat(sregs.cs, selector, code=True, dpl=0, bits=64)
    flat(sregs.ss, selector + 8, code=False, dpl=0, bits=64)
    cpu.changed()
    cpu.changed_sregs()


def sysret(cpu: Cpu, insn: Instruction) -> None:
    """SYSRET, to 64-bit code with REX.W, else to 32-bit code."""
    sregs, regs = cpu.sregs, cpu.regs
    if not (sregs.efer & EFER_SCE and cpu.bits == 64):
        raise Fault(UD)
    if cpu.cpl:
        raise Fault(GP, 0)
    selector = cpu.msr(_STAR) >> 48
    if insn.wide:
        cpu.canonical(regs.rcx)
        regs.rip = regs.rcx
        flat(sregs.cs, selector + 16 | 3, code=True, dpl=3, bits=64)
    else:
        regs.rip = regs.rcx & MASK[32]
        flat(sregs.cs, selector | 3, code=True, dpl=3, bits=32)
    flat(sregs.ss, selector + 8 | 3, code=False, dpl=3, bits=64)
    regs.rflags = regs.r11 & 0x3C7FD7 & ~RF | _ALWAYS
    cpu.changed()
    cpu.changed_sregs()
    cpu.settle()
    retired(cpu, False)


def sysenter(cpu: Cpu, insn: Instruction) -> None:
    """SYSENTER."""
    sregs, regs = cpu.sregs, cpu.regs
    selector = cpu.msr(_SYSENTER_CS) & 0xFFFC
    if cpu.real or not selector:
        raise Fault(GP, 0)
    bits = 64 if cpu.long else 32
    regs.rip, regs.rsp = cpu.msr(_SYSENTER_EIP), cpu.msr(_SYSENTER_ESP)
    if not cpu.long:
        regs.rip, regs.rsp = regs.rip & MASK[32], regs.rsp & MASK[32]
    flat(sregs.cs, selector, code=True, dpl=0, bits=bits)
    flat(sregs.ss, selector + 8, code=False, dpl=0, bits=bits)
    regs.rflags = regs.rflags & ~(VM | IF | RF)
    cpu.changed()
    cpu.changed_sregs()
    cpu.settle()
    retired(cpu, False)


def sysexit(cpu: Cpu, insn: Instruction) -> None:
    """SYSEXIT."""
    sregs, regs = cpu.sregs, cpu.regs
    selector = cpu.msr(_SYSENTER_CS) & 0xFFFC
    if cpu.legacy or cpu.cpl or not selector:
        raise Fault(GP, 0)
    wide = insn.wide and cpu.long
    rip, rsp = regs.rdx, regs.rcx
    if wide:
        cpu.canonical(rip)
        cpu.canonical(rsp)
    else:
        rip, rsp = rip & MASK[32], rsp & MASK[32]
    regs.rip, regs.rsp = rip, rsp
    flat(sregs.cs, selector + (32 if wide else 16) | 3, code=True, dpl=3, bits=64 if wide else 32)
    flat(sregs.ss, selector + (40 if wide else 24) | 3, code=False, dpl=3, bits=64)
    cpu.changed()
    cpu.changed_sregs()
    cpu.settle()
    retired(cpu, False)


# -- IRET ------------------------------------------------------------------------------------------


def iret(cpu: Cpu, insn: Instruction) -> None:
    """IRET, to the same or an outer ring. Task returns and vm86 are refused."""
    size = insn.operand_size // 8
    if cpu.vm86 or (cpu.regs.rflags & NT and not cpu.real and not cpu.long):
        raise Refused("a return from vm86 mode, or to another task")
    if cpu.long and cpu.regs.rflags & NT:
        raise Fault(GP, 0)
    stepping = bool(cpu.regs.rflags & TF)
    if cpu.real:
        _iret_real(cpu, size)
    else:
        _iret_protected(cpu, size)
    retired(cpu, stepping)


def _stack(cpu: Cpu, size: int, count: int) -> tuple[list[int], int, int]:
    """`count` numbers from the top of the stack, RSP behind them, and the stack's width."""
    sregs = cpu.sregs
    width = 64 if cpu.bits == 64 else 32 if sregs.ss.db else 16
    rsp = cpu.regs.rsp & MASK[width]
    data = cpu.read(cpu.linear("ss", rsp, size * count), size * count)
    numbers = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    return numbers, rsp + size * count & MASK[width], width


def _set_rsp(cpu: Cpu, value: int, width: int) -> None:
    cpu.set_reg(4, value, width)


def _set_flags(cpu: Cpu, flags: int, size: int, cpl: int) -> None:
    old = cpu.regs.rflags
    allowed = _SETTABLE
    if cpl == 0:
        allowed |= _IOPL | (_VIF_VIP if size > 2 else 0)
    if cpl <= (old & _IOPL) >> 12:
        allowed |= IF
    if size == 2:
        allowed &= 0xFFFF
    cpu.regs.rflags = (old & ~allowed | flags & allowed | _ALWAYS) & ~VM
    cpu.changed()


def _iret_real(cpu: Cpu, size: int) -> None:
    (rip, cs, flags), rsp, width = _stack(cpu, size, 3)
    if rip > cpu.sregs.cs.limit:
        raise Fault(GP, 0)
    cpu.regs.rip = rip
    cpu.sregs.cs.selector = cs & 0xFFFF
    cpu.sregs.cs.base = (cs & 0xFFFF) << 4
    _set_rsp(cpu, rsp, width)
    _set_flags(cpu, flags, size, 0)
    cpu.changed_sregs()


def _iret_protected(cpu: Cpu, size: int) -> None:
    (rip, cs, flags), rsp, width = _stack(cpu, size, 3)
    if flags & VM and not cpu.long and size == 4 and cpu.cpl == 0:
        raise Refused("a return to vm86 mode")
    selector = cs & 0xFFFF
    code = code_segment_of(cpu, selector)
    outer = selector & 3 > cpu.cpl
    stack = None
    if outer or cpu.bits == 64:
        (rip, cs, flags, new_rsp, ss), _, _ = _stack(cpu, size, 5)
        stack = stack_segment_of(cpu, ss & 0xFFFF, selector & 3, bool(code.l))
    if code.l:
        cpu.canonical(rip)
    elif rip > code.limit:
        raise Fault(GP, 0)
    old_cpl = cpu.cpl
    _set_flags(cpu, flags, size, old_cpl)
    load(cpu.sregs.cs, code)
    cpu.regs.rip = rip
    if stack is not None:
        load(cpu.sregs.ss, stack)
        wide = 64 if cpu.bits == 64 or code.l else 32 if stack.db else 16
        _set_rsp(cpu, new_rsp, wide)
    else:
        _set_rsp(cpu, rsp, width)
    if outer:
        for name in ("ds", "es", "fs", "gs"):
            part = getattr(cpu.sregs, name)
            conforming = part.type & 0xC == 0xC
            if part.s and not conforming and part.dpl < selector & 3:
                part.selector, part.unusable, part.base, part.present = 0, 1, 0, 0
    cpu.changed()
    cpu.changed_sregs()
    cpu.settle()


def code_segment_of(cpu: Cpu, selector: int) -> Any:
    """The code segment that a return to `selector` loads. Raises `Fault`."""
    raw = descriptor(cpu, selector)
    code = selector & 0xFFFC
    rpl = selector & 3
    if raw is None or rpl < cpu.cpl:
        raise Fault(GP, code)
    kind, dpl = raw >> 40 & 0x1F, raw >> 45 & 3
    if kind & 0x18 != 0x18 or (dpl > rpl if kind & 4 else dpl != rpl):
        raise Fault(GP, code)
    if not raw >> 47 & 1:
        raise Fault(NP, code)
    found = decode_segment(raw.to_bytes(8, "little"), selector=selector)
    if cpu.long and found.l and found.db:
        raise Fault(GP, code)
    # The DPL of a CS register is the ring that it runs in (SDM vol. 3C, 27.3.1.2).
    return found.replace(type=found.type | 1, l=found.l if cpu.long else 0, dpl=rpl)


def stack_segment_of(cpu: Cpu, selector: int, rpl: int, long_code: bool) -> Any:
    """The stack segment that a return to ring `rpl` loads. Raises `Fault`."""
    code = selector & 0xFFFC
    raw = descriptor(cpu, selector)
    if raw is None and not code and long_code and rpl != 3:
        empty = decode_segment(bytes(8), selector=selector)
        return empty.replace(type=3, s=1, dpl=rpl, db=1, g=1, limit=0xFFFFFFFF, present=1,
                             unusable=0)  # fmt: skip
    if raw is None or selector & 3 != rpl or raw >> 45 & 3 != rpl:
        raise Fault(GP, code)
    if raw >> 40 & 0x1A != 0x12:
        raise Fault(GP, code)
    if not raw >> 47 & 1:
        raise Fault(SS, code)
    found = decode_segment(raw.to_bytes(8, "little"), selector=selector)
    return found.replace(type=found.type | 1)


def load(target: Any, segment: Any) -> None:
    """Copies a segment, with its hidden part, into a register."""
    for name in _PARTS:
        setattr(target, name, getattr(segment, name))
