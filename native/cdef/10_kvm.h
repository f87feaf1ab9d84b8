/* The x86 structures of <linux/kvm.h> (native/include/kvm_compat.h adds the newer ones). The
 * compiler supplies offsets and sizes: where a structure ends in `...;` it has members that pykvm
 * does not name. Each comment names the ioctl that takes the structure. */

typedef int16_t __s16;
extern const struct pykvm_constant pykvm_structs[]; /* name -> sizeof */

/* --- registers --------------------------------------------------------------------------- */
struct kvm_regs { /* KVM_GET_REGS, KVM_SET_REGS, sync regs */
    __u64 rax, rbx, rcx, rdx;
    __u64 rsi, rdi, rsp, rbp;
    __u64 r8, r9, r10, r11;
    __u64 r12, r13, r14, r15;
    __u64 rip, rflags;
};

struct kvm_segment {
    __u64 base;
    __u32 limit;
    __u16 selector;
    __u8 type;
    __u8 present, dpl, db, s, l, g, avl;
    __u8 unusable;
    __u8 padding;
};

struct kvm_dtable { __u64 base; __u16 limit; __u16 padding[3]; };

struct kvm_sregs { /* KVM_GET_SREGS, KVM_SET_SREGS, sync regs */
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 interrupt_bitmap[4];
};

struct kvm_sregs2 { /* KVM_GET_SREGS2, KVM_SET_SREGS2 */
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    __u64 cr0, cr2, cr3, cr4, cr8;
    __u64 efer;
    __u64 apic_base;
    __u64 flags;
    __u64 pdptrs[4];
};

struct kvm_fpu { /* KVM_GET_FPU, KVM_SET_FPU */
    __u8 fpr[8][16];
    __u16 fcw;
    __u16 fsw;
    __u8 ftwx;
    __u8 pad1;
    __u16 last_opcode;
    __u64 last_ip;
    __u64 last_dp;
    __u8 xmm[16][16];
    __u32 mxcsr;
    __u32 pad2;
};

struct kvm_xsave { __u32 region[1024]; ...; }; /* KVM_GET_XSAVE, KVM_GET_XSAVE2, KVM_SET_XSAVE */
struct kvm_xcr { __u32 xcr; __u32 reserved; __u64 value; };
struct kvm_xcrs { __u32 nr_xcrs; __u32 flags; struct kvm_xcr xcrs[16]; __u64 padding[16]; };

struct kvm_msr_entry { __u32 index; __u32 reserved; __u64 data; };
struct kvm_msrs { __u32 nmsrs; __u32 pad; struct kvm_msr_entry entries[]; };
struct kvm_msr_list { __u32 nmsrs; __u32 indices[]; };
struct kvm_msr_filter_range { __u32 flags; __u32 nmsrs; __u32 base; __u8 *bitmap; };
struct kvm_msr_filter { __u32 flags; struct kvm_msr_filter_range ranges[16]; };

struct kvm_cpuid_entry2 {
    __u32 function;
    __u32 index;
    __u32 flags;
    __u32 eax, ebx, ecx, edx;
    __u32 padding[3];
};
struct kvm_cpuid2 { __u32 nent; __u32 padding; struct kvm_cpuid_entry2 entries[]; };

struct kvm_vcpu_events { /* KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sync regs */
    struct { __u8 injected; __u8 nr; __u8 has_error_code; __u8 pending; __u32 error_code; } exception;
    struct { __u8 injected; __u8 nr; __u8 soft; __u8 shadow; } interrupt;
    struct { __u8 injected; __u8 pending; __u8 masked; __u8 pad; } nmi;
    __u32 sipi_vector;
    __u32 flags;
    struct { __u8 smm; __u8 pending; __u8 smm_inside_nmi; __u8 latched_init; } smi;
    struct { __u8 pending; } triple_fault;
    __u8 reserved[26];
    __u8 exception_has_payload;
    __u64 exception_payload;
};

