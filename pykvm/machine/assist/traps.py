"""Exceptions that a software KVM gives the guest although a CPU would not: caught and undone.

Under `kvm_pvm`, an instruction of ring 3 that the emulator refuses becomes #UD in the guest (INT n,
and in 32-bit code also SSE and x87), and SYSCALL lands on its entry point still in ring 3, which is
a #PF there. Neither exits. So hardware breakpoints of guest debug stand on the first instruction of
the guest's #UD and #PF handlers. When one is met, the frame on the stack says where the exception
came from; if the instruction can be completed, the state before the exception is put back and it
is. Otherwise the handler goes on.

Breakpoints are set only once the assist has had something to do, and only in long mode. While they
are, the guest's own debug registers do not work. SDM vol. 3A 7.14.2 (the frame), APM vol. 3.
"""

from __future__ import annotations

import struct

from pykvm.errors import PykvmError
from pykvm.kvm.vcpu_debug import HardwareBreakpoint
from pykvm.machine.assist import transfer
from pykvm.machine.assist.cpu import DF, EFER_SCE, RF, Cpu, Fault, Refused
from pykvm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine.assist.assist import Assist

_UD, _PF = 6, 14
_GATE = 16
_FRAME = struct.Struct("<5Q")
_LSTAR = 0xC0000082
_FETCH_OR_PRESENT = 0x15  # P, U and I/D: what a SYSCALL that stays in ring 3 makes of LSTAR
_USER = 4
_SYSCALL = b"\x0f\x05"
_GENUINE = (b"\x0f\x0b", b"\x0f\xb9", b"\x0f\xff")  # UD2, UD1, UD0
# First instructions of handlers that are stepped over here: ENDBR64, NOPs, CLD.
_HARMLESS = (b"\xf3\x0f\x1e\xfa", b"\x90", b"\x66\x90", b"\x0f\x1f\x00", b"\xfc")


class Frame(NamedTuple):
    """What the CPU pushed: the interrupted state."""

    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


