"""The kernel's constants by their own names, and its tables of capabilities and exit reasons.

The values come from the compiler (`native/cdef/10_kvm.h`), none is written down here. What each one
means is said in the KVM API document and where pykvm uses it.
"""

from __future__ import annotations

from functools import cache

from pykvm._native import ffi, lib
from pykvm.typed import Any, Final

KVM_API_VERSION: Final[int] = lib.KVM_API_VERSION
KVM_PIO_PAGE_OFFSET: Final[int] = lib.KVM_PIO_PAGE_OFFSET
KVM_COALESCED_MMIO_PAGE_OFFSET: Final[int] = lib.KVM_COALESCED_MMIO_PAGE_OFFSET
KVM_DIRTY_LOG_PAGE_OFFSET: Final[int] = lib.KVM_DIRTY_LOG_PAGE_OFFSET
KVM_MSR_FILTER_MAX_RANGES: Final[int] = lib.KVM_MSR_FILTER_MAX_RANGES
KVM_MSR_FILTER_MAX_BITMAP_SIZE: Final[int] = lib.KVM_MSR_FILTER_MAX_BITMAP_SIZE
KVM_IOAPIC_NUM_PINS: Final[int] = lib.KVM_IOAPIC_NUM_PINS

KVM_EXIT_IO_IN: Final[int] = lib.KVM_EXIT_IO_IN
KVM_EXIT_IO_OUT: Final[int] = lib.KVM_EXIT_IO_OUT
KVM_EXIT_HYPERV_SYNIC: Final[int] = lib.KVM_EXIT_HYPERV_SYNIC
KVM_EXIT_HYPERV_HCALL: Final[int] = lib.KVM_EXIT_HYPERV_HCALL
KVM_EXIT_HYPERV_SYNDBG: Final[int] = lib.KVM_EXIT_HYPERV_SYNDBG
KVM_EXIT_XEN_HCALL: Final[int] = lib.KVM_EXIT_XEN_HCALL
KVM_EXIT_HYPERCALL_LONG_MODE: Final[int] = lib.KVM_EXIT_HYPERCALL_LONG_MODE
KVM_INTERNAL_ERROR_EMULATION: Final[int] = lib.KVM_INTERNAL_ERROR_EMULATION
KVM_INTERNAL_ERROR_SIMUL_EX: Final[int] = lib.KVM_INTERNAL_ERROR_SIMUL_EX
KVM_INTERNAL_ERROR_DELIVERY_EV: Final[int] = lib.KVM_INTERNAL_ERROR_DELIVERY_EV
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: Final[int] = (
    lib.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
)
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: Final[int] = (
    lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
)
KVM_SYSTEM_EVENT_SHUTDOWN: Final[int] = lib.KVM_SYSTEM_EVENT_SHUTDOWN
KVM_SYSTEM_EVENT_RESET: Final[int] = lib.KVM_SYSTEM_EVENT_RESET
KVM_SYSTEM_EVENT_CRASH: Final[int] = lib.KVM_SYSTEM_EVENT_CRASH
KVM_SYSTEM_EVENT_WAKEUP: Final[int] = lib.KVM_SYSTEM_EVENT_WAKEUP
KVM_SYSTEM_EVENT_SUSPEND: Final[int] = lib.KVM_SYSTEM_EVENT_SUSPEND
KVM_SYSTEM_EVENT_SEV_TERM: Final[int] = lib.KVM_SYSTEM_EVENT_SEV_TERM
KVM_SYSTEM_EVENT_TDX_FATAL: Final[int] = lib.KVM_SYSTEM_EVENT_TDX_FATAL
KVM_MSR_EXIT_REASON_INVAL: Final[int] = lib.KVM_MSR_EXIT_REASON_INVAL
KVM_MSR_EXIT_REASON_UNKNOWN: Final[int] = lib.KVM_MSR_EXIT_REASON_UNKNOWN
KVM_MSR_EXIT_REASON_FILTER: Final[int] = lib.KVM_MSR_EXIT_REASON_FILTER
KVM_NOTIFY_CONTEXT_INVALID: Final[int] = lib.KVM_NOTIFY_CONTEXT_INVALID
KVM_MEMORY_EXIT_FLAG_PRIVATE: Final[int] = lib.KVM_MEMORY_EXIT_FLAG_PRIVATE
KVM_RUN_X86_SMM: Final[int] = lib.KVM_RUN_X86_SMM
KVM_RUN_X86_BUS_LOCK: Final[int] = lib.KVM_RUN_X86_BUS_LOCK
KVM_RUN_X86_GUEST_MODE: Final[int] = lib.KVM_RUN_X86_GUEST_MODE
KVM_SYNC_X86_REGS: Final[int] = lib.KVM_SYNC_X86_REGS
KVM_SYNC_X86_SREGS: Final[int] = lib.KVM_SYNC_X86_SREGS
KVM_SYNC_X86_EVENTS: Final[int] = lib.KVM_SYNC_X86_EVENTS
KVM_SYNC_X86_VALID_FIELDS: Final[int] = lib.KVM_SYNC_X86_VALID_FIELDS

