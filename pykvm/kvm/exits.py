"""Typed exits: one class for each reason that `KVM_RUN` returns with (KVM API, section 5).

`Vcpu.run()` returns one. `str(exit)` says in one line what the guest did, `repr` shows the fields:

    out 0x3f8 ← 'H' (1 byte) at 0x1004: out dx, al
    mmio read 0xd0000000 → 0x1234 (4 bytes) at 0x1010: mov eax, dword ptr [rbx]
"""

from __future__ import annotations

import errno

from pykvm.kvm.errors import KvmError
from pykvm.kvm.exit_base import Exit, ExitError, PlainExit, UnknownExit
from pykvm.kvm.exits_cpu import (
    ApResetHoldExit,
    BusLockExit,
    DebugExit,
    ExceptionExit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    IntrExit,
    IrqWindowOpenExit,
    NmiExit,
    NotifyExit,
    SetTprExit,
    ShutdownExit,
    TprAccessExit,
    WatchdogExit,
)
from pykvm.kvm.exits_guest import (
    DirtyRingFullExit,
    HypercallExit,
    HypervExit,
    IoapicEoiExit,
    MemoryFaultExit,
    RdmsrExit,
    SystemEventExit,
    TdxExit,
    WrmsrExit,
    XenExit,
)
from pykvm.kvm.exits_io import IoExit, MmioExit
from pykvm.kvm.exits_other import (
    ArmNisvExit,
    DcrExit,
    EprExit,
    LoongarchIocsrExit,
    OsiExit,
    PaprHcallExit,
    RiscvCsrExit,
    RiscvSbiExit,
    S390ResetExit,
    S390SieicExit,
    S390StsiExit,
    S390TschExit,
    S390UcontrolExit,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.vcpu import Vcpu

_classes = Exit.classes
_EHWPOISON = 133  # not in every errno module


def make_exit(vcpu: Vcpu, error: int = 0) -> Exit:
    """The exit that `vcpu._run` holds; `error` is the errno that KVM_RUN returned, 0 for none.

    A failed KVM_RUN fills in `exit_reason` only together with EFAULT or EHWPOISON, for
    KVM_EXIT_MEMORY_FAULT (and sets KVM_EXIT_INTR with EINTR); after other errors the reason is the
    one of an earlier exit. Raises `KvmError` for these.
    """
    if error:
        return _failed(vcpu, error)
    return _classes.get(vcpu._run.exit_reason, UnknownExit)(vcpu)


def _failed(vcpu: Vcpu, error: int) -> Exit:
    reason = vcpu._run.exit_reason
    if error in (errno.EFAULT, _EHWPOISON) and reason == MemoryFaultExit._number:
        return MemoryFaultExit(vcpu, error)
    if error == errno.EINTR and reason == IntrExit._number:
        return IntrExit(vcpu)
    hint = ""
    if error == errno.EFAULT:
        hint = "the guest touched memory that its slot promises but the host cannot give"
    raise KvmError("KVM_RUN", error, hint=hint)


__all__ = [
    "ApResetHoldExit",
    "ArmNisvExit",
    "BusLockExit",
    "DcrExit",
    "DebugExit",
    "DirtyRingFullExit",
    "EprExit",
    "ExceptionExit",
    "Exit",
    "ExitError",
    "FailEntryExit",
    "HltExit",
    "HypercallExit",
    "HypervExit",
    "InternalErrorExit",
    "IntrExit",
    "IoExit",
    "IoapicEoiExit",
    "IrqWindowOpenExit",
    "LoongarchIocsrExit",
    "MemoryFaultExit",
    "MmioExit",
    "NmiExit",
    "NotifyExit",
    "OsiExit",
    "PaprHcallExit",
    "PlainExit",
    "RdmsrExit",
    "RiscvCsrExit",
    "RiscvSbiExit",
    "S390ResetExit",
    "S390SieicExit",
    "S390StsiExit",
    "S390TschExit",
    "S390UcontrolExit",
    "SetTprExit",
    "ShutdownExit",
    "SystemEventExit",
    "TdxExit",
    "TprAccessExit",
    "UnknownExit",
    "WatchdogExit",
    "WrmsrExit",
    "XenExit",
    "make_exit",
]
