"""Symbols of an image by name and by address, read when first asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

from pykvm.typed import NamedTuple

UNSIZED_REACH = 0x10000
"""Bytes after a symbol without a size (an assembly label) that are still said to belong to it."""


class Symbol(NamedTuple):
    """One symbol of an image."""

    name: str
    address: int
    """Guest-virtual, as linked."""
    size: int
    """Bytes; 0 if unknown."""
    is_global: bool
    is_constant: bool = False
    """An absolute value, found by name only: no address belongs to it."""


class SymbolTable:
    """Symbols by name and by address.

    `reader` is called once, on first use, and returns the symbols and a remark (empty if all is
    well).
    """

    def __init__(
        self, reader: Callable[[], tuple[Iterable[Symbol], str]] = lambda: ((), "")
    ) -> None:
        self._reader: Callable[[], tuple[Iterable[Symbol], str]] | None = reader
        self._names: dict[str, int] = {}
        self._sorted: list[tuple[int, bool, int, str]] = []
        self._problem = ""

    @property
    def names(self) -> dict[str, int]:
        """Name → address; a global symbol wins over a local one, else the first."""
        self._read()
        return self._names

    @property
    def problem(self) -> str:
        """Why the table is empty or incomplete though the image has one; empty if nothing is
        wrong."""
        self._read()
        return self._problem

    def at(self, address: int) -> str | None:
        """The symbol that covers `address`: `name` or `name+0x12`; None if there is none.

        A symbol without a size covers everything up to the next one, but at most `UNSIZED_REACH`
        bytes.
        """
        self._read()
        place = bisect_right(self._sorted, address, key=lambda s: s[0])
        # Look past symbols that end before the address, for an enclosing one; nesting is shallow.
        for start, _, size, name in reversed(self._sorted[max(place - 8, 0) : place]):
            offset = address - start
            if offset < (size or UNSIZED_REACH):
                return f"{name}+{offset:#x}" if offset else name
        return None

    def _read(self) -> None:
        if self._reader is None:
            return
        reader, self._reader = self._reader, None
        symbols, self._problem = reader()
        strong: set[str] = set()
        for symbol in symbols:
            name = symbol.name
            if name not in self._names or (symbol.is_global and name not in strong):
                self._names[name] = symbol.address
                if symbol.is_global:
                    strong.add(name)
            if not symbol.is_constant:
                self._sorted.append((symbol.address, symbol.is_global, symbol.size, name))
        self._sorted.sort()
