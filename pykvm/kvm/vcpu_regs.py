"""Whole register sets of a vCPU as values, to keep and put back (KVM API, 4.11 to 4.14,
KVM_GET_SREGS2).

For single registers use `vcpu.regs` and `vcpu.sregs`, which go through shared memory.
"""

from __future__ import annotations

from pykvm.errors import explain
from pykvm.kvm.errors import KvmError
from pykvm.kvm.record import Record
from pykvm.kvm.vcpu_base import VcpuBase
from pykvm.typed import Any, ClassVar

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES = ("gdt", "idt")


class RegsState(Record):
    """General registers (`struct kvm_regs`)."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


class Segment(Record):
    """A segment register with its hidden part (`struct kvm_segment`; SDM vol. 3, 3.4.3)."""

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741  (the manual's name)
    g: int
    avl: int
    unusable: int = 0


class DescriptorTable(Record):
    """GDTR or IDTR: linear base, and limit in bytes minus one."""

    base: int
    limit: int


class _Sregs(Record):
    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    _nested: ClassVar[dict[str, type[Record]]] = {
        **dict.fromkeys(_SEGMENTS, Segment),
        **dict.fromkeys(_TABLES, DescriptorTable),
    }

    @classmethod
    def from_c(cls, struct: Any) -> Any:
        """The record with the values of the C structure."""
        nested: dict[str, Any] = {n: Segment.from_c(getattr(struct, n)) for n in _SEGMENTS}
        nested |= {n: DescriptorTable.from_c(getattr(struct, n)) for n in _TABLES}
        plain = [n for n in cls._fields if n not in nested]
        return cls(**nested, **{n: _value(getattr(struct, n)) for n in plain})

    def to_c(self, struct: Any) -> None:
        """Copies the fields into the C structure."""
        for name in self._fields:
            value = getattr(self, name)
            if isinstance(value, Record):
                value.to_c(getattr(struct, name))
            elif isinstance(value, int):
                try:
                    setattr(struct, name, value)
                except OverflowError:
                    raise ValueError(f"{name} = {value:#x} does not fit 64 bits") from None
            else:
                for i, item in enumerate(value):
                    getattr(struct, name)[i] = item


class SregsState(_Sregs):
    """Segment and control registers (`struct kvm_sregs`).

    `interrupt_bitmap`: four 64-bit words; the one bit set, if any, is an interrupt that is being
    injected.
    """

    interrupt_bitmap: tuple[int, ...] = (0, 0, 0, 0)


class Sregs2State(_Sregs):
    """As `SregsState`, with the PAE page-directory pointers in place of the interrupt bitmap.

    `flags` bit 0 (`constants.KVM_SREGS2_FLAGS_PDPTRS_VALID`) says that `pdptrs` counts.
    """

    flags: int = 0
    pdptrs: tuple[int, ...] = (0, 0, 0, 0)


class VcpuRegs(VcpuBase):
    """Register sets by value."""

    def get_regs(self) -> RegsState:
        """A copy of the general registers."""
        return self._get("KVM_GET_REGS", RegsState, "kvm_regs")

    def set_regs(self, state: RegsState) -> None:
        """Sets all general registers."""
        self._set("KVM_SET_REGS", state, "kvm_regs")

    def get_sregs(self) -> SregsState:
        """A copy of the segment and control registers."""
        state: SregsState = self._get("KVM_GET_SREGS", SregsState, "kvm_sregs")
        return state

    def set_sregs(self, state: SregsState) -> None:
        """Sets all segment and control registers. Raises `KvmError` naming a bad one."""
        self._set_sregs("KVM_SET_SREGS", state, "kvm_sregs")

    def get_sregs2(self) -> Sregs2State:
        """A copy of the segment and control registers, with the PDPTRs."""
        state: Sregs2State = self._get("KVM_GET_SREGS2", Sregs2State, "kvm_sregs2")
        return state

    def set_sregs2(self, state: Sregs2State) -> None:
        """Sets segment and control registers and, if the flags say so, the PDPTRs."""
        self._set_sregs("KVM_SET_SREGS2", state, "kvm_sregs2")

    def _set_sregs(self, ioctl: str, state: _Sregs, structure: str) -> None:
        try:
            self._set(ioctl, state, structure)
        except KvmError as error:
            raise error.explained("sregs", explain("KVM_SET_SREGS", _AsVcpu(self, state))) from None


class _AsVcpu:
    """Register values where an explainer expects a vCPU; its CPUID says which bits exist."""

    def __init__(self, vcpu: VcpuBase, sregs: _Sregs) -> None:
        self.sregs = sregs
        self.cpuid = vcpu.cpuid  # type: ignore[attr-defined]  # of VcpuMsrs, a sister mixin


def _value(member: Any) -> Any:
    return member if isinstance(member, int) else tuple(int(i) for i in member)