KVM_MEM_LOG_DIRTY_PAGES: Final[int] = lib.KVM_MEM_LOG_DIRTY_PAGES
KVM_MEM_READONLY: Final[int] = lib.KVM_MEM_READONLY
KVM_MEM_GUEST_MEMFD: Final[int] = lib.KVM_MEM_GUEST_MEMFD
KVM_MEMORY_ATTRIBUTE_PRIVATE: Final[int] = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE
GUEST_MEMFD_FLAG_MMAP: Final[int] = lib.GUEST_MEMFD_FLAG_MMAP
GUEST_MEMFD_FLAG_INIT_SHARED: Final[int] = lib.GUEST_MEMFD_FLAG_INIT_SHARED
KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: Final[int] = lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
KVM_DIRTY_LOG_INITIALLY_SET: Final[int] = lib.KVM_DIRTY_LOG_INITIALLY_SET
KVM_DIRTY_GFN_F_DIRTY: Final[int] = lib.KVM_DIRTY_GFN_F_DIRTY
KVM_DIRTY_GFN_F_RESET: Final[int] = lib.KVM_DIRTY_GFN_F_RESET

KVM_IRQCHIP_PIC_MASTER: Final[int] = lib.KVM_IRQCHIP_PIC_MASTER
KVM_IRQCHIP_PIC_SLAVE: Final[int] = lib.KVM_IRQCHIP_PIC_SLAVE
KVM_IRQCHIP_IOAPIC: Final[int] = lib.KVM_IRQCHIP_IOAPIC
KVM_PIT_SPEAKER_DUMMY: Final[int] = lib.KVM_PIT_SPEAKER_DUMMY
KVM_PIT_FLAGS_HPET_LEGACY: Final[int] = lib.KVM_PIT_FLAGS_HPET_LEGACY
KVM_PIT_FLAGS_SPEAKER_DATA_ON: Final[int] = lib.KVM_PIT_FLAGS_SPEAKER_DATA_ON
KVM_IRQ_ROUTING_IRQCHIP: Final[int] = lib.KVM_IRQ_ROUTING_IRQCHIP
KVM_IRQ_ROUTING_MSI: Final[int] = lib.KVM_IRQ_ROUTING_MSI
KVM_IRQ_ROUTING_HV_SINT: Final[int] = lib.KVM_IRQ_ROUTING_HV_SINT
KVM_IRQ_ROUTING_XEN_EVTCHN: Final[int] = lib.KVM_IRQ_ROUTING_XEN_EVTCHN
KVM_MSI_VALID_DEVID: Final[int] = lib.KVM_MSI_VALID_DEVID
KVM_IRQFD_FLAG_DEASSIGN: Final[int] = lib.KVM_IRQFD_FLAG_DEASSIGN
KVM_IRQFD_FLAG_RESAMPLE: Final[int] = lib.KVM_IRQFD_FLAG_RESAMPLE
KVM_IOEVENTFD_FLAG_DATAMATCH: Final[int] = lib.KVM_IOEVENTFD_FLAG_DATAMATCH
KVM_IOEVENTFD_FLAG_PIO: Final[int] = lib.KVM_IOEVENTFD_FLAG_PIO
KVM_IOEVENTFD_FLAG_DEASSIGN: Final[int] = lib.KVM_IOEVENTFD_FLAG_DEASSIGN
KVM_CLOCK_TSC_STABLE: Final[int] = lib.KVM_CLOCK_TSC_STABLE
KVM_CLOCK_REALTIME: Final[int] = lib.KVM_CLOCK_REALTIME
KVM_CLOCK_HOST_TSC: Final[int] = lib.KVM_CLOCK_HOST_TSC

