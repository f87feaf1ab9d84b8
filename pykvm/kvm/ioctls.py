"""Every KVM ioctl of the x86 API, in one table.

Each row: name, direction as user space sees it (read, write, both, or no structure), number, and
the structure that the third argument points to with its size in bytes. Rows without a structure
take a plain integer or nothing. A test holds this table against the numbers and sizes that the
compiler gets from the kernel's headers. Source: the KVM API document; <linux/kvm.h>.
"""

from __future__ import annotations

from ioctl_opt import IOC, IOC_NONE, IOC_READ, IOC_WRITE

from pykvm.typed import NamedTuple

KVMIO = 0xAE

NO, R, W, RW = IOC_NONE, IOC_READ, IOC_WRITE, IOC_READ | IOC_WRITE


class Ioctl(NamedTuple):
    """One ioctl. `on`: the kind of descriptor that takes it (some are taken by several)."""

    name: str
    number: int
    on: str
    structure: str
    size: int


_Row = tuple[str, int, int] | tuple[str, int, int, str, int]

# fmt: off
_SYSTEM: tuple[_Row, ...] = (
    ("KVM_GET_API_VERSION", NO, 0x00),
    ("KVM_CREATE_VM", NO, 0x01),
    ("KVM_GET_MSR_INDEX_LIST", RW, 0x02, "struct kvm_msr_list", 4),
    ("KVM_CHECK_EXTENSION", NO, 0x03),
    ("KVM_GET_VCPU_MMAP_SIZE", NO, 0x04),
    ("KVM_GET_SUPPORTED_CPUID", RW, 0x05, "struct kvm_cpuid2", 8),
    ("KVM_GET_EMULATED_CPUID", RW, 0x09, "struct kvm_cpuid2", 8),
    ("KVM_GET_MSR_FEATURE_INDEX_LIST", RW, 0x0A, "struct kvm_msr_list", 4),
    ("KVM_X86_GET_MCE_CAP_SUPPORTED", R, 0x9D, "__u64", 8),
    ("KVM_GET_SUPPORTED_HV_CPUID", RW, 0xC1, "struct kvm_cpuid2", 8),
)

_VM: tuple[_Row, ...] = (
    ("KVM_CREATE_VCPU", NO, 0x41),
    ("KVM_GET_DIRTY_LOG", W, 0x42, "struct kvm_dirty_log", 16),
    ("KVM_SET_NR_MMU_PAGES", NO, 0x44),
    ("KVM_GET_NR_MMU_PAGES", NO, 0x45),
    ("KVM_SET_USER_MEMORY_REGION", W, 0x46, "struct kvm_userspace_memory_region", 32),
    ("KVM_SET_TSS_ADDR", NO, 0x47),
    ("KVM_SET_IDENTITY_MAP_ADDR", W, 0x48, "__u64", 8),
    ("KVM_SET_USER_MEMORY_REGION2", W, 0x49, "struct kvm_userspace_memory_region2", 160),
    ("KVM_CREATE_IRQCHIP", NO, 0x60),
    ("KVM_IRQ_LINE", W, 0x61, "struct kvm_irq_level", 8),
    ("KVM_GET_IRQCHIP", RW, 0x62, "struct kvm_irqchip", 520),
    ("KVM_SET_IRQCHIP", R, 0x63, "struct kvm_irqchip", 520),
    ("KVM_CREATE_PIT", NO, 0x64),
    ("KVM_GET_PIT", RW, 0x65, "struct kvm_pit_state", 72),
    ("KVM_SET_PIT", R, 0x66, "struct kvm_pit_state", 72),
    ("KVM_IRQ_LINE_STATUS", RW, 0x67, "struct kvm_irq_level", 8),
    ("KVM_REGISTER_COALESCED_MMIO", W, 0x67, "struct kvm_coalesced_mmio_zone", 16),
    ("KVM_UNREGISTER_COALESCED_MMIO", W, 0x68, "struct kvm_coalesced_mmio_zone", 16),
    ("KVM_SET_GSI_ROUTING", W, 0x6A, "struct kvm_irq_routing", 8),
    ("KVM_REINJECT_CONTROL", NO, 0x71),
    ("KVM_IRQFD", W, 0x76, "struct kvm_irqfd", 32),
    ("KVM_CREATE_PIT2", W, 0x77, "struct kvm_pit_config", 64),
    ("KVM_SET_BOOT_CPU_ID", NO, 0x78),
    ("KVM_IOEVENTFD", W, 0x79, "struct kvm_ioeventfd", 64),
    ("KVM_XEN_HVM_CONFIG", W, 0x7A, "struct kvm_xen_hvm_config", 56),
    ("KVM_SET_CLOCK", W, 0x7B, "struct kvm_clock_data", 48),
    ("KVM_GET_CLOCK", R, 0x7C, "struct kvm_clock_data", 48),
    ("KVM_GET_PIT2", R, 0x9F, "struct kvm_pit_state2", 112),
    ("KVM_SET_PIT2", W, 0xA0, "struct kvm_pit_state2", 112),
    ("KVM_SIGNAL_MSI", W, 0xA5, "struct kvm_msi", 32),
    ("KVM_SET_PMU_EVENT_FILTER", W, 0xB2, "struct kvm_pmu_event_filter", 32),
    ("KVM_MEMORY_ENCRYPT_OP", RW, 0xBA, "unsigned long", 8),
    ("KVM_MEMORY_ENCRYPT_REG_REGION", R, 0xBB, "struct kvm_enc_region", 16),
    ("KVM_MEMORY_ENCRYPT_UNREG_REGION", R, 0xBC, "struct kvm_enc_region", 16),
    ("KVM_HYPERV_EVENTFD", W, 0xBD, "struct kvm_hyperv_eventfd", 24),
    ("KVM_CLEAR_DIRTY_LOG", RW, 0xC0, "struct kvm_clear_dirty_log", 24),
    ("KVM_X86_SET_MSR_FILTER", W, 0xC6, "struct kvm_msr_filter", 392),
    ("KVM_RESET_DIRTY_RINGS", NO, 0xC7),
    ("KVM_XEN_HVM_GET_ATTR", RW, 0xC8, "struct kvm_xen_hvm_attr", 72),
    ("KVM_XEN_HVM_SET_ATTR", W, 0xC9, "struct kvm_xen_hvm_attr", 72),
    ("KVM_XEN_HVM_EVTCHN_SEND", W, 0xD0, "struct kvm_irq_routing_xen_evtchn", 12),
    ("KVM_SET_MEMORY_ATTRIBUTES", W, 0xD2, "struct kvm_memory_attributes", 32),
    ("KVM_CREATE_GUEST_MEMFD", RW, 0xD4, "struct kvm_create_guest_memfd", 64),
    ("KVM_CREATE_DEVICE", RW, 0xE0, "struct kvm_create_device", 12),
)

