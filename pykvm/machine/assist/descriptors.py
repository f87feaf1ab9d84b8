"""LAR, LSL, VERR, VERW: what the guest's descriptor tables say (SDM vol. 2A, 2B)."""

from __future__ import annotations

from pykvm.machine.assist.cpu import UD, ZF, Cpu, Fault
from pykvm.machine.assist.decode import Instruction
from pykvm.machine.assist.events import finished

_LAR_LEGACY = frozenset((1, 2, 3, 4, 5, 9, 11, 12))
_LAR_LONG = frozenset((2, 9, 11, 12))
_LSL_LEGACY = frozenset((1, 2, 3, 9, 11))
_LSL_LONG = frozenset((2, 9, 11))
_ACCESS_MASK = 0x00F0FF00


def descriptor(cpu: Cpu, selector: int) -> int | None:
    """The 8 bytes that a selector leads to, as a number; None for null and beyond the limit."""
    if not selector & 0xFFFC:
        return None
    sregs = cpu.sregs
    base, limit = sregs.gdt.base, sregs.gdt.limit
    if selector & 4:
        base, limit = sregs.ldt.base, sregs.ldt.limit
        if sregs.ldt.unusable or not sregs.ldt.present:
            return None
    at = selector & 0xFFF8
    if at + 7 > limit:
        return None
    return cpu.number(base + at, 8, system=True)


def _visible(cpu: Cpu, selector: int, raw: int) -> bool:
    """DPL against CPL and RPL; conforming code is visible to all."""
    kind = raw >> 40 & 0x1F
    if kind & 0x1C == 0x1C:
        return True
    return (raw >> 45 & 3) >= max(cpu.cpl, selector & 3)


def _selector(cpu: Cpu, insn: Instruction) -> int:
    if cpu.legacy:
        raise Fault(UD)
    if insn.memory:
        return cpu.number(cpu.operand(insn, 2), 2)
    return cpu.reg(insn.rm, 16)


def _answer(cpu: Cpu, insn: Instruction, value: int | None) -> None:
    if value is not None:
        cpu.set_reg(insn.reg, value, insn.operand_size)
    cpu.flags(ZF, ZF if value is not None else 0)
    finished(cpu, insn.length)


def lar(cpu: Cpu, insn: Instruction) -> None:
    """LAR: access rights."""
    selector = _selector(cpu, insn)
    raw = descriptor(cpu, selector)
    value = None
    if raw is not None and _visible(cpu, selector, raw):
        kind = raw >> 40 & 0x1F
        allowed = _LAR_LONG if cpu.long else _LAR_LEGACY
        if kind & 0x10 or kind in allowed:
            value = raw >> 32 & (_ACCESS_MASK if insn.operand_size > 16 else 0xFF00)
    _answer(cpu, insn, value)


def lsl(cpu: Cpu, insn: Instruction) -> None:
    """LSL: the limit in bytes."""
    selector = _selector(cpu, insn)
    raw = descriptor(cpu, selector)
    value = None
    if raw is not None and _visible(cpu, selector, raw):
        kind = raw >> 40 & 0x1F
        allowed = _LSL_LONG if cpu.long else _LSL_LEGACY
        if kind & 0x10 or kind in allowed:
            value = raw & 0xFFFF | raw >> 32 & 0xF0000
            if raw >> 55 & 1:
                value = value << 12 | 0xFFF
    _answer(cpu, insn, value)


def verify(cpu: Cpu, insn: Instruction) -> None:
    """VERR and VERW: is the segment readable, or writable."""
    selector = _selector(cpu, insn)
    raw = descriptor(cpu, selector)
    good = False
    if raw is not None and raw >> 44 & 1 and _visible(cpu, selector, raw):
        code, second = raw >> 43 & 1, raw >> 41 & 1
        good = bool(not code and second) if insn.reg & 1 else bool(not code or second)
    cpu.flags(ZF, ZF if good else 0)
    finished(cpu, insn.length)
