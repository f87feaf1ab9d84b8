"""Walks guest page tables: guest-virtual (linear) → guest-physical, every level shown.

Works on guest memory alone, for every paging mode, and gives what `KVM_TRANSLATE` gives, with the
reasons. Tables are hostile input: entries that point outside memory, reserved bits and
non-canonical addresses end a walk with a `Fault`, never with an exception. (`KVM_TRANSLATE`
ignores the upper bits of a non-canonical address; the walker refuses it, as the CPU does.)

Sources: SDM vol. 3A 4.3 to 4.7; reserved bits also APM vol. 2 5.3 and 5.4, and
`__reset_rsvds_bits_mask()` in Linux's arch/x86/kvm/mmu/mmu.c.
"""

from __future__ import annotations

from functools import lru_cache

from pykvm.arch.bits import CR0, CR4, EFER, PTE, PageFault, Vector
from pykvm.arch.errors import PagingError
from pykvm.arch.pagemodes import MAX_PHYSICAL_BITS, LevelSpec, PagingMode, paging_mode
from pykvm.enums import StrEnum
from pykvm.errors import PykvmError
from pykvm.typed import Any, NamedTuple, Protocol

_P, _RW, _US, _PS, _XD = (int(b) for b in (PTE.P, PTE.RW, PTE.US, PTE.PS, PTE.XD))
_ADDRESS = (1 << MAX_PHYSICAL_BITS) - 0x1000
_READ_ERRORS = (PykvmError, LookupError, ValueError, OSError)


class MemoryReader(Protocol):
    """Where tables are read from: anything with `GuestMemory.read`."""

    def read(self, gpa: int, n: int, /) -> bytes:
        """`n` bytes at guest-physical `gpa`; raises when they are not all memory."""


class FaultReason(StrEnum):
    """Why an address does not translate."""

    NOT_PRESENT = "not present"
    RESERVED_BIT = "reserved bit set"
    NON_CANONICAL = "not canonical"
    UNREADABLE = "table outside memory"


class Fault(NamedTuple):
    """Why a walk stopped. `level` is the entry's name (`PDE`), None for a non-canonical address."""

    reason: FaultReason
    level: str | None
    why: str
    """One sentence with the values."""

    def __str__(self) -> str:
        return self.why


class Level(NamedTuple):
    """One page-table entry that the walk read."""

    name: str
    number: int
    """Level counted from the last table, which is 1."""
    index: int  # type: ignore[assignment]
    entry_gpa: int
    """Guest-physical address of the entry itself."""
    raw: int

    @property
    def flags(self) -> PTE:
        """The entry's flag bits; bits of the frame address are left out."""
        return PTE(self.raw & ~_ADDRESS)

    def __str__(self) -> str:
        return f"{self.name}[{self.index}] at {self.entry_gpa:#x} = {self.raw:#018x} {self.flags}"


class Walk(NamedTuple):
    """The result of one walk.

    `gpa` is None when the address does not translate, and `fault` says why. `writable`, `user`
    and `nx` are the effective rights, of all levels together; they, `page_size` (bytes) and
    `global_page` mean something only when `gpa` is not None. `cr0` and `cr4` are kept because
    they decide what the rights permit.
    """

    va: int
    mode: PagingMode
    levels: tuple[Level, ...]
    gpa: int | None
    page_size: int
    writable: bool
    user: bool
    nx: bool
    global_page: bool
    dirty: bool
    protection_key: int
    fault: Fault | None
    cr0: int = 0
    cr4: int = 0

    @property
    def ok(self) -> bool:
        """The address translates (whether or not an access is permitted)."""
        return self.fault is None

    def exception(
        self,
        *,
        write: bool = False,
        fetch: bool = False,
        user: bool = False,
        ac: bool = False,
        pkru: int = 0,
    ) -> tuple[Vector, int] | None:
        """The exception that an access would raise, as (vector, error code); None if it may.

        `user` is an access in ring 3, `ac` RFLAGS.AC (which lifts SMAP), `pkru` the PKRU register
        (used with CR4.PKE). Shadow-stack accesses and supervisor keys are not modelled.
        """
        if self.fault and self.fault.reason is FaultReason.NON_CANONICAL:
            return Vector.GP, 0
        code = (
            (PageFault.WR if write else 0)
            | (PageFault.US if user else 0)
            | (PageFault.ID if fetch and self._reports_fetch else 0)
        )
        if self.fault:
            if self.fault.reason is FaultReason.RESERVED_BIT:
                code |= PageFault.P | PageFault.RSVD
            return Vector.PF, int(code)
        if self.mode is PagingMode.NONE:
            return None
        denied = (
            (user and not self.user)
            or (write and not self.writable and (user or bool(self.cr0 & CR0.WP)))
            or (fetch and self.nx)
            or (not user and self.user and fetch and bool(self.cr4 & CR4.SMEP))
            or (not user and self.user and not fetch and not ac and bool(self.cr4 & CR4.SMAP))
        )
        if denied:
            return Vector.PF, int(code | PageFault.P)
        if self.user and not fetch and self.mode.is_long and self.cr4 & CR4.PKE:
            rights = pkru >> 2 * self.protection_key & 3
            if rights & 1 or (write and rights & 2 and (user or self.cr0 & CR0.WP)):
                return Vector.PF, int(code | PageFault.P | PageFault.PK)
        return None

    @property
    def _reports_fetch(self) -> bool:
        # The I/D bit of the error code exists with NXE in PAE and long mode, or with SMEP.
        return self.mode in (PagingMode.PAE, PagingMode.LEVEL4, PagingMode.LEVEL5) or bool(
            self.cr4 & CR4.SMEP
        )

    def __str__(self) -> str:
        if self.gpa is None:
            return f"{self.va:#x} does not translate: {self.fault}"
        rights = "r" + ("w" if self.writable else "-") + ("-" if self.nx else "x")
        size = {1 << 12: "4 KiB", 1 << 21: "2 MiB", 1 << 22: "4 MiB", 1 << 30: "1 GiB"}
        page = f", {size[self.page_size]} page" if self.page_size in size else ""
        return f"{self.va:#x} → {self.gpa:#x} {rights}{'u' if self.user else 's'}{page}"

    def describe(self) -> str:
        """The walk as text: the result, then one line a level."""
        return "\n".join([str(self), *(f"  {level}" for level in self.levels)])


