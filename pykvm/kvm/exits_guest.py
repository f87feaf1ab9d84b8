"""Exits by which the guest asks for something: hypercalls, MSRs, events, memory (KVM API, 5)."""

from __future__ import annotations

import errno

from pykvm._native import ffi, lib
from pykvm.kvm import exit_names
from pykvm.kvm.constants import exit_extra
from pykvm.kvm.exit_base import Exit, ExitError, PlainExit, Where
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.exit_site import Site
    from pykvm.kvm.vcpu import Vcpu


class HypercallExit(Exit, kvm="KVM_EXIT_HYPERCALL"):
    """A hypercall that KVM leaves to user space (KVM_CAP_EXIT_HYPERCALL)."""

    __slots__ = ()
    _fields = ("nr", "args", "ret", "long_mode")

    @property
    def nr(self) -> int:
        """The number (KVM_HC_*)."""
        return int(self._run.hypercall.nr)

    @property
    def call(self) -> str:
        """Its name, "hypercall <n>" if it has none."""
        return exit_names.HYPERCALLS.get(self.nr, f"hypercall {self.nr}")

    @property
    def args(self) -> list[int]:
        """The six arguments."""
        return list(self._run.hypercall.args)

    @property
    def ret(self) -> int:
        """The result for the guest's RAX; set it before the next `run()`."""
        return int(self._run.hypercall.ret)

    @ret.setter
    def ret(self, value: int) -> None:
        self._answerable("a hypercall's result")
        self._run.hypercall.ret = _u64(value)

    @property
    def long_mode(self) -> bool:
        """Whether the guest called from 64-bit code."""
        return bool(self._run.hypercall.longmode & lib.KVM_EXIT_HYPERCALL_LONG_MODE)

    def _locate(self, site: Site) -> Where:
        from pykvm.kvm.exit_locate import locate_opcode

        return locate_opcode(site, False, b"\x0f\x01\xc1", b"\x0f\x01\xd9")

    def _what(self) -> str:
        args = ", ".join(f"{value:#x}" for value in self.args)
        return f"{self.call}({args})"


class _MsrExit(Exit):
    __slots__ = ("_answered",)
    _fields = ("index", "value", "cause")

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(vcpu)
        self._answered = False

    @property
    def index(self) -> int:
        """The MSR's number (ECX)."""
        return int(self._run.msr.index)

    @property
    def msr(self) -> str:
        """Its name and number: "IA32_EFER (0xc0000080)"."""
        return exit_names.msr(self.index)

    @property
    def cause(self) -> int:
        """Why this came to user space: a KVM_MSR_EXIT_REASON_* bit."""
        return int(self._run.msr.reason)

    @property
    def cause_text(self) -> str:
        """The same in words: "denied by the MSR filter"."""
        return exit_names.MSR_EXIT_REASONS.get(self.cause, f"reason {self.cause:#x}")

    @property
    def error(self) -> bool:
        """Set to True to give the guest a #GP instead of completing the instruction."""
        return bool(self._run.msr.error)

    @error.setter
    def error(self, value: bool) -> None:
        self._answerable(f"the outcome for {self.msr}")
        self._run.msr.error = 1 if value else 0
        self._answered = True

    @property
    def value(self) -> int:
        """EDX:EAX, 64 bits."""
        return int(self._run.msr.data)

    def _locate(self, site: Site) -> Where:
        from pykvm.kvm.exit_locate import locate_opcode

        return locate_opcode(site, False, self._opcode)

    _opcode = b""


class RdmsrExit(_MsrExit, kvm="KVM_EXIT_X86_RDMSR"):
    """RDMSR of an MSR that KVM does not handle, or that the MSR filter denies. Set `value` or
    `error` before the next `run()`, which completes the instruction."""

    __slots__ = ()
    _opcode = b"\x0f\x32"

    @property
    def value(self) -> int:
        """What the guest is to read in EDX:EAX, 64 bits; settable."""
        return int(self._run.msr.data)

    @value.setter
    def value(self, value: int) -> None:
        self._answerable(f"a value for {self.msr}")
        self._run.msr.data = _u64(value)
        self._answered = True

    def _what(self) -> str:
        if self.error:
            answer = " → #GP"
        elif self._answered or self._detached:
            answer = f" → {self.value:#x}"
        else:
            answer = ""
        return f"rdmsr {self.msr}{answer} ({self.cause_text})"


