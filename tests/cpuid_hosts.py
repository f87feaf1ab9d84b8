"""CPUID tables of made-up hosts: everything that pykvm has a name for, or just some of it."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pykvm.arch.cpuid_table import FEATURE_WORDS
from pykvm.arch.cpumodel.caches import Leaf, generic_caches

VENDORS = {"intel": b"GenuineIntel", "amd": b"AuthenticAMD"}
# State components as real CPUs have them: size, offset (0: supervisor).
COMPONENTS = {
    2: (256, 576), 3: (64, 960), 4: (64, 1024), 5: (64, 1088), 6: (512, 1152), 7: (1024, 1664),
    9: (8, 2688), 11: (16, 0), 12: (24, 0), 17: (64, 2752), 18: (8192, 2816),
}  # fmt: skip
ALL = frozenset(n for names in FEATURE_WORDS.values() for n in names.split() if n != "-")


def host(vendor: str, features: Iterable[str] = ALL) -> list[Leaf]:
    """What KVM_GET_SUPPORTED_CPUID would say on a host with these features."""
    shown = frozenset(features)
    words: dict[tuple[int, int], dict[str, int]] = {}
    for (function, index, register), names in FEATURE_WORDS.items():
        value = sum(1 << bit for bit, name in enumerate(names.split()) if name in shown)
        words.setdefault((function, index), {})[register] = value
    ebx, edx, ecx = struct.unpack("<3I", VENDORS[vendor])
    leaves = [Leaf(0, 0, 0, 0x1F, ebx, ecx, edx)]
    leaves.append(Leaf(0x80000000, 0, 0, 0x80000021, ebx, ecx, edx))
    for (function, index), registers in words.items():
        indexed = int(function in (7, 0xD, 0x12, 0x14))
        leaf = Leaf(function, index, indexed, **registers)
        if function == 1:
            leaf = leaf._replace(eax=0x000806F8, ebx=0x12340800)
        elif function == 7 and index == 0:
            leaf = leaf._replace(eax=2)
        elif function == 0x80000008:
            leaf = leaf._replace(eax=0x3934)
        elif function == 0xD:
            leaf = leaf._replace(ecx=0x1800)
        leaves.append(leaf)
    user = 3 | sum(1 << n for n, (_, offset) in COMPONENTS.items() if offset)
    leaves.append(Leaf(0xD, 0, 1, user & 0xFFFFFFFF, 576, 11008, 0))
    leaves += [
        Leaf(0xD, n, 1, size, offset, 0 if offset else 1)
        for n, (size, offset) in COMPONENTS.items()
    ]
    leaves += generic_caches(4) if vendor == "intel" else generic_caches(0x8000001D)
    text = b"A CPU that was made up".ljust(48, b"\0")
    leaves += [
        Leaf(0x80000002 + n, 0, 0, *struct.unpack_from("<4I", text, 16 * n)) for n in range(3)
    ]
    leaves.append(Leaf(0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D))
    leaves.append(Leaf(0xA, 0, 0, 0x07300805, 0, 0, 0x8603))
    return leaves