class WalkRules(NamedTuple):
    """What decides which entry bits are reserved, besides CR4 and EFER.

    `maxphyaddr` is the width of guest-physical addresses (CPUID 0x80000008 EAX[7:0]), `gbpages`
    whether 1 GiB pages exist, `amd` whether bit 8 is reserved in PML4E and PML5E, `pse_bits` the
    physical width of 4 MiB pages (KVM implements 36).
    """

    maxphyaddr: int = MAX_PHYSICAL_BITS
    gbpages: bool = True
    amd: bool = False
    pse_bits: int = 40


def _span(low: int, high: int) -> int:
    """A mask of bits low..high; 0 when empty."""
    return (1 << high + 1) - (1 << low) if high >= low else 0


@lru_cache(maxsize=256)
def _reserved(mode: PagingMode, spec: LevelSpec, leaf: bool, nxe: bool, rules: WalkRules) -> int:
    """Mask of the bits that must be zero in a present entry."""
    if mode is PagingMode.BITS32:
        if spec.number == 1 or not leaf:
            return 0
        extra = max(0, min(rules.pse_bits, rules.maxphyaddr, 40) - 32)
        return _span(13 + extra, 21)
    mask = _span(rules.maxphyaddr, 62 if mode is PagingMode.PAE else 51)
    if not nxe:
        mask |= _XD
    if mode is PagingMode.PAE and spec.number == 3:
        return mask | _XD | _span(5, 8) | _span(1, 2)
    if spec.number >= 4:
        return mask | _PS | (1 << 8 if rules.amd else 0)
    if spec.number == 3 and not rules.gbpages:
        mask |= _PS
    if leaf and spec.number > 1:
        mask |= _span(13, spec.shift - 1)
    return mask


class EntryFormat:
    """How the entries of one paging mode are read, given the registers and the rules."""

    def __init__(self, *, cr0: int, cr4: int, efer: int, rules: WalkRules) -> None:
        self.mode = paging_mode(cr0=cr0, cr4=cr4, efer=efer)
        self.size = self.mode.entry_size
        self._nxe = bool(efer & EFER.NXE)
        self._large_pages = self.mode is not PagingMode.BITS32 or bool(cr4 & CR4.PSE)
        self._rules = rules

    def is_leaf(self, spec: LevelSpec, entry: int) -> bool:
        """The entry maps a page, if its reserved bits allow."""
        return spec.number == 1 or (spec.can_map and self._large_pages and bool(entry & _PS))

    def reserved(self, spec: LevelSpec, entry: int) -> int:
        """The bits that are set in a present entry and must not be."""
        leaf = self.is_leaf(spec, entry)
        return entry & _reserved(self.mode, spec, leaf, self._nxe, self._rules)

    def rights(
        self, spec: LevelSpec, entry: int, above: tuple[bool, bool, bool]
    ) -> tuple[bool, bool, bool]:
        """(writable, user, nx) after this entry, given those of the entries above it."""
        if not spec.has_rights:
            return above
        writable, user, nx = above
        return (
            writable and bool(entry & _RW),
            user and bool(entry & _US),
            nx or (self.size == 8 and bool(entry & _XD)),
        )

    def table(self, entry: int) -> int:
        """Guest-physical address of the next table."""
        return entry & (_ADDRESS if self.size == 8 else 0xFFFFF000)

    def frame(self, spec: LevelSpec, entry: int) -> int:
        """Guest-physical address of the page that a leaf maps."""
        if self.mode is PagingMode.BITS32:
            # PSE-36: bits 20:13 of a 4 MiB page are bits 39:32 of its address.
            high = (entry >> 13 & 0xFF) << 32 if spec.number == 2 else 0
            return entry & 0xFFFFFFFF & -spec.span | high
        return entry & _ADDRESS & -spec.span


