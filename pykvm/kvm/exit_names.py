"""Names and meanings of the numbers in exits. Data only; each table names its source."""

from __future__ import annotations

VM_INSTRUCTION_ERRORS = {
    1: "VMCALL executed in VMX root operation",
    2: "VMCLEAR with invalid physical address",
    3: "VMCLEAR with VMXON pointer",
    4: "VMLAUNCH with non-clear VMCS",
    5: "VMRESUME with non-launched VMCS",
    6: "VMRESUME after VMXOFF",
    7: "VM entry with invalid control field(s)",
    8: "VM entry with invalid host-state field(s)",
    9: "VMPTRLD with invalid physical address",
    10: "VMPTRLD with VMXON pointer",
    11: "VMPTRLD with incorrect VMCS revision identifier",
    12: "VMREAD/VMWRITE from/to unsupported VMCS component",
    13: "VMWRITE to read-only VMCS component",
    15: "VMXON executed in VMX root operation",
    16: "VM entry with invalid executive-VMCS pointer",
    17: "VM entry with non-launched executive VMCS",
    18: "VM entry with executive-VMCS pointer not VMXON pointer",
    19: "VMCALL with non-clear VMCS",
    20: "VMCALL with invalid VM-exit control fields",
    22: "VMCALL with incorrect MSEG revision identifier",
    23: "VMXOFF under dual-monitor treatment of SMIs and SMM",
    24: "VMCALL with invalid SMM-monitor features",
    25: "VM entry with invalid VM-execution control fields in executive VMCS",
    26: "VM entry with events blocked by MOV SS",
    28: "invalid operand to INVEPT/INVVPID",
}
"""SDM vol. 3C, table 31-1 "VM-Instruction Error Numbers"."""

VM_ENTRY_FAILURES = {
    33: "VM-entry failure due to invalid guest state",
    34: "VM-entry failure due to MSR loading",
    41: "VM-entry failure due to machine-check event",
}
"""SDM vol. 3C, appendix C: basic exit reasons that come with bit 31 (VM-entry failure) set."""

_VMX_ENTRY_FAILED = 1 << 31
_SVM_INVALID = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def hardware_entry_failure(reason: int) -> str:
    """What `hardware_entry_failure_reason` of KVM_EXIT_FAIL_ENTRY means, on VMX and on SVM."""
    if reason in _SVM_INVALID:  # VMEXIT_INVALID, -1: APM vol. 2, 15.5.1 and appendix C
        return "SVM VMEXIT_INVALID: invalid guest state in the VMCB"
    if reason & _VMX_ENTRY_FAILED:
        basic = reason & 0xFFFF
        return "VMX " + VM_ENTRY_FAILURES.get(basic, f"VM-entry failure, basic reason {basic}")
    if reason in VM_INSTRUCTION_ERRORS:
        return f"VMX instruction error {reason}: {VM_INSTRUCTION_ERRORS[reason]}"
    return "a reason that neither the Intel nor the AMD manual names"


INTERNAL_ERRORS = {
    1: "emulation failed",
    2: "unexpected simultaneous exceptions",
    3: "unexpected VM exit while an event was delivered",
    4: "unexpected VM exit reason",
}
"""KVM API, 5 "KVM_EXIT_INTERNAL_ERROR"; <linux/kvm.h> KVM_INTERNAL_ERROR_*."""

SYSTEM_EVENTS = {
    1: "shutdown",
    2: "reset",
    3: "crash",
    4: "wakeup",
    5: "suspend",
    6: "SEV termination",
    7: "TDX fatal error",
}
"""KVM API, 5 "KVM_EXIT_SYSTEM_EVENT"."""

HYPERCALLS = {
    1: "KVM_HC_VAPIC_POLL_IRQ",
    2: "KVM_HC_MMU_OP",
    3: "KVM_HC_FEATURES",
    4: "KVM_HC_PPC_MAP_MAGIC_PAGE",
    5: "KVM_HC_KICK_CPU",
    6: "KVM_HC_MIPS_GET_CLOCK_FREQ",
    7: "KVM_HC_MIPS_EXIT_VM",
    8: "KVM_HC_MIPS_CONSOLE_OUTPUT",
    9: "KVM_HC_CLOCK_PAIRING",
    10: "KVM_HC_SEND_IPI",
    11: "KVM_HC_SCHED_YIELD",
    12: "KVM_HC_MAP_GPA_RANGE",
}
"""<linux/kvm_para.h>; Documentation/virt/kvm/x86/hypercalls.rst."""

MSR_EXIT_REASONS = {1: "an invalid access", 2: "an unknown MSR", 4: "denied by the MSR filter"}
"""KVM API, 5 "KVM_EXIT_X86_RDMSR": KVM_MSR_EXIT_REASON_*."""

VECTORS = (
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "coprocessor overrun", "#TS",
    "#NP", "#SS", "#GP", "#PF", "vector 15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
)  # fmt: skip
"""SDM vol. 3A, table 6-1: exceptions by vector."""


def vector(number: int) -> str:
    """The mnemonic of an exception vector ("#PF")."""
    return VECTORS[number] if number < len(VECTORS) else f"vector {number}"


_DR6_SINGLE_STEP = 1 << 14
_DR6_FLAGS = (
    (1 << 13, "access to a debug register (BD)"),
    (_DR6_SINGLE_STEP, "single step"),
    (1 << 15, "task switch (BT)"),
)


def debug_causes(dr6: int) -> list[str]:
    """What DR6 says of a #DB (SDM vol. 3B, 18.2.3), in words."""
    causes = [f"breakpoint {n} (DR{n})" for n in range(4) if dr6 >> n & 1]
    return causes + [text for bit, text in _DR6_FLAGS if dr6 & bit]