struct kvm_debugregs { __u64 db[4]; __u64 dr6; __u64 dr7; __u64 flags; __u64 reserved[9]; };
struct kvm_guest_debug_arch { __u64 debugreg[8]; };
struct kvm_guest_debug { __u32 control; __u32 pad; struct kvm_guest_debug_arch arch; };
struct kvm_lapic_state { char regs[0x400]; };
struct kvm_mp_state { __u32 mp_state; };
struct kvm_interrupt { __u32 irq; };
struct kvm_translation {
    __u64 linear_address;
    __u64 physical_address;
    __u8 valid;
    __u8 writeable;
    __u8 usermode;
    __u8 pad[5];
};
struct kvm_signal_mask { __u32 len; __u8 sigset[]; };
struct kvm_nested_state { __u16 flags; __u16 format; __u32 size; ...; };
struct kvm_tpr_access_ctl { __u32 enabled; __u32 flags; __u32 reserved[8]; };
struct kvm_vapic_addr { __u64 vapic_addr; };
struct kvm_x86_mce { __u64 status; __u64 addr; __u64 misc; __u64 mcg_status; __u8 bank; ...; };
struct kvm_one_reg { __u64 id; __u64 addr; };
struct kvm_reg_list { __u64 n; __u64 reg[]; };

/* --- memory ------------------------------------------------------------------------------ */
struct kvm_userspace_memory_region {
    __u32 slot;
    __u32 flags;
    __u64 guest_phys_addr;
    __u64 memory_size;
    __u64 userspace_addr;
};
struct kvm_userspace_memory_region2 {
    __u32 slot;
    __u32 flags;
    __u64 guest_phys_addr;
    __u64 memory_size;
    __u64 userspace_addr;
    __u64 guest_memfd_offset;
    __u32 guest_memfd;
    __u32 pad1;
    __u64 pad2[14];
};
struct kvm_create_guest_memfd { __u64 size; __u64 flags; __u64 reserved[6]; };
struct kvm_memory_attributes { __u64 address; __u64 size; __u64 attributes; __u64 flags; };
struct kvm_pre_fault_memory { __u64 gpa; __u64 size; __u64 flags; __u64 padding[5]; };
struct kvm_dirty_log {
    __u32 slot;
    __u32 padding1;
    union { void *dirty_bitmap; __u64 padding2; };
};
struct kvm_clear_dirty_log {
    __u32 slot;
    __u32 num_pages;
    __u64 first_page;
    union { void *dirty_bitmap; __u64 padding2; };
};
struct kvm_dirty_gfn { __u32 flags; __u32 slot; __u64 offset; };
struct kvm_enc_region { __u64 addr; __u64 size; };

