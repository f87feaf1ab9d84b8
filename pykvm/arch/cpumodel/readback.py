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


# Where Linux keeps the words of CPUID (arch/x86/include/asm/cpufeature.h, enum cpuid_leafs). The
# numbers have been the same since 4.x, and work where names do not yet (before 6.0).
_LINUX_WORDS = {
    (0x1, 0, "edx"): 0, (0x80000001, 0, "edx"): 1, (0x1, 0, "ecx"): 4, (0x80000001, 0, "ecx"): 6,
    (0x7, 0, "ebx"): 9, (0xD, 1, "eax"): 10, (0x80000008, 0, "ebx"): 13, (0x6, 0, "eax"): 14,
    (0x7, 0, "ecx"): 16, (0x7, 0, "edx"): 18, (0x80000021, 0, "eax"): 20,
}  # fmt: skip


_ALONE = frozenset({"fsrm", "ssse3", "sse4a"})  # cpuid_deps[] lacks what these depend on


def linux_parameters(hide: Iterable[str]) -> str:
    """A kernel parameter that makes Linux (5.10 and newer) ignore features, or "".

    Linux takes away what depends on a feature itself, so that only the roots are named, and what
    Linux thinks can stand alone: FSRM without ERMS makes its memmove copy without a limit.
    """
    wanted = frozenset(hide)
    known = cpuid.known_features()
    left = frozenset(known) - wanted
    numbers = []
    for name in wanted:
        place = known[name]
        word = _LINUX_WORDS.get((place.function, place.subleaf, place.register))
        if word is not None and (name in _ALONE or name in without_orphans(left | {name})):
            numbers.append(32 * word + place.bit)
    return "clearcpuid=" + ",".join(map(str, sorted(numbers))) if numbers else ""
