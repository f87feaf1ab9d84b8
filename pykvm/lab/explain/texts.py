"""What is true of every exit of a kind: data, one entry for each reason.

Sources: Documentation/virt/kvm/api.rst ("KVM API"); Intel SDM vol. 3C and its appendix C;
AMD APM vol. 2, chapter 15 and appendix C; arch/x86/kvm of Linux for what KVM does.
Sections are cited by heading where editions number them differently.
"""

from __future__ import annotations

from pykvm.typed import NamedTuple


class Text(NamedTuple):
    """The paragraphs of one kind of exit. `{name}` is filled in from the exit's own fields."""

    title: str
    why: str
    kernel: str
    user: str
    next: str
    references: tuple[str, ...]


_API = "KVM API, section 5 (struct kvm_run), "
_SDM = "Intel SDM vol. 3C, "
_APM = "AMD APM vol. 2, "

TEXTS: dict[str, Text] = {
    "KVM_EXIT_HLT": Text(
        "HLT: the guest has nothing to do",
        "HLT stops a processor until an interrupt comes. A guest must not stop the host's "
        "processor, so KVM intercepts HLT (Intel: HLT exiting; AMD: INTERCEPT_HLT).",
        "KVM moved RIP behind the HLT. With an interrupt controller in the kernel it would have "
        "put the vCPU to sleep by itself and user space would have seen nothing; without one KVM "
        "does not know what could wake the vCPU, so it returned to user space.",
        'pykvm\'s machine takes a HLT that nothing can end as the end of the run: "halted". '
        "A monitor with its own interrupt controller would wait for an interrupt, inject it and "
        "run the vCPU again.",
        "{halt_next}",
        (
            _API + "KVM_EXIT_HLT",
            _SDM + '"VMX Non-Root Operation"; appendix C, reason 12 (HLT)',
            _APM + "15.9 and appendix C, VMEXIT_HLT (78h)",
        ),
    ),
    "KVM_EXIT_DEBUG": Text(
        "Guest debugging stopped the guest: {causes}",
        "User space asked for it with KVM_SET_GUEST_DEBUG: single-step (RFLAGS.TF), hardware "
        "breakpoints (DR0 to DR3 and DR7), or breakpoint instructions (INT3). KVM then intercepts "
        "the exception {vector} instead of giving it to the guest. DR6 is {dr6:#x}, DR7 {dr7:#x}.",
        "KVM recognised that the exception belongs to the debugger and not to the guest: the "
        "guest's IDT is not used. It filled kvm_run->debug.arch (exception, pc, dr6, dr7).",
        "{debug_user}",
        "Nothing: a step and a breakpoint do not show in the guest's registers or memory. The "
        "next entry goes on at {pc:#x}.",
        (
            _API + "KVM_EXIT_DEBUG; KVM_SET_GUEST_DEBUG",
            'Intel SDM vol. 3B, "Debug, Branch Profile, TSC"',
            _APM + "13.1 (software debug)",
        ),
    ),
    "KVM_EXIT_EXCEPTION": Text(
        "Exception {vector}, error code {error_code:#x}, left to user space",
        "The processor intercepted an exception of the guest. Today's KVM on x86 handles all "
        "exceptions itself; this reason is a leftover of its first versions.",
        "KVM filled kvm_run->ex and returned.",
        "pykvm has no handler for it unless one is registered: the run ends as unhandled.",
        "Whatever user space decides: KVM_SET_VCPU_EVENTS can inject the exception again.",
        (_API + "KVM_EXIT_EXCEPTION", 'Intel SDM vol. 3A, "Interrupt and Exception Handling"'),
    ),
    "KVM_EXIT_IRQ_WINDOW_OPEN": Text(
        "The guest can take an interrupt now",
        "User space wanted to inject an interrupt while the guest could not take one (RFLAGS.IF "
        "was 0, or STI or MOV SS shadowed it), and asked with "
        "kvm_run->request_interrupt_window to be told when it can. The processor leaves the guest "
        "at the first instruction border where interrupts are open (Intel: interrupt-window "
        "exiting; AMD: VINTR intercept).",
        "KVM checked that no interrupt of its own is pending, switched the window off again and "
        "returned with KVM_EXIT_IRQ_WINDOW_OPEN.",
        "The interrupt controller in user space takes its highest pending interrupt and gives "
        "the vector to KVM (KVM_INTERRUPT).",
        "At the next entry the interrupt is delivered through the guest's IDT (or IVT), before "
        "the next instruction.",
        (
            _API + "request_interrupt_window, KVM_EXIT_IRQ_WINDOW_OPEN",
            _SDM + "appendix C, reason 7 (interrupt window)",
            _APM + "15.21.4, VMEXIT_VINTR (64h)",
        ),
    ),
    "KVM_EXIT_SHUTDOWN": Text(
        "Triple fault: the processor shut down",
        "An exception could not be delivered, the double fault (#DF) for it could not be "
        "delivered either, and then the processor gives up: shutdown. A real PC resets itself. "
        "KVM intercepts it (Intel: basic exit reason 2; AMD: SHUTDOWN intercept).",
        "KVM returned with KVM_EXIT_SHUTDOWN. On AMD hosts it resets the vCPU first, because the "
        "contents of the VMCB are undefined after a shutdown: there the registers say nothing.",
        "pykvm ends the run as crashed, with a report, unless the machine was told to take a "
        "triple fault as a reset.",
        "Nothing: it cannot go on. After a reset it starts at the reset vector or its entry point.",
        (
            _API + "KVM_EXIT_SHUTDOWN",
            'Intel SDM vol. 3A, "Interrupt and Exception Handling", interrupt 8 (#DF)',
            _APM + "8.2.9 (#DF) and 15.14.3 (shutdown)",
        ),
    ),
    "KVM_EXIT_INTR": Text(
        "Interrupted from outside",
        "The guest did nothing: somebody kicked the vCPU's thread, by a signal or by "
        "kvm_run->immediate_exit. The signal's interrupt takes the processor out of the guest "
        "(Intel: external-interrupt exiting; AMD: INTERCEPT_INTR).",
        "KVM saw the pending signal before the next entry, and KVM_RUN failed with EINTR.",
        "pykvm looks at what it was kicked for: a pause, a stop, a time-out, an interrupt "
        "to inject. Then it enters again.",
        "Nothing. It goes on at the same instruction.",
        (
            _API + "immediate_exit, KVM_EXIT_INTR; KVM_RUN (EINTR)",
            _SDM + "appendix C, reason 1 (external interrupt)",
        ),
    ),
    "KVM_EXIT_NMI": Text(
        "A non-maskable interrupt on the host",
        "An NMI of the host arrived while the guest ran; it is intercepted always.",
        "KVM gave the NMI to the host kernel. Today's KVM does not report this to user space.",
        "pykvm has nothing to do for it.",
        "Nothing. It goes on at the same instruction.",
        (_API + "KVM_EXIT_NMI", _SDM + "appendix C, reason 0 (exception or NMI)"),
    ),
    "KVM_EXIT_SET_TPR": Text(
        "The guest lowered its task priority to {cr8}",
        "MOV to CR8 changes which interrupts the processor takes. The local APIC is in user "
        "space here, so user space has to know (Intel: CR8-load exiting; AMD: CR8 write "
        "intercept).",
        "KVM set the new priority and returned, because a pending interrupt in user space may "
        "be let through now.",
        "The interrupt controller in user space looks again at what is pending.",
        "The next instruction; an interrupt that the old priority held back may come before it.",
        (
            _API + "KVM_EXIT_SET_TPR",
            'Intel SDM vol. 3A, "APIC", task and processor priorities',
            _APM + "15.9, CR8 intercepts",
        ),
    ),
    "KVM_EXIT_TPR_ACCESS": Text(
        "The task priority register was accessed",
        "KVM_TPR_ACCESS_REPORTING is switched on, so that accesses to the local APIC's TPR "
        "come to user space, which may patch the instruction (for old 32-bit guests).",
        "KVM filled kvm_run->tpr_access with RIP and direction.",
        "pykvm does not patch guests: without a handler the run ends as unhandled.",
        "The access has been done by the local APIC in the kernel.",
        (_API + "KVM_EXIT_TPR_ACCESS", 'Intel SDM vol. 3A, "APIC", task and processor priorities'),
    ),
    "KVM_EXIT_IOAPIC_EOI": Text(
        "End of a level-triggered interrupt, vector {vector_number:#x}",
        "The guest wrote the EOI register of its local APIC. The local APIC is in the kernel, "
        "the I/O APIC in user space (split irqchip), and this vector belongs to a "
        "level-triggered pin: the I/O APIC must be told that the interrupt is over.",
        "KVM's local APIC took the vector out of service, saw that the vector is among those "
        "that user space's routes name, and returned with the vector.",
        "pykvm's I/O APIC clears Remote IRR of the pins with that vector. If the line is still "
        "active it sends the interrupt again.",
        "The instruction behind the EOI write; and the same interrupt again if the device "
        "still asks for it.",
        (
            _API + "KVM_EXIT_IOAPIC_EOI; KVM_CAP_SPLIT_IRQCHIP",
            'Intel SDM vol. 3A, "APIC", signaling interrupt servicing completion',
        ),
    ),
    "KVM_EXIT_HYPERCALL": Text(
        "Hypercall {call}",
        "VMCALL (Intel) and VMMCALL (AMD) exist to leave the guest. The number is in RAX, the "
        "arguments in RBX, RCX, RDX and RSI.",
        "KVM answers most hypercalls itself. This one user space asked for with "
        "KVM_CAP_EXIT_HYPERCALL, so KVM filled kvm_run->hypercall and returned.",
        "pykvm's machine has no handler for it unless one is registered; whoever handles it "
        "sets the result.",
        "The result in RAX, and the instruction behind the call.",
        (
            _API + "KVM_EXIT_HYPERCALL; Documentation/virt/kvm/x86/hypercalls.rst",
            _SDM + "appendix C, reason 18 (VMCALL)",
            _APM + "appendix C, VMEXIT_VMMCALL (81h)",
        ),
    ),
    "KVM_EXIT_X86_RDMSR": Text(
        "RDMSR of {msr}: {cause_text}",
        "KVM's MSR bitmap lets only a few registers through to the processor; RDMSR of any other "
        "leaves the guest (Intel: basic exit reason 31; AMD: VMEXIT_MSR). It came to user "
        "space because of {cause_text}: {msr_switch}",
        "KVM looked the number in ECX up, did not answer it itself, and filled kvm_run->msr "
        "(index, reason).",
        "{msr_user}",
        "On success EDX:EAX have the answer and RIP is behind the RDMSR; with error set, a #GP(0) "
        "at it. Both happen when the vCPU is entered again.",
        (
            _API + "KVM_EXIT_X86_RDMSR; KVM_CAP_X86_USER_SPACE_MSR; 4.126 KVM_X86_SET_MSR_FILTER",
            'Intel SDM vol. 4 (MSRs); vol. 3C, "VMX Non-Root Operation"',
            _APM + "15.11 (MSR intercepts)",
        ),
    ),
    "KVM_EXIT_X86_WRMSR": Text(
        "WRMSR to {msr}: {cause_text}",
        "KVM's MSR bitmap lets only a few registers through to the processor; WRMSR to any other "
        "leaves the guest (Intel: basic exit reason 32; AMD: VMEXIT_MSR). It came to user "
        "space because of {cause_text}: {msr_switch}",
        "KVM looked the number in ECX up, did not take the value itself, and filled kvm_run->msr "
        "(index, reason, data {value:#x}).",
        "{msr_user}",
        "On success RIP is behind the WRMSR; with error set, a #GP(0) at it. Both happen when the "
        "vCPU is entered again.",
        (
            _API + "KVM_EXIT_X86_WRMSR; KVM_CAP_X86_USER_SPACE_MSR; 4.126 KVM_X86_SET_MSR_FILTER",
            'Intel SDM vol. 4 (MSRs); vol. 3C, "VMX Non-Root Operation"',
            _APM + "15.11 (MSR intercepts)",
        ),
    ),
    "KVM_EXIT_SYSTEM_EVENT": Text(
        "System event: {event}",
        "The guest, or an interface that KVM emulates for it (on x86: Hyper-V's reset and crash "
        "MSRs, SEV-ES termination, TDX fatal errors), asked for something of the whole machine.",
        "KVM filled kvm_run->system_event (type {type}, data) and returned.",
        "The machine decides: reset, power off, or report a crash.",
        "After a reset: its start. After a shutdown: nothing.",
        (_API + "KVM_EXIT_SYSTEM_EVENT",),
    ),
    "KVM_EXIT_MEMORY_FAULT": Text(
        "The host cannot give the memory at {gpa:#x}",
        "A memory slot covers the guest-physical address, but the page behind it cannot be had: "
        "the host's file was truncated, a page is poisoned (EHWPOISON), or the guest wanted "
        "{private} memory and the slot has it as the other kind (guest_memfd).",
        "KVM_RUN failed with EFAULT or EHWPOISON, and kvm_run->memory_fault has the range. RIP is "
        "still at the instruction.",
        "Without a handler the run ends; a monitor for private memory would convert the page "
        "(KVM_SET_MEMORY_ATTRIBUTES) and enter again.",
        "The same access again.",
        (_API + "KVM_EXIT_MEMORY_FAULT; KVM_SET_MEMORY_ATTRIBUTES",),
    ),
    "KVM_EXIT_DIRTY_RING_FULL": Text(
        "The dirty ring is full",
        "The guest wrote to pages; KVM notes each newly dirtied page in the vCPU's dirty ring, "
        "which user space has to empty (migration, snapshots).",
        "KVM stopped at the ring's soft limit rather than lose an entry.",
        "Whoever tracks dirty pages collects the entries and calls KVM_RESET_DIRTY_RINGS.",
        "Nothing. It goes on at the same instruction.",
        (_API + "KVM_EXIT_DIRTY_RING_FULL; KVM_CAP_DIRTY_LOG_RING",),
    ),
    "KVM_EXIT_X86_BUS_LOCK": Text(
        "A bus lock",
        "A LOCKed instruction crossed a cache line, or locked uncached memory: the whole bus "
        "stands still for it, which hurts other guests. KVM_CAP_X86_BUS_LOCK_EXIT makes it "
        "leave the guest (Intel: basic exit reason 74; AMD: bus-lock threshold).",
        "KVM returned with KVM_EXIT_X86_BUS_LOCK, after the access on Intel and before it on AMD.",
        "User space may slow the guest down. pykvm has no handler for it.",
        "Nothing unusual; the access is done.",
        (_API + "KVM_EXIT_X86_BUS_LOCK; KVM_CAP_X86_BUS_LOCK_EXIT",),
    ),
    "KVM_EXIT_NOTIFY": Text(
        "The guest blocked events for too long",
        "No event window opened within the notify window: for instance an endless loop of "
        "exceptions (#AC or #DB in delivery), which no interrupt can break "
        "(Intel: basic exit reason 75).",
        "KVM returned because KVM_X86_NOTIFY_VMEXIT_USER was asked for. Context invalid: "
        "{context_invalid}.",
        "User space decides whether such a guest may go on.",
        "It goes on at the same place, unless its context is lost.",
        (_API + "KVM_EXIT_NOTIFY; KVM_CAP_X86_NOTIFY_VMEXIT",),
    ),
    "KVM_EXIT_HYPERV": Text(
        "A Hyper-V interface was used",
        "The guest used one of Hyper-V's synthetic devices or hypercalls (SynIC, hypercall, "
        "debugger), which KVM offers when CPUID says so.",
        "KVM changed its own state and told user space, in kvm_run->hyperv, type {type}.",
        "pykvm does not offer Hyper-V devices: without a handler the run ends as unhandled.",
        "The result that user space set, for a hypercall.",
        (_API + "KVM_EXIT_HYPERV", "Hypervisor Top-Level Functional Specification"),
    ),
    "KVM_EXIT_XEN": Text(
        "Xen hypercall {input}",
        "The guest called its Xen hypercall page, which ends in VMCALL or VMMCALL, and "
        "KVM_XEN_HVM_CONFIG asks for these in user space.",
        "KVM filled kvm_run->xen with number and arguments.",
        "pykvm does not emulate Xen: without a handler the run ends as unhandled.",
        "The result in RAX.",
        (_API + "KVM_EXIT_XEN; KVM_XEN_HVM_CONFIG",),
    ),
    "KVM_EXIT_TDX": Text(
        "TDVMCALL {nr:#x} of a TDX guest",
        "A confidential guest asks the host for a service with TDG.VP.VMCALL; the TDX module "
        "shows KVM only the registers that the guest let through.",
        "KVM left this leaf to user space, in kvm_run->tdx.",
        "pykvm does not make TDX guests: without a handler the run ends as unhandled.",
        "The result that user space set.",
        (_API + "KVM_EXIT_TDX", "Intel TDX Guest-Hypervisor Communication Interface"),
    ),
    "KVM_EXIT_AP_RESET_HOLD": Text(
        "An SEV-ES processor waits to be started",
        "A secondary processor of an SEV-ES guest executed the AP Reset Hold call: instead of "
        "HLT, it waits for INIT and SIPI.",
        "KVM marked the vCPU as waiting and told user space.",
        "User space starts it by making it runnable (KVM_SET_MP_STATE). pykvm makes no SEV guests.",
        "It starts when another processor sends SIPI.",
        (_API + "KVM_EXIT_AP_RESET_HOLD", "AMD SEV-ES GHCB specification"),
    ),
    "KVM_EXIT_UNKNOWN": Text(
        "KVM does not know why the processor left the guest",
        "The processor gave an exit reason ({hardware_exit_reason:#x}) that this KVM has no "
        "handler for.",
        "KVM wrote the raw number into kvm_run->hw.hardware_exit_reason.",
        "The run ends as unhandled: nobody knows what to do for it.",
        "Nothing. It cannot go on safely.",
        (_API + "KVM_EXIT_UNKNOWN", _SDM + "appendix C", _APM + "appendix C"),
    ),
    "KVM_EXIT_WATCHDOG": Text(
        "A watchdog ran out",
        "A PowerPC (BookE) vCPU's watchdog timer expired. An x86 host never makes this exit.",
        "KVM returned to let user space reset the guest.",
        "pykvm serves x86 guests only: the run ends as unhandled.",
        "A reset, if user space makes one.",
        (_API + "KVM_EXIT_WATCHDOG",),
    ),
}

