"""What KVM says it has (KVM_CHECK_EXTENSION), in plain words. What matters is tried elsewhere."""

from __future__ import annotations

from pykvm.kvm import Kvm
from pykvm.machine.doctor.result import Section

PLAIN_WORDS: dict[str, str] = {
    "KVM_CAP_USER_MEMORY": "guest memory in user space",
    "KVM_CAP_READONLY_MEM": "read-only guest memory",
    "KVM_CAP_GUEST_MEMFD": "private guest memory (guest_memfd)",
    "KVM_CAP_MEMORY_FAULT_INFO": "memory faults that name the address",
    "KVM_CAP_PRE_FAULT_MEMORY": "mapping guest memory ahead of time",
    "KVM_CAP_SYNC_MMU": "guest memory that can be swapped, merged and mapped anew",
    "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2": "dirty log cleared in parts",
    "KVM_CAP_DIRTY_LOG_RING": "dirty pages as a ring",
    "KVM_CAP_SYNC_REGS": "registers through shared memory",
    "KVM_CAP_IMMEDIATE_EXIT": "stop requests that cannot be missed",
    "KVM_CAP_SET_GUEST_DEBUG": "debugging a guest from outside",
    "KVM_CAP_IRQCHIP": "interrupt controllers in the kernel",
    "KVM_CAP_SPLIT_IRQCHIP": "only the local APIC in the kernel",
    "KVM_CAP_PIT2": "timer chip in the kernel",
    "KVM_CAP_SIGNAL_MSI": "message-signalled interrupts",
    "KVM_CAP_IRQFD": "interrupts from eventfds",
    "KVM_CAP_IRQFD_RESAMPLE": "level-triggered interrupts from eventfds",
    "KVM_CAP_IOEVENTFD": "eventfds from guest writes",
    "KVM_CAP_COALESCED_MMIO": "batched MMIO writes",
    "KVM_CAP_COALESCED_PIO": "batched port writes",
    "KVM_CAP_X86_USER_SPACE_MSR": "MSR accesses in user space",
    "KVM_CAP_X86_MSR_FILTER": "choosing which MSRs",
    "KVM_CAP_EXIT_HYPERCALL": "hypercalls in user space",
    "KVM_CAP_EXIT_ON_EMULATION_FAILURE": "refused instructions come with their bytes",
    "KVM_CAP_X86_DISABLE_EXITS": "HLT, PAUSE and MWAIT without exits",
    "KVM_CAP_X86_BUS_LOCK_EXIT": "exits at split locks",
    "KVM_CAP_X86_NOTIFY_VMEXIT": "exits from guests that never open an interrupt window",
    "KVM_CAP_X86_TRIPLE_FAULT_EVENT": "triple faults as part of the saved state",
    "KVM_CAP_XSAVE2": "large vector state (AMX)",
    "KVM_CAP_SREGS2": "PAE page pointers in the saved state",
    "KVM_CAP_NESTED_STATE": "saving guests that run guests",
    "KVM_CAP_TSC_CONTROL": "a guest TSC of another frequency",
    "KVM_CAP_TSC_DEADLINE_TIMER": "TSC deadline timer",
    "KVM_CAP_X86_SMM": "system management mode",
    "KVM_CAP_BINARY_STATS_FD": "statistics of VMs and vCPUs",
    "KVM_CAP_HYPERV": "Hyper-V enlightenments",
    "KVM_CAP_XEN_HVM": "Xen guests",
    "KVM_CAP_PMU_EVENT_FILTER": "filtering performance events",
    "KVM_CAP_SGX_ATTRIBUTE": "SGX enclaves",
}  # fmt: skip

_COUNTS = {
    "KVM_CAP_NR_VCPUS": "vCPUs recommended",
    "KVM_CAP_MAX_VCPUS": "vCPUs at most",
    "KVM_CAP_NR_MEMSLOTS": "memory slots",
}


def examine(kvm: Kvm, section: Section) -> None:
    """The capabilities that pykvm and its users can use, there and missing; and the limits."""
    known = kvm.capabilities()
    there = {name: known.get(name, 0) for name in PLAIN_WORDS if known.get(name)}
    missing = [name for name in PLAIN_WORDS if not known.get(name)]
    section.add(
        "capabilities", "there", True, "; ".join(PLAIN_WORDS[name] for name in there), value=there
    )
    if missing:
        section.add(
            "capabilities_missing", "missing", False,
            "; ".join(PLAIN_WORDS[name] for name in missing), value=missing,
        )  # fmt: skip
    limits = {name: known.get(name, 0) for name in _COUNTS}
    section.add(
        "limits", "limits", None,
        ", ".join(f"{limits[name]} {words}" for name, words in _COUNTS.items()), value=limits,
    )  # fmt: skip
    total = sum(1 for value in known.values() if value)
    section.add(
        "all_capabilities", "in all", None,
        f"{total} of the {len(known)} KVM_CAP_* of the kernel's headers (all kinds of CPU)",
        value={name: value for name, value in known.items() if value},
    )  # fmt: skip
