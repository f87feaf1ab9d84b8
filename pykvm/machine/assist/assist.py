"""`Assist`: from an emulation-failure exit to a guest that goes on, or the reason why not."""

from __future__ import annotations

from pykvm._native import ffi, lib
from pykvm.errors import PykvmError
from pykvm.machine.assist import events
from pykvm.machine.assist.compute import XSAVE, Computer
from pykvm.machine.assist.cpu import GP, UD, Cpu, Fault, Refused
from pykvm.machine.assist.decode import MAX_LENGTH, Instruction, Undecodable
from pykvm.machine.assist.engine import CODE, WINDOW, Engine
from pykvm.machine.assist.table import Entry, decoded
from pykvm.machine.assist.traps import Traps
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.arch.pagewalk import Walk
    from pykvm.kvm import Vcpu
    from pykvm.kvm.exits import InternalErrorExit
    from pykvm.machine.machine import Machine

_EMULATION: int = lib.KVM_INTERNAL_ERROR_EMULATION
_HAS_BYTES: int = lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
_IA32_XSS = 0xDA0
_NO_PROGRESS = 10_000  # faults at one place, with nothing completed in between


class Assist:
    """Completes what KVM's emulator refuses, for all vCPUs of a machine.

    `counts`: completed instructions by mnemonic. `complete` is called by each vCPU's own thread.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.why = ""
        """Why the last instruction could not be completed."""
        self._counts: dict[int, dict[str, int]] = {}
        self._computers: dict[int, Computer] = {}
        self._stuck: dict[int, tuple[int, int]] = {}
        self._walks: dict[int, dict[tuple[int, ...], Walk]] = {}
        self.traps = Traps(self)

    @property
    def counts(self) -> dict[str, int]:
        """Completed instructions by mnemonic, over all vCPUs."""
        total: dict[str, int] = {}
        for counts in list(self._counts.values()):
            for name, n in list(counts.items()):
                total[name] = total.get(name, 0) + n
        return total

    def cpu(self, vcpu: Vcpu) -> Cpu:
        """The vCPU as an instruction sees it."""
        return Cpu(self.machine, vcpu, self._walks.setdefault(vcpu.id, {}))

    def complete(self, vcpu: Vcpu, exit_: InternalErrorExit | None = None) -> bool:
        """Completes the instruction that the exit is about; True: the guest may go on.

        False leaves the vCPU as it was, and says in `why` what is missing.
        """
        failure: Any = vcpu._run.emulation_failure
        if failure.suberror != _EMULATION:
            self.why = ""
            return False
        known = b""
        if failure.ndata >= 3 and failure.flags & _HAS_BYTES and 0 < failure.insn_size <= 15:
            known = bytes(ffi.buffer(failure.insn_bytes, failure.insn_size))
        return self.instruction(vcpu, known)

    def instruction(self, vcpu: Vcpu, known: bytes = b"", *, undefined: bool = False) -> bool:
        """Completes the instruction at the vCPU's RIP; `known` are its first bytes, if any are.

        `undefined`: the guest was given #UD for it already, so that one says no more.
        """
        cpu = self.cpu(vcpu)
        name = ""
        try:
            insn, entry = self._decode(cpu, known)
            if entry is None:
                raise Refused("it is none that the assist knows")
            name = entry.name
            if name == "int3" and vcpu.guest_debug.software_breakpoints:
                self.why = "a debugger waits for it"
                return False
            self._run(cpu, insn, entry)
        except Fault as fault:
            if undefined and fault.vector == UD:
                return False
            if not self._progress(cpu, fault):
                self.why = f"it raises vector {fault.vector} at the same place without end"
                return False
            events.raise_fault(cpu, fault)
            name = name or "fetch"
        except (Refused, Undecodable) as error:
            self.why = str(error)
            if not cpu.user or undefined:
                return False
            # Ring 3 gets what KVM gives it without EXIT_ON_EMULATION_FAILURE.
            events.raise_fault(cpu, Fault(UD))
            name = "undefined"
        except PykvmError as error:
            self.why = f"{type(error).__name__}: {error}"
            return False
        else:
            self._stuck.pop(vcpu.id, None)
        self.count(vcpu, name)
        if not undefined and not self.traps.armed(vcpu):
            self.traps.visit(vcpu)
        return True

    def count(self, vcpu: Vcpu, name: str) -> None:
        """One more completed instruction."""
        counts = self._counts.setdefault(vcpu.id, {})
        counts[name] = counts.get(name, 0) + 1

    def _decode(self, cpu: Cpu, known: bytes) -> tuple[Instruction, Entry | None]:
        if known:
            try:
                return decoded(known, cpu.bits)
            except Undecodable as error:
                if error.undefined:
                    raise Fault(UD) from None
                if not error.short:
                    raise
        code = cpu.fetch(MAX_LENGTH)
        try:
            return decoded(code, cpu.bits)
        except Undecodable as error:
            if error.undefined:
                raise Fault(UD) from None
            if error.short and len(code) >= MAX_LENGTH:
                raise Fault(GP, 0) from None
            if error.short:  # the next page is missing: this raises its page fault
                cpu.read(self._after(cpu, len(code)), 1, fetch=True)
            raise

    @staticmethod
    def _after(cpu: Cpu, length: int) -> int:
        base = 0 if cpu.bits == 64 else cpu.sregs.cs.base
        return (base + cpu.regs.rip + length) & ((1 << 64) - 1)  # type: ignore[no-any-return]

    def _run(self, cpu: Cpu, insn: Instruction, entry: Entry) -> None:
        if entry.handler is not None:
            entry.handler(cpu, insn)
        elif entry.kind == "xss":
            self._supervisor(cpu, insn)
        else:
            self._computer(cpu.vcpu).run(cpu, insn, entry.kind)

    def _supervisor(self, cpu: Cpu, insn: Instruction) -> None:
        """XSAVES, XRSTORS: with IA32_XSS zero they are XSAVEC and a compacted XRSTOR."""
        if cpu.cpl:
            raise Fault(GP, 0)
        try:
            managed = cpu.vcpu.get_msrs([_IA32_XSS])[_IA32_XSS]
        except PykvmError:
            managed = 0
        if managed:
            raise Refused(f"IA32_XSS is {managed:#x}: supervisor state is out of its reach")
        opcode, reg = (b"\x0f\xc7", 4) if insn.reg & 7 == 5 else (b"\x0f\xae", 5)
        rex = insn.rex & 8 | 0x40
        code = bytes([rex]) + opcode + bytes([reg << 3 | 5])
        at = cpu.operand(insn, 1)
        if reg == 5:
            header = cpu.read(at + 512, 16)
            if not header[15] & 0x80:
                raise Fault(GP, 0)
        if cpu.sregs.cr0 & 8 == 0 and not cpu.sregs.cr4 & 1 << 18:
            raise Fault(UD)
        offset = WINDOW + (at & 0xFFF) - CODE - len(code) - 4
        alias = code + offset.to_bytes(4, "little", signed=True)
        self._computer(cpu.vcpu).run(cpu, insn, XSAVE, alias=alias)

    def _computer(self, vcpu: Vcpu) -> Computer:
        found = self._computers.get(vcpu.id)
        if found is None:
            found = Computer(Engine(self.machine.kvm, self.machine.vm))
            self._computers[vcpu.id] = found
        return found

    def _progress(self, cpu: Cpu, fault: Fault) -> bool:
        """Whether faults come at different places, or at least not without end."""
        place = hash((cpu.regs.rip, cpu.regs.rsp, fault.vector, fault.error))
        before, times = self._stuck.get(cpu.vcpu.id, (0, 0))
        times = times + 1 if before == place else 1
        self._stuck[cpu.vcpu.id] = (place, times)
        return times <= _NO_PROGRESS

    def summary(self) -> str:
        """The counts as text, most frequent first: "int3 12, xrstor 3"."""
        rows = sorted(self.counts.items(), key=lambda row: (-row[1], row[0]))
        return ", ".join(f"{name} {n}" for name, n in rows)

    def reset(self) -> None:
        """Forgets counts, as a reset of the machine does."""
        self._counts.clear()
        self.traps.reset()
        self._stuck.clear()

    def restored(self, armed: dict[int, dict[int, int]]) -> None:
        """The guest went back to a snapshot; `armed` is what `traps.state()` gave then."""
        self._walks.clear()
        self._stuck.clear()
        self.traps.restored(armed)

    def close(self) -> None:
        """Gives the engines back."""
        while self._computers:
            self._computers.popitem()[1].engine.close()


def finish(machine: Machine, vcpu: Vcpu, exit_: InternalErrorExit) -> str | None:
    """Completes the instruction of an exit. None: the guest goes on; else why it cannot, or ""."""
    assist = machine.assist
    if assist is None:
        assist = machine.assist = Assist(machine)
    if assist.complete(vcpu, exit_):
        return None
    return assist.why
