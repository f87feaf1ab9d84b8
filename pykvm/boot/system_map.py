"""Symbols from a file of their own: System.map, the output of `nm`, /proc/kallsyms, or an ELF file
with a symbol table (a vmlinux, compressed or not)."""

from __future__ import annotations

from collections.abc import Iterator

from pykvm.boot.errors import ImageError, printable
from pykvm.boot.source import ImageInput, Source, open_source
from pykvm.boot.symbols import Symbol, SymbolTable

MAX_BYTES = 256 << 20
MAX_SYMBOLS = 1 << 20
MAX_NAME = 1024
"""Longer names are cut."""

_HEX = frozenset(b"0123456789abcdefABCDEF")


def read_symbols(file: ImageInput) -> SymbolTable:
    """The symbols in `file`. Raises `ImageError` if it cannot be read or holds none."""
    source = open_source(file, "symbol file")
    head = bytes(source.data[:4])
    if head == b"\x7fELF":
        return _from_elf(source)
    from pykvm.boot.unpack import compression_of, unpack

    kind = compression_of(source.data)
    if kind is not None:
        data = memoryview(unpack(source.name, source.data, kind, MAX_BYTES))
        source = Source(source.name, data)
        if bytes(data[:4]) == b"\x7fELF":
            return _from_elf(source)
    return _from_text(source)


def _from_elf(source: Source) -> SymbolTable:
    from pykvm.boot.elf import ElfImage
    from pykvm.boot.elf_symbols import symbol_table

    table = symbol_table(ElfImage(source.name, source.data))
    if not table.names:
        raise ImageError(
            f"{source.name}: this ELF file has no symbols ({table.problem or 'it was stripped'}): "
            "give a System.map, or the vmlinux before it was stripped"
        )
    return table


def _from_text(source: Source) -> SymbolTable:
    if len(source.data) > MAX_BYTES:
        raise ImageError(
            f"{source.name}: {len(source.data)} bytes are too many for a symbol map: give a "
            "System.map"
        )
    symbols, remark = parse_map(bytes(source.data))
    if not symbols:
        raise ImageError(
            f"{source.name}: no line of it is an address, a type and a name: give a System.map, "
            "the output of nm, or an ELF file with symbols"
        )
    remark = remark and f"{source.name}: {remark}"
    return SymbolTable(lambda: (symbols, remark))


def parse_map(data: bytes) -> tuple[list[Symbol], str]:
    """The symbols of a map's lines (`ffffffff81000000 T _text`), and a remark.

    Lines of another shape are passed over, as are undefined symbols. Nothing that is not printable
    gets into a name. At most `MAX_SYMBOLS` are read.
    """
    symbols: list[Symbol] = []
    for line in _lines(data):
        parts = line.split(None, 3)
        if len(parts) < 3 or not 1 <= len(parts[0]) <= 16 or len(parts[1]) != 1:
            continue
        if not _HEX.issuperset(parts[0]) or parts[1] in b"Uw":
            continue
        if len(symbols) == MAX_SYMBOLS:
            return symbols, f"only the first {MAX_SYMBOLS} symbols are used"
        kind = parts[1].decode("latin-1")
        name = printable(parts[2].decode("utf-8", "replace"), MAX_NAME)
        symbols.append(Symbol(name, int(parts[0], 16), 0, kind.isupper(), kind in "aA"))
    return symbols, ""


def _lines(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        if end - at <= 2 * MAX_NAME:
            yield data[at:end]
        at = end + 1
