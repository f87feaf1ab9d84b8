"""Instructions about the machine itself, completed in Python: control registers, TLB, descriptors.

Each function takes the CPU and the decoded instruction, and either leaves the instruction complete
or raises `Fault` or `Refused`. Sources: SDM vol. 2 and APM vol. 3, under each instruction's name.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.kvm.errors import KvmError
from pykvm.machine.assist import xstate
from pykvm.machine.assist.cpu import (
    AC,
    AF,
    CF,
    CR4_OSXSAVE,
    CR4_PGE,
    CR4_PKE,
    CR4_TSD,
    GP,
    MASK,
    OF,
    PF,
    SF,
    UD,
    ZF,
    Cpu,
    Fault,
    Refused,
)
from pykvm.machine.assist.decode import Instruction
from pykvm.machine.assist.events import finished, software_interrupt

Handler = Callable[[Cpu, Instruction], None]

_MSR_TSC, _MSR_TSC_AUX = 0x10, 0xC0000103
_LINE = 64  # bytes of a cache line, for CLZERO


def _need_ring0(cpu: Cpu) -> None:
    if cpu.cpl:
        raise Fault(GP, 0)


def int3(cpu: Cpu, insn: Instruction) -> None:
    """INT3."""
    software_interrupt(cpu, 3, insn.length)


def int_n(cpu: Cpu, insn: Instruction) -> None:
    """INT n."""
    software_interrupt(cpu, insn.imm[0], insn.length)


def into(cpu: Cpu, insn: Instruction) -> None:
    """INTO: #OF if the overflow flag is set; not in 64-bit code."""
    if cpu.bits == 64:
        raise Fault(UD)
    if cpu.regs.rflags & OF:
        software_interrupt(cpu, 4, insn.length)
    else:
        finished(cpu, insn.length)


def int1(cpu: Cpu, insn: Instruction) -> None:
    """INT1: #DB through its gate, whatever its DPL; DR6 stays."""
    software_interrupt(cpu, 1, insn.length, privileged=True)


def undefined(cpu: Cpu, insn: Instruction) -> None:
    """UD0, UD1, UD2."""
    raise Fault(UD)


def stac(cpu: Cpu, insn: Instruction) -> None:
    """STAC."""
    if cpu.cpl:
        raise Fault(UD)
    cpu.flags(0, AC)
    finished(cpu, insn.length)


def clac(cpu: Cpu, insn: Instruction) -> None:
    """CLAC."""
    if cpu.cpl:
        raise Fault(UD)
    cpu.flags(AC)
    finished(cpu, insn.length)


def xgetbv(cpu: Cpu, insn: Instruction) -> None:
    """XGETBV: XCR0, or with ECX = 1 what of it is in use."""
    if not cpu.sregs.cr4 & CR4_OSXSAVE:
        raise Fault(UD)
    number = cpu.reg(1, 32)
    value = xstate.xcr0(cpu.vcpu)
    if number == 1:
        value &= int.from_bytes(cpu.vcpu.get_xsave()[512:520], "little")
    elif number:
        raise Fault(GP, 0)
    _set_edx_eax(cpu, value)
    finished(cpu, insn.length)


def xsetbv(cpu: Cpu, insn: Instruction) -> None:
    """XSETBV; KVM says which values are valid."""
    if not cpu.sregs.cr4 & CR4_OSXSAVE:
        raise Fault(UD)
    _need_ring0(cpu)
    if cpu.reg(1, 32):
        raise Fault(GP, 0)
    try:
        cpu.vcpu.set_xcrs({0: _edx_eax(cpu)})
    except KvmError:
        raise Fault(GP, 0) from None
    finished(cpu, insn.length)


def _edx_eax(cpu: Cpu) -> int:
    return cpu.reg(2, 32) << 32 | cpu.reg(0, 32)


def _set_edx_eax(cpu: Cpu, value: int) -> None:
    cpu.set_reg(0, value & MASK[32], 32)
    cpu.set_reg(2, value >> 32, 32)


def rdtscp(cpu: Cpu, insn: Instruction) -> None:
    """RDTSCP."""
    if cpu.cpl and cpu.sregs.cr4 & CR4_TSD:
        raise Fault(GP, 0)
    found = cpu.vcpu.get_msrs([_MSR_TSC, _MSR_TSC_AUX])
    _set_edx_eax(cpu, found[_MSR_TSC])
    cpu.set_reg(1, found[_MSR_TSC_AUX] & MASK[32], 32)
    finished(cpu, insn.length)


def rdpid(cpu: Cpu, insn: Instruction) -> None:
    """RDPID."""
    cpu.set_reg(insn.rm, cpu.msr(_MSR_TSC_AUX), 64 if cpu.bits == 64 else 32)
    finished(cpu, insn.length)


def rdpkru(cpu: Cpu, insn: Instruction) -> None:
    """RDPKRU."""
    _pkru_check(cpu)
    _set_edx_eax(cpu, xstate.read_pkru(cpu.vcpu))
    finished(cpu, insn.length)