KVM_MSR_FILTER_READ: Final[int] = lib.KVM_MSR_FILTER_READ
KVM_MSR_FILTER_WRITE: Final[int] = lib.KVM_MSR_FILTER_WRITE
KVM_MSR_FILTER_DEFAULT_ALLOW: Final[int] = lib.KVM_MSR_FILTER_DEFAULT_ALLOW
KVM_MSR_FILTER_DEFAULT_DENY: Final[int] = lib.KVM_MSR_FILTER_DEFAULT_DENY
KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final[int] = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
KVM_CPUID_FLAG_STATEFUL_FUNC: Final[int] = lib.KVM_CPUID_FLAG_STATEFUL_FUNC
KVM_CPUID_FLAG_STATE_READ_NEXT: Final[int] = lib.KVM_CPUID_FLAG_STATE_READ_NEXT
KVM_GUESTDBG_ENABLE: Final[int] = lib.KVM_GUESTDBG_ENABLE
KVM_GUESTDBG_SINGLESTEP: Final[int] = lib.KVM_GUESTDBG_SINGLESTEP
KVM_GUESTDBG_USE_SW_BP: Final[int] = lib.KVM_GUESTDBG_USE_SW_BP
KVM_GUESTDBG_USE_HW_BP: Final[int] = lib.KVM_GUESTDBG_USE_HW_BP
KVM_GUESTDBG_INJECT_DB: Final[int] = lib.KVM_GUESTDBG_INJECT_DB
KVM_GUESTDBG_INJECT_BP: Final[int] = lib.KVM_GUESTDBG_INJECT_BP
KVM_GUESTDBG_BLOCKIRQ: Final[int] = lib.KVM_GUESTDBG_BLOCKIRQ
KVM_VCPUEVENT_VALID_NMI_PENDING: Final[int] = lib.KVM_VCPUEVENT_VALID_NMI_PENDING
KVM_VCPUEVENT_VALID_SIPI_VECTOR: Final[int] = lib.KVM_VCPUEVENT_VALID_SIPI_VECTOR
KVM_VCPUEVENT_VALID_SHADOW: Final[int] = lib.KVM_VCPUEVENT_VALID_SHADOW
KVM_VCPUEVENT_VALID_SMM: Final[int] = lib.KVM_VCPUEVENT_VALID_SMM
KVM_VCPUEVENT_VALID_PAYLOAD: Final[int] = lib.KVM_VCPUEVENT_VALID_PAYLOAD
KVM_VCPUEVENT_VALID_TRIPLE_FAULT: Final[int] = lib.KVM_VCPUEVENT_VALID_TRIPLE_FAULT
KVM_X86_SHADOW_INT_MOV_SS: Final[int] = lib.KVM_X86_SHADOW_INT_MOV_SS
KVM_X86_SHADOW_INT_STI: Final[int] = lib.KVM_X86_SHADOW_INT_STI
KVM_MP_STATE_RUNNABLE: Final[int] = lib.KVM_MP_STATE_RUNNABLE
KVM_MP_STATE_UNINITIALIZED: Final[int] = lib.KVM_MP_STATE_UNINITIALIZED
KVM_MP_STATE_INIT_RECEIVED: Final[int] = lib.KVM_MP_STATE_INIT_RECEIVED
KVM_MP_STATE_HALTED: Final[int] = lib.KVM_MP_STATE_HALTED
KVM_MP_STATE_SIPI_RECEIVED: Final[int] = lib.KVM_MP_STATE_SIPI_RECEIVED
KVM_SREGS2_FLAGS_PDPTRS_VALID: Final[int] = lib.KVM_SREGS2_FLAGS_PDPTRS_VALID
KVM_STATE_NESTED_FORMAT_VMX: Final[int] = lib.KVM_STATE_NESTED_FORMAT_VMX
KVM_STATE_NESTED_FORMAT_SVM: Final[int] = lib.KVM_STATE_NESTED_FORMAT_SVM
KVM_VCPU_TSC_CTRL: Final[int] = lib.KVM_VCPU_TSC_CTRL
KVM_VCPU_TSC_OFFSET: Final[int] = lib.KVM_VCPU_TSC_OFFSET
KVM_X86_XCOMP_GUEST_SUPP: Final[int] = lib.KVM_X86_XCOMP_GUEST_SUPP
KVM_REG_X86: Final[int] = lib.KVM_REG_X86
KVM_REG_SIZE_U64: Final[int] = lib.KVM_REG_SIZE_U64
KVM_X86_REG_TYPE_MSR: Final[int] = lib.KVM_X86_REG_TYPE_MSR
KVM_X86_REG_TYPE_KVM: Final[int] = lib.KVM_X86_REG_TYPE_KVM
KVM_REG_GUEST_SSP: Final[int] = lib.KVM_REG_GUEST_SSP

