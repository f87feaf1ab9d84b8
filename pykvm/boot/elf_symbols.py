"""An ELF file's symbol table (gABI ch. 4, "Symbol Table"), read into `SymbolTable` on first use.

Symbols serve reports and breakpoints, so a damaged table stops nothing: what can be read is kept,
and the remark says what is wrong. Numbers and sizes are bounded before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pykvm.boot.elf import ElfImage
from pykvm.boot.elf_headers import SHT_DYNSYM, SHT_STRTAB, SHT_SYMTAB
from pykvm.boot.errors import ImageError, printable
from pykvm.boot.symbols import Symbol, SymbolTable
from pykvm.typed import Any

MAX_SYMBOLS = 1 << 20
MAX_STRINGS = 64 << 20
"""Bytes of a string table, and of all names together."""
MAX_NAME = 1024
"""Longer names are cut."""

_SECTION, _FILE, _TLS = 3, 4, 6  # symbol types that are no addresses
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2  # special section indices


def symbol_table(elf: ElfImage) -> SymbolTable:
    """The symbols of `elf`: its full table, or the dynamic one if it was stripped."""
    return SymbolTable(lambda: _read(elf))


def find_symbol_sections(elf: ElfImage) -> tuple[Any, Any] | None:
    """The (symbol, string) section headers of `elf`; None if it has none.

    Raises `ImageError` if the section headers are unusable.
    """
    sections = elf.sections()
    for wanted in (SHT_SYMTAB, SHT_DYNSYM):
        for section in sections:
            if section.sh_type == wanted and section.sh_link < len(sections):
                strings = sections[section.sh_link]
                if strings.sh_type == SHT_STRTAB:
                    return section, strings
    return None


def _read(elf: ElfImage) -> tuple[list[Symbol], str]:
    try:
        found = find_symbol_sections(elf)
    except ImageError as error:
        return [], str(error)
    if found is None:
        return [], ""
    table, strings = found
    if strings.sh_size > MAX_STRINGS:
        return [], f"{elf.name}: a symbol string table of {strings.sh_size} bytes is too large"
    data = elf.data
    for section in found:
        if section.sh_offset + section.sh_size > len(data):
            return [], f"{elf.name}: the symbol table lies outside the file"
    record = struct.Struct("<IBBHQQ" if elf.bits == 64 else "<IIIBBH")
    count = min(table.sh_size // record.size, MAX_SYMBOLS)
    records = data[table.sh_offset : table.sh_offset + count * record.size]
    names = _Names(bytes(data[strings.sh_offset : strings.sh_offset + strings.sh_size]))
    symbols = list(_decode(elf, record.iter_unpack(records), names))
    if names.exhausted:
        return symbols, f"{elf.name}: symbol names add up to more than {MAX_STRINGS} bytes"
    if count < table.sh_size // record.size:
        return symbols, f"{elf.name}: only the first {MAX_SYMBOLS} symbols are used"
    return symbols, ""


def _decode(elf: ElfImage, records: Iterator[tuple[int, ...]], names: _Names) -> Iterator[Symbol]:
    for record in records:
        if elf.bits == 64:
            name_at, info, _, section, value, size = record
        else:
            name_at, value, size, info, _, section = record
        if section in (_UNDEFINED, _COMMON) or info & 15 in (_SECTION, _FILE, _TLS):
            continue
        name = names.at(name_at)
        if not name:
            continue
        constant = section == _ABSOLUTE
        address = value if constant else (value + elf.bias) % (1 << 64)
        yield Symbol(name, address, size, info >> 4 != 0, constant)


class _Names:
    """Strings of a string table, each decoded once, up to `MAX_STRINGS` bytes in all."""

    def __init__(self, table: bytes) -> None:
        self._table = table
        self._known: dict[int, str] = {}
        self._left = MAX_STRINGS
        self.exhausted = False

    def at(self, offset: int) -> str:
        """The string at `offset`; empty if it is outside the table or the budget is spent."""
        known = self._known.get(offset)
        if known is None:
            end = self._table.find(b"\0", offset, offset + MAX_NAME)
            raw = self._table[offset : end if end >= 0 else offset + MAX_NAME]
            if len(raw) > self._left:
                self.exhausted = True
                return ""
            self._left -= len(raw)
            known = self._known[offset] = printable(raw.decode("utf-8", "replace"), MAX_NAME)
        return known