class WrmsrExit(_MsrExit, kvm="KVM_EXIT_X86_WRMSR"):
    """WRMSR to an MSR that KVM does not handle, or that the MSR filter denies. `value` is what the
    guest writes; set `error` for a #GP before the next `run()`."""

    __slots__ = ()
    _opcode = b"\x0f\x30"

    def _what(self) -> str:
        refused = ", #GP" if self.error else ""
        return f"wrmsr {self.msr} ← {self.value:#x} ({self.cause_text}{refused})"


class SystemEventExit(Exit, kvm="KVM_EXIT_SYSTEM_EVENT"):
    """The guest asked for something of the whole machine: shutdown, reset, suspend, …"""

    __slots__ = ()
    _fields = ("type", "data")

    @property
    def type(self) -> int:
        """KVM_SYSTEM_EVENT_*."""
        return int(self._run.system_event.type)

    @property
    def event(self) -> str:
        """The type's name: "shutdown", "reset", "crash", "wakeup", "suspend", …"""
        return exit_names.SYSTEM_EVENTS.get(self.type, f"event {self.type}")

    @property
    def data(self) -> list[int]:
        """Up to 16 numbers that belong to the event."""
        event = self._run.system_event
        return list(event.data[0 : min(event.ndata, 16)])

    def _what(self) -> str:
        data = "".join(f" {number:#x}" for number in self.data)
        return f"system event: {self.event}{', data' + data if data else ''}"


class MemoryFaultExit(Exit, kvm="KVM_EXIT_MEMORY_FAULT"):
    """The guest touched memory that the host cannot give it. The access will be tried again.

    Comes with a failing KVM_RUN: `.errno` is EFAULT, or EHWPOISON for a broken page of the host.
    """

    __slots__ = ("errno",)
    _fields = ("gpa", "size", "fault_flags", "errno")

    def __init__(self, vcpu: Vcpu, error: int = errno.EFAULT) -> None:
        super().__init__(vcpu)
        self.errno = error

    @property
    def gpa(self) -> int:
        """The guest-physical address of the range."""
        return int(exit_extra(self._run).memory_fault.gpa)

    @property
    def size(self) -> int:
        """The length of the range in bytes."""
        return int(exit_extra(self._run).memory_fault.size)

    @property
    def fault_flags(self) -> int:
        """KVM_MEMORY_EXIT_FLAG_*."""
        return int(exit_extra(self._run).memory_fault.flags)

    @property
    def private(self) -> bool:
        """Whether the guest wanted the page as private memory (guest_memfd)."""
        return bool(self.fault_flags & lib.KVM_MEMORY_EXIT_FLAG_PRIVATE)

    def _what(self) -> str:
        name = errno.errorcode.get(self.errno, str(self.errno))
        kind = "private" if self.private else "shared"
        return (
            f"memory fault: no {kind} memory for {self.gpa:#x}..{self.gpa + self.size - 1:#x} "
            f"({name})"
        )


class DirtyRingFullExit(PlainExit, kvm="KVM_EXIT_DIRTY_RING_FULL"):
    """The dirty ring is full: collect it and reset it, then run again."""

    __slots__ = ()
    _text = "the dirty ring is full"


class IoapicEoiExit(Exit, kvm="KVM_EXIT_IOAPIC_EOI"):
    """The guest ended a level-triggered interrupt of an IOAPIC that is in user space."""

    __slots__ = ()
    _fields = ("vector",)

    @property
    def vector(self) -> int:
        """The interrupt's vector."""
        return int(self._run.eoi.vector)

    def _what(self) -> str:
        return f"end of interrupt, vector {self.vector:#x}"


