"""Model-specific registers by name and by number.

The names are those of the manuals (`IA32_EFER`), in `pykvm.arch.msr_table`; look-ups also take
them without the vendor prefix and in any case (`efer`), and plain numbers (`0xc0000080`).
"""

from __future__ import annotations

import re
from functools import cache

from pykvm.arch.errors import UnknownRegister
from pykvm.typed import NamedTuple

PAT_RESET = 0x0007040600070406
"""IA32_PAT after reset: WB, WT, UC-, UC, twice (SDM vol. 3A 11.12.4)."""

APIC_BASE = 0x1B
TSC = 0x10
PAT = 0x277
EFER = 0xC0000080
STAR = 0xC0000081
LSTAR = 0xC0000082
CSTAR = 0xC0000083
FMASK = 0xC0000084
FS_BASE = 0xC0000100
GS_BASE = 0xC0000101
KERNEL_GS_BASE = 0xC0000102


class Msr(NamedTuple):
    """One model-specific register."""

    number: int
    name: str
    meaning: str
    group: str
    """`intel` (architectural and Intel's), `x2apic`, `x86-64`, `amd`, `kvm` or `hyper-v`."""

    def __str__(self) -> str:
        return f"{self.name} ({self.number:#x}): {self.meaning}"


_LINE = re.compile(r"(0x[0-9a-f]+)(?:\+(\d+)\*(\d+))? (\S+) (.+)")


@cache
def table() -> dict[int, Msr]:
    """Number → MSR, for all that pykvm knows."""
    from pykvm.arch.msr_table import GROUPS

    found: dict[int, Msr] = {}
    for group, text in GROUPS.items():
        for line in text.split("\n"):
            match = _LINE.fullmatch(line)
            if match is None:
                continue
            first, step, count, name, meaning = match.groups()
            for n in range(int(count or 1)):
                number = int(first, 16) + n * int(step or 0)
                # The first name wins where ranges meet.
                found.setdefault(number, Msr(number, name.replace("{n}", str(n)), meaning, group))
    return found


_PREFIXES = ("IA32_", "MSR_", "KVM_", "HV_")
_ALIASES = {
    "TSC": 0x10,
    "SYSCALL_MASK": FMASK,
    "SFMASK": FMASK,
    "APICBASE": APIC_BASE,
    "CR_PAT": PAT,
    "DEBUGCTLMSR": 0x1D9,
    "FEAT_CTL": 0x3A,
    "CORE_PERF_GLOBAL_CTRL": 0x38F,
}


@cache
def _by_name() -> dict[str, int]:
    names: dict[str, int] = {}
    for msr in table().values():
        names.setdefault(msr.name, msr.number)
    for msr in table().values():
        for prefix in _PREFIXES:
            if msr.name.startswith(prefix):
                names.setdefault(msr.name.removeprefix(prefix), msr.number)
    for name, number in _ALIASES.items():
        names.setdefault(name, number)
    return names


def name(number: int) -> str:
    """The MSR's name; `MSR_0x…` for an unknown one."""
    known = table().get(number)
    return known.name if known else f"MSR_{number:#x}"


def describe(number: int) -> str:
    """`IA32_EFER (0xc0000080): long mode, …`; just the number for an unknown MSR."""
    known = table().get(number)
    return str(known) if known else f"MSR {number:#x}"


def number(name_or_number: str | int) -> int:
    """The number of an MSR given by name, by `MSR_0x…` or as a number.

    Raises `UnknownRegister`, with similar names, when there is none.
    """
    if isinstance(name_or_number, int):
        if not 0 <= name_or_number < 1 << 32:
            raise UnknownRegister(
                f"an MSR number has 32 bits, which {name_or_number:#x} does not fit"
            )
        return name_or_number
    text = name_or_number.strip().upper()
    known = _by_name().get(text)
    if known is None:
        for prefix in _PREFIXES:
            known = known if known is not None else _by_name().get(text.removeprefix(prefix))
    if known is not None:
        return known
    try:
        return number(int(text.removeprefix("MSR_"), 0))
    except ValueError:
        pass
    import difflib

    near = difflib.get_close_matches(text, _by_name(), 3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise UnknownRegister(f"there is no MSR named {name_or_number!r}{hint}")