/* --- interrupts, events, timers ---------------------------------------------------------- */
struct kvm_irq_level { union { __u32 irq; __s32 status; }; __u32 level; };
struct kvm_pic_state {
    __u8 last_irr;
    __u8 irr;
    __u8 imr;
    __u8 isr;
    __u8 priority_add;
    __u8 irq_base;
    __u8 read_reg_select;
    __u8 poll;
    __u8 special_mask;
    __u8 init_state;
    __u8 auto_eoi;
    __u8 rotate_on_auto_eoi;
    __u8 special_fully_nested_mode;
    __u8 init4;
    __u8 elcr;
    __u8 elcr_mask;
};
struct kvm_ioapic_state {
    __u64 base_address;
    __u32 ioregsel;
    __u32 id;
    __u32 irr;
    __u32 pad;
    union { __u64 bits; } redirtbl[24];
};
struct kvm_irqchip {
    __u32 chip_id;
    __u32 pad;
    union { char dummy[512]; struct kvm_pic_state pic; struct kvm_ioapic_state ioapic; } chip;
};
struct kvm_pit_config { __u32 flags; __u32 pad[15]; };
struct kvm_pit_channel_state {
    __u32 count;
    __u16 latched_count;
    __u8 count_latched;
    __u8 status_latched;
    __u8 status;
    __u8 read_state;
    __u8 write_state;
    __u8 write_latch;
    __u8 rw_mode;
    __u8 mode;
    __u8 bcd;
    __u8 gate;
    __s64 count_load_time;
};
struct kvm_pit_state2 { struct kvm_pit_channel_state channels[3]; __u32 flags; __u32 reserved[9]; };
struct kvm_reinject_control { __u8 pit_reinject; __u8 reserved[31]; };
struct kvm_irq_routing_irqchip { __u32 irqchip; __u32 pin; };
struct kvm_irq_routing_msi {
    __u32 address_lo;
    __u32 address_hi;
    __u32 data;
    union { __u32 pad; __u32 devid; };
};
struct kvm_irq_routing_s390_adapter {
    __u64 ind_addr;
    __u64 summary_addr;
    __u64 ind_offset;
    __u32 summary_offset;
    __u32 adapter_id;
};
struct kvm_irq_routing_hv_sint { __u32 vcpu; __u32 sint; };
struct kvm_irq_routing_xen_evtchn { __u32 port; __u32 vcpu; __u32 priority; };
struct kvm_irq_routing_entry {
    __u32 gsi;
    __u32 type;
    __u32 flags;
    __u32 pad;
    union {
        struct kvm_irq_routing_irqchip irqchip;
        struct kvm_irq_routing_msi msi;
        struct kvm_irq_routing_s390_adapter adapter;
        struct kvm_irq_routing_hv_sint hv_sint;
        struct kvm_irq_routing_xen_evtchn xen_evtchn;
        __u32 pad[8];
    } u;
};
struct kvm_irq_routing { __u32 nr; __u32 flags; struct kvm_irq_routing_entry entries[]; };
struct kvm_msi { __u32 address_lo; __u32 address_hi; __u32 data; __u32 flags; __u32 devid; __u8 pad[12]; };
struct kvm_irqfd { __u32 fd; __u32 gsi; __u32 flags; __u32 resamplefd; __u8 pad[16]; };
struct kvm_ioeventfd { __u64 datamatch; __u64 addr; __u32 len; __s32 fd; __u32 flags; __u8 pad[36]; };
struct kvm_clock_data {
    __u64 clock;
    __u32 flags;
    __u32 pad0;
    __u64 realtime;
    __u64 host_tsc;
    __u32 pad[4];
};
struct kvm_coalesced_mmio_zone { __u64 addr; __u32 size; union { __u32 pad; __u32 pio; }; };
struct kvm_coalesced_mmio { __u64 phys_addr; __u32 len; union { __u32 pad; __u32 pio; }; __u8 data[8]; };
struct kvm_coalesced_mmio_ring { __u32 first, last; struct kvm_coalesced_mmio coalesced_mmio[]; };

/* --- capabilities, devices, statistics --------------------------------------------------- */
struct kvm_enable_cap { __u32 cap; __u32 flags; __u64 args[4]; __u8 pad[64]; };
struct kvm_create_device { __u32 type; __u32 fd; __u32 flags; };
struct kvm_device_attr { __u32 flags; __u32 group; __u64 attr; __u64 addr; };
struct kvm_pmu_event_filter {
    __u32 action;
    __u32 nevents;
    __u32 fixed_counter_bitmap;
    __u32 flags;
    __u32 pad[4];
    __u64 events[];
};
struct kvm_hyperv_eventfd { __u32 conn_id; __s32 fd; __u32 flags; __u32 padding[3]; };
struct kvm_xen_hvm_config {
    __u32 flags;
    __u32 msr;
    __u64 blob_addr_32;
    __u64 blob_addr_64;
    __u8 blob_size_32;
    __u8 blob_size_64;
    __u8 pad2[30];
};
struct kvm_stats_header {
    __u32 flags;
    __u32 name_size;
    __u32 num_desc;
    __u32 id_offset;
    __u32 desc_offset;
    __u32 data_offset;
};
struct kvm_stats_desc {
    __u32 flags;
    __s16 exponent;
    __u16 size;
    __u32 offset;
    __u32 bucket_size;
    char name[];
};

/* --- kvm_run: what a vCPU shares with user space ------------------------------------------ */
struct kvm_debug_exit_arch { __u32 exception; __u32 pad; __u64 pc; __u64 dr6; __u64 dr7; };
struct kvm_hyperv_exit {
    __u32 type;
    __u32 pad1;
    union {
        struct { __u32 msr; __u32 pad2; __u64 control; __u64 evt_page; __u64 msg_page; } synic;
        struct { __u64 input; __u64 result; __u64 params[2]; } hcall;
        struct {
            __u32 msr;
            __u32 pad2;
            __u64 control;
            __u64 status;
            __u64 send_page;
            __u64 recv_page;
            __u64 pending_page;
        } syndbg;
    } u;
};
struct kvm_xen_exit {
    __u32 type;
    union {
        struct {
            __u32 longmode;
            __u32 cpl;
            __u64 input;
            __u64 result;
            __u64 params[6];
        } hcall;
    } u;
};
struct kvm_sync_regs {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
};

