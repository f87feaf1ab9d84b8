"""CPUID tables from a model's features, the host's KVM and the machine's topology.

Source: SDM vol. 2A CPUID; APM vol. 3 appendix E; Documentation/virt/kvm/x86/cpuid.rst for
0x40000000 and 0x40000001. 0x40000010 is the frequency leaf that hypervisors share.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from pykvm.arch import cpuid
from pykvm.arch.cpuid_table import FEATURE_WORDS
from pykvm.arch.cpumodel import caches
from pykvm.arch.cpumodel.caches import INDEXED, Leaf
from pykvm.arch.cpumodel.spec import CpuModel, resolve
from pykvm.arch.cpumodel.topology import CpuModelError, Topology, bits_for, topology_for
from pykvm.arch.cpumodel.xsave import xsave_leaves

APIC_BUS_KHZ = 1_000_000
"""KVM's local APIC timer counts nanoseconds before its divider, unless told otherwise."""
KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"
HYPERVISOR, KVM_FEATURES, FREQUENCIES = 0x40000000, 0x40000001, 0x40000010

AMD_VENDORS = frozenset({"AuthenticAMD", "HygonGenuine"})
# Family, model, stepping of the fixed models: the first of each vendor that had (at least) v2.
_FIXED_INTEL, _FIXED_AMD = (6, 0x1A, 3), (0x17, 1, 2)
# Bits of leaf 1 EDX that AMD repeats in 0x80000001 EDX.
_REPEATED = 0x0183F3FF
_LEAF1_EDX = FEATURE_WORDS[1, 0, "edx"].split()
# Leaves of the host that mean something only with a feature.
_WITH_FEATURE = {0x12: "sgx", 0x14: "intel_pt", 0x1D: "amx_tile", 0x1E: "amx_tile", 0x24: "avx10"}
_INDEXED = {7, 0xD, 0x12, 0x14}
_HOST_CACHES = {0x80000005, 0x80000006, 0x80000019, 0x8000001A, 0x8000001B}


def signature_eax(family: int, model: int, stepping: int) -> int:
    """Leaf 1 EAX of a family, model and stepping as the manuals count them."""
    base, extended = min(family, 15), max(family - 15, 0)
    return extended << 20 | (model >> 4) << 16 | base << 8 | (model & 15) << 4 | stepping


