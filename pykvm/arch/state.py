"""The architectural state of a virtual CPU at entry, as plain values.

`CpuState` holds everything a vCPU needs to start: registers, segments (with their hidden parts),
control registers, MSRs, and the descriptor and page tables to place in guest memory first.
It is applied to, and captured from, any object shaped like `pykvm.kvm.Vcpu`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pykvm.arch.bits import CR0, CR4, EFER, RFLAGS
from pykvm.typed import Any, NamedTuple, Protocol

GENERAL_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
)
"""Names of the registers of `struct kvm_regs`, in its order."""

SEGMENT_REGISTERS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
"""Names of the segment registers of `struct kvm_sregs`, in its order."""

CONTROL_REGISTERS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
"""Names of the control registers held by `CpuState` (EFER is one here, as in `kvm_sregs`)."""

TABLE_REGISTERS = ("gdt", "idt")
"""Names of the descriptor-table registers of `struct kvm_sregs`."""


class MemoryWriter(Protocol):
    """Where `CpuState.apply` puts tables: anything with `GuestMemory.write`."""

    def write(self, gpa: int, data: bytes, /) -> object:
        """Write `data` at guest-physical address `gpa`."""


class SegmentState(NamedTuple):
    """A segment register with its hidden part (`struct kvm_segment`; SDM vol. 3A 3.4.3).

    `limit` is in bytes, whatever the granularity bit `g` says: a flat 4 GiB segment has limit
    0xffffffff. `type` is the four type bits; `s` is 1 for code and data, 0 for system segments;
    `db` is the default operation size (D/B), `l` the 64-bit code flag. `base` is guest-virtual
    (linear).
    """

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 - the manuals' and the kernel's name
    g: int
    avl: int
    unusable: int = 0

    @classmethod
    def null(cls, selector: int = 0) -> SegmentState:
        """A segment register loaded with a null selector: unusable, everything else zero."""
        return cls(0, 0, selector, 0, 0, 0, 0, 0, 0, 0, 0, unusable=1)

    def replace(self, **changes: int) -> SegmentState:
        """A copy with some fields changed."""
        return self._replace(**changes)

    @property
    def is_code(self) -> bool:
        """A code segment (S = 1 and bit 3 of the type set)."""
        return bool(self.s and self.type & 8)

    def describe(self) -> str:
        """One line: selector, base, limit, kind, privilege level and flags."""
        if self.unusable:
            return f"{self.selector:#06x} unusable"
        if not self.s:
            kind = f"system type {self.type}"
        elif self.type & 8:
            kind = "code64" if self.l else "code32" if self.db else "code16"
            kind += (" readable" if self.type & 2 else "") + (
                " conforming" if self.type & 4 else ""
            )
        else:
            kind = "data" + (" writable" if self.type & 2 else "")
            kind += " expand-down" if self.type & 4 else ""
        state = "" if self.present else " not-present"
        return f"{self.selector:#06x} {self.base:#x}+{self.limit:#x} {kind} dpl {self.dpl}{state}"


SEGMENT_FIELDS = SegmentState._fields
"""The fields of `SegmentState`, which are those of `struct kvm_segment`."""


class TableState(NamedTuple):
    """A descriptor-table register, GDTR or IDTR: linear base and limit (size in bytes - 1)."""

    base: int
    limit: int


def _no_segments() -> dict[str, SegmentState]:
    return {name: SegmentState.null() for name in SEGMENT_REGISTERS}


NO_TABLE = TableState(0, 0)
"""A descriptor-table register that names no table."""


class CpuState:
    """All that a vCPU needs at entry.

    `regs` maps names of `GENERAL_REGISTERS` to values (absent ones are left alone by `apply`),
    `segments` all of `SEGMENT_REGISTERS`, `msrs` MSR numbers to values. `memory` lists
    (guest-physical address, bytes) pieces: the GDT, IDT, TSS and page tables that the registers
    point to.
    """

    __slots__ = (
        "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "gdt", "idt", "memory", "msrs", "regs",
        "segments",
    )  # fmt: skip

    def __init__(
        self,
        regs: dict[str, int] | None = None,
        segments: dict[str, SegmentState] | None = None,
        gdt: TableState = NO_TABLE,
        idt: TableState = NO_TABLE,
        cr0: int = 0,
        cr2: int = 0,
        cr3: int = 0,
        cr4: int = 0,
        cr8: int = 0,
        efer: int = 0,
        msrs: dict[int, int] | None = None,
        memory: list[tuple[int, bytes]] | None = None,
    ) -> None:
        self.regs = {} if regs is None else regs
        self.segments = _no_segments() if segments is None else segments
        self.gdt = gdt
        self.idt = idt
        self.cr0 = cr0
        self.cr2 = cr2
        self.cr3 = cr3
        self.cr4 = cr4
        self.cr8 = cr8
        self.efer = efer
        self.msrs = {} if msrs is None else msrs
        self.memory = [] if memory is None else memory

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CpuState):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"CpuState({body})"

    def replace(self, **changes: Any) -> CpuState:
        """A copy with some fields changed; the dictionaries and lists are shared."""
        return CpuState(**{name: getattr(self, name) for name in self.__slots__} | changes)

    def copy(self) -> CpuState:
        """A copy whose dictionaries and lists can be changed without changing this one."""
        return self.replace(
            regs=dict(self.regs),
            segments=dict(self.segments),
            msrs=dict(self.msrs),
            memory=list(self.memory),
        )

    @property
    def mode(self) -> str:
        """Operating mode: `real`, `vm86`, `protected`, `compatibility` or `long` (64-bit)."""
        if not self.cr0 & CR0.PE:
            return "real"
        if self.efer & EFER.LMA:
            return "long" if self.segments["cs"].l else "compatibility"
        return "vm86" if self.regs.get("rflags", 0) & RFLAGS.VM else "protected"

    @property
    def code_bits(self) -> int:
        """Default operand size at RIP, for a disassembler: 16, 32 or 64."""
        mode = self.mode
        if mode == "long":
            return 64
        if mode in ("real", "vm86"):
            # A segment loaded in protected mode keeps its D bit until CS is reloaded.
            return 32 if mode == "real" and self.segments["cs"].db else 16
        return 32 if self.segments["cs"].db else 16

    @property
    def cpl(self) -> int:
        """Current privilege level: SS.DPL (SDM vol. 3C 25.4.1), 0 in real mode, 3 in vm86."""
        mode = self.mode
        return 0 if mode == "real" else 3 if mode == "vm86" else self.segments["ss"].dpl

    @property
    def linear_rip(self) -> int:
        """Guest-virtual (linear) address of the next instruction: CS base plus RIP."""
        rip = self.regs.get("rip", 0)
        if self.mode == "long":
            return rip
        return (self.segments["cs"].base + rip) & 0xFFFFFFFF

    @property
    def paging(self) -> bool:
        """CR0.PG is set."""
        return bool(self.cr0 & CR0.PG)

    def memory_span(self) -> tuple[int, int]:
        """Lowest guest-physical address and end (exclusive) of `memory`; (0, 0) when empty."""
        if not self.memory:
            return 0, 0
        return (
            min(gpa for gpa, _ in self.memory),
            max(gpa + len(data) for gpa, data in self.memory),
        )

    def apply(self, vcpu: Any, memory: MemoryWriter | None = None) -> None:
        """Write the tables into `memory`, then load every register into `vcpu`.

        `vcpu` needs `.regs`, `.sregs` and, when there are MSRs, `.set_msrs(dict)`; `memory` needs
        `.write(gpa, data)` and may be left out when the tables are in place already. The local APIC
        base and a pending interrupt, which `sregs` also holds, are not touched. Errors are those
        of the two objects: an address outside memory, a state that KVM refuses (see
        `pykvm.arch.checker`).
        """
        if memory is not None:
            for gpa, data in self.memory:
                memory.write(gpa, data)
        sregs = vcpu.sregs
        for name in SEGMENT_REGISTERS:
            target, segment = getattr(sregs, name), self.segments[name]
            for part in SEGMENT_FIELDS:
                setattr(target, part, getattr(segment, part))
        for name in TABLE_REGISTERS:
            table: TableState = getattr(self, name)
            target = getattr(sregs, name)
            target.base, target.limit = table.base, table.limit
        for name in CONTROL_REGISTERS:
            setattr(sregs, name, getattr(self, name))
        regs = vcpu.regs
        for name, value in self.regs.items():
            setattr(regs, name, value)
        if self.msrs:
            vcpu.set_msrs(self.msrs)

    @classmethod
    def capture(cls, vcpu: Any, msrs: Iterable[int] = ()) -> CpuState:
        """The state of `vcpu` now; `msrs` names the MSR numbers to read. `memory` stays empty."""
        sregs, regs = vcpu.sregs, vcpu.regs
        wanted = list(msrs)
        return cls(
            regs={name: int(getattr(regs, name)) for name in GENERAL_REGISTERS},
            segments={
                name: SegmentState(
                    *(int(getattr(getattr(sregs, name), part)) for part in SEGMENT_FIELDS)
                )
                for name in SEGMENT_REGISTERS
            },
            gdt=TableState(int(sregs.gdt.base), int(sregs.gdt.limit)),
            idt=TableState(int(sregs.idt.base), int(sregs.idt.limit)),
            cr0=int(sregs.cr0),
            cr2=int(sregs.cr2),
            cr3=int(sregs.cr3),
            cr4=int(sregs.cr4),
            cr8=int(sregs.cr8),
            efer=int(sregs.efer),
            msrs=dict(vcpu.get_msrs(wanted)) if wanted else {},
        )

    def describe(self) -> str:
        """The registers as text, a crash report's way."""
        lines = []
        names = list(GENERAL_REGISTERS)
        for start in range(0, len(names), 4):
            row = names[start : start + 4]
            lines.append("  ".join(f"{n:>6} {self.regs.get(n, 0):016x}" for n in row))
        lines += [f"{name:>6} {self.segments[name].describe()}" for name in SEGMENT_REGISTERS]
        for name in TABLE_REGISTERS:
            table: TableState = getattr(self, name)
            lines.append(f"{name:>6} {table.base:#x}+{table.limit:#x}")
        lines.append(f"   cr0 {CR0(self.cr0)!r}  cr2 {self.cr2:#x}  cr3 {self.cr3:#x}")
        lines.append(f"   cr4 {CR4(self.cr4)!r}  efer {EFER(self.efer)!r}  cr8 {self.cr8:#x}")
        lines.append(f" flags {RFLAGS(self.regs.get('rflags', 0))!r}  mode {self.mode}")
        return "\n".join(lines)