FOREIGN = Text(
    "An exit of another architecture: {name}",
    "This reason belongs to {architecture}. An x86 host never makes it; seeing it here means that "
    "kvm_run was overwritten, or that the kernel's headers changed.",
    "Nothing that is defined for x86.",
    "pykvm serves x86 guests only: the run ends as unhandled.",
    "Nothing that is defined for x86.",
    (_API + "{name}",),
)

ARCHITECTURES = {
    "KVM_EXIT_DCR": "PowerPC 4xx",
    "KVM_EXIT_OSI": "PowerPC",
    "KVM_EXIT_PAPR_HCALL": "PowerPC",
    "KVM_EXIT_EPR": "PowerPC",
    "KVM_EXIT_S390_SIEIC": "s390",
    "KVM_EXIT_S390_RESET": "s390",
    "KVM_EXIT_S390_UCONTROL": "s390",
    "KVM_EXIT_S390_TSCH": "s390",
    "KVM_EXIT_S390_STSI": "s390",
    "KVM_EXIT_ARM_NISV": "Arm",
    "KVM_EXIT_RISCV_SBI": "RISC-V",
    "KVM_EXIT_RISCV_CSR": "RISC-V",
    "KVM_EXIT_LOONGARCH_IOCSR": "LoongArch",
}

MSR_SWITCHES = {
    1: "KVM_MSR_EXIT_REASON_INVAL is switched on in KVM_CAP_X86_USER_SPACE_MSR, and KVM would have "
    "refused the access with #GP.",
    2: "KVM_MSR_EXIT_REASON_UNKNOWN is switched on in KVM_CAP_X86_USER_SPACE_MSR, and KVM does not "
    "implement this register.",
    4: "the filter of KVM_X86_SET_MSR_FILTER denies it, and KVM_MSR_EXIT_REASON_FILTER is "
    "switched on.",
}