_VCPU: tuple[_Row, ...] = (
    ("KVM_RUN", NO, 0x80),
    ("KVM_GET_REGS", R, 0x81, "struct kvm_regs", 144),
    ("KVM_SET_REGS", W, 0x82, "struct kvm_regs", 144),
    ("KVM_GET_SREGS", R, 0x83, "struct kvm_sregs", 312),
    ("KVM_SET_SREGS", W, 0x84, "struct kvm_sregs", 312),
    ("KVM_TRANSLATE", RW, 0x85, "struct kvm_translation", 24),
    ("KVM_INTERRUPT", W, 0x86, "struct kvm_interrupt", 4),
    ("KVM_GET_MSRS", RW, 0x88, "struct kvm_msrs", 8),  # also on /dev/kvm, for the feature MSRs
    ("KVM_SET_MSRS", W, 0x89, "struct kvm_msrs", 8),
    ("KVM_SET_CPUID", W, 0x8A, "struct kvm_cpuid", 8),
    ("KVM_SET_SIGNAL_MASK", W, 0x8B, "struct kvm_signal_mask", 4),
    ("KVM_GET_FPU", R, 0x8C, "struct kvm_fpu", 416),
    ("KVM_SET_FPU", W, 0x8D, "struct kvm_fpu", 416),
    ("KVM_GET_LAPIC", R, 0x8E, "struct kvm_lapic_state", 1024),
    ("KVM_SET_LAPIC", W, 0x8F, "struct kvm_lapic_state", 1024),
    ("KVM_SET_CPUID2", W, 0x90, "struct kvm_cpuid2", 8),
    ("KVM_GET_CPUID2", RW, 0x91, "struct kvm_cpuid2", 8),
    ("KVM_TPR_ACCESS_REPORTING", RW, 0x92, "struct kvm_tpr_access_ctl", 40),
    ("KVM_SET_VAPIC_ADDR", W, 0x93, "struct kvm_vapic_addr", 8),
    ("KVM_GET_MP_STATE", R, 0x98, "struct kvm_mp_state", 4),
    ("KVM_SET_MP_STATE", W, 0x99, "struct kvm_mp_state", 4),
    ("KVM_NMI", NO, 0x9A),
    ("KVM_SET_GUEST_DEBUG", W, 0x9B, "struct kvm_guest_debug", 72),
    ("KVM_X86_SETUP_MCE", W, 0x9C, "__u64", 8),
    ("KVM_X86_SET_MCE", W, 0x9E, "struct kvm_x86_mce", 64),
    ("KVM_GET_VCPU_EVENTS", R, 0x9F, "struct kvm_vcpu_events", 64),
    ("KVM_SET_VCPU_EVENTS", W, 0xA0, "struct kvm_vcpu_events", 64),
    ("KVM_GET_DEBUGREGS", R, 0xA1, "struct kvm_debugregs", 128),
    ("KVM_SET_DEBUGREGS", W, 0xA2, "struct kvm_debugregs", 128),
    ("KVM_SET_TSC_KHZ", NO, 0xA2),  # also on a VM
    ("KVM_GET_TSC_KHZ", NO, 0xA3),  # also on a VM
    ("KVM_ENABLE_CAP", W, 0xA3, "struct kvm_enable_cap", 104),  # also on a VM
    ("KVM_GET_XSAVE", R, 0xA4, "struct kvm_xsave", 4096),
    ("KVM_SET_XSAVE", W, 0xA5, "struct kvm_xsave", 4096),
    ("KVM_GET_XCRS", R, 0xA6, "struct kvm_xcrs", 392),
    ("KVM_SET_XCRS", W, 0xA7, "struct kvm_xcrs", 392),
    ("KVM_GET_ONE_REG", W, 0xAB, "struct kvm_one_reg", 16),
    ("KVM_SET_ONE_REG", W, 0xAC, "struct kvm_one_reg", 16),
    ("KVM_KVMCLOCK_CTRL", NO, 0xAD),
    ("KVM_GET_REG_LIST", RW, 0xB0, "struct kvm_reg_list", 8),
    ("KVM_SMI", NO, 0xB7),
    ("KVM_GET_NESTED_STATE", RW, 0xBE, "struct kvm_nested_state", 128),
    ("KVM_SET_NESTED_STATE", W, 0xBF, "struct kvm_nested_state", 128),
    ("KVM_XEN_VCPU_GET_ATTR", RW, 0xCA, "struct kvm_xen_vcpu_attr", 72),
    ("KVM_XEN_VCPU_SET_ATTR", W, 0xCB, "struct kvm_xen_vcpu_attr", 72),
    ("KVM_GET_SREGS2", R, 0xCC, "struct kvm_sregs2", 320),
    ("KVM_SET_SREGS2", W, 0xCD, "struct kvm_sregs2", 320),
    ("KVM_GET_STATS_FD", NO, 0xCE),  # also on a VM
    ("KVM_GET_XSAVE2", R, 0xCF, "struct kvm_xsave", 4096),
    ("KVM_PRE_FAULT_MEMORY", RW, 0xD5, "struct kvm_pre_fault_memory", 64),
)