class CpuTable:
    """The CPUID of a machine's CPUs: what they share is worked out once."""

    def __init__(
        self,
        model: CpuModel,
        supported: Sequence[cpuid.CpuidLeaf],
        topology: Topology,
        *,
        tsc_khz: int = 0,
        apic_khz: int = APIC_BUS_KHZ,
        brand: str = "",
    ) -> None:
        """`tsc_khz` 0: the frequency leaves are left out. `brand` "" gives the model's own.

        Raises `CpuModelError` for a topology that CPUID cannot express.
        """
        self.model = model
        self.topology = topology
        self._host = model.name == "host"
        self._entries = {(e.function, e.index): e for e in supported}
        self._supported = list(supported)
        self.vendor = cpuid.vendor(self._supported)
        self._amd = self.vendor in AMD_VENDORS
        self._tsc_khz, self._apic_khz, self._brand = tsc_khz, apic_khz, brand
        self._shared = self._make()
        widest = topology.apic_id(topology.cpus - 1)
        if widest >= 255 and "x2apic" not in model.features:
            raise CpuModelError(
                f"{topology.cpus} CPUs reach APIC ID {widest}; from 255 on the CPU model needs "
                "x2apic, which this one has not"
            )

    # -- parts ---------------------------------------------------------------------------------

    def _word(self, function: int, index: int, register: str) -> int:
        """A register of a feature leaf: for `host` with the bits that have no name here."""
        names = FEATURE_WORDS.get((function, index, register), "").split()
        entry = self._entries.get((function, index))
        value = getattr(entry, register) if entry is not None and self._host else 0
        for bit, name in enumerate(names):
            if name != "-":
                value = value & ~(1 << bit) | (name in self.model.features) << bit
        return int(value)

    def _feature_leaf(self, function: int, index: int = 0, flags: int = 0) -> Leaf:
        words = [
            self._word(function, index, r) if (function, index, r) in FEATURE_WORDS else 0
            for r in ("eax", "ebx", "ecx", "edx")
        ]
        return Leaf(function, index, flags, *words)

    def _raw(self, function: int) -> list[Leaf]:
        """The host's leaf, with its feature bits as the model has them."""
        found = []
        for e in self._supported:
            if e.function == function:
                words = [
                    self._word(function, e.index, r)
                    if (function, e.index, r) in FEATURE_WORDS
                    else getattr(e, r)
                    for r in ("eax", "ebx", "ecx", "edx")
                ]
                found.append(Leaf(function, e.index, getattr(e, "flags", 0), *words))
        return found

    def _others(self, made: list[Leaf], low: int, high: int) -> list[Leaf]:
        """Leaves that only exist because a feature in them is shown."""
        have = {(leaf.function, leaf.index) for leaf in made}
        places = {(function, index) for function, index, _ in FEATURE_WORDS} - have
        found = [
            self._feature_leaf(function, index, INDEXED if function in _INDEXED else 0)
            for function, index in sorted(places)
            if low <= function < high
        ]
        return [leaf for leaf in found if any(leaf[3:])]

    def _signature(self) -> int:
        if self._host:
            entry = self._entries.get((1, 0))
            return entry.eax if entry is not None else 0
        return signature_eax(*(_FIXED_AMD if self._amd else _FIXED_INTEL))

    def _make(self) -> list[Leaf]:
        """All leaves, with the APIC ID 0 where one belongs; not those of the topology."""
        basic = self._basic()
        extended = self._extended()
        vendor = self.vendor.encode("latin-1").ljust(12, b"\0")[:12]
        ebx, edx, ecx = struct.unpack("<3I", vendor)
        highest = max([leaf.function for leaf in basic] + [0xB, 0x1F * (self.topology.dies > 1)])
        first = Leaf(0, 0, 0, highest, ebx, ecx, edx)
        top = max(leaf.function for leaf in extended)
        if self._node_leaf:
            top = max(top, 0x8000001E)
        first_extended = Leaf(0x80000000, 0, 0, top, *((ebx, ecx, edx) if self._amd else (0, 0, 0)))
        return [first, *basic, *self._hypervisor(), first_extended, *extended]

    @property
    def _node_leaf(self) -> bool:
        return self._amd and "topoext" in self.model.features

    def _basic(self) -> list[Leaf]:
        features, topology = self.model.features, self.topology
        one = self._feature_leaf(1)
        siblings = 1 << bits_for(topology.per_socket)
        ht = topology.per_socket > 1
        ebx = (8 << 8 if "clflush" in features else 0) | min(siblings, 255) << 16
        found = [one._replace(eax=self._signature(), ebx=ebx, edx=one.edx & ~(1 << 28) | ht << 28)]
        if not self._amd:
            found += self._raw(2) if self._host else [Leaf(2, eax=0xFF01)]
            host_caches = [leaf for leaf in self._raw(4) if leaf.eax & 0x1F]
            if self._host and host_caches:
                found += self._raw(4)
            else:
                found += caches.generic_caches(4)
        if "monitor" in features:
            found += self._raw(5) if self._host else [Leaf(5, 0, 0, 64, 64, 3, 0)]
        found.append(self._feature_leaf(6))
        found += self._structured_features()
        if "xsave" in features:
            found += xsave_leaves(self._supported, features)
        for function, feature in _WITH_FEATURE.items():
            if feature in features:
                found += self._raw(function)
        if self._tsc_khz and self._apic_khz and not self._amd:
            # TSC = crystal × EBX / EAX, where the crystal also drives the APIC timer.
            found.append(
                Leaf(0x15, 0, 0, self._apic_khz, self._tsc_khz, self._apic_khz * 1000 & 0xFFFFFFFF)
            )
        return found + self._others(found, 1, HYPERVISOR)

    def _structured_features(self) -> list[Leaf]:
        """Leaf 7; subleaves only as far as features are in them."""
        subleaves = [self._feature_leaf(7, index, INDEXED) for index in range(3)]
        highest = max(index for index in range(3) if index == 0 or any(subleaves[index][3:]))
        if self._host:
            entry = self._entries.get((7, 0))
            highest = min(max(highest, entry.eax if entry is not None else 0), 2)
        # EAX of subleaf 0 counts the subleaves.
        subleaves[0] = subleaves[0]._replace(eax=highest)
        return subleaves[: highest + 1]

    def _hypervisor(self) -> list[Leaf]:
        if "hypervisor" not in self.model.features:
            return []
        b, c, d = struct.unpack("<3I", KVM_SIGNATURE)
        found = [
            Leaf(HYPERVISOR, 0, 0, FREQUENCIES if self._tsc_khz else KVM_FEATURES, b, c, d),
            self._feature_leaf(KVM_FEATURES),
        ]
        if self._tsc_khz:
            found.append(Leaf(FREQUENCIES, 0, 0, self._tsc_khz, self._apic_khz))
        return found

    def _extended(self) -> list[Leaf]:
        features = self.model.features
        one = self._feature_leaf(0x80000001)
        if self._amd:
            shown = sum(1 << n for n, name in enumerate(_LEAF1_EDX) if name in features)
            # Bit 1: several CPUs, and they are cores of one chip, not threads of one core.
            ecx = one.ecx & ~2 | (self.topology.per_socket > 1) << 1
            one = one._replace(
                eax=self._signature(), ecx=ecx, edx=one.edx & ~_REPEATED | shown & _REPEATED
            )
        else:
            one = one._replace(edx=one.edx & ~_REPEATED)
        found = [one, *self._brand_leaves()]
        if self._host:
            for function in sorted(_HOST_CACHES):
                found += self._raw(function)
        elif self._amd:
            found += [caches.amd_l1(), caches.amd_l2()]
        else:
            found.append(Leaf(0x80000006, ecx=512 << 16 | 6 << 12 | 64))
        found.append(self._feature_leaf(0x80000007))
        found.append(self._address_sizes())
        if "svm" in features:
            entry = self._entries.get((0x8000000A, 0))
            svm = self._feature_leaf(0x8000000A)
            if entry is not None:
                svm = svm._replace(eax=entry.eax, ebx=entry.ebx)
            found.append(svm)
        if self._node_leaf:
            found += self._raw(0x8000001D) if self._host else caches.generic_caches(0x8000001D)
        return found + self._others(found, 0x80000001, 1 << 32)

    def _address_sizes(self) -> Leaf:
        """0x80000008: address widths are the host's in every model, as page tables depend on it."""
        leaf = self._feature_leaf(0x80000008)
        entry = self._entries.get((0x80000008, 0))
        eax = entry.eax if entry is not None else 0x3024
        if "la57" not in self.model.features and eax >> 8 & 0xFF > 48:
            eax = eax & ~0xFF00 | 48 << 8
        ecx = caches.amd_core_counts(self.topology) if self._amd else 0
        return leaf._replace(eax=eax, ecx=ecx)

    def _brand_leaves(self) -> list[Leaf]:
        text = self._brand
        if not text and self._host:
            text = cpuid.brand(self._supported)
        text = text or ("pykvm CPU" if self._host else f"pykvm {self.model.name} CPU")
        raw = text.encode("ascii", "replace")[:47].ljust(48, b"\0")
        return [
            Leaf(0x80000002 + n, 0, 0, *struct.unpack_from("<4I", raw, 16 * n)) for n in range(3)
        ]

    # -- one CPU ---------------------------------------------------------------------------------

    def leaves(self, apic_id: int) -> list[Leaf]:
        """All CPUID entries of the CPU with an APIC ID, by function and index."""
        topology = self.topology
        found = []
        for leaf in self._shared:
            if leaf.function == 1:
                leaf = leaf._replace(ebx=leaf.ebx & 0xFFFFFF | (apic_id & 0xFF) << 24)
            elif leaf.function in (4, 0x8000001D):
                leaf = caches.share(leaf, topology)
            found.append(leaf)
        found += caches.extended_topology(0xB, topology, apic_id)
        if topology.dies > 1 and not self._amd:
            found += caches.extended_topology(0x1F, topology, apic_id)
        if self._node_leaf:
            found.append(caches.amd_node(topology, apic_id))
        return sorted(found, key=lambda leaf: (leaf.function, leaf.index))


def cpu_leaves(
    model_spec: str,
    supported: Sequence[cpuid.CpuidLeaf],
    *,
    cpus: int = 1,
    topology: Topology | None = None,
    apic_id: int = 0,
    tsc_khz: int = 0,
    host_refuses: Iterable[str] = frozenset(),
    tsc_deadline: bool = False,
    lapic: bool = True,
) -> list[Leaf]:
    """The CPUID entries of one CPU in one call; for several, make a `CpuTable`.

    `topology` None: one socket of `cpus` cores. Raises `CpuModelError`.
    """
    model = resolve(
        model_spec, supported, host_refuses=host_refuses, tsc_deadline=tsc_deadline, lapic=lapic
    )
    found = topology or topology_for(cpus)
    if found.cpus != cpus:
        raise CpuModelError(f"the CPU topology {found} has {found.cpus} CPUs, the machine {cpus}")
    return CpuTable(model, supported, found, tsc_khz=tsc_khz).leaves(apic_id)