KVM_X86_DEFAULT_VM: Final[int] = lib.KVM_X86_DEFAULT_VM
KVM_X86_SW_PROTECTED_VM: Final[int] = lib.KVM_X86_SW_PROTECTED_VM
KVM_X86_SEV_VM: Final[int] = lib.KVM_X86_SEV_VM
KVM_X86_SEV_ES_VM: Final[int] = lib.KVM_X86_SEV_ES_VM
KVM_X86_SNP_VM: Final[int] = lib.KVM_X86_SNP_VM
KVM_X86_TDX_VM: Final[int] = lib.KVM_X86_TDX_VM
KVM_X86_DISABLE_EXITS_MWAIT: Final[int] = lib.KVM_X86_DISABLE_EXITS_MWAIT
KVM_X86_DISABLE_EXITS_HLT: Final[int] = lib.KVM_X86_DISABLE_EXITS_HLT
KVM_X86_DISABLE_EXITS_PAUSE: Final[int] = lib.KVM_X86_DISABLE_EXITS_PAUSE
KVM_X86_DISABLE_EXITS_CSTATE: Final[int] = lib.KVM_X86_DISABLE_EXITS_CSTATE
KVM_X86_DISABLE_EXITS_APERFMPERF: Final[int] = lib.KVM_X86_DISABLE_EXITS_APERFMPERF
KVM_BUS_LOCK_DETECTION_OFF: Final[int] = lib.KVM_BUS_LOCK_DETECTION_OFF
KVM_BUS_LOCK_DETECTION_EXIT: Final[int] = lib.KVM_BUS_LOCK_DETECTION_EXIT
KVM_X86_NOTIFY_VMEXIT_ENABLED: Final[int] = lib.KVM_X86_NOTIFY_VMEXIT_ENABLED
KVM_X86_NOTIFY_VMEXIT_USER: Final[int] = lib.KVM_X86_NOTIFY_VMEXIT_USER
KVM_X2APIC_API_USE_32BIT_IDS: Final[int] = lib.KVM_X2APIC_API_USE_32BIT_IDS
KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: Final[int] = lib.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
KVM_PMU_CAP_DISABLE: Final[int] = lib.KVM_PMU_CAP_DISABLE
KVM_PMU_EVENT_ALLOW: Final[int] = lib.KVM_PMU_EVENT_ALLOW
KVM_PMU_EVENT_DENY: Final[int] = lib.KVM_PMU_EVENT_DENY
KVM_PMU_EVENT_FLAG_MASKED_EVENTS: Final[int] = lib.KVM_PMU_EVENT_FLAG_MASKED_EVENTS
KVM_CREATE_DEVICE_TEST: Final[int] = lib.KVM_CREATE_DEVICE_TEST
KVM_DEV_TYPE_VFIO: Final[int] = lib.KVM_DEV_TYPE_VFIO
KVM_DEV_VFIO_GROUP: Final[int] = lib.KVM_DEV_VFIO_GROUP
KVM_DEV_VFIO_GROUP_ADD: Final[int] = lib.KVM_DEV_VFIO_GROUP_ADD
KVM_DEV_VFIO_GROUP_DEL: Final[int] = lib.KVM_DEV_VFIO_GROUP_DEL
KVM_X86_QUIRK_LINT0_REENABLED: Final[int] = lib.KVM_X86_QUIRK_LINT0_REENABLED
KVM_X86_QUIRK_CD_NW_CLEARED: Final[int] = lib.KVM_X86_QUIRK_CD_NW_CLEARED
KVM_X86_QUIRK_LAPIC_MMIO_HOLE: Final[int] = lib.KVM_X86_QUIRK_LAPIC_MMIO_HOLE
KVM_X86_QUIRK_OUT_7E_INC_RIP: Final[int] = lib.KVM_X86_QUIRK_OUT_7E_INC_RIP
KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT: Final[int] = lib.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
KVM_X86_QUIRK_FIX_HYPERCALL_INSN: Final[int] = lib.KVM_X86_QUIRK_FIX_HYPERCALL_INSN
KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS: Final[int] = lib.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
KVM_X86_QUIRK_SLOT_ZAP_ALL: Final[int] = lib.KVM_X86_QUIRK_SLOT_ZAP_ALL
KVM_X86_QUIRK_STUFF_FEATURE_MSRS: Final[int] = lib.KVM_X86_QUIRK_STUFF_FEATURE_MSRS
KVM_X86_QUIRK_IGNORE_GUEST_PAT: Final[int] = lib.KVM_X86_QUIRK_IGNORE_GUEST_PAT
KVM_STATS_TYPE_MASK: Final[int] = lib.KVM_STATS_TYPE_MASK
KVM_STATS_TYPE_CUMULATIVE: Final[int] = lib.KVM_STATS_TYPE_CUMULATIVE
KVM_STATS_TYPE_INSTANT: Final[int] = lib.KVM_STATS_TYPE_INSTANT
KVM_STATS_TYPE_PEAK: Final[int] = lib.KVM_STATS_TYPE_PEAK
KVM_STATS_TYPE_LINEAR_HIST: Final[int] = lib.KVM_STATS_TYPE_LINEAR_HIST
KVM_STATS_TYPE_LOG_HIST: Final[int] = lib.KVM_STATS_TYPE_LOG_HIST
KVM_STATS_UNIT_MASK: Final[int] = lib.KVM_STATS_UNIT_MASK
KVM_STATS_UNIT_NONE: Final[int] = lib.KVM_STATS_UNIT_NONE
KVM_STATS_UNIT_BYTES: Final[int] = lib.KVM_STATS_UNIT_BYTES
KVM_STATS_UNIT_SECONDS: Final[int] = lib.KVM_STATS_UNIT_SECONDS
KVM_STATS_UNIT_CYCLES: Final[int] = lib.KVM_STATS_UNIT_CYCLES
KVM_STATS_UNIT_BOOLEAN: Final[int] = lib.KVM_STATS_UNIT_BOOLEAN
KVM_STATS_BASE_MASK: Final[int] = lib.KVM_STATS_BASE_MASK
KVM_STATS_BASE_POW10: Final[int] = lib.KVM_STATS_BASE_POW10
KVM_STATS_BASE_POW2: Final[int] = lib.KVM_STATS_BASE_POW2