class HypervExit(Exit, kvm="KVM_EXIT_HYPERV"):
    """A Hyper-V enlightenment that user space has to know of or to do."""

    __slots__ = ()
    _fields = ("type",)
    _types = {
        int(lib.KVM_EXIT_HYPERV_SYNIC): "synic",
        int(lib.KVM_EXIT_HYPERV_HCALL): "hcall",
        int(lib.KVM_EXIT_HYPERV_SYNDBG): "syndbg",
    }

    @property
    def type(self) -> int:
        """KVM_EXIT_HYPERV_SYNIC (1), _HCALL (2) or _SYNDBG (3)."""
        return int(self._run.hyperv.type)

    @property
    def details(self) -> dict[str, int | list[int]]:
        """The fields that this type has, by the kernel's names."""
        kind = self._types.get(self.type)
        return _members(getattr(self._run.hyperv.u, kind)) if kind else {}

    @property
    def result(self) -> int:
        """The hypercall's result (type HCALL); set it before the next `run()`."""
        return int(self._run.hyperv.u.hcall.result)

    @result.setter
    def result(self, value: int) -> None:
        self._answerable("a Hyper-V hypercall's result")
        if self._types.get(self.type) != "hcall":
            raise ExitError(f"a Hyper-V exit of type {self.type} has no result; only HCALL has")
        self._run.hyperv.u.hcall.result = _u64(value)

    def _what(self) -> str:
        kind = self._types.get(self.type, f"type {self.type}")
        return f"Hyper-V {kind}: {_listed(self.details)}"


class XenExit(Exit, kvm="KVM_EXIT_XEN"):
    """A Xen hypercall that KVM leaves to user space."""

    __slots__ = ()
    _fields = ("type", "input", "params")

    @property
    def type(self) -> int:
        """KVM_EXIT_XEN_HCALL (1)."""
        return int(self._run.xen.type)

    @property
    def input(self) -> int:
        """The hypercall's number."""
        return int(self._run.xen.u.hcall.input)

    @property
    def params(self) -> list[int]:
        """Its six parameters."""
        return list(self._run.xen.u.hcall.params)

    @property
    def long_mode(self) -> bool:
        """Whether the guest called from 64-bit code."""
        return bool(self._run.xen.u.hcall.longmode)

    @property
    def cpl(self) -> int:
        """The privilege level it called from."""
        return int(self._run.xen.u.hcall.cpl)

    @property
    def result(self) -> int:
        """The result for the guest; set it before the next `run()`."""
        return int(self._run.xen.u.hcall.result)

    @result.setter
    def result(self, value: int) -> None:
        self._answerable("a Xen hypercall's result")
        self._run.xen.u.hcall.result = _u64(value)

    def _what(self) -> str:
        params = ", ".join(f"{value:#x}" for value in self.params)
        return f"Xen hypercall {self.input}({params})"


class TdxExit(Exit, kvm="KVM_EXIT_TDX"):
    """A TDVMCALL of a TDX guest that KVM leaves to user space."""

    __slots__ = ()
    _fields = ("nr", "data", "ret")

    @property
    def nr(self) -> int:
        """The TDVMCALL leaf (GHCI, chapter 3)."""
        return int(exit_extra(self._run).tdx.nr)

    @property
    def data(self) -> list[int]:
        """Its parameters; which ones depends on `nr`."""
        return list(exit_extra(self._run).tdx.data)

    @property
    def ret(self) -> int:
        """The result code for the guest; set it before the next `run()`."""
        return int(exit_extra(self._run).tdx.ret)

    @ret.setter
    def ret(self, value: int) -> None:
        self._answerable("a TDVMCALL's result")
        exit_extra(self._run).tdx.ret = _u64(value)

    def _what(self) -> str:
        return f"TDVMCALL {self.nr:#x}"


def _u64(value: int) -> int:
    """A 64-bit number; negative ones (error codes) in two's complement."""
    if not -(1 << 63) <= value < 1 << 64:
        raise ExitError(f"the answer {value:#x} does not fit 64 bits; mask it")
    return value & 0xFFFFFFFFFFFFFFFF


def _members(struct: Any) -> dict[str, int | list[int]]:
    found: dict[str, int | list[int]] = {}
    for name, field in ffi.typeof(struct).fields:
        if not name.startswith("pad"):
            value = getattr(struct, name)
            found[name] = list(value) if field.type.kind == "array" else int(value)
    return found


def _listed(members: dict[str, int | list[int]]) -> str:
    def shown(value: int | list[int]) -> str:
        return f"{value:#x}" if isinstance(value, int) else "[" + ", ".join(map(hex, value)) + "]"

    return ", ".join(f"{name} {shown(value)}" for name, value in members.items())