def wrpkru(cpu: Cpu, insn: Instruction) -> None:
    """WRPKRU."""
    _pkru_check(cpu)
    if cpu.reg(2, 32):
        raise Fault(GP, 0)
    xstate.write_pkru(cpu.vcpu, cpu.reg(0, 32))
    finished(cpu, insn.length)


def _pkru_check(cpu: Cpu) -> None:
    if not cpu.sregs.cr4 & CR4_PKE:
        raise Fault(UD)
    if cpu.reg(1, 32):
        raise Fault(GP, 0)


def monitor(cpu: Cpu, insn: Instruction) -> None:
    """MONITOR, MONITORX: the address must be readable; nothing is watched."""
    if cpu.cpl:
        raise Fault(UD)
    if cpu.reg(1, 32):
        raise Fault(GP, 0)
    offset = cpu.reg(0) & MASK[insn.address_size]
    cpu.read(cpu.linear(insn.segment or "ds", offset, 1), 1)
    finished(cpu, insn.length)


def mwait(cpu: Cpu, insn: Instruction) -> None:
    """MWAIT, MWAITX: goes on at once, as the CPU may (SDM vol. 2B: implementation-dependent)."""
    if cpu.cpl:
        raise Fault(UD)
    finished(cpu, insn.length)


def clzero(cpu: Cpu, insn: Instruction) -> None:
    """CLZERO: zeros in the cache line that rAX points to."""
    offset = cpu.reg(0) & MASK[insn.address_size] & -_LINE
    cpu.write(cpu.linear(insn.segment or "ds", offset, _LINE, write=True), bytes(_LINE))
    finished(cpu, insn.length)


def no_transaction(cpu: Cpu, insn: Instruction) -> None:
    """XTEST outside a transaction."""
    cpu.flags(CF | PF | AF | SF | OF, ZF)
    finished(cpu, insn.length)


def cache_line(cpu: Cpu, insn: Instruction) -> None:
    """CLFLUSH, CLFLUSHOPT, CLWB, CLDEMOTE: memory is coherent; the address must be readable."""
    cpu.read(cpu.operand(insn, 1), 1)
    finished(cpu, insn.length)


def caches(cpu: Cpu, insn: Instruction) -> None:
    """INVD, WBINVD, WBNOINVD."""
    _need_ring0(cpu)
    finished(cpu, insn.length)


def hint(cpu: Cpu, insn: Instruction) -> None:
    """Prefetches and no-operations: they never fault."""
    finished(cpu, insn.length)


def fs_gs_base(cpu: Cpu, insn: Instruction) -> None:
    """RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE."""
    if cpu.bits != 64 or not cpu.sregs.cr4 & 1 << 16:
        raise Fault(UD)
    part = cpu.sregs.gs if insn.reg & 1 else cpu.sregs.fs
    bits = 64 if insn.wide else 32
    if insn.reg & 2:
        value = cpu.reg(insn.rm, bits)
        cpu.canonical(value)
        part.base = value
        cpu.changed_sregs()
    else:
        cpu.set_reg(insn.rm, part.base & MASK[bits], bits)
    finished(cpu, insn.length)


def invpcid(cpu: Cpu, insn: Instruction) -> None:
    """INVPCID. KVM is told to forget every translation, which covers all four types."""
    if cpu.vm86:
        raise Fault(GP, 0)
    _need_ring0(cpu)
    kind = cpu.reg(insn.reg, 64 if cpu.bits == 64 else 32)
    data = cpu.read(cpu.operand(insn, 16), 16)
    pcid = int.from_bytes(data[:8], "little")
    if kind > 3 or (kind < 2 and pcid >> 12):
        raise Fault(GP, 0)
    if kind < 2 and pcid and not cpu.sregs.cr4 & 1 << 17:
        raise Fault(GP, 0)
    if kind == 0:
        cpu.canonical(int.from_bytes(data[8:], "little"))
    flush_tlb(cpu)
    finished(cpu, insn.length)


def flush_tlb(cpu: Cpu) -> None:
    """Makes KVM look at the guest's page tables afresh: a change of CR4.PGE does that."""
    for _ in range(2):
        cpu.sregs.cr4 ^= CR4_PGE
        cpu.changed_sregs()
        cpu.vcpu.flush()


def movdir64b(cpu: Cpu, insn: Instruction) -> None:
    """MOVDIR64B: 64 bytes from memory to where a register points (in ES)."""
    if not insn.memory:
        raise Fault(UD)
    offset = cpu.reg(insn.reg) & MASK[insn.address_size]
    if offset % 64:
        raise Fault(GP, 0)
    data = cpu.read(cpu.operand(insn, 64), 64)
    cpu.write(cpu.linear("es", offset, 64, write=True), data)
    finished(cpu, insn.length)


def refused(why: str) -> Handler:
    """A handler that says why not."""

    def handler(cpu: Cpu, insn: Instruction) -> None:
        raise Refused(why)

    return handler