PAGE_SIZE: Final[int] = 4096


def _table(rows: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    i = 0
    while rows[i].name != ffi.NULL:
        found[ffi.string(rows[i].name).decode()] = int(rows[i].value)
        i += 1
    return found


@cache
def capabilities() -> dict[str, int]:
    """Every `KVM_CAP_*` that pykvm knows, of all architectures: name to number."""
    return _table(lib.pykvm_caps)


@cache
def exit_reasons() -> dict[str, int]:
    """Every `KVM_EXIT_*` reason that pykvm knows, of all architectures: name to number."""
    return _table(lib.pykvm_exits)


@cache
def _exit_names() -> dict[int, str]:
    return {number: name for name, number in exit_reasons().items()}


def exit_name(reason: int) -> str:
    """The name of an exit reason ("KVM_EXIT_IO"); "KVM_EXIT_<n>" for one that is not known."""
    return _exit_names().get(reason, f"KVM_EXIT_{reason}")


@cache
def header_ioctls() -> dict[str, int]:
    """The ioctl numbers as the compiler computed them; `ioctls.IOCTLS` explains them."""
    return _table(lib.pykvm_ioctls)


@cache
def structure_sizes() -> dict[str, int]:
    """C type name to size in bytes, as the compiler has it."""
    return _table(lib.pykvm_structs)


def capability(name_or_number: str | int) -> int:
    """The number of a capability. The `KVM_CAP_` prefix may be left out; case does not matter.

    Raises `ValueError` for a name that is not in the kernel's headers.
    """
    if isinstance(name_or_number, int):
        return name_or_number
    name = name_or_number.upper()
    name = name if name.startswith("KVM_CAP_") else f"KVM_CAP_{name}"
    try:
        return capabilities()[name]
    except KeyError:
        from difflib import get_close_matches

        short = {known.removeprefix("KVM_CAP_"): known for known in capabilities()}
        near = get_close_matches(name.removeprefix("KVM_CAP_"), short, 1)
        hint = f"; did you mean {short[near[0]]}?" if near else "; pass its number instead"
        raise ValueError(f"there is no capability {name_or_number!r}{hint}") from None


@cache
def _capability_names() -> dict[int, str]:
    # Later names win nothing: where two names share a number, the older is the documented one.
    return {number: name for name, number in reversed(capabilities().items())}


def capability_name(number: int) -> str:
    """The name of a capability number ("KVM_CAP_IRQFD"); "capability <n>" if it has none."""
    return _capability_names().get(number, f"capability {number}")


def exit_extra(run: Any) -> Any:
    """Exit data of a `struct kvm_run *` that older kernel headers have no member for.

    A `union pykvm_exit_extra *`: `.memory_fault` (flags, gpa, size), `.tdx` (flags, nr, ret, data),
    `.hypercall` (with the 64-bit `flags`) and `.raw`, the whole union as 256 bytes. It points into
    `run` and is valid as long as that is.
    """
    return ffi.cast("union pykvm_exit_extra *", ffi.addressof(run, "padding"))
