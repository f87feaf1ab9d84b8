"""Leaf 0xD: the XSAVE state components that go with the features shown (SDM vol. 1 ch. 13)."""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.arch.cpuid import CpuidLeaf
from pykvm.arch.cpuid_table import FEATURE_WORDS
from pykvm.arch.cpumodel.caches import INDEXED, Leaf

X87_SSE = 3
LEGACY_SIZE = 576
"""Bytes of the legacy region and the XSAVE header."""

COMPONENT_FEATURE = {
    2: "avx", 3: "mpx", 4: "mpx", 5: "avx512f", 6: "avx512f", 7: "avx512f", 8: "intel_pt",
    9: "pku", 10: "enqcmd", 11: "shstk", 12: "shstk", 14: "uintr", 15: "arch_lbr",
    17: "amx_tile", 18: "amx_tile", 19: "apx_f",
}  # fmt: skip
"""State component → the feature that uses it; components 0 and 1 are always there."""


def component_mask(features: frozenset[str]) -> int:
    """The components, user and supervisor, that the features use."""
    return X87_SSE | sum(1 << n for n, feature in COMPONENT_FEATURE.items() if feature in features)


def xsave_leaves(supported: Sequence[CpuidLeaf], features: frozenset[str]) -> list[Leaf]:
    """Leaf 0xD and its subleaves: what the host's KVM supports, less what is not shown."""
    host = {e.index: e for e in supported if e.function == 0xD}
    used = component_mask(features)
    user = used & ((host[0].eax | host[0].edx << 32) if 0 in host else 0) | X87_SSE
    supervisor = used & ((host[1].ecx | host[1].edx << 32) if 1 in host else 0)
    if "xsaves" not in features:
        supervisor = 0
    size = LEGACY_SIZE
    parts = []
    for n in range(2, 63):
        entry = host.get(n)
        if entry is None or not (user | supervisor) >> n & 1:
            continue
        parts.append(Leaf(0xD, n, INDEXED, entry.eax, entry.ebx, entry.ecx, entry.edx))
        if user >> n & 1:
            size = max(size, entry.ebx + entry.eax)
    names = FEATURE_WORDS[0xD, 1, "eax"].split()
    one = sum(1 << bit for bit, name in enumerate(names) if name in features)
    compact = LEGACY_SIZE if one & 0b1010 else 0  # KVM follows XCR0 and XSS with it
    return [
        Leaf(0xD, 0, INDEXED, user & 0xFFFFFFFF, LEGACY_SIZE, size, user >> 32),
        Leaf(0xD, 1, INDEXED, one, compact, supervisor & 0xFFFFFFFF, supervisor >> 32),
        *parts,
    ]
