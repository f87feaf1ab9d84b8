"""`vcpu.regs` and `vcpu.sregs`: named registers over the synced area of `kvm_run`.

The one storage is `kvm_run->s.regs` (KVM API, 5 "kvm_run", `KVM_CAP_SYNC_REGS`). Where the host
syncs registers, reading costs no system call; elsewhere the same storage is filled by
`KVM_GET_REGS`/`KVM_GET_SREGS` on first use. A write marks the set as changed; it travels with the
next entry, or by `KVM_SET_*` before the next ioctl that could see it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pykvm.typed import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from pykvm.kvm.vcpu import Vcpu

SYNC_REGS = 1
SYNC_SREGS = 2
SYNC_EVENTS = 4


class Field:
    """One integer field of a synced structure: a descriptor that fetches late and writes lazily."""

    __slots__ = ("bits", "name")

    def __init__(self, bits: int = 64) -> None:
        self.bits = bits

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, obj: None, owner: type) -> Field: ...
    @overload
    def __get__(self, obj: SyncedView, owner: type) -> int: ...
    def __get__(self, obj: SyncedView | None, owner: type) -> int | Field:
        if obj is None:
            return self
        value: int = getattr(obj._readable(), self.name)
        return value

    def __set__(self, obj: SyncedView, value: int) -> None:
        if not 0 <= value < 1 << self.bits:
            raise ValueError(f"{obj._label}{self.name} = {value:#x} does not fit {self.bits} bits")
        setattr(obj._writable(), self.name, value)


class SyncedView:
    """A structure inside `kvm_run->s.regs`, or one nested in it."""

    __slots__ = ("_label", "_part", "_struct", "_vcpu")
    _fields: tuple[str, ...] = ()

    def __init__(self, vcpu: Vcpu, struct: Any, part: int, label: str = "") -> None:
        self._vcpu = vcpu
        self._struct = struct
        self._part = part
        self._label = label

    def _readable(self) -> Any:
        native = self._vcpu._native
        if native is None:
            raise self._vcpu._closed_error()
        if not native.sync_valid & self._part:
            self._vcpu._fetch(self._part)
        return self._struct

    def _writable(self) -> Any:
        struct = self._readable()
        self._vcpu._touch(self._part)
        return struct

    def as_dict(self) -> dict[str, int]:
        """The fields by name."""
        struct = self._readable()
        return {name: getattr(struct, name) for name in self._fields}

    def update(self, **fields: int) -> None:
        """Set several fields at once."""
        for name, value in fields.items():
            if name not in self._fields:
                raise AttributeError(f"no register named {name!r}; there are: {', '.join(self)}")
            setattr(self, name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __repr__(self) -> str:
        body = " ".join(f"{k}={v:#x}" for k, v in self.as_dict().items())
        return f"<{type(self).__name__} {body}>"


class Regs(SyncedView):
    """General registers, RIP and RFLAGS (`struct kvm_regs`; KVM API 4.11)."""

    __slots__ = ()
    rax = Field()
    rbx = Field()
    rcx = Field()
    rdx = Field()
    rsi = Field()
    rdi = Field()
    rsp = Field()
    rbp = Field()
    r8 = Field()
    r9 = Field()
    r10 = Field()
    r11 = Field()
    r12 = Field()
    r13 = Field()
    r14 = Field()
    r15 = Field()
    rip = Field()
    rflags = Field()
    _fields = (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11",
        "r12", "r13", "r14", "r15", "rip", "rflags",
    )  # fmt: skip


class SegmentView(SyncedView):
    """A segment register with its hidden part (`struct kvm_segment`; SDM vol. 3, 3.4.3)."""

    __slots__ = ()
    base = Field()
    limit = Field(32)
    selector = Field(16)
    type = Field(8)
    present = Field(8)
    dpl = Field(8)
    db = Field(8)
    s = Field(8)
    l = Field(8)  # noqa: E741  (the manual's name)
    g = Field(8)
    avl = Field(8)
    unusable = Field(8)
    _fields = (
        "base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl",
        "unusable",
    )  # fmt: skip


class TableView(SyncedView):
    """GDTR or IDTR (`struct kvm_dtable`): linear base and limit in bytes minus one."""

    __slots__ = ()
    base = Field()
    limit = Field(16)
    _fields = ("base", "limit")


class Sregs(SyncedView):
    """Segment and control registers (`struct kvm_sregs`; KVM API 4.13)."""

    __slots__ = ("cs", "ds", "es", "fs", "gdt", "gs", "idt", "ldt", "ss", "tr")
    cr0 = Field()
    cr2 = Field()
    cr3 = Field()
    cr4 = Field()
    cr8 = Field()
    efer = Field()
    apic_base = Field()
    SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
    _fields = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")

    def __init__(self, vcpu: Vcpu, struct: Any) -> None:
        super().__init__(vcpu, struct, SYNC_SREGS)

        def segment(name: str) -> SegmentView:
            return SegmentView(vcpu, getattr(struct, name), SYNC_SREGS, f"{name}.")

        self.cs = segment("cs")
        self.ds = segment("ds")
        self.es = segment("es")
        self.fs = segment("fs")
        self.gs = segment("gs")
        self.ss = segment("ss")
        self.tr = segment("tr")
        self.ldt = segment("ldt")
        self.gdt = TableView(vcpu, struct.gdt, SYNC_SREGS, "gdt.")
        self.idt = TableView(vcpu, struct.idt, SYNC_SREGS, "idt.")

    @property
    def interrupt_bitmap(self) -> int:
        """The interrupt being injected, as a 256-bit mask (at most one bit; KVM API 4.13)."""
        words = self._readable().interrupt_bitmap
        return sum(words[i] << (64 * i) for i in range(4))

    @interrupt_bitmap.setter
    def interrupt_bitmap(self, value: int) -> None:
        words = self._writable().interrupt_bitmap
        for i in range(4):
            words[i] = value >> (64 * i) & 0xFFFFFFFFFFFFFFFF
