"""Builds page tables for every paging mode, as bytes to place in guest memory.

```python
tables = PageTables(PagingMode.LEVEL4, base=0x80000)
tables.map(0, 0, 4 << 30)                                  # identity, 2 MiB pages
tables.map(0xFFFFFFFF80000000, 0x100000, 0x200000, PTE.RW | PTE.XD)
memory.write(*tables.memory()[0]); sregs.cr3 = tables.cr3
```

Entries come with Accessed and Dirty set unless told otherwise, so that running a guest does not
write to its page tables.

Source: SDM vol. 3A 4.3 to 4.5.
"""

from __future__ import annotations

from array import array

from pykvm.arch.bits import PTE
from pykvm.arch.errors import PagingError
from pykvm.arch.pagemodes import (
    MAX_PHYSICAL_BITS,
    PAGE_2M,
    PAGE_4K,
    PAGE_4M,
    LevelSpec,
    PagingMode,
)

# Plain integers: flag objects are far too slow for a loop over entries.
_P, _RW, _US, _A, _D, _PS = (int(b) for b in (PTE.P, PTE.RW, PTE.US, PTE.A, PTE.D, PTE.PS))
_PAT_4K, _PAT_LARGE, _XD = 1 << 7, int(PTE.PAT_LARGE), int(PTE.XD)
_ADDRESS = (1 << MAX_PHYSICAL_BITS) - PAGE_4K
_SOFTWARE = 7 << 9
_LEAF_FLAGS = (
    int(PTE.RW | PTE.US | PTE.PWT | PTE.PCD | PTE.A | PTE.D | PTE.G) | _PAT_LARGE | _SOFTWARE
)
_LEAF_FLAGS_HIGH = 0x7FF << 52  # software bits, and the protection key in 62:59

MAX_ROOM = 64 << 20
"""Bytes that page tables may take by default: enough for 16 TiB in 2 MiB pages."""


