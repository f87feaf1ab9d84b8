"""Reads what the build needs from a linked ELF file: entry, load address, symbols, initial bytes.

Only the standard library, so that `python guests/build.py` needs no Python packages. The field
offsets are those of the ELF specification (System V ABI, chapters 4 and 5).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PT_LOAD = 1
SHT_SYMTAB = 2


@dataclass(frozen=True)
class Symbol:
    """A global symbol: its guest address and size in bytes (0 if the source gives none)."""

    address: int
    size: int


@dataclass(frozen=True)
class ElfInfo:
    """What a linked guest says about itself; addresses are guest-physical (p_paddr)."""

    entry: int
    load: int
    symbols: dict[str, Symbol]
    segments: list[tuple[int, bytes]]

    def initial_value(self, symbol: Symbol) -> int:
        """The little-endian value the image holds at `symbol` (0 in .bss)."""
        for address, data in self.segments:
            offset = symbol.address - address
            if offset >= 0 and offset + symbol.size <= len(data):
                return int.from_bytes(data[offset : offset + symbol.size], "little")
        return 0


def read_elf(data: bytes) -> ElfInfo:
    """Parse the output of `ld`, 32- or 64-bit, little-endian."""
    wide = data[4] == 2
    if wide:
        entry, phoff, shoff = struct.unpack_from("<QQQ", data, 24)
        phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", data, 54)
    else:
        entry, phoff, shoff = struct.unpack_from("<III", data, 24)
        phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", data, 42)

    segments = []
    for i in range(phnum):
        at = phoff + i * phentsize
        if wide:
            kind, _, offset, _, paddr, filesz, memsz = struct.unpack_from("<IIQQQQQ", data, at)
        else:
            kind, offset, _, paddr, filesz, memsz = struct.unpack_from("<IIIIII", data, at)
        if kind == PT_LOAD and memsz:
            segments.append((paddr, data[offset : offset + filesz]))

    sections = []
    for i in range(shnum):
        at = shoff + i * shentsize
        form = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
        sections.append(struct.unpack_from(form, data, at))
    symbols: dict[str, Symbol] = {}
    for section in sections:
        if section[1] != SHT_SYMTAB:
            continue
        strings = sections[section[6]]
        names = data[strings[4] : strings[4] + strings[5]]
        for at in range(section[4], section[4] + section[5], section[9]):
            if wide:
                name, info, _, shndx, value, size = struct.unpack_from("<IBBHQQ", data, at)
            else:
                name, value, size, info, _, shndx = struct.unpack_from("<IIIBBH", data, at)
            if info >> 4 == 1 and shndx != 0:  # STB_GLOBAL, defined
                text = names[name : names.index(b"\0", name)].decode()
                symbols[text] = Symbol(value, size)
    return ElfInfo(entry, min(address for address, _ in segments), symbols, segments)
