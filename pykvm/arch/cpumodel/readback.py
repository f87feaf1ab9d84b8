"""Features that a host shows although the model hides them, and how Linux is told to ignore them.

A KVM in software cannot intercept what ring 3 does, and then announces to the kernel, too, what
ring 3 will find. KVM_GET_CPUID2 tells.
"""

from __future__ import annotations

from collections.abc import Iterable

from pykvm.arch import cpuid
from pykvm.arch.cpumodel.depends import without_orphans
from pykvm.arch.cpumodel.models import NEVER
from pykvm.arch.cpumodel.spec import CpuModel


def forced(model: CpuModel, readback: Iterable[cpuid.CpuidLeaf]) -> frozenset[str]:
    """Features that a vCPU announces beside the model's. `readback`: KVM_GET_CPUID2 of the vCPU."""
    return cpuid.features(readback) - model.features - NEVER


# Linux's own names where they differ (arch/x86/include/asm/cpufeatures.h).
_LINUX_NAMES = {"sse3": "pni"}


def linux_parameters(hide: Iterable[str]) -> str:
    """Kernel parameters that make Linux (6.0 and newer) ignore features, or "".

    Linux takes away what depends on a feature itself, so that only the roots are named.
    """
    wanted = frozenset(hide)
    known = frozenset(cpuid.known_features())
    words = []
    if "xsave" in wanted:
        words.append("noxsave")
        wanted &= without_orphans(known - {"xsave"})
    roots = sorted(f for f in wanted if f in without_orphans(known - wanted | {f}))
    if roots:
        words.append("clearcpuid=" + ",".join(_LINUX_NAMES.get(f, f) for f in roots))
    return " ".join(words)
