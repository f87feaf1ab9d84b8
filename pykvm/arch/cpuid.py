"""CPUID by name: feature bits, vendor and brand, address widths, frequencies.

Works on any sequence of objects with `function`, `index`, `eax`, `ebx`, `ecx` and `edx`, such as
the entries that KVM_GET_SUPPORTED_CPUID gives. Feature names are lower case, as in Linux and QEMU
(`sse4_2`, `avx512f`); the tables are in `pykvm.arch.cpuid_table`.

Sources: SDM vol. 2A CPUID; APM vol. 3 appendix E; KVM's Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache

from pykvm.arch.cpuid_table import FEATURE_WORDS, XSAVE_COMPONENTS
from pykvm.arch.errors import ArchError
from pykvm.typed import NamedTuple, Protocol


class CpuidLeaf(Protocol):
    """What a CPUID entry looks like; `pykvm.kvm`'s entries do."""

    function: int
    index: int
    eax: int
    ebx: int
    ecx: int
    edx: int


class Feature(NamedTuple):
    """Where a feature bit is found."""

    name: str
    function: int
    subleaf: int
    register: str
    bit: int

    def __str__(self) -> str:
        return f"CPUID {self.function:#x}.{self.subleaf} {self.register.upper()}[{self.bit}]"


@cache
def known_features() -> dict[str, Feature]:
    """Every feature name that pykvm knows, with its place."""
    table = {}
    for (function, index, register), names in FEATURE_WORDS.items():
        for bit, name in enumerate(names.split()):
            if name != "-":
                table[name] = Feature(name, function, index, register, bit)
    return table


def feature(name: str) -> Feature:
    """The place of one feature bit. Raises `ArchError` for an unknown name."""
    known = known_features().get(name.lower())
    if known is None:
        import difflib

        near = difflib.get_close_matches(name.lower(), known_features(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ArchError(f"there is no CPUID feature {name!r}{hint}")
    return known


def leaf(entries: Iterable[CpuidLeaf], function: int, index: int = 0) -> CpuidLeaf | None:
    """The entry for a leaf and subleaf; None when there is none."""
    for entry in entries:
        if entry.function == function and entry.index == index:
            return entry
    return None


def features(entries: Iterable[CpuidLeaf]) -> frozenset[str]:
    """Names of the feature bits that are set; bits without a name are left out."""
    words = {(e.function, e.index): e for e in entries}
    found: set[str] = set()
    for (function, index, register), names in FEATURE_WORDS.items():
        entry = words.get((function, index))
        value = getattr(entry, register) if entry else 0
        if value:
            found.update(n for bit, n in enumerate(names.split()) if value >> bit & 1 and n != "-")
    return frozenset(found)


def has_feature(entries: Iterable[CpuidLeaf], name: str) -> bool:
    """One feature bit is set. Raises `ArchError` for an unknown name."""
    where = feature(name)
    entry = leaf(entries, where.function, where.subleaf)
    return entry is not None and bool(getattr(entry, where.register) >> where.bit & 1)


def set_feature(entries: Iterable[CpuidLeaf], name: str, on: bool = True) -> bool:
    """Set or clear a feature bit in (mutable) entries; False when its leaf is not among them.

    Raises `ArchError` for an unknown name.
    """
    where = feature(name)
    entry = leaf(entries, where.function, where.subleaf)
    if entry is None:
        return False
    value = getattr(entry, where.register) & ~(1 << where.bit)
    setattr(entry, where.register, value | int(on) << where.bit)
    return True


def vendor(entries: Iterable[CpuidLeaf]) -> str:
    """The vendor string of leaf 0: `GenuineIntel`, `AuthenticAMD`, …; empty without the leaf."""
    entry = leaf(entries, 0)
    return "" if entry is None else _text(entry.ebx, entry.edx, entry.ecx)


def hypervisor(entries: Iterable[CpuidLeaf]) -> str:
    """The hypervisor's signature in leaf 0x40000000: `KVMKVMKVM`, …; empty without it."""
    entry = leaf(entries, 0x40000000)
    return "" if entry is None else _text(entry.ebx, entry.ecx, entry.edx)


def brand(entries: Iterable[CpuidLeaf]) -> str:
    """The processor's brand string of leaves 0x80000002 to 0x80000004; empty without them."""
    table = list(entries)
    parts = [leaf(table, 0x80000002 + n) for n in range(3)]
    return "".join(
        _text(p.eax, p.ebx, p.ecx, p.edx, strip=False) for p in parts if p is not None
    ).strip("\0 ")


def _text(*registers: int, strip: bool = True) -> str:
    raw = struct.pack(f"<{len(registers)}I", *(r & 0xFFFFFFFF for r in registers))
    text = raw.split(b"\0")[0].decode("latin-1")
    return text.strip() if strip else text


class Signature(NamedTuple):
    """Family, model and stepping as the manuals count them (extended fields added)."""

    family: int
    model: int
    stepping: int


def signature(entries: Iterable[CpuidLeaf]) -> Signature | None:
    """The processor signature of leaf 1 EAX; None without the leaf."""
    entry = leaf(entries, 1)
    if entry is None:
        return None
    eax = entry.eax
    family, model = eax >> 8 & 15, eax >> 4 & 15
    if family in (6, 15):
        model |= (eax >> 16 & 15) << 4
    if family == 15:
        family += eax >> 20 & 0xFF
    return Signature(family, model, eax & 15)


def physical_bits(entries: Iterable[CpuidLeaf]) -> int:
    """MAXPHYADDR: leaf 0x80000008 EAX[7:0], or 36 without it, as KVM has it."""
    table = list(entries)
    highest = leaf(table, 0x80000000)
    entry = leaf(table, 0x80000008)
    if entry is None or highest is None or highest.eax < 0x80000008:
        return 36
    return entry.eax & 0xFF or 36


def linear_bits(entries: Iterable[CpuidLeaf]) -> int:
    """Width of linear addresses: leaf 0x80000008 EAX[15:8], or 32 without it."""
    entry = leaf(entries, 0x80000008)
    return 32 if entry is None else entry.eax >> 8 & 0xFF or 32


def tsc_hz(entries: Iterable[CpuidLeaf]) -> int | None:
    """TSC frequency in Hz from leaf 0x15, with leaf 0x16's base frequency if it must; or None."""
    table = list(entries)
    ratio = leaf(table, 0x15)
    if ratio is None or not ratio.eax or not ratio.ebx:
        return None
    if ratio.ecx:
        return ratio.ecx * ratio.ebx // ratio.eax
    base = leaf(table, 0x16)
    # SDM vol. 3B 18.7.3: without a crystal frequency the TSC runs at the base frequency.
    return (base.eax & 0xFFFF) * 1_000_000 if base is not None and base.eax & 0xFFFF else None


def xsave_components(mask: int) -> list[str]:
    """Names of the state components in an XCR0 or IA32_XSS mask (SDM vol. 1 13.1)."""
    return [
        XSAVE_COMPONENTS.get(bit, f"component{bit}")
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    ]
