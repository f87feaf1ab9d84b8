"""Reads guest-virtual memory, and lists everything that a set of page tables maps.

Like the walker, this works on guest memory alone and expects hostile tables.
"""

from __future__ import annotations

from collections.abc import Iterator

from pykvm.arch.errors import PagingError
from pykvm.arch.pagemodes import MAX_PHYSICAL_BITS, PagingMode, pages
from pykvm.arch.pagewalk import EntryFormat, MemoryReader, WalkRules, read_physical, walk
from pykvm.typed import NamedTuple


def read_virtual(
    memory: MemoryReader, va: int, n: int, *, cr0: int, cr3: int, cr4: int, efer: int
) -> bytes:
    """`n` bytes at guest-virtual `va`, across pages; shorter when a page does not translate.

    Rights are not checked: this is the debugger's view. Reading stops at the first page that does
    not translate or is not memory.
    """
    parts: list[bytes] = []
    for address, length in pages(va, n):
        if address >> 64:
            break
        step = walk(memory, address, cr0=cr0, cr3=cr3, cr4=cr4, efer=efer)
        data = b"" if step.gpa is None else read_physical(memory, step.gpa, length)
        parts.append(data)
        if len(data) != length:
            break
    return b"".join(parts)


class Mapping(NamedTuple):
    """A run of linear addresses that maps to consecutive guest-physical ones with equal rights."""

    va: int
    gpa: int
    size: int
    page_size: int
    writable: bool
    user: bool
    nx: bool

    def joins(self, after: Mapping) -> bool:
        """`after` continues this run: same rights, next linear and next physical address."""
        return (
            self.va + self.size == after.va
            and self.gpa + self.size == after.gpa
            and (self.page_size, self.writable, self.user, self.nx)
            == (after.page_size, after.writable, after.user, after.nx)
        )

    def __str__(self) -> str:
        rights = "r" + ("w" if self.writable else "-") + ("-" if self.nx else "x")
        rights += "u" if self.user else "s"
        return f"{self.va:#018x}-{self.va + self.size:#018x} → {self.gpa:#x} {rights}"


def mappings(
    memory: MemoryReader,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    maxphyaddr: int = MAX_PHYSICAL_BITS,
    max_tables: int = 4096,
) -> Iterator[Mapping]:
    """Everything that the page tables map, in address order, adjacent pages joined.

    Entries that would fault are left out, and so is everything without paging. Tables may point
    at themselves and so describe an enormous space: after `max_tables` tables the enumeration
    raises `PagingError`.
    """
    form = EntryFormat(cr0=cr0, cr4=cr4, efer=efer, rules=WalkRules(maxphyaddr))
    if form.mode is PagingMode.NONE:
        return
    pending: Mapping | None = None
    for piece in _leaves(memory, form, cr3, max_tables):
        if pending and pending.joins(piece):
            pending = pending._replace(size=pending.size + piece.size)
            continue
        if pending:
            yield pending
        pending = piece
    if pending:
        yield pending


def _leaves(
    memory: MemoryReader, form: EntryFormat, cr3: int, max_tables: int
) -> Iterator[Mapping]:
    """The pages one by one."""
    mode, size, seen = form.mode, form.size, 0

    def visit(
        table: int, depth: int, base: int, above: tuple[bool, bool, bool]
    ) -> Iterator[Mapping]:
        nonlocal seen
        seen += 1
        if seen > max_tables:
            raise PagingError(f"the page tables have more than {max_tables} tables; stopped")
        spec = mode.levels[depth]
        data = read_physical(memory, table, spec.entries * size)
        for offset in range(0, len(data) - size + 1, size):
            entry = int.from_bytes(data[offset : offset + size], "little")
            if not entry & 1 or form.reserved(spec, entry):
                continue
            va = base | offset // size << spec.shift
            if mode.is_long and va >> (mode.va_bits - 1) & 1:
                va |= (1 << 64) - (1 << mode.va_bits)
            rights = form.rights(spec, entry, above)
            if form.is_leaf(spec, entry):
                yield Mapping(va, form.frame(spec, entry), spec.span, spec.span, *rights)
            else:
                yield from visit(form.table(entry), depth + 1, va, rights)

    yield from visit(mode.root_of(cr3), 0, 0, (True, True, False))