struct kvm_run {
    __u8 request_interrupt_window;
    __u8 immediate_exit;
    __u8 padding1[6];
    __u32 exit_reason;
    __u8 ready_for_interrupt_injection;
    __u8 if_flag;
    __u16 flags;
    __u64 cr8;
    __u64 apic_base;
    union {
        struct { __u64 hardware_exit_reason; } hw;                          /* UNKNOWN */
        struct { __u64 hardware_entry_failure_reason; __u32 cpu; } fail_entry;
        struct { __u32 exception; __u32 error_code; } ex;                   /* EXCEPTION */
        struct { __u8 direction; __u8 size; __u16 port; __u32 count; __u64 data_offset; } io;
        struct { struct kvm_debug_exit_arch arch; } debug;
        struct { __u64 phys_addr; __u8 data[8]; __u32 len; __u8 is_write; } mmio;
        struct { __u64 nr; __u64 args[6]; __u64 ret; __u32 longmode; __u32 pad; } hypercall;
        struct { __u64 rip; __u32 is_write; __u32 pad; } tpr_access;
        struct { __u32 dcrn; __u32 data; __u8 is_write; } dcr;
        struct { __u32 suberror; __u32 ndata; __u64 data[16]; } internal;
        struct {
            __u32 suberror;
            __u32 ndata;
            __u64 flags;
            __u8 insn_size;
            __u8 insn_bytes[15];
        } emulation_failure;                                                /* INTERNAL_ERROR */
        struct { __u32 type; __u32 ndata; __u64 data[16]; } system_event;
        struct { __u8 vector; } eoi;                                        /* IOAPIC_EOI */
        struct kvm_hyperv_exit hyperv;
        struct { __u8 error; __u8 pad[7]; __u32 reason; __u32 index; __u64 data; } msr;
        struct kvm_xen_exit xen;
        struct { __u32 flags; } notify;
        char padding[256];
    };
    __u64 kvm_valid_regs;
    __u64 kvm_dirty_regs;
    union { struct kvm_sync_regs regs; char padding[2048]; } s;
    ...;
};

/* Exit data that the oldest supported header lacks:
 *   extra = ffi.cast("union pykvm_exit_extra *", ffi.addressof(run, "padding"))
 * then extra.memory_fault.gpa and so on (pykvm.kvm.constants.exit_extra does the cast). */
union pykvm_exit_extra {
    struct { __u64 flags; __u64 gpa; __u64 size; } memory_fault;
    struct { __u64 flags; __u64 nr; __u64 ret; __u64 data[5]; } tdx;
    struct { __u64 nr; __u64 args[6]; __u64 ret; __u64 flags; } hypercall;
    __u8 raw[256];
};

/* --- constants --------------------------------------------------------------------------- */
#define KVM_API_VERSION ...
#define KVM_PIO_PAGE_OFFSET ...
#define KVM_COALESCED_MMIO_PAGE_OFFSET ...
#define KVM_DIRTY_LOG_PAGE_OFFSET ...
#define KVM_MSR_FILTER_MAX_RANGES ...
#define KVM_MSR_FILTER_MAX_BITMAP_SIZE ...
#define KVM_IOAPIC_NUM_PINS ...

