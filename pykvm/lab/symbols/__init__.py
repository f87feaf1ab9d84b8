"""Names of addresses in a guest: from its image, a System.map, or an ELF file with symbols."""

from __future__ import annotations

import re

from pykvm.boot.symbols import SymbolTable
from pykvm.lab.events import LabError
from pykvm.typed import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pykvm.machine import Machine

_WHERE = re.compile(r"\s*\*?([^+\-\s]+)\s*(?:([+-])\s*(0x[0-9a-fA-F]+|[0-9]+))?\s*")


class Symbols:
    """Names and addresses. `bias` is added to the linked addresses (a kernel that moved)."""

    def __init__(self, *tables: SymbolTable, bias: int = 0, image: object = None) -> None:
        self._tables = tables
        self._image = image
        self.bias = bias

    @classmethod
    def of(cls, machine: Machine, more: Symbols | None = None) -> Self:
        """Those of the loaded image, and `more`."""
        tables = () if machine.image is None else (machine.image.symbol_table,)
        added = (
            more._tables[1:]
            if more is not None and more._image is not None
            else (more._tables if more is not None else ())
        )
        return cls(*tables, *added, bias=more.bias if more is not None else 0, image=machine.image)

    def is_of(self, machine: Machine) -> bool:
        """Whether the machine's image is still the one that these are of."""
        return machine.image is None or self._image is machine.image

    def address(self, name: str) -> int | None:
        """Where a symbol is, or None."""
        for table in self._tables:
            found = table.names.get(name)
            if found is not None:
                return found + self.bias
        return None

    def name(self, address: int) -> str:
        """`main+0x4`, or "" where no symbol is known."""
        for table in self._tables:
            found = table.at(address - self.bias)
            if found is not None:
                return found
        return ""

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({name for table in self._tables for name in table.names})

    def resolve(self, where: str | int) -> int:
        """A linear address: a number, a name, or one with an offset. Raises `LabError`."""
        if isinstance(where, int):
            return where
        match = _WHERE.fullmatch(where)
        if match is None:
            raise LabError(f"{where!r} is no place; write it like main, main+0x10 or 0x1000")
        name, sign, offset = match.groups()
        try:
            base: int | None = int(name, 0)
        except ValueError:
            base = self.address(name)
        if base is None:
            raise LabError(f"no symbol is called {name!r}; use a number, or load symbols")
        return base + (int(offset, 0) if offset else 0) * (-1 if sign == "-" else 1)
