"""The MSRs that a hypervisor meets: number, name and meaning, one a line.

Names are those of the SDM and the APM; `n` ranges are expanded by `pykvm.arch.msrs`. A line
`0x200+2*8 NAME{n}` stands for 8 registers, 2 apart, named NAME0 to NAME7.

Sources: SDM vol. 4; APM vol. 2 appendix A; AMD PPR; Linux's asm/msr-index.h and asm/kvm_para.h;
the Hypervisor Top-Level Functional Specification, appendix on synthetic MSRs.
"""

from __future__ import annotations

INTEL = """
0x0 IA32_P5_MC_ADDR Pentium machine-check address
0x1 IA32_P5_MC_TYPE Pentium machine-check type
0x6 IA32_MONITOR_FILTER_SIZE MONITOR line size
0x10 IA32_TIME_STAMP_COUNTER time-stamp counter
0x17 IA32_PLATFORM_ID platform identifier
0x1b IA32_APIC_BASE local APIC base address, enable, x2APIC, BSP
0x2a EBL_CR_POWERON hard power-on configuration
0x33 TEST_CTRL split-lock detection
0x34 SMI_COUNT number of SMIs
0x3a IA32_FEATURE_CONTROL lock bit; VMX, SGX enable
0x3b IA32_TSC_ADJUST offset of the TSC
0x48 IA32_SPEC_CTRL speculation control: IBRS, STIBP, SSBD
0x49 IA32_PRED_CMD prediction command: IBPB
0x4e PPIN_CTL protected processor inventory number control
0x4f PPIN protected processor inventory number
0x79 IA32_BIOS_UPDT_TRIG microcode update trigger
0x8b IA32_BIOS_SIGN_ID microcode revision
0x8c+1*4 IA32_SGXLEPUBKEYHASH{n} SGX launch key hash
0x9b IA32_SMM_MONITOR_CTL SMM transfer monitor
0x9e IA32_SMBASE base of SMRAM
0xbd IA32_XAPIC_DISABLE_STATUS x2APIC is locked
0xc1+1*8 IA32_PMC{n} general performance counter
0xcd FSB_FREQ bus frequency
0xce PLATFORM_INFO base ratio, CPUID faulting
0xcf IA32_CORE_CAPABILITIES split-lock detection and others
0xe1 IA32_UMWAIT_CONTROL UMWAIT limits
0xe2 PKG_CST_CONFIG_CONTROL package C-states
0xe7 IA32_MPERF cycles at the base frequency
0xe8 IA32_APERF cycles at the actual frequency
0xfe IA32_MTRRCAP MTRR capabilities
0x10a IA32_ARCH_CAPABILITIES immunities to speculation flaws
0x10b IA32_FLUSH_CMD L1D flush
0x10f TSX_FORCE_ABORT abort all transactions
0x119 BBL_CR_CTL L2 cache control
0x11e BBL_CR_CTL3 L2 cache control 3
0x122 IA32_TSX_CTRL disable TSX
0x123 IA32_MCU_OPT_CTRL microcode mitigation control
0x140 MISC_FEATURES_ENABLES CPUID faulting, ring-3 MWAIT
0x174 IA32_SYSENTER_CS code segment of SYSENTER
0x175 IA32_SYSENTER_ESP stack of SYSENTER
0x176 IA32_SYSENTER_EIP entry of SYSENTER
0x179 IA32_MCG_CAP machine-check banks and features
0x17a IA32_MCG_STATUS machine check in progress
0x17b IA32_MCG_CTL machine-check control
0x17f ERROR_CONTROL error control
0x186+1*8 IA32_PERFEVTSEL{n} event of a performance counter
0x198 IA32_PERF_STATUS current performance state
0x199 IA32_PERF_CTL wanted performance state
0x19a IA32_CLOCK_MODULATION duty cycle
0x19b IA32_THERM_INTERRUPT thermal interrupts
0x19c IA32_THERM_STATUS thermal status
0x19d THERM2_CTL thermal monitor 2
0x1a0 IA32_MISC_ENABLE fast strings, MWAIT, XD disable and others
0x1a2 TEMPERATURE_TARGET throttling temperature
0x1a4 MISC_FEATURE_CONTROL prefetchers
0x1a6 OFFCORE_RSP_0 off-core response event
0x1a7 OFFCORE_RSP_1 off-core response event
0x1aa MISC_PWR_MGMT power management
0x1ad TURBO_RATIO_LIMIT turbo ratios
0x1b0 IA32_ENERGY_PERF_BIAS energy hint
0x1b1 IA32_PACKAGE_THERM_STATUS package thermal status
0x1b2 IA32_PACKAGE_THERM_INTERRUPT package thermal interrupts
0x1c4 IA32_XFD extended feature disable
0x1c5 IA32_XFD_ERR which disabled feature was used
0x1c8 LBR_SELECT branch record filter
0x1c9 LASTBRANCH_TOS top of the branch record stack
0x1d9 IA32_DEBUGCTL branch records, single-step on branches
0x1db LASTBRANCHFROMIP last branch source
0x1dc LASTBRANCHTOIP last branch target
0x1dd LASTINTFROMIP source of the last branch before an exception
0x1de LASTINTTOIP target of the last branch before an exception
0x1f2 IA32_SMRR_PHYSBASE SMRAM range base
0x1f3 IA32_SMRR_PHYSMASK SMRAM range mask
0x1fc POWER_CTL power control
0x200+2*16 IA32_MTRR_PHYSBASE{n} variable memory range base and type
0x201+2*16 IA32_MTRR_PHYSMASK{n} variable memory range mask
0x250 IA32_MTRR_FIX64K_00000 memory types from 0
0x258 IA32_MTRR_FIX16K_80000 memory types from 512 KiB
0x259 IA32_MTRR_FIX16K_A0000 memory types from 640 KiB
0x268 IA32_MTRR_FIX4K_C0000 memory types from 0xc0000
0x269 IA32_MTRR_FIX4K_C8000 memory types from 0xc8000
0x26a IA32_MTRR_FIX4K_D0000 memory types from 0xd0000
0x26b IA32_MTRR_FIX4K_D8000 memory types from 0xd8000
0x26c IA32_MTRR_FIX4K_E0000 memory types from 0xe0000
0x26d IA32_MTRR_FIX4K_E8000 memory types from 0xe8000
0x26e IA32_MTRR_FIX4K_F0000 memory types from 0xf0000
0x26f IA32_MTRR_FIX4K_F8000 memory types from 0xf8000
0x277 IA32_PAT page attribute table: eight memory types
0x280+1*32 IA32_MC{n}_CTL2 corrected-error interrupt of a bank
0x2d9 IA32_INTEGRITY_CAPABILITIES in-field self test
0x2ff IA32_MTRR_DEF_TYPE default memory type, MTRR enable
0x309+1*4 IA32_FIXED_CTR{n} fixed performance counter
0x329 IA32_PERF_METRICS top-down metrics
0x345 IA32_PERF_CAPABILITIES performance monitoring features
0x38d IA32_FIXED_CTR_CTRL fixed counter control
0x38e IA32_PERF_GLOBAL_STATUS counter overflow
0x38f IA32_PERF_GLOBAL_CTRL counter enable
0x390 IA32_PERF_GLOBAL_STATUS_RESET clear counter overflow
0x391 IA32_PERF_GLOBAL_STATUS_SET set counter overflow
0x392 IA32_PERF_GLOBAL_INUSE counters in use
0x3f1 IA32_PEBS_ENABLE precise event sampling
0x3f2 PEBS_DATA_CFG contents of PEBS records
0x3f6 PEBS_LD_LAT load latency threshold
0x3f7 PEBS_FRONTEND front-end events
0x3f8 PKG_C3_RESIDENCY time in package C3
0x3f9 PKG_C6_RESIDENCY time in package C6
0x3fa PKG_C7_RESIDENCY time in package C7
0x3fc CORE_C3_RESIDENCY time in core C3
0x3fd CORE_C6_RESIDENCY time in core C6
0x3fe CORE_C7_RESIDENCY time in core C7
0x400+4*29 IA32_MC{n}_CTL machine-check bank control
0x401+4*29 IA32_MC{n}_STATUS machine-check bank status
0x402+4*29 IA32_MC{n}_ADDR machine-check bank address
0x403+4*29 IA32_MC{n}_MISC machine-check bank details
0x480 IA32_VMX_BASIC VMCS revision and size
0x481 IA32_VMX_PINBASED_CTLS pin-based controls
0x482 IA32_VMX_PROCBASED_CTLS processor-based controls
0x483 IA32_VMX_EXIT_CTLS VM-exit controls
0x484 IA32_VMX_ENTRY_CTLS VM-entry controls
0x485 IA32_VMX_MISC VMX miscellany
0x486 IA32_VMX_CR0_FIXED0 CR0 bits that must be 1
0x487 IA32_VMX_CR0_FIXED1 CR0 bits that may be 1
0x488 IA32_VMX_CR4_FIXED0 CR4 bits that must be 1
0x489 IA32_VMX_CR4_FIXED1 CR4 bits that may be 1
0x48a IA32_VMX_VMCS_ENUM VMCS field enumeration
0x48b IA32_VMX_PROCBASED_CTLS2 secondary controls
0x48c IA32_VMX_EPT_VPID_CAP EPT and VPID
0x48d IA32_VMX_TRUE_PINBASED_CTLS pin-based controls, without the default1 class
0x48e IA32_VMX_TRUE_PROCBASED_CTLS processor-based controls, without the default1 class
0x48f IA32_VMX_TRUE_EXIT_CTLS VM-exit controls, without the default1 class
0x490 IA32_VMX_TRUE_ENTRY_CTLS VM-entry controls, without the default1 class
0x491 IA32_VMX_VMFUNC VM functions
0x492 IA32_VMX_PROCBASED_CTLS3 tertiary controls
0x493 IA32_VMX_EXIT_CTLS2 secondary VM-exit controls
0x4c1+1*8 IA32_A_PMC{n} performance counter, full width
0x4d0 IA32_MCG_EXT_CTL local machine checks
0x560 IA32_RTIT_OUTPUT_BASE processor trace output base
0x561 IA32_RTIT_OUTPUT_MASK_PTRS processor trace output position
0x570 IA32_RTIT_CTL processor trace control
0x571 IA32_RTIT_STATUS processor trace status
0x572 IA32_RTIT_CR3_MATCH processor trace CR3 filter
0x580+2*4 IA32_RTIT_ADDR{n}_A processor trace range start
0x581+2*4 IA32_RTIT_ADDR{n}_B processor trace range end
0x600 IA32_DS_AREA debug store
0x601 VR_CURRENT_CONFIG voltage regulator
0x606 RAPL_POWER_UNIT units of the power registers
0x60d PKG_C2_RESIDENCY time in package C2
0x610 PKG_POWER_LIMIT package power limit
0x611 PKG_ENERGY_STATUS package energy
0x613 PKG_PERF_STATUS package throttling
0x614 PKG_POWER_INFO package power range
0x618 DRAM_POWER_LIMIT memory power limit
0x619 DRAM_ENERGY_STATUS memory energy
0x61b DRAM_PERF_STATUS memory throttling
0x61c DRAM_POWER_INFO memory power range
0x638 PP0_POWER_LIMIT core power limit
0x639 PP0_ENERGY_STATUS core energy
0x640 PP1_POWER_LIMIT graphics power limit
0x641 PP1_ENERGY_STATUS graphics energy
0x648 CONFIG_TDP_NOMINAL nominal TDP ratio
0x64b CONFIG_TDP_CONTROL TDP level
0x64c TURBO_ACTIVATION_RATIO turbo activation
0x64d PLATFORM_ENERGY_STATUS platform energy
0x64e PPERF productive performance count
0x64f PERF_LIMIT_REASONS why the CPU is throttled
0x680+1*32 LASTBRANCH_{n}_FROM_IP branch record source
0x6a0 IA32_U_CET control-flow enforcement in ring 3
0x6a2 IA32_S_CET control-flow enforcement in ring 0
0x6a4 IA32_PL0_SSP ring-0 shadow stack
0x6a5 IA32_PL1_SSP ring-1 shadow stack
0x6a6 IA32_PL2_SSP ring-2 shadow stack
0x6a7 IA32_PL3_SSP ring-3 shadow stack
0x6a8 IA32_INTERRUPT_SSP_TABLE_ADDR shadow stacks of interrupts
0x6c0+1*32 LASTBRANCH_{n}_TO_IP branch record target
0x6e0 IA32_TSC_DEADLINE APIC timer deadline
0x6e1 IA32_PKRS supervisor protection keys
0x770 IA32_PM_ENABLE hardware P-states enable
0x771 IA32_HWP_CAPABILITIES hardware P-state range
0x772 IA32_HWP_REQUEST_PKG package hardware P-state request
0x773 IA32_HWP_INTERRUPT hardware P-state interrupts
0x774 IA32_HWP_REQUEST hardware P-state request
0x777 IA32_HWP_STATUS hardware P-state status
0x985 IA32_UINTR_RR user-interrupt requests
0x986 IA32_UINTR_HANDLER user-interrupt handler
0x987 IA32_UINTR_STACKADJUST user-interrupt stack
0x988 IA32_UINTR_MISC user-interrupt table size and vector
0x989 IA32_UINTR_PD user posted-interrupt descriptor
0x98a IA32_UINTR_TT user-interrupt target table
0xc80 IA32_DEBUG_INTERFACE silicon debug
0xd90 IA32_BNDCFGS supervisor bounds configuration
0xd93 IA32_PASID process address space ID
0xda0 IA32_XSS supervisor state components for XSAVES
0xdc0+1*32 LBR_INFO_{n} branch record details
0x1200+1*32 IA32_LBR_{n}_INFO architectural branch record details
0x1309+1*4 RELOAD_FIXED_CTR{n} PEBS reload of a fixed counter
0x14c1+1*8 RELOAD_PMC{n} PEBS reload of a counter
0x14ce IA32_LBR_CTL architectural branch record control
0x14cf IA32_LBR_DEPTH architectural branch record depth
0x1500+1*32 IA32_LBR_{n}_FROM_IP architectural branch record source
0x1600+1*32 IA32_LBR_{n}_TO_IP architectural branch record target
0x17d0 IA32_HW_FEEDBACK_PTR hardware feedback table
0x17d1 IA32_HW_FEEDBACK_CONFIG hardware feedback enable
0x1b01 IA32_UARCH_MISC_CTL data-operand-independent timing
0x1cc IA32_FRED_RSP0 ring-0 stack of FRED
0x1cd IA32_FRED_RSP1 stack level 1 of FRED
0x1ce IA32_FRED_RSP2 stack level 2 of FRED
0x1cf IA32_FRED_RSP3 stack level 3 of FRED
0x1d0 IA32_FRED_STKLVLS stack levels of FRED
0x1d1 IA32_FRED_SSP1 shadow stack level 1 of FRED
0x1d2 IA32_FRED_SSP2 shadow stack level 2 of FRED
0x1d3 IA32_FRED_SSP3 shadow stack level 3 of FRED
0x1d4 IA32_FRED_CONFIG entry point of FRED
"""