#define KVM_EXIT_IO_IN ...
#define KVM_EXIT_IO_OUT ...
#define KVM_EXIT_HYPERV_SYNIC ...
#define KVM_EXIT_HYPERV_HCALL ...
#define KVM_EXIT_HYPERV_SYNDBG ...
#define KVM_EXIT_XEN_HCALL ...
#define KVM_EXIT_HYPERCALL_LONG_MODE ...
#define KVM_INTERNAL_ERROR_EMULATION ...
#define KVM_INTERNAL_ERROR_SIMUL_EX ...
#define KVM_INTERNAL_ERROR_DELIVERY_EV ...
#define KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON ...
#define KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES ...
#define KVM_SYSTEM_EVENT_SHUTDOWN ...
#define KVM_SYSTEM_EVENT_RESET ...
#define KVM_SYSTEM_EVENT_CRASH ...
#define KVM_SYSTEM_EVENT_WAKEUP ...
#define KVM_SYSTEM_EVENT_SUSPEND ...
#define KVM_SYSTEM_EVENT_SEV_TERM ...
#define KVM_SYSTEM_EVENT_TDX_FATAL ...
#define KVM_MSR_EXIT_REASON_INVAL ...
#define KVM_MSR_EXIT_REASON_UNKNOWN ...
#define KVM_MSR_EXIT_REASON_FILTER ...
#define KVM_NOTIFY_CONTEXT_INVALID ...
#define KVM_MEMORY_EXIT_FLAG_PRIVATE ...
#define KVM_RUN_X86_SMM ...
#define KVM_RUN_X86_BUS_LOCK ...
#define KVM_RUN_X86_GUEST_MODE ...
#define KVM_SYNC_X86_REGS ...
#define KVM_SYNC_X86_SREGS ...
#define KVM_SYNC_X86_EVENTS ...
#define KVM_SYNC_X86_VALID_FIELDS ...

#define KVM_MEM_LOG_DIRTY_PAGES ...
#define KVM_MEM_READONLY ...
#define KVM_MEM_GUEST_MEMFD ...
#define KVM_MEMORY_ATTRIBUTE_PRIVATE ...
#define GUEST_MEMFD_FLAG_MMAP ...
#define GUEST_MEMFD_FLAG_INIT_SHARED ...
#define KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE ...
#define KVM_DIRTY_LOG_INITIALLY_SET ...
#define KVM_DIRTY_GFN_F_DIRTY ...
#define KVM_DIRTY_GFN_F_RESET ...

#define KVM_IRQCHIP_PIC_MASTER ...
#define KVM_IRQCHIP_PIC_SLAVE ...
#define KVM_IRQCHIP_IOAPIC ...
#define KVM_PIT_SPEAKER_DUMMY ...
#define KVM_PIT_FLAGS_HPET_LEGACY ...
#define KVM_PIT_FLAGS_SPEAKER_DATA_ON ...
#define KVM_IRQ_ROUTING_IRQCHIP ...
#define KVM_IRQ_ROUTING_MSI ...
#define KVM_IRQ_ROUTING_HV_SINT ...
#define KVM_IRQ_ROUTING_XEN_EVTCHN ...
#define KVM_MSI_VALID_DEVID ...
#define KVM_IRQFD_FLAG_DEASSIGN ...
#define KVM_IRQFD_FLAG_RESAMPLE ...
#define KVM_IOEVENTFD_FLAG_DATAMATCH ...
#define KVM_IOEVENTFD_FLAG_PIO ...
#define KVM_IOEVENTFD_FLAG_DEASSIGN ...
#define KVM_CLOCK_TSC_STABLE ...
#define KVM_CLOCK_REALTIME ...
#define KVM_CLOCK_HOST_TSC ...

#define KVM_MSR_FILTER_READ ...
#define KVM_MSR_FILTER_WRITE ...
#define KVM_MSR_FILTER_DEFAULT_ALLOW ...
#define KVM_MSR_FILTER_DEFAULT_DENY ...
#define KVM_CPUID_FLAG_SIGNIFCANT_INDEX ...
#define KVM_CPUID_FLAG_STATEFUL_FUNC ...
#define KVM_CPUID_FLAG_STATE_READ_NEXT ...
#define KVM_GUESTDBG_ENABLE ...
#define KVM_GUESTDBG_SINGLESTEP ...
#define KVM_GUESTDBG_USE_SW_BP ...
#define KVM_GUESTDBG_USE_HW_BP ...
#define KVM_GUESTDBG_INJECT_DB ...
#define KVM_GUESTDBG_INJECT_BP ...
#define KVM_GUESTDBG_BLOCKIRQ ...
#define KVM_VCPUEVENT_VALID_NMI_PENDING ...
#define KVM_VCPUEVENT_VALID_SIPI_VECTOR ...
#define KVM_VCPUEVENT_VALID_SHADOW ...
#define KVM_VCPUEVENT_VALID_SMM ...
#define KVM_VCPUEVENT_VALID_PAYLOAD ...
#define KVM_VCPUEVENT_VALID_TRIPLE_FAULT ...
#define KVM_X86_SHADOW_INT_MOV_SS ...
#define KVM_X86_SHADOW_INT_STI ...
#define KVM_MP_STATE_RUNNABLE ...
#define KVM_MP_STATE_UNINITIALIZED ...
#define KVM_MP_STATE_INIT_RECEIVED ...
#define KVM_MP_STATE_HALTED ...
#define KVM_MP_STATE_SIPI_RECEIVED ...
#define KVM_SREGS2_FLAGS_PDPTRS_VALID ...
#define KVM_STATE_NESTED_FORMAT_VMX ...
#define KVM_STATE_NESTED_FORMAT_SVM ...
#define KVM_VCPU_TSC_CTRL ...
#define KVM_VCPU_TSC_OFFSET ...
#define KVM_X86_XCOMP_GUEST_SUPP ...
#define KVM_REG_X86 ...
#define KVM_REG_SIZE_U64 ...
#define KVM_X86_REG_TYPE_MSR ...
#define KVM_X86_REG_TYPE_KVM ...
#define KVM_REG_GUEST_SSP ...

