"""The paging modes of x86 and their geometry, shared by the table builder and the walker.

Source: SDM vol. 3A 4.1 (modes), 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level and 5-level).
"""

from __future__ import annotations

from collections.abc import Iterator

from pykvm.arch.bits import CR0, CR4, EFER
from pykvm.enums import StrEnum
from pykvm.typed import NamedTuple

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

PAGE_4K = 4 * KIB
PAGE_2M = 2 * MIB
PAGE_4M = 4 * MIB
PAGE_1G = GIB

MAX_PHYSICAL_BITS = 52
"""The widest guest-physical address that page-table entries can hold."""


class LevelSpec(NamedTuple):
    """One level of a paging mode.

    `number` counts from 1 (the last level); `shift` is the lowest linear-address bit of the index,
    `index_bits` its width; `can_map` says whether an entry here may map a page of `1 << shift`
    bytes; `has_rights` whether R/W, U/S and XD exist here (they do not in PAE's PDPTEs).
    """

    number: int
    name: str
    shift: int
    index_bits: int
    can_map: bool
    has_rights: bool = True

    @property
    def span(self) -> int:
        """Bytes of linear address space that one entry covers."""
        return 1 << self.shift

    @property
    def entries(self) -> int:
        """Entries in a table of this level."""
        return 1 << self.index_bits

    def index(self, va: int) -> int:  # type: ignore[override]
        """Index of the entry that translates linear address `va`."""
        return va >> self.shift & (1 << self.index_bits) - 1


class PagingMode(StrEnum):
    """A paging mode; the value is its name in the SDM."""

    NONE = "none"
    BITS32 = "32-bit"
    PAE = "PAE"
    LEVEL4 = "4-level"
    LEVEL5 = "5-level"

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """The levels from the top table down; empty without paging."""
        return _LEVELS[self]

    @property
    def entry_size(self) -> int:
        """Bytes of one page-table entry: 4 or 8."""
        return 4 if self is PagingMode.BITS32 else 8

    @property
    def va_bits(self) -> int:
        """Width of a linear address that the mode translates: 32, 48 or 57."""
        return {PagingMode.LEVEL4: 48, PagingMode.LEVEL5: 57}.get(self, 32)

    @property
    def is_long(self) -> bool:
        """One of long mode's two paging modes."""
        return self in (PagingMode.LEVEL4, PagingMode.LEVEL5)

    @property
    def page_sizes(self) -> tuple[int, ...]:
        """The page sizes in bytes that the mode can map, smallest first."""
        return tuple(spec.span for spec in reversed(self.levels) if spec.can_map)

    def is_canonical(self, va: int) -> bool:
        """`va` (0 ≤ va < 2⁶⁴) can be used as a linear address in this mode.

        In long mode the bits above the width must repeat its top bit; otherwise addresses have 32
        bits.
        """
        if not self.is_long:
            return va >> 32 == 0
        top = va >> (self.va_bits - 1)
        return top == 0 or top == (1 << 65 - self.va_bits) - 1

    def root_of(self, cr3: int) -> int:
        """Guest-physical address of the top table: CR3 without its control bits."""
        if self is PagingMode.PAE:
            return cr3 & 0xFFFFFFE0
        if self is PagingMode.BITS32:
            return cr3 & 0xFFFFF000
        return cr3 & (1 << MAX_PHYSICAL_BITS) - PAGE_4K


_PT = LevelSpec(1, "PTE", 12, 9, True)
_PD = LevelSpec(2, "PDE", 21, 9, True)
_PDPT = LevelSpec(3, "PDPTE", 30, 9, True)
_PML4 = LevelSpec(4, "PML4E", 39, 9, False)
_PML5 = LevelSpec(5, "PML5E", 48, 9, False)

_LEVELS = {
    PagingMode.NONE: (),
    PagingMode.BITS32: (
        LevelSpec(2, "PDE", 22, 10, True),
        LevelSpec(1, "PTE", 12, 10, True),
    ),
    PagingMode.PAE: (LevelSpec(3, "PDPTE", 30, 2, False, has_rights=False), _PD, _PT),
    PagingMode.LEVEL4: (_PML4, _PDPT, _PD, _PT),
    PagingMode.LEVEL5: (_PML5, _PML4, _PDPT, _PD, _PT),
}


def paging_mode(*, cr0: int, cr4: int, efer: int) -> PagingMode:
    """The paging mode that the control registers select (SDM vol. 3A 4.1.1)."""
    if not cr0 & CR0.PG:
        return PagingMode.NONE
    if not cr4 & CR4.PAE:
        return PagingMode.BITS32
    if not efer & EFER.LME:
        return PagingMode.PAE
    return PagingMode.LEVEL5 if cr4 & CR4.LA57 else PagingMode.LEVEL4


def pages(va: int, size: int) -> Iterator[tuple[int, int]]:
    """Split the linear range [va, va + size) at 4 KiB borders into (address, length) pieces."""
    end = va + size
    while va < end:
        stop = min(end, (va | PAGE_4K - 1) + 1)
        yield va, stop - va
        va = stop
