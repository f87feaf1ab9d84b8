"""Explaining ends: entries that failed, internal errors, triple faults."""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.kvm.exits import ExitError, FailEntryExit, InternalErrorExit
from pykvm.lab.explain.explanation import Explanation
from pykvm.lab.explain.host import SOFTWARE, SVM, VMX
from pykvm.lab.explain.texts import TEXTS
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine import Machine

_GATE_TYPES = (0x5, 0x6, 0x7, 0xE, 0xF)  # task, 16-bit and 32/64-bit gates: SDM vol. 3A, 6.11
_SHOWN = 6


def fail_entry(exit_: FailEntryExit, where: str, host: str, vcpu: Vcpu | None) -> Explanation:
    """KVM_EXIT_FAIL_ENTRY: which of the processor's checks refused the state."""
    number = exit_.hardware_entry_failure_reason
    why = (
        f"The guest did not run at all: the processor checks the whole state before it enters, and "
        f"refused it. Its number {number:#x} means: {exit_.meaning}."
    )
    found = _refused(vcpu, host)
    if found:
        why += "\nFields that the checks refuse:\n" + "\n".join(found)
    elif vcpu is not None:
        why += (
            "\nNone of the guest-state checks that pykvm knows refuses the present registers; if "
            "they have not changed since, look at the controls: CPUID, MSRs, or a flaw of the host."
        )
    return Explanation(
        f"Failed entry: {exit_.meaning}",
        where,
        why,
        f"KVM copied the hardware's number and the host CPU ({exit_.cpu}) to kvm_run->fail_entry.",
        "The machine ends the run as crashed; the registers can be looked at and corrected.",
        "Nothing: no instruction was executed. Correct the field, reset, and enter again.",
        (
            "KVM API, section 5 (struct kvm_run), KVM_EXIT_FAIL_ENTRY",
            'Intel SDM vol. 3C, "VM Entries", checks on the guest state area',
            "AMD APM vol. 2, 15.5.1 (canonicalization and consistency checks)",
        ),
    )


def _refused(vcpu: Vcpu | None, host: str) -> list[str]:
    if vcpu is None:
        return []
    from pykvm.arch.checker import check

    refusers = {VMX: ("kvm", "vmx"), SVM: ("kvm", "svm")}.get(host, ("kvm", "vmx", "svm"))
    try:
        return [str(problem) for problem in check(vcpu, refusers=refusers)[:_SHOWN]]
    except (PykvmError, ExitError):
        return []


_SUBERRORS = {
    1: (
        "KVM had to emulate an instruction (an access to a device, a guest without "
        "second-level tables for its mode, or a host without VMX and SVM) and its emulator does "
        "not have it, or its bytes could not be fetched.",
        "Look at the instruction and at RIP: an instruction that the emulator lacks (SSE or AVX on "
        "device memory, for instance) can be replaced by a plain MOV; bytes that make no sense "
        "mean that the guest has jumped into data.",
    ),
    2: (
        "Two exceptions at once, in a combination that KVM does not expect.",
        'Look at data[0], data[1]: the interruption information of both (SDM vol. 3C, "VM '
        'Exits", information for events).',
    ),
    3: (
        "The processor left the guest while it delivered an event (an interrupt or exception "
        "through the IDT), for a reason that cannot come from delivery. Mostly the guest's IDT, "
        "GDT, TSS or stack lies in device memory or in no memory at all.",
        "Look at data[0] (IDT-vectoring information: its low byte is the vector), data[1] (exit "
        "reason), data[2] (exit qualification) and, for EPT exits, data[3] (guest-physical "
        "address).",
    ),
    4: (
        "The processor left the guest for a reason that this KVM has no handler for.",
        "Look at data[0]: the hardware's exit reason (appendix C of SDM vol. 3C or APM vol. 2).",
    ),
}


def internal_error(exit_: InternalErrorExit, where: str, host: str, assisted: bool) -> Explanation:
    """KVM_EXIT_INTERNAL_ERROR: what KVM could not do, the bytes, and which field to look at."""
    why, look = _SUBERRORS.get(
        exit_.suberror,
        (
            f"KVM gave up with suberror {exit_.suberror}, which pykvm does not know.",
            "Look at data.",
        ),
    )
    title = f"KVM internal error {exit_.suberror}: {exit_.meaning}"
    if exit_.suberror == 1:
        raw = exit_.instruction_bytes
        if raw:
            why += f"\nThe bytes at RIP: {raw.hex(' ')}."
            if exit_.instruction:
                why += f" The first instruction is {exit_.instruction!r}."
        else:
            why += "\nThe bytes at RIP cannot be read: no memory, or no mapping, is there."
        if host == SOFTWARE:
            why += (
                "\nOn this host (kvm_pvm) KVM emulates all of ring 0, real mode and 32-bit code: "
                "any instruction that the emulator lacks ends like this, although a processor with "
                "VMX or SVM would just execute it."
            )
    data = " ".join(f"{number:#x}" for number in exit_.data)
    user = "The machine ends the run as crashed and reports the registers and the last exits."
    if assisted and exit_.suberror == 1:
        user = (
            "pykvm's assist tries to complete the instruction itself and goes on if it can; else "
            "the run ends as crashed, with the reason."
        )
    return Explanation(
        title,
        where,
        f"{why}\n{look}",
        f"KVM filled kvm_run->internal: suberror {exit_.suberror}, data: {data or 'none'}.",
        user,
        "Nothing, unless somebody completes the instruction: RIP is still on it.",
        (
            "KVM API, section 5 (struct kvm_run), KVM_EXIT_INTERNAL_ERROR; "
            "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
            "Linux, arch/x86/kvm/emulate.c",
        ),
    )


