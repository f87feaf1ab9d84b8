"""Which CPUID features make no sense without which others.

Sources: SDM vol. 1 13 to 15 (state components, AVX-512 groups), vol. 2A CPUID; APM vol. 3 appendix
D and E; the rules are those that operating systems apply too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

# "feature ...: what each of them needs"
_RULES = """
fxsr mmx: fpu
sse fxsr_opt: fxsr
mmxext 3dnow: mmx
3dnowext: 3dnow
sse2 misalignsse: sse
sse3 sse4_1 pclmulqdq aes sha_ni gfni lm: sse2
ssse3 sse4a: sse3
sse4_2: sse4_1
xsave: fxsr
xsaveopt xsavec xgetbv1 xsaves avx mpx pku lwp apx_f: xsave
enqcmd shstk ibt uintr: xsaves
xfd: xsaves xgetbv1
amx_tile: xfd
amx_bf16 amx_int8 amx_fp16 amx_complex: amx_tile
f16c fma fma4 xop vaes vpclmulqdq avx2: avx
vaes: aes
vpclmulqdq: pclmulqdq
avx_vnni avx_ifma avx_vnni_int8 avx_vnni_int16 avx_ne_convert sha512 sm3 sm4 avx10: avx2
avx512f: avx2 fma f16c
avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl: avx512f
avx512_4vnniw avx512_4fmaps avx512_vpopcntdq: avx512f
avx512vbmi avx512_vbmi2 avx512_bitalg avx512_fp16: avx512bw
avx512_vnni avx512_bf16 avx512_vp2intersect: avx512vl
lm: pae msr
syscall pdpe1gb pcid la57 cx16 lam lass fred lahf_lm: lm
pks: pku
invpcid: pcid
fred: lkgs
tsc_deadline: tsc apic
x2apic extapic: apic
invtsc rdtscp tsc_adjust: tsc
mca: mce
fsrm: erms
sgx_lc sgx1 sgx2 sgx_keys enclv_virt encls_virt sgx_edeccssa: sgx
pt_cr3 pt_cycle_accurate pt_ip_filter pt_mtc pt_ptwrite pt_power: intel_pt
smx: vmx
skinit: svm
npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter: svm
pfthreshold avic v_vmsave_vmload vgif gmet x2avic sss_check v_spec_ctrl rogpt tlbi_ctl vnmi: svm
host_mce_override ibs_virt: svm
kvmclock kvmclock2 kvm_nopiodelay kvm_mmu_op kvm_asyncpf kvm_steal_time kvm_pv_eoi: hypervisor
kvm_pv_unhalt kvm_pv_tlb_flush kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield: hypervisor
kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control kvm_hint_dedicated: hypervisor
kvmclock_stable: kvmclock2
kvm_asyncpf_vmexit kvm_asyncpf_int: kvm_asyncpf
kvm_pv_tlb_flush: kvm_steal_time
kvm_pv_eoi kvm_pv_unhalt kvm_pv_ipi kvm_msi_ext_dest_id kvm_asyncpf_int: apic
"""


@cache
def requirements() -> dict[str, frozenset[str]]:
    """Feature → the features that it needs directly."""
    table: dict[str, set[str]] = {}
    for line in _RULES.strip().splitlines():
        dependents, _, needed = line.partition(":")
        for dependent in dependents.split():
            table.setdefault(dependent, set()).update(needed.split())
    return {feature: frozenset(needed) for feature, needed in table.items()}


def needed_by(feature: str) -> frozenset[str]:
    """All that a feature needs, directly or through others, without itself."""
    table = requirements()
    found: set[str] = set()
    waiting = [feature]
    while waiting:
        fresh = table.get(waiting.pop(), frozenset()) - found
        found |= fresh
        waiting += fresh
    return frozenset(found)


def without_orphans(features: Iterable[str]) -> frozenset[str]:
    """The features whose needs are all among them."""
    table = requirements()
    left = set(features)
    while orphans := {f for f in left if not table.get(f, frozenset()) <= left}:
        left -= orphans
    return frozenset(left)
