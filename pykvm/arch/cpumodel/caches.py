"""Cache and topology leaves: who shares what (SDM vol. 2A CPUID leaves 4, 0xB, 0x1F; APM vol. 3
appendix E, 0x80000005, -6, -8, -1D and -1E).
"""

from __future__ import annotations

from pykvm.arch.cpumodel.topology import Topology, bits_for
from pykvm.typed import NamedTuple

SMT, CORE, DIE = 1, 2, 5
"""Level types of leaves 0xB and 0x1F."""


class Leaf(NamedTuple):
    """One CPUID entry; `flags` bit 0: the index matters. `CpuidEntry(*leaf)` is KVM's."""

    function: int
    index: int = 0  # type: ignore[assignment]  # tuple.index is not needed
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


INDEXED = 1
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""


class Cache(NamedTuple):
    """A cache: kind 1 data, 2 instructions, 3 both; sizes in bytes."""

    level: int
    kind: int
    size: int
    ways: int
    line: int = 64

    @property
    def sets(self) -> int:
        """How many sets of `ways` lines."""
        return self.size // (self.ways * self.line)


GENERIC = (
    Cache(1, 1, 32 << 10, 8), Cache(1, 2, 32 << 10, 8), Cache(2, 3, 512 << 10, 8),
    Cache(3, 3, 8 << 20, 16),
)  # fmt: skip
"""The caches of models that are the same on every host."""


def generic_caches(function: int) -> list[Leaf]:
    """Leaf 4, or AMD's 0x8000001D, for `GENERIC`; who shares them is filled in by `share`."""
    leaves = []
    for index, cache in enumerate(GENERIC):
        eax = cache.kind | cache.level << 5 | 1 << 8
        ebx = cache.line - 1 | (cache.ways - 1) << 22
        leaves.append(Leaf(function, index, INDEXED, eax, ebx, cache.sets - 1, 0))
    leaves.append(Leaf(function, len(GENERIC), INDEXED))
    return leaves


def amd_l1() -> Leaf:
    """0x80000005: L1 TLBs unknown, the generic L1 caches."""
    word = 32 << 24 | 8 << 16 | 1 << 8 | 64
    return Leaf(0x80000005, ecx=word, edx=word)


def amd_l2() -> Leaf:
    """0x80000006: L2 512 KiB 8-way, L3 8 MiB (units of 512 KiB) 16-way."""
    return Leaf(0x80000006, ecx=512 << 16 | 6 << 12 | 1 << 8 | 64, edx=16 << 18 | 8 << 12 | 0x140)


def share(leaf: Leaf, topology: Topology) -> Leaf:
    """A cache leaf with the numbers of CPUs that share it: threads a core, or a die's worth."""
    level = leaf.eax >> 5 & 7
    if not leaf.eax & 0x1F:
        return leaf
    sharing = topology.threads if level < 3 else topology.threads * topology.cores
    sharing = 1 << bits_for(sharing)
    eax = leaf.eax & 0x3FFF | (sharing - 1 & 0xFFF) << 14
    if leaf.function == 4:
        cores = 1 << topology.socket_shift - topology.core_shift
        eax |= min(cores - 1, 63) << 26
    return leaf._replace(eax=eax)


def extended_topology(function: int, topology: Topology, apic_id: int) -> list[Leaf]:
    """Leaf 0xB, or 0x1F, which knows dies, too."""
    levels = [(SMT, topology.core_shift, topology.threads)]
    if function == 0x1F:
        levels.append((CORE, topology.die_shift, topology.threads * topology.cores))
        levels.append((DIE, topology.socket_shift, topology.per_socket))
    else:
        levels.append((CORE, topology.socket_shift, topology.per_socket))
    leaves = [
        Leaf(function, n, INDEXED, shift, count & 0xFFFF, kind << 8 | n, apic_id)
        for n, (kind, shift, count) in enumerate(levels)
    ]
    leaves.append(Leaf(function, len(levels), INDEXED, ecx=len(levels), edx=apic_id))
    return leaves


def amd_core_counts(topology: Topology) -> int:
    """0x80000008 ECX: CPUs in the socket, and how many APIC ID bits number them."""
    return topology.socket_shift << 12 | min(topology.per_socket - 1, 0xFF)


def amd_node(topology: Topology, apic_id: int) -> Leaf:
    """0x8000001E: extended APIC ID, core and node of one CPU."""
    core = apic_id >> topology.core_shift & (1 << topology.socket_shift - topology.core_shift) - 1
    socket = apic_id >> topology.socket_shift
    die = apic_id >> topology.die_shift & (1 << topology.socket_shift - topology.die_shift) - 1
    node = socket * topology.dies + die
    return Leaf(
        0x8000001E, 0, 0, apic_id, core & 0xFF | (topology.threads - 1) << 8,
        node & 0xFF | (topology.dies - 1 & 7) << 8, 0,
    )  # fmt: skip