X2APIC = """
0x802 IA32_X2APIC_APICID local APIC ID
0x803 IA32_X2APIC_VERSION local APIC version
0x808 IA32_X2APIC_TPR task priority
0x80a IA32_X2APIC_PPR processor priority
0x80b IA32_X2APIC_EOI end of interrupt
0x80d IA32_X2APIC_LDR logical destination
0x80f IA32_X2APIC_SIVR spurious interrupt vector, APIC enable
0x810+1*8 IA32_X2APIC_ISR{n} interrupts in service
0x818+1*8 IA32_X2APIC_TMR{n} trigger modes
0x820+1*8 IA32_X2APIC_IRR{n} interrupt requests
0x828 IA32_X2APIC_ESR error status
0x82f IA32_X2APIC_LVT_CMCI corrected machine-check interrupt
0x830 IA32_X2APIC_ICR interrupt command
0x832 IA32_X2APIC_LVT_TIMER timer interrupt
0x833 IA32_X2APIC_LVT_THERMAL thermal interrupt
0x834 IA32_X2APIC_LVT_PMI performance interrupt
0x835 IA32_X2APIC_LVT_LINT0 local interrupt 0
0x836 IA32_X2APIC_LVT_LINT1 local interrupt 1
0x837 IA32_X2APIC_LVT_ERROR error interrupt
0x838 IA32_X2APIC_INIT_COUNT timer initial count
0x839 IA32_X2APIC_CUR_COUNT timer current count
0x83e IA32_X2APIC_DIV_CONF timer divisor
0x83f IA32_X2APIC_SELF_IPI interrupt to itself
"""

