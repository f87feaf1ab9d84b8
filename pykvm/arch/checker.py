"""Says which part of a vCPU's state KVM or the CPU would refuse, and why.

KVM answers a bad state with a bare EINVAL from KVM_SET_SREGS, or takes it and fails at the next
entry (`KVM_EXIT_FAIL_ENTRY`). `check` runs the same rules and names the field:

- KVM's own, which make the ioctl fail: `kvm_is_valid_sregs()`, `kvm_is_valid_cr0/cr4()`,
  `kvm_apic_set_base()` in arch/x86/kvm;
- the CPU's, which make the entry fail: VMX's guest-state checks (SDM vol. 3C 27.3.1), SVM's
  consistency checks at VMRUN (APM vol. 2 15.5.1).

A state without problems can still crash at its first instruction; it just can be entered.
"""

from __future__ import annotations

from pykvm.arch import check_svm, check_vmx
from pykvm.arch.bits import CR0, CR4, EFER
from pykvm.arch.limits import CpuLimits
from pykvm.arch.problem import Problem, Report
from pykvm.arch.state import SEGMENT_FIELDS, SEGMENT_REGISTERS, CpuState, SegmentState, TableState
from pykvm.typed import Any

__all__ = ["CpuLimits", "Problem", "check", "explain_vcpu"]

_SREGS = "KVM_SET_SREGS, kvm_is_valid_sregs()"
_CR0 = "KVM_SET_SREGS, kvm_is_valid_cr0()"
_CR4 = "KVM_SET_SREGS, __kvm_is_valid_cr4()"
_EFER = "kvm_valid_efer() in newer kernels; else VM entry"
_APIC = "KVM_SET_SREGS, kvm_apic_set_base()"

APIC_BASE_BSP = 1 << 8
APIC_BASE_X2APIC = 1 << 10
APIC_BASE_ENABLE = 1 << 11


def check(
    state: Any,
    *,
    limits: CpuLimits | None = None,
    refusers: tuple[str, ...] = ("kvm", "vmx", "svm"),
    apic_base: int | None = None,
) -> list[Problem]:
    """The problems of a state, KVM's first; an empty list means that it can be entered.

    `state` is a `CpuState`, a vCPU, or a vCPU's `sregs` (RIP and RFLAGS are then not judged).
    `limits` says what the vCPU's CPUID allows, by default whatever any KVM does; `refusers` selects
    the rule sets. The local APIC base is judged when the state has one or `apic_base` is given.
    """
    limits = limits or CpuLimits()
    cpu, base = _normalize(state)
    report = Report()
    if "kvm" in refusers:
        _check_kvm(cpu, limits, report, base if apic_base is None else apic_base)
    if "vmx" in refusers:
        check_vmx.check(cpu, limits, report)
    if "svm" in refusers:
        check_svm.check(cpu, limits, report)
    return report.problems


def explain_vcpu(vcpu: Any) -> str:
    """Why KVM_SET_SREGS refused a vCPU's registers: the problems as one line; "" if none is known.

    The vCPU's CPUID, when it can be read, says which CR4 bits and addresses it has.
    """
    limits = None
    try:
        entries = vcpu.get_cpuid() if hasattr(vcpu, "get_cpuid") else vcpu.cpuid
        limits = CpuLimits.from_cpuid(entries() if callable(entries) else entries)
    except Exception:  # no CPUID to be had: judge by what any KVM allows
        limits = None
    return "; ".join(str(p) for p in check(vcpu.sregs, limits=limits, refusers=("kvm",)))


def _normalize(state: Any) -> tuple[CpuState, int | None]:
    """A `CpuState` and the APIC base, from any of the accepted shapes."""
    if isinstance(state, CpuState):
        return state, None
    sregs = getattr(state, "sregs", state)
    regs = getattr(state, "regs", None)
    cpu = CpuState(
        regs={} if regs is None else {n: int(getattr(regs, n)) for n in ("rip", "rflags")},
        segments={
            name: SegmentState(
                *(int(getattr(getattr(sregs, name), part)) for part in SEGMENT_FIELDS)
            )
            for name in SEGMENT_REGISTERS
        },
        gdt=TableState(int(sregs.gdt.base), int(sregs.gdt.limit)),
        idt=TableState(int(sregs.idt.base), int(sregs.idt.limit)),
        cr0=int(sregs.cr0),
        cr2=int(sregs.cr2),
        cr3=int(sregs.cr3),
        cr4=int(sregs.cr4),
        cr8=int(sregs.cr8),
        efer=int(sregs.efer),
    )
    base = getattr(sregs, "apic_base", None)
    return cpu, None if base is None else int(base)


def _check_kvm(cpu: CpuState, limits: CpuLimits, report: Report, apic_base: int | None) -> None:
    cr0, cr4, efer = cpu.cr0, cpu.cr4, cpu.efer

    def bad(field: str, value: int, why: str, source: str) -> None:
        report.add("kvm", field, value, why, source)

    if efer & EFER.LME and cr0 & CR0.PG:
        if not cr4 & CR4.PAE:
            bad("cr4", cr4, "long mode (EFER.LME with CR0.PG) needs CR4.PAE", _SREGS)
        if not efer & EFER.LMA:
            bad("efer", efer, "EFER.LME with CR0.PG is long mode: EFER.LMA must be set", _SREGS)
        control = (3 << 61) if limits.lam else 0
        if reserved := cpu.cr3 & ~control & ~((1 << limits.maxphyaddr) - 1):
            why = f"bits {reserved:#x} lie beyond the {limits.maxphyaddr} bits of an address"
            bad("cr3", cpu.cr3, why, "KVM_SET_SREGS, kvm_vcpu_is_legal_cr3()")
    else:
        missing = "EFER.LME" if cr0 & CR0.PG else "CR0.PG"
        if efer & EFER.LMA:
            bad("efer", efer, f"EFER.LMA is set without {missing}", _SREGS)
        if cpu.segments["cs"].l:
            why = f"a 64-bit code segment needs long mode, and {missing} is clear"
            bad("cs.l", cpu.segments["cs"].l, why, _SREGS)

    if unknown := cr4 & ~limits.cr4:
        why = f"{CR4(unknown)} is reserved, or the vCPU's CPUID does not have it"
        bad("cr4", cr4, why, _CR4)
    if cr0 >> 32:
        bad("cr0", cr0, "bits 63:32 are reserved", _CR0)
    if cr0 & CR0.NW and not cr0 & CR0.CD:
        bad("cr0", cr0, "NW is set without CD", _CR0)
    if cr0 & CR0.PG and not cr0 & CR0.PE:
        bad("cr0", cr0, "PG is set without PE: paging needs protected mode", _CR0)
    if unknown := efer & ~limits.efer:
        bad("efer", efer, f"{EFER(unknown)} is reserved, or the CPU does not have it", _EFER)
    if apic_base is not None:
        _check_apic_base(apic_base, limits, report)


def _check_apic_base(base: int, limits: CpuLimits, report: Report) -> None:
    def bad(why: str) -> None:
        report.add("kvm", "apic_base", base, why, _APIC)

    if reserved := base & (0x2FF | ~((1 << limits.maxphyaddr) - 1)):
        bad(f"bits {reserved:#x} are reserved")
    if base & APIC_BASE_X2APIC:
        if not limits.x2apic:
            bad("x2APIC mode (bit 10) is not in the vCPU's CPUID")
        if not base & APIC_BASE_ENABLE:
            bad("x2APIC mode (bit 10) needs the APIC enabled (bit 11)")
