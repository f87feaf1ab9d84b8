"""Stand-ins for what `pykvm.arch` is given: a vCPU's registers, CPUID entries."""

from __future__ import annotations

from types import SimpleNamespace

from pykvm.arch.state import GENERAL_REGISTERS, SEGMENT_FIELDS, SEGMENT_REGISTERS


class FakeVcpu:
    """The shape of a vCPU, without a kernel."""

    def __init__(self) -> None:
        self.regs = SimpleNamespace(**dict.fromkeys(GENERAL_REGISTERS, 0xDEAD))
        segments = {
            name: SimpleNamespace(**dict.fromkeys(SEGMENT_FIELDS, 0)) for name in SEGMENT_REGISTERS
        }
        self.sregs = SimpleNamespace(
            **segments,
            gdt=SimpleNamespace(base=0, limit=0),
            idt=SimpleNamespace(base=0, limit=0),
            **dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "cr8", "efer"), 0),
            apic_base=0xFEE00900,
        )
        self.msrs: dict[int, int] = {}

    def set_msrs(self, values: dict[int, int]) -> None:
        self.msrs.update(values)

    def get_msrs(self, numbers: list[int]) -> dict[int, int]:
        return {n: self.msrs.get(n, 0) for n in numbers}


def cpuid_entry(function: int, index: int = 0, **registers: int) -> SimpleNamespace:
    """A CPUID leaf with the given registers, the others zero."""
    values = dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0) | registers
    return SimpleNamespace(function=function, index=index, **values)