X86_64 = """
0xc0000080 IA32_EFER long mode, SYSCALL and no-execute enable
0xc0000081 IA32_STAR segments of SYSCALL and SYSRET
0xc0000082 IA32_LSTAR SYSCALL entry in 64-bit mode
0xc0000083 IA32_CSTAR SYSCALL entry in compatibility mode
0xc0000084 IA32_FMASK flags that SYSCALL clears
0xc0000100 IA32_FS_BASE base of FS
0xc0000101 IA32_GS_BASE base of GS
0xc0000102 IA32_KERNEL_GS_BASE what SWAPGS exchanges with the base of GS
0xc0000103 IA32_TSC_AUX value that RDTSCP and RDPID read
"""

AMD = """
0xc00000e7 MPERF_READONLY cycles at the base frequency
0xc00000e8 APERF_READONLY cycles at the actual frequency
0xc00000e9 IRPERF instructions retired
0xc0000104 TSC_RATIO guest TSC scale
0xc000010e LBR_SELECT_AMD branch record filter
0xc000010f DBG_EXTN_CFG branch record enable
0xc0000300 PERF_CNTR_GLOBAL_STATUS counter overflow
0xc0000301 PERF_CNTR_GLOBAL_CTL counter enable
0xc0000302 PERF_CNTR_GLOBAL_STATUS_CLR clear counter overflow
0xc0010000+1*4 PERF_LEGACY_CTL{n} event of a performance counter
0xc0010004+1*4 PERF_LEGACY_CTR{n} performance counter
0xc0010010 SYSCFG system configuration, memory encryption
0xc0010015 HWCR hardware configuration
0xc0010016 IORR_BASE0 I/O range base
0xc0010017 IORR_MASK0 I/O range mask
0xc0010018 IORR_BASE1 I/O range base
0xc0010019 IORR_MASK1 I/O range mask
0xc001001a TOP_MEM top of memory below 4 GiB
0xc001001b CLK_CTL clock ramping
0xc001001d TOM2 top of memory above 4 GiB
0xc001001f NB_CFG northbridge configuration
0xc0010020 PATCH_LOADER microcode update trigger
0xc0010030+1*6 PROC_NAME_STRING{n} processor name
0xc0010041 FID_VID_CTL frequency and voltage
0xc0010042 FID_VID_STATUS frequency and voltage status
0xc0010044+1*8 MC{n}_CTL_MASK machine-check bank mask
0xc0010055 INTPEND interrupt pending message
0xc0010056 SMI_ON_IO_TRAP0 SMI on I/O
0xc0010058 MMIO_CFG_BASE PCI configuration space
0xc0010061 PSTATE_CUR_LIMIT highest performance state
0xc0010062 PSTATE_CTL wanted performance state
0xc0010063 PSTATE_STAT current performance state
0xc0010064+1*8 PSTATE_DEF{n} performance state definition
0xc0010074 CPU_WATCHDOG_TIMER processor watchdog
0xc0010111 SMM_BASE base of SMRAM
0xc0010112 SMM_ADDR SMRAM range base
0xc0010113 SMM_MASK SMRAM range mask
0xc0010114 VM_CR SVM lock and disable
0xc0010115 IGNNE ignore numeric errors
0xc0010116 SMM_CTL SMM control
0xc0010117 VM_HSAVE_PA host save area of VMRUN
0xc0010118 SVM_KEY SVM unlock key
0xc001011b AVIC_DOORBELL AVIC doorbell
0xc001011e VM_PAGE_FLUSH encrypted page flush
0xc001011f VIRT_SPEC_CTRL speculation control for guests
0xc0010130 SEV_ES_GHCB guest-hypervisor communication block
0xc0010131 SEV_STATUS active SEV features
0xc0010132 RMP_BASE reverse map table base
0xc0010133 RMP_END reverse map table end
0xc0010140 OSVW_ID_LENGTH number of workaround bits
0xc0010141 OSVW_STATUS workaround bits
0xc0010200+2*6 PERF_CTL{n} event of a performance counter
0xc0010201+2*6 PERF_CTR{n} performance counter
0xc0010230+2*6 L3_PERF_CTL{n} event of an L3 counter
0xc0010231+2*6 L3_PERF_CTR{n} L3 counter
0xc0010240+2*4 NB_PERF_CTL{n} event of a northbridge counter
0xc0010241+2*4 NB_PERF_CTR{n} northbridge counter
0xc0010280 PTSC performance time-stamp counter
0xc0010299 RAPL_POWER_UNIT_AMD units of the energy registers
0xc001029a CORE_ENERGY_STATUS core energy
0xc001029b PKG_ENERGY_STATUS_AMD package energy
0xc00102b0 CPPC_CAP1 performance range
0xc00102b1 CPPC_ENABLE collaborative performance control enable
0xc00102b2 CPPC_CAP2 constrained performance
0xc00102b3 CPPC_REQ performance request
0xc00102b4 CPPC_STATUS performance status
0xc00102f0 PPIN_CTL_AMD protected processor inventory number control
0xc00102f1 PPIN_AMD protected processor inventory number
0xc0010300+2*16 SAMP_BR_FROM{n} branch record source
0xc0010301+2*16 SAMP_BR_TO{n} branch record target
0xc0011004 CPUID_FEATURES CPUID leaf 1 override
0xc0011005 CPUID_EXT_FEATURES CPUID leaf 0x80000001 override
0xc001100c NODE_ID node of the processor
0xc0011019 DR1_ADDR_MASK address mask of breakpoint 1
0xc001101a DR2_ADDR_MASK address mask of breakpoint 2
0xc001101b DR3_ADDR_MASK address mask of breakpoint 3
0xc0011020 LS_CFG load-store configuration
0xc0011021 IC_CFG instruction cache configuration
0xc0011022 DC_CFG data cache configuration
0xc0011023 TW_CFG table walker configuration
0xc0011027 DR0_ADDR_MASK address mask of breakpoint 0
0xc0011029 DE_CFG decode configuration, LFENCE serializing
0xc001102a BU_CFG2 bus unit configuration
0xc001102c EX_CFG execution configuration
0xc001102e BP_CFG branch prediction configuration
0xc0011030 IBS_FETCH_CTL instruction-based fetch sampling
0xc0011031 IBS_FETCH_LINAD sampled fetch, linear address
0xc0011032 IBS_FETCH_PHYSAD sampled fetch, physical address
0xc0011033 IBS_OP_CTL instruction-based execution sampling
0xc0011034 IBS_OP_RIP sampled instruction
0xc0011035 IBS_OP_DATA sampled instruction details
0xc0011036 IBS_OP_DATA2 sampled northbridge details
0xc0011037 IBS_OP_DATA3 sampled cache details
0xc0011038 IBS_DC_LINAD sampled data, linear address
0xc0011039 IBS_DC_PHYSAD sampled data, physical address
0xc001103a IBS_CTL sampling interrupt
0xc001103b BP_IBSTGT_RIP sampled branch target
0xc001103c IC_IBS_EXTD_CTL fetch sampling details
0xc001103d IBS_OP_DATA4 sampled instruction details
"""