def shutdown(where: str, machine: Machine | None, vcpu: Vcpu | None) -> Explanation:
    """KVM_EXIT_SHUTDOWN: the chain of faults, as far as the state still shows it."""
    text = TEXTS["KVM_EXIT_SHUTDOWN"]
    why = text.why
    if machine is not None and vcpu is not None:
        try:
            why += "\n" + "\n".join(chain(machine, vcpu))
        except PykvmError as error:  # the machine was closed meanwhile
            why += f"\nWhat led there cannot be looked at any more: {error}."
    return Explanation(text.title, where, why, text.kernel, text.user, text.next, text.references)


def chain(machine: Machine, vcpu: Vcpu) -> list[str]:
    """What the registers and tables still say about why no exception could be delivered.

    At most a handful of sentences; bounded work whatever the guest's tables hold.
    """
    from pykvm.machine.report import RESET_RIP

    regs, sregs = vcpu.regs, vcpu.sregs
    if regs.rip == RESET_RIP and not regs.rsp:
        return [
            "This host has reset the vCPU already: the registers are those after INIT. Look at the "
            "registers of the last entry (vcpu.entry_regs), or single-step up to here."
        ]
    if not sregs.cr0 & 1:
        return _real_mode(machine, sregs)
    found = _tables(machine, vcpu)
    if sregs.cr0 >> 31 & 1 and sregs.cr2:
        found.append(
            f"CR2 is {sregs.cr2:#x}: the address of the last page fault, which may have been the "
            f"first or the last link of the chain."
        )
    return found or [
        "IDT, TSS and stack look sound for #GP, #PF and #DF: look at the handler's own code, and "
        "at the stack that it switches to."
    ]


def _real_mode(machine: Machine, sregs: Any) -> list[str]:
    if sregs.idt.limit < 0x23:
        return [
            f"In real mode IDTR.limit is {sregs.idt.limit:#x}: vectors up to 8 need at least 0x23 "
            "(4 bytes each), so the interrupt table cannot deliver a double fault. Look at LIDT."
        ]
    return ["In real mode: look at the interrupt table (IVT) and at SS:SP."]


def _tables(machine: Machine, vcpu: Vcpu) -> list[str]:
    from pykvm.machine.report import read_linear

    sregs = vcpu.sregs
    long_mode = bool(sregs.efer >> 10 & 1)
    size = 16 if long_mode else 8
    idt = sregs.idt
    found = []
    for vector, name in ((8, "#DF"), (13, "#GP"), (14, "#PF"), (6, "#UD")):
        if idt.limit < vector * size + size - 1:
            found.append(
                f"IDTR.limit is {idt.limit:#x}, too small for {name} (vector {vector} needs "
                f"{vector * size + size - 1:#x}): its delivery is a #GP. Look at LIDT."
            )
            break
        gate = read_linear(machine, vcpu, idt.base + vector * size, size)
        problem = _gate_problem(gate, size, name, idt.base + vector * size)
        if problem:
            found.append(problem)
    if not read_linear(machine, vcpu, (vcpu.regs.rsp + sregs.ss.base - 8) & (1 << 64) - 1, 8):
        found.append(
            f"The stack at RSP {vcpu.regs.rsp:#x} is not mapped or not memory: pushing the "
            "exception's frame fails, and so does that of the double fault, unless its gate "
            "switches stacks (IST, or a task gate). Look at RSP and at the TSS."
        )
    elif long_mode and not sregs.tr.selector and not sregs.tr.base:
        found.append(
            "TR is 0: there is no TSS, so a gate with an IST, or an exception from ring 3, finds "
            "no stack."
        )
    return found


def _gate_problem(raw: bytes, size: int, name: str, address: int) -> str:
    if len(raw) < size:
        return f"The IDT entry of {name} at {address:#x} cannot be read. Look at IDTR.base."
    kind, present = raw[5] & 0x1F, raw[5] >> 7
    selector = int.from_bytes(raw[2:4], "little")
    if not present:
        return f"The IDT entry of {name} at {address:#x} is not present: its delivery is a #NP."
    if kind not in _GATE_TYPES or (size == 16 and kind not in (0xE, 0xF)):
        return f"The IDT entry of {name} at {address:#x} has type {kind:#x}, which is no gate: #GP."
    if not selector & ~3 and kind != 0x5:
        return f"The IDT entry of {name} at {address:#x} has a null code selector: #GP."
    return ""
