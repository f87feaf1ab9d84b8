"""Exits about the processor itself: halts, debug events, failures, windows (KVM API, 5)."""

from __future__ import annotations

from pykvm._native import ffi, lib
from pykvm.errors import explain
from pykvm.kvm import exit_names
from pykvm.kvm.exit_base import Exit, PlainExit, Where
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.exit_site import Site

_EMULATION: int = lib.KVM_INTERNAL_ERROR_EMULATION
_HAS_INSTRUCTION: int = lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
_RESET_RIP = 0xFFF0


class HltExit(PlainExit, kvm="KVM_EXIT_HLT"):
    """The guest executed HLT and no in-kernel interrupt controller waits for it. RIP is behind."""

    __slots__ = ()
    _text = "halted"

    def _locate(self, site: Site) -> Where:
        from pykvm.kvm.exit_locate import locate_opcode

        return locate_opcode(site, True, b"\xf4")


class DebugExit(Exit, kvm="KVM_EXIT_DEBUG"):
    """A #DB or #BP that guest debugging takes (`guest_debug`): a step, or a breakpoint."""

    __slots__ = ()
    _fields = ("exception", "pc", "dr6", "dr7")

    @property
    def exception(self) -> int:
        """The vector: 1 for #DB, 3 for #BP."""
        return int(self._run.debug.arch.exception)

    @property
    def pc(self) -> int:
        """The linear address of the next instruction (of the INT3 for #BP)."""
        return int(self._run.debug.arch.pc)

    @property
    def dr6(self) -> int:
        """DR6: which condition was met."""
        return int(self._run.debug.arch.dr6)

    @property
    def dr7(self) -> int:
        """DR7: which breakpoints are enabled."""
        return int(self._run.debug.arch.dr7)

    @property
    def single_step(self) -> bool:
        """Whether this is the end of a single step (DR6.BS)."""
        return self.exception == 1 and bool(self.dr6 >> 14 & 1)

    @property
    def breakpoints(self) -> list[int]:
        """The numbers of the debug registers whose condition was met (DR6.B0 to B3)."""
        return [n for n in range(4) if self.exception == 1 and self.dr6 >> n & 1]

    @property
    def causes(self) -> list[str]:
        """What happened, in words: "single step", "breakpoint 0 (DR0)"."""
        if self.exception == 3:
            return ["breakpoint instruction"]
        return exit_names.debug_causes(self.dr6)

    def _locate(self, site: Site) -> Where:
        pc = self.pc
        return Where(pc, True, site.code(pc), site.bits)

    def _what(self) -> str:
        causes = ", ".join(self.causes) or f"DR6 {self.dr6:#x}"
        return f"debug: {causes} ({exit_names.vector(self.exception)})"


class ShutdownExit(PlainExit, kvm="KVM_EXIT_SHUTDOWN"):
    """A triple fault: an exception while a double fault was delivered. The VM cannot go on.

    On SVM the CPU has been reset by then, so that registers and address say nothing.
    """

    __slots__ = ()
    _text = "shutdown (triple fault)"

    def _at(self) -> str:
        regs = self._regs()
        if regs.rip == _RESET_RIP and self._find() and not regs.rsp:
            return ", registers already reset by the host"
        return super()._at()


class FailEntryExit(Exit, kvm="KVM_EXIT_FAIL_ENTRY"):
    """The processor refused to enter the guest: its state or its control block is bad."""

    __slots__ = ("_hint",)
    _fields = ("hardware_entry_failure_reason", "cpu")

    @property
    def hardware_entry_failure_reason(self) -> int:
        """The hardware's number; `meaning` has it in words."""
        return int(self._run.fail_entry.hardware_entry_failure_reason)

    @property
    def cpu(self) -> int:
        """The host CPU it happened on."""
        return int(self._run.fail_entry.cpu)

    @property
    def meaning(self) -> str:
        """What the Intel or AMD manual says of that number."""
        return exit_names.hardware_entry_failure(self.hardware_entry_failure_reason)

    @property
    def hint(self) -> str:
        """Which field of the guest's state is invalid, "" where that cannot be said."""
        hint: str | None = getattr(self, "_hint", None)
        if hint is None:
            hint = "" if self._detached else explain("KVM_SET_SREGS", self.vcpu)
            self._hint = hint
        return hint

    def _detach(self) -> None:
        if not self._detached:
            _ = self.hint
            super()._detach()

    def _what(self) -> str:
        number = self.hardware_entry_failure_reason
        hint = f" ({self.hint})" if self.hint else ""
        return f"failed entry, hardware reason {number:#x}: {self.meaning}{hint}"


