"""Builds ELF and multiboot images byte by byte, so that tests can make any field say anything."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_ARM, EM_X86_64 = 3, 40, 62
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 1, 2, 3, 8

EHDR32, EHDR64 = struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<16sHHIQQQIHHHHHH")
PHDR32, PHDR64 = struct.Struct("<8I"), struct.Struct("<IIQQQQQQ")
SHDR32, SHDR64 = struct.Struct("<10I"), struct.Struct("<IIQQQQIIQQ")
SYM32, SYM64 = struct.Struct("<IIIBBH"), struct.Struct("<IBBHQQ")

MULTIBOOT_MAGIC = 0x1BADB002


@dataclass
class Seg:
    """One program header and its bytes."""

    vaddr: int
    data: bytes = b"\xf4"
    paddr: int | None = None
    mem_size: int | None = None
    type: int = PT_LOAD
    flags: int = 7
    offset: int | None = None
    file_size: int | None = None


@dataclass
class Sym:
    """One symbol table entry."""

    name: str | bytes
    value: int
    size: int = 0
    info: int = 0x10  # global, no type
    shndx: int = 1


@dataclass
class Elf:
    """An ELF file; `ehdr` replaces fields of the header by name."""

    segments: list[Seg]
    entry: int = 0x100000
    bits: int = 64
    type: int = ET_EXEC
    machine: int | None = None
    symbols: list[Sym] = field(default_factory=list)
    ehdr: dict[str, int] = field(default_factory=dict)
    ident: bytes = b""
    pad: int = 0
    """Bytes of zeros between the headers and the segments' data."""

    def build(self) -> bytes:
        """The file's bytes."""
        wide = self.bits == 64
        ehdr, phdr, shdr = (EHDR64, PHDR64, SHDR64) if wide else (EHDR32, PHDR32, SHDR32)
        at = ehdr.size + phdr.size * len(self.segments) + self.pad
        headers, body = b"", b""
        for s in self.segments:
            offset = at + len(body) if s.offset is None else s.offset
            file_size = len(s.data) if s.file_size is None else s.file_size
            mem_size = max(file_size, len(s.data)) if s.mem_size is None else s.mem_size
            paddr = s.vaddr if s.paddr is None else s.paddr
            if wide:
                headers += phdr.pack(
                    s.type, s.flags, offset, s.vaddr, paddr, file_size, mem_size, 4096
                )
            else:
                headers += phdr.pack(
                    s.type, offset, s.vaddr, paddr, file_size, mem_size, s.flags, 4096
                )
            body += s.data
        values = {
            "type": self.type,
            "machine": self.machine or (EM_X86_64 if wide else EM_386),
            "version": 1,
            "entry": self.entry,
            "phoff": ehdr.size,
            "shoff": 0,
            "flags": 0,
            "ehsize": ehdr.size,
            "phentsize": phdr.size,
            "phnum": len(self.segments),
            "shentsize": shdr.size,
            "shnum": 0,
            "shstrndx": 0,
        }
        sections = b""
        if self.symbols:
            base = at + len(body)
            sections, values["shoff"] = self._sections(base, shdr)
            values["shnum"], values["shstrndx"] = 5, 4
        values.update(self.ehdr)
        ident = self.ident or b"\x7fELF" + bytes([2 if wide else 1, 1, 1, 0]) + bytes(8)
        return ehdr.pack(ident, *values.values()) + headers + bytes(self.pad) + body + sections

    def _sections(self, base: int, shdr: struct.Struct) -> tuple[bytes, int]:
        """Symbol table, strings and section headers for a file position `base`."""
        strings, records = b"\0", [b""]
        wide = self.bits == 64
        for s in self.symbols:
            name = s.name if isinstance(s.name, bytes) else s.name.encode()
            if wide:
                records.append(SYM64.pack(len(strings), s.info, 0, s.shndx, s.value, s.size))
            else:
                records.append(SYM32.pack(len(strings), s.value, s.size, s.info, 0, s.shndx))
            strings += name + b"\0"
        records[0] = bytes(SYM64.size if wide else SYM32.size)
        table = b"".join(records)
        names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
        first = self.segments[0]
        sym_at, str_at = base, base + len(table)
        names_at = str_at + len(strings)
        shoff = -(-(names_at + len(names)) // 8) * 8
        align = shoff - names_at - len(names)
        headers = [
            (0,) * 10,
            (1, SHT_PROGBITS, 6, first.vaddr, 0, len(first.data), 0, 0, 16, 0),
            (7, SHT_SYMTAB, 0, 0, sym_at, len(table), 3, 1, 8, len(records[0])),
            (15, SHT_STRTAB, 0, 0, str_at, len(strings), 0, 0, 1, 0),
            (23, SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0),
        ]
        packed = b"".join(shdr.pack(*h) for h in headers)
        return table + strings + names + bytes(align) + packed, shoff


def multiboot_header(
    flags: int = 0, *fields: int, magic: int = MULTIBOOT_MAGIC, checksum: int | None = None
) -> bytes:
    """A multiboot header: magic, flags, checksum, then the address fields given."""
    if checksum is None:
        checksum = -(magic + flags) & 0xFFFFFFFF
    return struct.pack(f"<{3 + len(fields)}I", magic, flags, checksum, *fields)


def multiboot_elf(
    flags: int = 0, code: bytes = b"\xf4", *, bits: int = 32, base: int = 0x100000, **kwargs: object
) -> bytes:
    """A multiboot ELF kernel: header, then `code` as its entry point."""
    data = multiboot_header(flags) + code
    return Elf([Seg(base, data)], entry=base + 12, bits=bits, **kwargs).build()  # type: ignore[arg-type]


def multiboot_flat(
    code: bytes = b"\xf4",
    *,
    base: int = 0x100000,
    flags: int = 1 << 16,
    lead: int = 0,
    bss: int = 0,
    **changes: int,
) -> bytes:
    """A multiboot kernel with address fields: `lead` bytes, header, `code`."""
    values = {
        "header_addr": base + lead,
        "load_addr": base,
        "load_end_addr": 0,
        "bss_end_addr": base + lead + 32 + len(code) + bss if bss else 0,
        "entry_addr": base + lead + 32,
    }
    values.update(changes)
    return bytes(lead) + multiboot_header(flags, *values.values()) + code