MSRS = {
    0x10: "IA32_TIME_STAMP_COUNTER",
    0x17: "IA32_PLATFORM_ID",
    0x1B: "IA32_APIC_BASE",
    0x34: "MSR_SMI_COUNT",
    0x3A: "IA32_FEATURE_CONTROL",
    0x3B: "IA32_TSC_ADJUST",
    0x48: "IA32_SPEC_CTRL",
    0x49: "IA32_PRED_CMD",
    0x79: "IA32_BIOS_UPDT_TRIG",
    0x8B: "IA32_BIOS_SIGN_ID",
    0xC1: "IA32_PMC0",
    0xCD: "MSR_FSB_FREQ",
    0xCE: "MSR_PLATFORM_INFO",
    0xE7: "IA32_MPERF",
    0xE8: "IA32_APERF",
    0xFE: "IA32_MTRRCAP",
    0x10A: "IA32_ARCH_CAPABILITIES",
    0x10B: "IA32_FLUSH_CMD",
    0x122: "IA32_TSX_CTRL",
    0x140: "MSR_MISC_FEATURES_ENABLES",
    0x174: "IA32_SYSENTER_CS",
    0x175: "IA32_SYSENTER_ESP",
    0x176: "IA32_SYSENTER_EIP",
    0x179: "IA32_MCG_CAP",
    0x17A: "IA32_MCG_STATUS",
    0x17B: "IA32_MCG_CTL",
    0x186: "IA32_PERFEVTSEL0",
    0x198: "IA32_PERF_STATUS",
    0x199: "IA32_PERF_CTL",
    0x19A: "IA32_CLOCK_MODULATION",
    0x19B: "IA32_THERM_INTERRUPT",
    0x19C: "IA32_THERM_STATUS",
    0x1A0: "IA32_MISC_ENABLE",
    0x1AD: "MSR_TURBO_RATIO_LIMIT",
    0x1B0: "IA32_ENERGY_PERF_BIAS",
    0x1C4: "IA32_XFD",
    0x1C5: "IA32_XFD_ERR",
    0x1D9: "IA32_DEBUGCTL",
    0x277: "IA32_PAT",
    0x2FF: "IA32_MTRR_DEF_TYPE",
    0x309: "IA32_FIXED_CTR0",
    0x345: "IA32_PERF_CAPABILITIES",
    0x38D: "IA32_FIXED_CTR_CTRL",
    0x38E: "IA32_PERF_GLOBAL_STATUS",
    0x38F: "IA32_PERF_GLOBAL_CTRL",
    0x390: "IA32_PERF_GLOBAL_STATUS_RESET",
    0x480: "IA32_VMX_BASIC",
    0x600: "IA32_DS_AREA",
    0x606: "MSR_RAPL_POWER_UNIT",
    0x6A0: "IA32_U_CET",
    0x6A2: "IA32_S_CET",
    0x6A7: "IA32_PL3_SSP",
    0x6E0: "IA32_TSC_DEADLINE",
    0xD90: "IA32_BNDCFGS",
    0xDA0: "IA32_XSS",
    0x40000000: "HV_X64_MSR_GUEST_OS_ID",
    0x40000001: "HV_X64_MSR_HYPERCALL",
    0x4B564D00: "MSR_KVM_WALL_CLOCK_NEW",
    0x4B564D01: "MSR_KVM_SYSTEM_TIME_NEW",
    0x4B564D02: "MSR_KVM_ASYNC_PF_EN",
    0x4B564D03: "MSR_KVM_STEAL_TIME",
    0x4B564D04: "MSR_KVM_PV_EOI_EN",
    0x4B564D05: "MSR_KVM_POLL_CONTROL",
    0x4B564D06: "MSR_KVM_ASYNC_PF_INT",
    0x4B564D07: "MSR_KVM_ASYNC_PF_ACK",
    0x4B564D08: "MSR_KVM_MIGRATION_CONTROL",
    0xC0000080: "IA32_EFER",
    0xC0000081: "IA32_STAR",
    0xC0000082: "IA32_LSTAR",
    0xC0000083: "IA32_CSTAR",
    0xC0000084: "IA32_FMASK",
    0xC0000100: "IA32_FS_BASE",
    0xC0000101: "IA32_GS_BASE",
    0xC0000102: "IA32_KERNEL_GS_BASE",
    0xC0000103: "IA32_TSC_AUX",
    0xC0000104: "MSR_AMD64_TSC_RATIO",
    0xC0010010: "MSR_AMD64_SYSCFG",
    0xC0010015: "MSR_K7_HWCR",
    0xC0010114: "MSR_VM_CR",
    0xC0010117: "MSR_VM_HSAVE_PA",
    0xC001011F: "MSR_AMD64_VIRT_SPEC_CTRL",
    0xC0010140: "MSR_AMD64_OSVW_ID_LENGTH",
    0xC0011029: "MSR_F10H_DECFG",
}
"""MSRs that guests commonly meet: SDM vol. 4, APM vol. 2 appendix A, KVM's msr.rst."""


def msr(index: int) -> str:
    """An MSR's name with its number: "IA32_EFER (0xc0000080)"; the number alone if unknown."""
    if 0x200 <= index <= 0x20F:
        name = f"IA32_MTRR_PHYS{'MASK' if index & 1 else 'BASE'}{(index - 0x200) // 2}"
    elif 0x400 <= index <= 0x47F:
        name = f"IA32_MC{(index - 0x400) // 4}_{('CTL', 'STATUS', 'ADDR', 'MISC')[index & 3]}"
    elif 0x800 <= index <= 0x8FF:
        name = "x2APIC register"
    else:
        name = MSRS.get(index, "")
    return f"{name} ({index:#x})" if name else f"MSR {index:#x}"
