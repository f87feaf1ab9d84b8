"""The named CPU models as sets of feature names."""

from __future__ import annotations

from pykvm.typed import NamedTuple


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# What a 64-bit Linux kernel refuses to start without (its verify_cpu), no-execute, and a clock and
# a timer that need no other hardware.
MINIMAL = _set(
    """
    fpu pse tsc msr pae cx8 apic pge cmov clflush mmx fxsr sse sse2 syscall nx lm hypervisor
    tsc_deadline kvmclock kvmclock2 kvmclock_stable
    """
)

# x86-64-v2 of the psABI, what every 64-bit PC has had beside it for long, and KVM's own
# paravirtual features.
PORTABLE = MINIMAL | _set(
    """
    vme de mce sep mtrr mca pat pse36 sse3 ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm x2apic
    topoext arat tsc_adjust rdtscp umip kvm_nopiodelay kvm_asyncpf kvm_asyncpf_int
    kvm_steal_time kvm_pv_eoi kvm_pv_unhalt kvm_pv_tlb_flush kvm_pv_ipi kvm_poll_control
    kvm_pv_sched_yield
    """
)

AMD_ONLY = frozenset({"topoext"})
INTEL_ONLY = frozenset({"arch_capabilities"})
"""Features of one vendor that KVM announces to guests of both; shown to the other on request."""

# Not in the `host` model unless asked for: what only the host's own performance counters, memory
# encryption or firmware could serve, and what an operating system sets itself.
NOT_SHOWN = _set(
    """
    osxsave ospke pdcm ds dtes64 ds_cpl est tm tm2 pbe ia64 xtpr cid sdbg dca perfctr_core
    perfctr_nb perfctr_llc ptsc arch_perfmon_ext arch_lbr ibs lwp wdt dtherm turbo pln ecmd
    pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req hdc turbo3 hwp_cap hwp_peci
    hwp_flex hwp_fast hfi hwp_ignore itd aperfmperf epb sme sev sev_es sev_snp vm_page_flush
    vmpl rmpquery vmpl_sss secure_tsc v_tsc_aux sme_coherent sev_64bit_host
    restricted_injection alternate_injection debug_swap prevent_host_ibs vte tme sgx_keys
    pconfig rdt_m rdt_a intel_pt ht cmp_legacy nodeid_msr ts fid vid ttp amd_tm stc
    100mhzsteps hw_pstate cpb eff_freq_ro proc_feedback acc_power overflow_recov succor hwa
    smca cppc amd_ppin intel_ppin irperf rdpru tbm mp
    """
)

NEVER = _set(
    """
    osxsave ospke ht cmp_legacy ia64
    """
)
"""Set by the operating system, KVM or the topology; nobody can ask for them."""


class Model(NamedTuple):
    """A named model. `features` None means all that the host's KVM supports."""

    name: str
    summary: str
    features: frozenset[str] | None


MODELS = {
    model.name: model
    for model in (
        Model("host", "everything that this host's KVM supports and completes", None),
        Model("portable", "the same x86-64-v2 CPU on every host, with the host's vendor", PORTABLE),
        Model("minimal", "what a 64-bit Linux kernel needs, and no more", MINIMAL),
    )
}

DEFAULT = "host"