#define KVM_X86_DEFAULT_VM ...
#define KVM_X86_SW_PROTECTED_VM ...
#define KVM_X86_SEV_VM ...
#define KVM_X86_SEV_ES_VM ...
#define KVM_X86_SNP_VM ...
#define KVM_X86_TDX_VM ...
#define KVM_X86_DISABLE_EXITS_MWAIT ...
#define KVM_X86_DISABLE_EXITS_HLT ...
#define KVM_X86_DISABLE_EXITS_PAUSE ...
#define KVM_X86_DISABLE_EXITS_CSTATE ...
#define KVM_X86_DISABLE_EXITS_APERFMPERF ...
#define KVM_BUS_LOCK_DETECTION_OFF ...
#define KVM_BUS_LOCK_DETECTION_EXIT ...
#define KVM_X86_NOTIFY_VMEXIT_ENABLED ...
#define KVM_X86_NOTIFY_VMEXIT_USER ...
#define KVM_X2APIC_API_USE_32BIT_IDS ...
#define KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK ...
#define KVM_PMU_CAP_DISABLE ...
#define KVM_PMU_EVENT_ALLOW ...
#define KVM_PMU_EVENT_DENY ...
#define KVM_PMU_EVENT_FLAG_MASKED_EVENTS ...
#define KVM_CREATE_DEVICE_TEST ...
#define KVM_DEV_TYPE_VFIO ...
#define KVM_DEV_VFIO_GROUP ...
#define KVM_DEV_VFIO_GROUP_ADD ...
#define KVM_DEV_VFIO_GROUP_DEL ...
#define KVM_X86_QUIRK_LINT0_REENABLED ...
#define KVM_X86_QUIRK_CD_NW_CLEARED ...
#define KVM_X86_QUIRK_LAPIC_MMIO_HOLE ...
#define KVM_X86_QUIRK_OUT_7E_INC_RIP ...
#define KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT ...
#define KVM_X86_QUIRK_FIX_HYPERCALL_INSN ...
#define KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS ...
#define KVM_X86_QUIRK_SLOT_ZAP_ALL ...
#define KVM_X86_QUIRK_STUFF_FEATURE_MSRS ...
#define KVM_X86_QUIRK_IGNORE_GUEST_PAT ...
#define KVM_STATS_TYPE_MASK ...
#define KVM_STATS_TYPE_CUMULATIVE ...
#define KVM_STATS_TYPE_INSTANT ...
#define KVM_STATS_TYPE_PEAK ...
#define KVM_STATS_TYPE_LINEAR_HIST ...
#define KVM_STATS_TYPE_LOG_HIST ...
#define KVM_STATS_UNIT_MASK ...
#define KVM_STATS_UNIT_NONE ...
#define KVM_STATS_UNIT_BYTES ...
#define KVM_STATS_UNIT_SECONDS ...
#define KVM_STATS_UNIT_CYCLES ...
#define KVM_STATS_UNIT_BOOLEAN ...
#define KVM_STATS_BASE_MASK ...
#define KVM_STATS_BASE_POW10 ...
#define KVM_STATS_BASE_POW2 ...
