"""`explain`: finds out what an exit was about and puts the words together."""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.kvm import exit_names
from pykvm.kvm.exits import (
    DebugExit,
    Exit,
    FailEntryExit,
    HypercallExit,
    InternalErrorExit,
    IoapicEoiExit,
    IoExit,
    MemoryFaultExit,
    MmioExit,
    RdmsrExit,
    ShutdownExit,
    UnknownExit,
    WrmsrExit,
)
from pykvm.lab.explain import failures
from pykvm.lab.explain.access import Access, explain_access
from pykvm.lab.explain.explanation import Explanation
from pykvm.lab.explain.host import SOFTWARE, SOFTWARE_NOTE, host_kind
from pykvm.lab.explain.texts import ARCHITECTURES, FOREIGN, MSR_SWITCHES, TEXTS, Text
from pykvm.lab.places import describe_place
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.lab.tracing import TracedExit
    from pykvm.machine import Machine

# Exits that an instruction of the guest causes: what is said of ring 0 under kvm_pvm holds there.
_BY_INSTRUCTION = (
    "KVM_EXIT_HLT", "KVM_EXIT_X86_RDMSR", "KVM_EXIT_X86_WRMSR", "KVM_EXIT_HYPERCALL",
    "KVM_EXIT_SET_TPR", "KVM_EXIT_IOAPIC_EOI", "KVM_EXIT_SHUTDOWN",
)  # fmt: skip


def explain(
    exit: Exit, machine: Machine | None = None, vcpu: Vcpu | None = None, *, host: str | None = None
) -> Explanation:
    """An exit in plain words.

    With the `machine` devices and registers are named, and failures looked into. `vcpu` is the
    exit's own unless given. `host` overrides what `host_kind()` says of this computer ("vmx",
    "svm", "software"). Never raises for what a guest did.
    """
    host = host_kind() if host is None else host
    vcpu = vcpu or exit.vcpu
    if isinstance(exit, (IoExit, MmioExit)):
        return explain_access(_access(exit, machine, host))
    where = _where(exit, machine)
    # After a crash the vCPU still stands where it was, although the exit was copied.
    crashed = machine is not None and str(machine.status) == "crashed"
    live = vcpu if crashed or not exit.detached else None
    if isinstance(exit, FailEntryExit):
        return failures.fail_entry(exit, where, host, live)
    if isinstance(exit, InternalErrorExit):
        assisted = machine is not None and machine.assist_mode != "off"
        return failures.internal_error(exit, where, host, assisted)
    if isinstance(exit, ShutdownExit):
        return failures.shutdown(where, machine, live)
    text = TEXTS.get(exit.name, FOREIGN)
    if isinstance(exit, UnknownExit) and exit.reason:
        text = _unknown(exit)
    values = _values(exit)
    why = text.why.format_map(values)
    if host == SOFTWARE and exit.name in _BY_INSTRUCTION:
        why += "\n" + SOFTWARE_NOTE
    return Explanation(
        text.title.format_map(values),
        where,
        why,
        text.kernel.format_map(values),
        text.user.format_map(values),
        text.next.format_map(values),
        tuple(reference.format_map(values) for reference in text.references),
    )


def explain_record(
    traced: TracedExit, machine: Machine, *, general: bool = False, host: str | None = None
) -> Explanation:
    """A traced exit in plain words; its vCPU must still stand there for what is no access.

    `general` leaves the value out, so that the text holds for all accesses of this instruction to
    this place.
    """
    from pykvm.kvm.exits import make_exit

    record = traced.record
    host = host_kind() if host is None else host
    if record.name in ("KVM_EXIT_IO", "KVM_EXIT_MMIO"):
        mmio = record.name == "KVM_EXIT_MMIO"
        return explain_access(
            Access(
                mmio,
                record.address,
                record.is_write,
                record.size,
                record.count,
                None if general else record.value,
                traced.place,
                _place(traced.address, traced.symbol, traced.instruction),
                record.native,
                mmio and _backed(machine, record.address),
                host,
            )
        )
    vcpu = machine.vcpus[record.vcpu]
    try:
        found = make_exit(vcpu, 0)
        if found.reason == record.reason:
            return explain(found, machine, vcpu, host=host)
    except PykvmError:
        pass  # the vCPU has gone on, or is closed
    return Explanation(
        traced.what, _place(traced.address, traced.symbol, traced.instruction),
        "The vCPU had gone on before this exit was looked at: no more is known of it.",
    )  # fmt: skip


