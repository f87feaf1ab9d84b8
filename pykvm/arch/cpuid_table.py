"""The names of CPUID feature bits, one word of names (bit 0 first, `-` unnamed) a register.

Sources: SDM vol. 2A CPUID; APM vol. 3 appendix E; Linux's Documentation/virt/kvm/x86/cpuid.rst for
leaf 0x40000001. Where AMD repeats Intel's bits of leaf 1 in 0x80000001 they are left out.
"""

from __future__ import annotations

FEATURE_WORDS: dict[tuple[int, int, str], str] = {
    (0x1, 0, "edx"): """
        fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov
        pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe""",
    (0x1, 0, "ecx"): """
        sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm
        - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline aes xsave osxsave avx f16c
        rdrand hypervisor""",
    (0x6, 0, "eax"): """
        dtherm turbo arat - pln ecmd pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req
        - hdc turbo3 hwp_cap hwp_peci hwp_flex hwp_fast hfi hwp_ignore - - itd""",
    (0x6, 0, "ecx"): "aperfmperf - - epb",
    (0x7, 0, "ebx"): """
        fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm rdt_m
        zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb
        intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl""",
    (0x7, 0, "ecx"): """
        prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq
        avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker
        bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks""",
    (0x7, 0, "edx"): """
        - sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl
        md_clear rtm_always_abort - tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr
        ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d
        arch_capabilities core_capabilities ssbd""",
    (0x7, 1, "eax"): """
        sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs
        fsrc - - - - fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam msrlist - -
        invd_disable_post_bios_done movrs""",
    (0x7, 1, "ebx"): "intel_ppin - - x86s_removed",
    (0x7, 1, "edx"): """
        - - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi
        user_msr - uiret_uif cet_sss avx10 - apx_f""",
    (0x7, 2, "edx"): "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x12, 0, "eax"): "sgx1 sgx2 - - - enclv_virt encls_virt - - - sgx_edeccssa",
    (0x14, 0, "ebx"): "pt_cr3 pt_cycle_accurate pt_ip_filter pt_mtc pt_ptwrite pt_power",
    (0x80000001, 0, "edx"): """
        - - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp
        - lm 3dnowext 3dnow""",
    (0x80000001, 0, "ecx"): """
        lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs
        xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext
        ptsc perfctr_llc mwaitx""",
    (0x80000007, 0, "ebx"): "overflow_recov succor hwa smca",
    (0x80000007, 0, "edx"): """
        ts fid vid ttp amd_tm stc 100mhzsteps hw_pstate invtsc cpb eff_freq_ro proc_feedback
        acc_power""",
    (0x80000008, 0, "ebx"): """
        clzero irperf xsaveerptr invlpgb rdpru - - - mcommit wbnoinvd - - ibpb wbinvd_int ibrs
        stibp ibrs_always_on stibp_always_on ibrs_preferred ibrs_same_mode efer_lmsle_no
        invlpgb_nested - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no ibpb_ret""",
    (0x8000000A, 0, "edx"): """
        npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - -
        pausefilter - pfthreshold avic - v_vmsave_vmload vgif gmet x2avic sss_check v_spec_ctrl
        rogpt - host_mce_override tlbi_ctl vnmi ibs_virt""",
    (0x8000001F, 0, "eax"): """
        sme sev vm_page_flush sev_es sev_snp vmpl rmpquery vmpl_sss secure_tsc v_tsc_aux
        sme_coherent sev_64bit_host restricted_injection alternate_injection debug_swap
        prevent_host_ibs vte""",
    (0x80000021, 0, "eax"): """
        no_nested_data_bp fsgs_non_serializing lfence_rdtsc smm_page_cfg_lock - - null_sel_clr_base
        upper_addr_ignore autoibrs no_smm_ctl_msr fsrs_amd fsrc_amd - prefetch_ctl_msr - - -
        cpuid_user_dis epsf - - - - - - - - sbpb ibpb_brtype srso_no""",
    (0x40000001, 0, "eax"): """
        kvmclock kvm_nopiodelay kvm_mmu_op kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi
        kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control
        kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range
        kvm_migration_control - - - - - - kvmclock_stable""",
    (0x40000001, 0, "edx"): "kvm_hint_dedicated",
}
"""(function, index, register) → names of its bits."""

XSAVE_COMPONENTS = {
    0: "x87",
    1: "sse",
    2: "avx",
    3: "bndregs",
    4: "bndcsr",
    5: "opmask",
    6: "zmm_hi256",
    7: "hi16_zmm",
    8: "pt",
    9: "pkru",
    10: "pasid",
    11: "cet_user",
    12: "cet_supervisor",
    13: "hdc",
    14: "uintr",
    15: "lbr",
    16: "hwp",
    17: "xtilecfg",
    18: "xtiledata",
    19: "apx",
}
"""State component number → name (SDM vol. 1 13.1)."""
