"""The fixed-size ELF headers as named numbers (System V gABI ch. 4, "ELF Header", "Section Header",
and ch. 5, "Program Header"). Little-endian, as x86 files are.

Three tables of fields, decoded with `struct`. A parser library was used before: importing it took
20 ms, longer than making the VM and running a small guest to its end.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace

EM_386, EM_IAMCU, EM_X86_64 = 3, 6, 62
ET_NONE, ET_REL, ET_EXEC, ET_DYN, ET_CORE = 0, 1, 2, 3, 4
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
SHT_SYMTAB, SHT_STRTAB, SHT_DYNSYM = 2, 3, 11

_EHDR = (
    "e_type", "e_machine", "e_version", "e_entry", "e_phoff", "e_shoff", "e_flags", "e_ehsize",
    "e_phentsize", "e_phnum", "e_shentsize", "e_shnum", "e_shstrndx",
)  # fmt: skip
_PHDR32 = ("p_type", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_flags", "p_align")
_PHDR64 = ("p_type", "p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_align")
_SHDR = (
    "sh_name", "sh_type", "sh_flags", "sh_addr", "sh_offset", "sh_size", "sh_link", "sh_info",
    "sh_addralign", "sh_entsize",
)  # fmt: skip


class Decoder:
    """One kind of header: its size in bytes, and `parse`."""

    def __init__(self, layout: str, names: tuple[str, ...]) -> None:
        self._struct = struct.Struct("<" + layout)
        self._names = names
        self.size = self._struct.size

    def parse(self, data: bytes | memoryview) -> SimpleNamespace:
        """The fields by their names in the specification."""
        return SimpleNamespace(**dict(zip(self._names, self._struct.unpack(data), strict=True)))


class Headers:
    """The decoders of one ELF class: `ehdr` (with its 16 identification bytes), `phdr`, `shdr`."""

    def __init__(self, bits: int) -> None:
        wide = bits == 64
        self.ehdr = Decoder("16xHHIQQQIHHHHHH" if wide else "16xHHIIIIIHHHHHH", _EHDR)
        self.phdr = Decoder("IIQQQQQQ" if wide else "8I", _PHDR64 if wide else _PHDR32)
        self.shdr = Decoder("IIQQQQIIQQ" if wide else "10I", _SHDR)