_DEVICE: tuple[_Row, ...] = (
    ("KVM_SET_DEVICE_ATTR", W, 0xE1, "struct kvm_device_attr", 24),
    ("KVM_GET_DEVICE_ATTR", W, 0xE2, "struct kvm_device_attr", 24),
    ("KVM_HAS_DEVICE_ATTR", W, 0xE3, "struct kvm_device_attr", 24),
)

# Still in older headers, in no kernel that pykvm supports.
_OBSOLETE: tuple[_Row, ...] = (
    ("KVM_SET_MEMORY_REGION", W, 0x40, "struct kvm_memory_region", 24),
    ("KVM_SET_MEMORY_ALIAS", W, 0x43, "struct kvm_memory_alias", 32),
    ("KVM_ASSIGN_PCI_DEVICE", R, 0x69, "struct kvm_assigned_pci_dev", 64),
    ("KVM_ASSIGN_DEV_IRQ", W, 0x70, "struct kvm_assigned_irq", 64),
    ("KVM_DEASSIGN_PCI_DEVICE", W, 0x72, "struct kvm_assigned_pci_dev", 64),
    ("KVM_ASSIGN_SET_MSIX_NR", W, 0x73, "struct kvm_assigned_msix_nr", 8),
    ("KVM_ASSIGN_SET_MSIX_ENTRY", W, 0x74, "struct kvm_assigned_msix_entry", 16),
    ("KVM_DEASSIGN_DEV_IRQ", W, 0x75, "struct kvm_assigned_irq", 64),
    ("KVM_ASSIGN_SET_INTX_MASK", W, 0xA4, "struct kvm_assigned_pci_dev", 64),
)
# fmt: on


def _compose(on: str, rows: tuple[_Row, ...]) -> dict[str, Ioctl]:
    table = {}
    for row in rows:
        structure, size = (row[3], row[4]) if len(row) == 5 else ("", 0)
        number = IOC(row[1], KVMIO, row[2], size)
        table[row[0]] = Ioctl(row[0], number, on, structure, size)
    return table


IOCTLS: dict[str, Ioctl] = {
    **_compose("system", _SYSTEM),
    **_compose("vm", _VM),
    **_compose("vcpu", _VCPU),
    **_compose("device", _DEVICE),
    **_compose("obsolete", _OBSOLETE),
}


def name_of(number: int) -> str:
    """The name of an ioctl number; `ioctl 0x...` if it is none of KVM's."""
    for ioctl in IOCTLS.values():
        if ioctl.number == number:
            return ioctl.name
    return f"ioctl {number:#x}"