KVM = """
0x11 KVM_WALL_CLOCK boot time, old number
0x12 KVM_SYSTEM_TIME per-CPU clock, old number
0x4b564d00 KVM_WALL_CLOCK_NEW address to write the boot time to
0x4b564d01 KVM_SYSTEM_TIME_NEW address of the per-CPU clock
0x4b564d02 KVM_ASYNC_PF_EN asynchronous page faults
0x4b564d03 KVM_STEAL_TIME address of the stolen-time record
0x4b564d04 KVM_PV_EOI_EN end of interrupt without an exit
0x4b564d05 KVM_POLL_CONTROL host polling before halting
0x4b564d06 KVM_ASYNC_PF_INT vector of asynchronous page faults
0x4b564d07 KVM_ASYNC_PF_ACK acknowledge an asynchronous page fault
0x4b564d08 KVM_MIGRATION_CONTROL the guest allows migration
"""

HYPERV = """
0x40000000 HV_GUEST_OS_ID identity of the guest
0x40000001 HV_HYPERCALL hypercall page
0x40000002 HV_VP_INDEX virtual processor index
0x40000003 HV_RESET reset the partition
0x40000010 HV_VP_RUNTIME run time in 100 ns
0x40000020 HV_TIME_REF_COUNT partition reference counter
0x40000021 HV_REFERENCE_TSC reference TSC page
0x40000022 HV_TSC_FREQUENCY TSC frequency in Hz
0x40000023 HV_APIC_FREQUENCY APIC timer frequency in Hz
0x40000040 HV_NPIEP_CONFIG hide descriptor-table instructions
0x40000070 HV_EOI APIC end of interrupt
0x40000071 HV_ICR APIC interrupt command
0x40000072 HV_TPR APIC task priority
0x40000073 HV_VP_ASSIST_PAGE virtual processor assist page
0x40000080 HV_SCONTROL synthetic interrupt controller enable
0x40000081 HV_SVERSION synthetic interrupt controller version
0x40000082 HV_SIEFP event flags page
0x40000083 HV_SIMP message page
0x40000084 HV_EOM end of message
0x40000090+1*16 HV_SINT{n} synthetic interrupt source
0x400000b0+2*4 HV_STIMER{n}_CONFIG synthetic timer configuration
0x400000b1+2*4 HV_STIMER{n}_COUNT synthetic timer count
0x400000f0 HV_GUEST_IDLE enter idle
0x400000f1 HV_SYNDBG_CONTROL synthetic debugger control
0x400000f2 HV_SYNDBG_STATUS synthetic debugger status
0x400000f3 HV_SYNDBG_SEND_BUFFER synthetic debugger send
0x400000f4 HV_SYNDBG_RECV_BUFFER synthetic debugger receive
0x400000f5 HV_SYNDBG_PENDING_BUFFER synthetic debugger pending page
0x400000ff HV_SYNDBG_OPTIONS synthetic debugger options
0x40000100+1*5 HV_CRASH_P{n} crash parameter
0x40000105 HV_CRASH_CTL crash notification
0x40000106 HV_REENLIGHTENMENT_CONTROL notification of a migration
0x40000107 HV_TSC_EMULATION_CONTROL TSC emulation after a migration
0x40000108 HV_TSC_EMULATION_STATUS TSC emulation in progress
0x40000118 HV_TSC_INVARIANT_CONTROL show the invariant TSC
"""

GROUPS = {
    "intel": INTEL,
    "x2apic": X2APIC,
    "x86-64": X86_64,
    "amd": AMD,
    "kvm": KVM,
    "hyper-v": HYPERV,
}
"""Group name → table."""