def walk(
    memory: MemoryReader,
    va: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    maxphyaddr: int = MAX_PHYSICAL_BITS,
    gbpages: bool = True,
    amd: bool = False,
    pse_bits: int = 40,
) -> Walk:
    """Translate guest-virtual (linear) `va`; see `WalkRules` for the options.

    `memory` is anything with `.read(gpa, n)`. Without paging the address translates to itself.
    Raises `PagingError` only for a `va` that is no 64-bit number; whatever the tables hold is
    reported in the result.
    """
    rules = WalkRules(maxphyaddr, gbpages, amd, pse_bits)
    return _walk(memory, va, cr0, cr3, cr4, efer, rules)


def _walk(
    memory: MemoryReader, va: int, cr0: int, cr3: int, cr4: int, efer: int, rules: WalkRules
) -> Walk:
    if not 0 <= va < 1 << 64:
        raise PagingError(f"a guest-virtual address has 64 bits, which {va:#x} does not fit")
    form = EntryFormat(cr0=cr0, cr4=cr4, efer=efer, rules=rules)
    mode = form.mode
    levels: list[Level] = []
    rights = (True, True, False)

    def mapped(gpa: int, leaf: int = 0, page_size: int = 0) -> Walk:
        return Walk(
            *(va, mode, tuple(levels), gpa, page_size, *rights),
            global_page=bool(leaf & PTE.G) and bool(cr4 & CR4.PGE),
            dirty=bool(leaf & PTE.D),
            protection_key=leaf >> 59 & 15 if mode.is_long else 0,
            fault=None,
            cr0=cr0,
            cr4=cr4,
        )

    def failed(reason: FaultReason, level: str | None, why: str) -> Walk:
        fault = Fault(reason, level, why)
        return Walk(va, mode, tuple(levels), None, 0, *rights, False, False, 0, fault, cr0, cr4)

    if not mode.is_canonical(va):
        return failed(FaultReason.NON_CANONICAL, None, _why_not_canonical(mode, va))
    if mode is PagingMode.NONE:
        return mapped(va)
    table = mode.root_of(cr3)
    for spec in mode.levels:
        name, index = spec.name, spec.index(va)
        entry_gpa = table + index * form.size
        raw = read_physical(memory, entry_gpa, form.size)
        if len(raw) != form.size:
            why = f"{name}[{index}] lies at guest-physical {entry_gpa:#x}, outside memory"
            return failed(FaultReason.UNREADABLE, name, why)
        entry = int.from_bytes(raw, "little")
        levels.append(Level(name, spec.number, index, entry_gpa, entry))
        if not entry & _P:
            why = f"{name}[{index}] at {entry_gpa:#x} is not present ({entry:#x})"
            return failed(FaultReason.NOT_PRESENT, name, why)
        if bad := form.reserved(spec, entry):
            why = f"{name}[{index}] at {entry_gpa:#x} is {entry:#x}, with reserved bits {bad:#x}"
            return failed(FaultReason.RESERVED_BIT, name, why)
        rights = form.rights(spec, entry, rights)
        if form.is_leaf(spec, entry):
            return mapped(form.frame(spec, entry) | va & spec.span - 1, entry, spec.span)
        table = form.table(entry)
    raise AssertionError("the last level always maps or faults")


def read_physical(memory: MemoryReader, gpa: int, n: int) -> bytes:
    """`n` bytes, or fewer where there is no memory."""
    try:
        return bytes(memory.read(gpa, n))
    except _READ_ERRORS:
        return b""


def _why_not_canonical(mode: PagingMode, va: int) -> str:
    if not mode.is_long:
        return f"{va:#x} is wider than the 32 bits of a linear address outside long mode"
    bits = mode.va_bits
    return f"{va:#x} is not canonical: bits 63 to {bits} do not repeat bit {bits - 1}"


def paging_registers(sregs: Any) -> dict[str, int]:
    """The `cr0`, `cr3`, `cr4` and `efer` of a vCPU's sregs or a `CpuState`, for `walk(**…)`."""
    return {name: int(getattr(sregs, name)) for name in ("cr0", "cr3", "cr4", "efer")}
