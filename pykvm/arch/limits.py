"""What a virtual CPU allows: the facts that decide whether a state is refused."""

from __future__ import annotations

from collections.abc import Iterable

from pykvm.arch.bits import CR4, EFER
from pykvm.arch.cpuid import CpuidLeaf, features, physical_bits
from pykvm.typed import NamedTuple

# Bits that KVM takes without asking CPUID, and those that it ties to a feature
# (__cr4_reserved_bits() in arch/x86/kvm/x86.h). What is in neither, KVM always refuses.
CR4_ALWAYS = int(
    CR4.VME
    | CR4.PVI
    | CR4.TSD
    | CR4.DE
    | CR4.PSE
    | CR4.PAE
    | CR4.MCE
    | CR4.PGE
    | CR4.PCE
    | CR4.OSFXSR
    | CR4.OSXMMEXCPT
)
CR4_BY_FEATURE: dict[CR4, tuple[str, ...]] = {
    CR4.UMIP: ("umip",),
    CR4.LA57: ("la57",),
    CR4.VMXE: ("vmx",),
    CR4.FSGSBASE: ("fsgsbase",),
    CR4.PCIDE: ("pcid",),
    CR4.OSXSAVE: ("xsave",),
    CR4.SMEP: ("smep",),
    CR4.SMAP: ("smap",),
    CR4.PKE: ("pku",),
    CR4.CET: ("shstk", "ibt"),
    CR4.LAM_SUP: ("lam",),
    CR4.FRED: ("fred",),
    CR4.LASS: ("lass",),
}
_EFER_BY_FEATURE = {
    EFER.SVME: "svm",
    EFER.FFXSR: "fxsr_opt",
    EFER.AIBRSE: "autoibrs",
    EFER.NXE: "nx",
    EFER.LME: "lm",
    EFER.LMA: "lm",
    EFER.TCE: "tce",
}


def _all_cr4() -> int:
    bits = CR4_ALWAYS
    for bit in CR4_BY_FEATURE:
        bits |= int(bit)
    return bits


def _all_efer() -> int:
    bits = int(EFER.SCE | EFER.LMSLE)
    for bit in _EFER_BY_FEATURE:
        bits |= int(bit)
    return bits


class CpuLimits(NamedTuple):
    """What the vCPU's CPUID allows. The defaults allow all that any KVM does.

    `maxphyaddr`: bits of a guest-physical address; `cr4`, `efer`: the bits that may be set;
    `x2apic`, `lam`: the features; `unrestricted_guest`: VMX runs real mode itself (all Intel CPUs
    since 2010), which loosens its segment checks.
    """

    maxphyaddr: int = 52
    cr4: int = _all_cr4()
    efer: int = _all_efer()
    x2apic: bool = True
    lam: bool = True
    unrestricted_guest: bool = True

    @classmethod
    def from_cpuid(cls, entries: Iterable[CpuidLeaf]) -> CpuLimits:
        """The limits that KVM derives from a vCPU's CPUID entries.

        Without any entry these are a bare CPU's: 36-bit addresses, no optional CR4 bit. (KVM then
        takes, for CR4 alone, whatever the host has; nothing here says what that is.)
        The EFER bits that need a feature on the host rather than in CPUID are taken as allowed.
        """
        table = list(entries)
        names = features(table)
        cr4 = CR4_ALWAYS
        for bit, wanted in CR4_BY_FEATURE.items():
            if names.intersection(wanted):
                cr4 |= int(bit)
        return cls(
            maxphyaddr=physical_bits(table),
            cr4=cr4,
            x2apic="x2apic" in names,
            lam="lam" in names,
        )