class Traps:
    """The breakpoints on the guest's handlers, for each vCPU."""

    def __init__(self, assist: Assist) -> None:
        self._assist = assist
        self._armed: dict[int, dict[int, int]] = {}  # vCPU -> handler's address -> vector
        self._stepping: set[int] = set()

    def armed(self, vcpu: Vcpu) -> bool:
        """Whether the breakpoints are set; ticks see to it that they stay at the handlers."""
        return vcpu.id in self._armed

    def visit(self, vcpu: Vcpu) -> None:
        """Sets the breakpoints where the guest's handlers are now. In the vCPU's own thread."""
        if vcpu.id in self._stepping:
            return
        armed = self._ours(vcpu)
        debugger = self._assist.machine.debugger
        if debugger is None and not armed and vcpu.guest_debug.control:
            return  # somebody else's, who does not know of ours
        wanted = self._handlers(vcpu)
        if wanted == armed:
            return
        if debugger is not None:
            self._armed[vcpu.id] = wanted
            debugger.arm(vcpu)
            return
        try:
            vcpu.set_guest_debug(
                hardware_breakpoints=[HardwareBreakpoint(address) for address in wanted]
            )
        except PykvmError:
            return  # a host without them has no such exceptions either
        if wanted:
            self._armed[vcpu.id] = wanted
        else:
            self._armed.pop(vcpu.id, None)

    def _ours(self, vcpu: Vcpu) -> dict[int, int]:
        """The breakpoints that are set, unless a debugger has put its own in their place."""
        armed = self._armed.get(vcpu.id, {})
        placed = {b.address for b in vcpu.guest_debug.breakpoints}
        if armed and not placed.issuperset(armed):
            del self._armed[vcpu.id]
            return {}
        return armed

    def _handlers(self, vcpu: Vcpu) -> dict[int, int]:
        sregs = vcpu.sregs._readable()
        if not sregs.efer & 1 << 10:
            return {}
        cpu = self._assist.cpu(vcpu)
        vectors = (_UD, _PF) if sregs.efer & EFER_SCE else (_UD,)
        found = {}
        for vector in vectors:
            at = sregs.idt.base + vector * _GATE
            if (vector + 1) * _GATE - 1 > sregs.idt.limit:
                continue
            walked = cpu.walk(at)
            if walked.gpa is None:
                continue
            try:
                low, high = struct.unpack("<QQ", cpu.machine.memory.read(walked.gpa, _GATE))
            except PykvmError:
                continue
            if low >> 47 & 1:
                address = low & 0xFFFF | low >> 32 & 0xFFFF0000 | (high & 0xFFFFFFFF) << 32
                found[address] = vector
        return found

    def trapped(self, vcpu: Vcpu) -> bool:
        """A debug exit: True if it was ours, and the guest may go on."""
        if vcpu.id in self._stepping:
            self._stepping.discard(vcpu.id)
            if vcpu.guest_debug.singlestep and not vcpu.guest_debug.breakpoints:
                self._set(vcpu)
                return True
        armed = self._ours(vcpu)
        if not armed:
            return False
        vector = armed.get(vcpu.regs.rip)
        if vector is None:
            return False
        cpu = self._assist.cpu(vcpu)
        try:
            done = self._page_fault(cpu) if vector == _PF else self._undefined(cpu)
        except (Fault, Refused, PykvmError):
            done = False
        if not done:
            self._go_on(self._assist.cpu(vcpu))
        return True

    def _frame(self, cpu: Cpu, skip: int) -> Frame:
        return Frame(*_FRAME.unpack(cpu.read(cpu.regs.rsp + skip, _FRAME.size, system=True)))

    def _page_fault(self, cpu: Cpu) -> bool:
        """#PF: is it a SYSCALL that has stayed in ring 3?"""
        frame = self._frame(cpu, 8)
        if frame.cs & 3 != 3 or frame.rip != cpu.sregs.cr2:
            return False
        error = cpu.number(cpu.regs.rsp, 8, system=True)
        if error & ~_FETCH_OR_PRESENT or not error & _USER or frame.rip != cpu.msr(_LSTAR):
            return False
        regs = cpu.regs
        if cpu.read(regs.rcx - 2, 2, system=True) != _SYSCALL:
            return False
        regs.rsp = frame.rsp
        # RCX and R11 are as SYSCALL leaves them.
        transfer.enter_system(cpu, regs.rcx, regs.r11)
        self._assist.count(cpu.vcpu, "syscall")
        return True

    def _undefined(self, cpu: Cpu) -> bool:
        """#UD: was it an instruction that exists?"""
        frame = self._frame(cpu, 0)
        before = (cpu.vcpu.get_regs(), cpu.vcpu.get_sregs())
        try:
            self._undo(cpu, frame)
            code = cpu.fetch(15)
            if code.startswith(_GENUINE):
                raise Refused("it is undefined")
            if self._assist.instruction(cpu.vcpu, code, undefined=True):
                return True
        except (Fault, Refused):
            pass
        cpu.vcpu.set_sregs(before[1])
        cpu.vcpu.set_regs(before[0])
        return False

    def _undo(self, cpu: Cpu, frame: Frame) -> None:
        """The state before the exception was delivered."""
        code = transfer.code_segment_of(cpu, frame.cs & 0xFFFF)
        stack = transfer.stack_segment_of(cpu, frame.ss & 0xFFFF, frame.cs & 3, bool(code.l))
        transfer.load(cpu.sregs.cs, code)
        transfer.load(cpu.sregs.ss, stack)
        cpu.regs.rip, cpu.regs.rsp = frame.rip, frame.rsp
        cpu.regs.rflags = frame.rflags & ~RF
        cpu.changed()
        cpu.changed_sregs()
        cpu.settle()

    def _go_on(self, cpu: Cpu) -> None:
        """Past the handler's first instruction, which the breakpoint stands on."""
        try:
            code = cpu.fetch(4)
        except Fault:
            code = b""
        for known in _HARMLESS:
            if code.startswith(known):
                if known == b"\xfc":
                    cpu.flags(DF)
                cpu.skip(len(known))
                return
        self._stepping.add(cpu.vcpu.id)
        cpu.vcpu.set_guest_debug(singlestep=True)

    def addresses(self, vcpu: Vcpu) -> list[int]:
        """Where breakpoints shall stand, for a debugger that sets them beside its own."""
        return list(self._armed.get(vcpu.id, ()))

    def _set(self, vcpu: Vcpu) -> None:
        debugger = self._assist.machine.debugger
        if debugger is not None:
            debugger.arm(vcpu)
            return
        addresses = self._armed.get(vcpu.id, {})
        vcpu.set_guest_debug(hardware_breakpoints=[HardwareBreakpoint(a) for a in addresses])

    def reset(self) -> None:
        """Forgets everything; the breakpoints are set anew when they are needed."""
        for vcpu in self._assist.machine.vcpus:
            if vcpu.id in self._armed or vcpu.id in self._stepping:
                vcpu.clear_guest_debug()
        self._armed.clear()
        self._stepping.clear()

    def state(self) -> dict[int, dict[int, int]]:
        """vCPU id -> address of a handler -> vector: for snapshots."""
        return {vcpu: dict(armed) for vcpu, armed in self._armed.items()}

    def restored(self, armed: dict[int, dict[int, int]]) -> None:
        """The guest is as it was when `state()` gave `armed`. A debugger keeps its breakpoints."""
        for vcpu in self._assist.machine.vcpus:
            wanted = dict(armed.get(vcpu.id, {}))
            ours = bool(self._ours(vcpu)) or vcpu.id in self._stepping
            if self._armed.get(vcpu.id, {}) == wanted and vcpu.id not in self._stepping:
                continue
            self._armed.pop(vcpu.id, None)
            self._stepping.discard(vcpu.id)
            if not ours and vcpu.guest_debug.control:
                continue
            if wanted:
                self._armed[vcpu.id] = wanted
            self._set(vcpu)