class InternalErrorExit(Exit, kvm="KVM_EXIT_INTERNAL_ERROR"):
    """KVM gave up. Mostly because its emulator does not know an instruction (`suberror` 1)."""

    __slots__ = ()
    _fields = ("suberror", "data")

    @property
    def suberror(self) -> int:
        """KVM_INTERNAL_ERROR_*; `meaning` has it in words."""
        return int(self._run.internal.suberror)

    @property
    def meaning(self) -> str:
        """What the suberror means."""
        return exit_names.INTERNAL_ERRORS.get(self.suberror, f"suberror {self.suberror}")

    @property
    def data(self) -> list[int]:
        """Up to 16 numbers for KVM's developers; what they are depends on the suberror."""
        internal = self._run.internal
        return list(internal.data[0 : min(internal.ndata, 16)])

    @property
    def instruction_bytes(self) -> bytes:
        """The refused instruction and what follows it, up to 15 bytes (suberror 1): as KVM fetched
        it, else as it lies at RIP now; empty if that cannot be read."""
        failure = self._run.emulation_failure
        if (
            failure.suberror == _EMULATION
            and failure.ndata >= 3
            and failure.flags & _HAS_INSTRUCTION
            and 0 < failure.insn_size <= 15
        ):
            return bytes(ffi.buffer(failure.insn_bytes, failure.insn_size))
        where = self._find()
        return where.code[:15] if where else b""

    def _locate(self, site: Site) -> Where:
        failure = self._run.emulation_failure
        known = failure.suberror == _EMULATION and failure.ndata >= 3
        code = site.after
        if known and failure.flags & _HAS_INSTRUCTION and 0 < failure.insn_size <= 15:
            code = bytes(ffi.buffer(failure.insn_bytes, failure.insn_size))
        return Where(site.address, True, code, site.bits)

    def _what(self) -> str:
        if self.suberror == _EMULATION:
            return "KVM internal error: it cannot emulate the instruction"
        data = " ".join(f"{number:#x}" for number in self.data)
        return f"KVM internal error {self.suberror}: {self.meaning}, data {data or 'none'}"


class ExceptionExit(Exit, kvm="KVM_EXIT_EXCEPTION"):
    """An exception that KVM leaves to user space (no longer used on x86)."""

    __slots__ = ()
    _fields = ("exception", "error_code")

    @property
    def exception(self) -> int:
        """The vector."""
        return int(self._run.ex.exception)

    @property
    def error_code(self) -> int:
        """The error code."""
        return int(self._run.ex.error_code)

    def _what(self) -> str:
        return f"exception {exit_names.vector(self.exception)}, error code {self.error_code:#x}"


class IrqWindowOpenExit(PlainExit, kvm="KVM_EXIT_IRQ_WINDOW_OPEN"):
    """The guest can take an interrupt now, as `request_interrupt_window` asked."""

    __slots__ = ()
    _text = "ready for an interrupt"


class IntrExit(PlainExit, kvm="KVM_EXIT_INTR"):
    """The vCPU was interrupted from outside: by `kick()`, or by a signal."""

    __slots__ = ()
    _text = "interrupted from outside"


class NmiExit(PlainExit, kvm="KVM_EXIT_NMI"):
    """An NMI arrived while the guest ran."""

    __slots__ = ()
    _text = "NMI on the host"


class SetTprExit(PlainExit, kvm="KVM_EXIT_SET_TPR"):
    """The guest lowered CR8 (its task priority) and the interrupt controller is in user space."""

    __slots__ = ()
    _fields = ("cr8",)

    @property
    def cr8(self) -> int:
        """The new task priority, 0 to 15."""
        return int(self._run.cr8)

    def _what(self) -> str:
        return f"task priority set to {self.cr8}"


class TprAccessExit(Exit, kvm="KVM_EXIT_TPR_ACCESS"):
    """The guest accessed its task priority register, and KVM_TPR_ACCESS_REPORTING is on."""

    __slots__ = ()
    _fields = ("rip", "is_write")

    @property
    def rip(self) -> int:
        """RIP at the access."""
        return int(self._run.tpr_access.rip)

    @property
    def is_write(self) -> bool:
        """Whether it was written."""
        return bool(self._run.tpr_access.is_write)

    def _what(self) -> str:
        return f"task priority register {'written' if self.is_write else 'read'}"


class BusLockExit(PlainExit, kvm="KVM_EXIT_X86_BUS_LOCK"):
    """The guest locked the bus (a split or uncached LOCK), and that is asked to exit."""

    __slots__ = ()
    _text = "bus lock"


class NotifyExit(Exit, kvm="KVM_EXIT_NOTIFY"):
    """No event window opened in the guest for too long (notify VM exit)."""

    __slots__ = ()
    _fields = ("context_invalid",)

    @property
    def context_invalid(self) -> bool:
        """Whether the guest's state is lost: it cannot be resumed."""
        return bool(self._run.notify.flags & lib.KVM_NOTIFY_CONTEXT_INVALID)

    def _what(self) -> str:
        state = ", and its state is lost" if self.context_invalid else ""
        return f"the guest blocked interrupts and events for too long{state}"


class WatchdogExit(PlainExit, kvm="KVM_EXIT_WATCHDOG"):
    """A watchdog of the (PowerPC) vCPU ran out."""

    __slots__ = ()
    _text = "watchdog ran out"


class ApResetHoldExit(PlainExit, kvm="KVM_EXIT_AP_RESET_HOLD"):
    """An SEV-ES guest's second CPU waits for its start-up."""

    __slots__ = ()
    _text = "waits for INIT-SIPI (SEV-ES AP reset hold)"