class PageTables:
    """Page tables under construction, allocated one after another from `base`.

    `base` is the page-aligned guest-physical address of the first (top) table; `room` limits the
    bytes they may take. A later `map` or `unmap` wins over an earlier one: larger pages are split
    where needed.
    """

    def __init__(
        self,
        mode: PagingMode,
        base: int,
        *,
        room: int = MAX_ROOM,
        accessed: bool = True,
        pse_bits: int = 36,
    ) -> None:
        """Start with an empty top table.

        With `accessed` false, Accessed and Dirty start clear and the CPU sets them. `pse_bits` is
        the width of guest-physical addresses in 4 MiB pages (PSE-36 allows 36, later CPUs 40).
        Raises `PagingError` for a misaligned base, or without paging.
        """
        if mode is PagingMode.NONE:
            raise PagingError("there are no page tables without paging")
        if base % PAGE_4K or not 0 <= base < 1 << MAX_PHYSICAL_BITS:
            raise PagingError(f"page tables must start at a page-aligned address, not {base:#x}")
        self.mode = mode
        self.base = base
        self.room = room
        self.pse_bits = pse_bits
        self.uses_nx = False
        """A mapping has XD: EFER.NXE must be set."""
        self.uses_large = False
        """A page larger than 4 KiB is mapped: 32-bit paging needs CR4.PSE."""
        self._accessed = accessed
        self._code = "I" if mode.entry_size == 4 else "Q"
        self._tables: list[array[int]] = []
        self._undo: list[tuple[array[int], int, array[int]]] = []
        self._new_table()

    @property
    def cr3(self) -> int:
        """The value for CR3: the address of the top table."""
        return self.base

    @property
    def size(self) -> int:
        """Bytes of guest memory that the tables take so far."""
        return len(self._tables) * PAGE_4K

    def memory(self) -> list[tuple[int, bytes]]:
        """The tables as (guest-physical address, bytes), one piece."""
        return [(self.base, b"".join(table.tobytes() for table in self._tables))]

    def map(
        self, va: int, pa: int, size: int, flags: int = PTE.RW, *, max_page: int = PAGE_4M
    ) -> None:
        """Map linear [va, va + size) to guest-physical [pa, pa + size).

        `flags` are bits of a leaf entry: RW, US, XD, G, PWT, PCD, PAT_LARGE (the PAT bit, at its
        place for the page size), protection key and software bits; P is implied. The largest pages
        are used that alignment and `max_page` (bytes) allow; pass `PAGE_1G` for 1 GiB pages, which
        not every CPU has. Raises `PagingError` for addresses or sizes that are not multiples of
        4 KiB, out of range, flags that the mode does not have, or when `room` is used up; the
        tables are then as before.
        """
        self._check_linear(va, size)
        flags = self._check_flags(int(flags))
        if self._accessed:
            flags |= _A | (_D if flags & _RW else 0)
        if pa % PAGE_4K or pa < 0:
            raise PagingError(f"guest-physical address {pa:#x} is not a multiple of 4 KiB")
        if pa + size > 1 << MAX_PHYSICAL_BITS:
            raise PagingError(f"guest-physical range up to {pa + size:#x} exceeds 52 bits")
        if self.mode is PagingMode.BITS32 and pa + size > 1 << 32:
            large_only = not (va | pa | size) % PAGE_4M and max_page >= PAGE_4M
            if not large_only or pa + size > 1 << self.pse_bits:
                raise PagingError(
                    f"32-bit page tables cannot reach guest-physical {pa + size - 1:#x}; "
                    "use PAE, or 4 MiB pages with PSE-36"
                )
        self._change(va, size, pa, flags, max_page)
        self.uses_nx = self.uses_nx or bool(size and flags & _XD)

    def unmap(self, va: int, size: int) -> None:
        """Make linear [va, va + size) not present, splitting larger pages as needed."""
        self._check_linear(va, size)
        self._change(va, size, 0, None, PAGE_4M)

    def _change(self, va: int, size: int, pa: int, flags: int | None, max_page: int) -> None:
        """Fill a checked range, or leave everything as it was and raise."""
        start, before = va & self._va_mask, (len(self._tables), self.uses_large)
        try:
            self._fill(0, 0, start, start + size, pa, flags, max_page)
        except PagingError:
            for entries, index, old in reversed(self._undo):
                entries[index : index + len(old)] = old
            del self._tables[before[0] :]
            self.uses_large = before[1]
            raise
        finally:
            self._undo.clear()

    def _store(self, entries: array[int], index: int, new: array[int]) -> None:
        self._undo.append((entries, index, entries[index : index + len(new)]))
        entries[index : index + len(new)] = new

    @property
    def _va_mask(self) -> int:
        return (1 << self.mode.va_bits) - 1

    def _check_linear(self, va: int, size: int) -> None:
        if va % PAGE_4K or size % PAGE_4K or size < 0:
            raise PagingError(f"linear range {va:#x}+{size:#x} is not made of whole pages of 4 KiB")
        last = va + max(size, 1) - 1
        half = self._va_mask >> 1
        if (
            not 0 <= va <= last < 1 << 64
            or not self.mode.is_canonical(va)
            or not self.mode.is_canonical(last)
            or (self.mode.is_long and (va > half) != (last > half))
        ):
            raise PagingError(
                f"linear range {va:#x}+{size:#x} is not canonical: {self.mode.value} paging "
                f"translates {self.mode.va_bits}-bit addresses"
            )

    def _check_flags(self, flags: int) -> int:
        flags &= ~_P
        allowed = _LEAF_FLAGS
        if self.mode is not PagingMode.BITS32:
            allowed |= _XD
        if self.mode.is_long:
            allowed |= _LEAF_FLAGS_HIGH
        if flags & ~allowed:
            raise PagingError(
                f"flags {flags & ~allowed:#x} do not exist in a leaf of {self.mode.value} paging"
            )
        return flags

    def _new_table(self) -> int:
        if self.size + PAGE_4K > self.room:
            raise PagingError(
                f"page tables need more than the {self.room:#x} bytes reserved for them"
            )
        self._tables.append(array(self._code, bytes(PAGE_4K)))
        return len(self._tables) - 1

    def _table_at(self, entry: int) -> int:
        return ((entry & _ADDRESS) - self.base) // PAGE_4K

    def _leaf(self, spec: LevelSpec, pa: int, flags: int) -> int:
        """The entry that maps a page of `spec.span` bytes at `pa`."""
        value = flags & ~_PAT_LARGE | _P
        if spec.number == 1:
            if self.mode is PagingMode.BITS32 and pa >> 32:
                raise PagingError(f"a 4 KiB page of 32-bit paging cannot map {pa:#x}")
            return value | pa | (_PAT_4K if flags & _PAT_LARGE else 0)
        self.uses_large = True
        value |= flags & _PAT_LARGE | _PS
        if self.mode is PagingMode.BITS32:
            return value | pa & 0xFFC00000 | (pa >> 32) << 13
        return value | pa

    def _fill(
        self, table: int, depth: int, va: int, end: int, pa: int, flags: int | None, max_page: int
    ) -> None:
        """Set [va, end) in one table, descending where an entry is covered only in part.

        `flags` None unmaps. Linear addresses are cut to the mode's width here.
        """
        levels = self.mode.levels
        spec, last = levels[depth], depth + 1 == len(levels)
        span = spec.span
        may_map = spec.can_map and (last or span <= max_page)
        entries = self._tables[table]
        while va < end:
            index = spec.index(va)
            stop = min(end, (va | span - 1) + 1)
            old = entries[index]
            is_table = bool(old & _P) and not last and not old & _PS
            whole = stop - va == span and not is_table
            if whole and (flags is None or (may_map and not pa % span)):
                stop = va + span * self._set_run(entries, spec, va, end, pa, flags)
            elif old & _P or flags is not None:
                if is_table:
                    child = self._table_at(old)
                    if flags is not None and spec.has_rights:
                        self._store(entries, index, array(self._code, (old | flags & _US,)))
                elif old & _P:
                    child = self._split(entries, index, depth, flags or 0)
                else:
                    child = self._link(entries, index, spec, flags or 0)
                self._fill(child, depth + 1, va, stop, pa, flags, max_page)
            va, pa = stop, pa + stop - va

    def _set_run(
        self, entries: array[int], spec: LevelSpec, va: int, end: int, pa: int, flags: int | None
    ) -> int:
        """Set one leaf entry, or as many as lie empty before `end`; returns how many."""
        index, span = spec.index(va), spec.span
        count = min((end - va) // span, spec.entries - index)
        if count > 1 and any(entries[index : index + count]):
            count = 1
        if flags is None:
            values = array(self._code, bytes(entries.itemsize * count))
        elif self.mode is PagingMode.BITS32:
            values = array(
                self._code, (self._leaf(spec, pa + n * span, flags) for n in range(count))
            )
        else:
            # Consecutive leaves differ by the page size only: one range fills them all.
            first = self._leaf(spec, pa, flags)
            values = array(self._code, range(first, first + count * span, span))
        self._store(entries, index, values)
        return count

    def _link(self, entries: array[int], index: int, spec: LevelSpec, flags: int) -> int:
        """Point an entry at a new, empty table, with every right that a leaf below could need."""
        child = self._new_table()
        value = self.base + child * PAGE_4K | _P
        if spec.has_rights:
            value |= _RW | flags & _US | (_A if self._accessed else 0)
        self._store(entries, index, array(self._code, (value,)))
        return child

    def _split(self, entries: array[int], index: int, depth: int, flags: int) -> int:
        """Replace a large page by a table of the next smaller pages that map the same.

        `flags` are those of the mapping that needs the split, for the rights on the way to it.
        """
        spec, below = self.mode.levels[depth], self.mode.levels[depth + 1]
        old = entries[index]
        kept = old & (_LEAF_FLAGS | _XD | _LEAF_FLAGS_HIGH)  # includes PAT, at bit 12
        pa = old & _ADDRESS & -spec.span
        if self.mode is PagingMode.BITS32:
            pa |= (old >> 13 & 0xFF) << 32
        child = self._link(entries, index, spec, kept | flags)
        table = self._tables[child]
        for n in range(below.entries):
            table[n] = self._leaf(below, pa + n * below.span, kept)
        return child


def tables_needed(mode: PagingMode, size: int, *, page: int = PAGE_2M) -> int:
    """Bytes of tables for mapping linear [0, size) with pages of `page` bytes."""
    tables = PageTables(mode, 0)
    tables.map(0, 0, size, max_page=page)
    return tables.size
