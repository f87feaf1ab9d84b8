"""SVM's consistency checks at VMRUN (APM vol. 2 15.5.1), as far as KVM leaves them open.

EFER.SVME, the ASID, the intercepts and the permission maps are KVM's own and always in order. A
state that fails here gives `KVM_EXIT_FAIL_ENTRY` with VMEXIT_INVALID (all ones) on AMD CPUs.
"""

from __future__ import annotations

from pykvm.arch.bits import CR0, CR4, EFER
from pykvm.arch.limits import CpuLimits
from pykvm.arch.problem import Report
from pykvm.arch.state import CpuState

_SOURCE = "APM vol. 2 15.5.1"
_EFER_SVM = int(
    EFER.SCE
    | EFER.LME
    | EFER.LMA
    | EFER.NXE
    | EFER.SVME
    | EFER.LMSLE
    | EFER.FFXSR
    | EFER.TCE
    | EFER.MCOMMIT
    | EFER.INTWB
    | EFER.UAIE
    | EFER.AIBRSE
)


def check(cpu: CpuState, limits: CpuLimits, report: Report) -> None:
    """Add what VMRUN would refuse and KVM would not."""

    def bad(field: str, value: int, why: str) -> None:
        report.add("svm", field, value, why, _SOURCE)

    cs = cpu.segments["cs"]
    long_mode = cpu.efer & EFER.LME and cpu.cr0 & CR0.PG
    if long_mode and cpu.cr4 & CR4.PAE and cs.l and cs.db:
        bad("cs.db", cs.db, "must be 0 in a 64-bit code segment (CS.L)")
    if cpu.cr4 & CR4.CET and not cpu.cr0 & CR0.WP:
        bad("cr0", cpu.cr0, "CR4.CET needs CR0.WP")
    # In long mode KVM itself refuses this.
    if not long_mode and cpu.cr3 >> limits.maxphyaddr:
        why = f"bits beyond the {limits.maxphyaddr} bits of an address are set"
        bad("cr3", cpu.cr3, why)
    if unknown := cpu.efer & ~_EFER_SVM & limits.efer:
        bad("efer", cpu.efer, f"{EFER(unknown)} must be zero")