def _access(exit_: IoExit | MmioExit, machine: Machine | None, host: str) -> Access:
    mmio = isinstance(exit_, MmioExit)
    address = exit_.gpa if isinstance(exit_, MmioExit) else exit_.port
    place = ""
    if machine is not None:
        place = describe_place(machine, "mmio" if mmio else "pio", address, exit_.is_write)
    known = exit_.is_write or exit_.detached or exit_._answered
    return Access(
        mmio,
        address,
        exit_.is_write,
        exit_.size,
        1 if isinstance(exit_, MmioExit) else exit_.count,
        exit_.value if known else None,
        place,
        _where(exit_, machine),
        False,
        mmio and _backed(machine, address),
        host,
    )


def _backed(machine: Machine | None, gpa: int) -> bool:
    if machine is None:
        return False
    return any(region.contains(gpa, 1) for region in machine.vm.regions if not region.closed)


def _where(exit_: Exit, machine: Machine | None) -> str:
    if exit_.name in ARCHITECTURES:
        return ""
    try:
        address = exit_.address
        symbol = None
        if machine is not None and machine.image is not None and address is not None:
            symbol = machine.image.symbol_at(address)
        return _place(address, symbol or "", exit_.instruction)
    except PykvmError:
        return ""


def _place(address: int | None, symbol: str, instruction: str) -> str:
    if address is None:
        return instruction
    where = f"{address:#x}" + (f" <{symbol}>" if symbol else "")
    return f"{where}: {instruction}" if instruction else where


def _values(exit_: Exit) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(exit_, name) for name in exit_._fields}
    values["name"] = exit_.name
    values["architecture"] = ARCHITECTURES.get(exit_.name, "another architecture")
    values["hardware_exit_reason"] = values.get("hardware_exit_reason", 0)
    if exit_.name == "KVM_EXIT_HLT":
        values["halt_next"] = _after_halt(exit_)
    if isinstance(exit_, IoapicEoiExit):
        values["vector_number"] = exit_.vector
    elif isinstance(exit_, HypercallExit):
        values["call"] = exit_.call
    elif isinstance(exit_, MemoryFaultExit):
        values["private"] = "private" if exit_.private else "shared"
    elif isinstance(exit_, (RdmsrExit, WrmsrExit)):
        values["msr"], values["cause_text"] = exit_.msr, exit_.cause_text
        values["msr_switch"] = MSR_SWITCHES.get(exit_.cause, "this cause is not known to pykvm.")
        values["msr_user"] = (
            "pykvm refused it (error is set)." if exit_.error else
            "pykvm's CPU model answers it by its policy (a value, zero, or a #GP); without a "
            "model, a registered handler does, or the run ends as unhandled."
        )  # fmt: skip
    elif exit_.name == "KVM_EXIT_SYSTEM_EVENT":
        values["event"] = getattr(exit_, "event", "")
    elif isinstance(exit_, DebugExit):
        values |= _debug(exit_)
    elif exit_.name == "KVM_EXIT_EXCEPTION":
        values["vector"] = exit_names.vector(values["exception"])
    return values


def _debug(exit_: DebugExit) -> dict[str, Any]:
    user = "The debugger takes over: it looks, changes what it likes, and lets the guest go on."
    if exit_.exception == 3:
        user += " A breakpoint of its own it steps over with the original byte."
    return {
        "causes": ", ".join(exit_.causes) or f"DR6 {exit_.dr6:#x}",
        "vector": exit_names.vector(exit_.exception),
        "debug_user": user,
    }


def _after_halt(exit_: Exit) -> str:
    regs = exit_._regs()
    if regs.rflags >> 9 & 1:
        return (
            "Interrupts are on (RFLAGS.IF is 1): an interrupt would be delivered first, and its "
            "IRET returns to the instruction behind the HLT."
        )
    return (
        "Interrupts are off (RFLAGS.IF is 0): only an NMI, an SMI or a reset could wake a real "
        "processor. This HLT is for good."
    )


def _unknown(exit_: UnknownExit) -> Text:
    base = TEXTS["KVM_EXIT_UNKNOWN"]
    return Text(
        f"Exit reason {exit_.reason}, which this pykvm does not know",
        "A newer kernel has reasons that this pykvm's tables do not have.",
        "KVM filled kvm_run; the exit's .raw has the bytes.",
        base.user,
        base.next,
        base.references[:1],
    )
