"""`Program`: an ELF64 program without a libc under it, as a ring-3 target is built.

Static executables and static PIEs (System V gABI, ch. 5; x86-64 psABI): segments, symbols, and the
relative relocations of a PIE. Read with pyelftools.
"""

from __future__ import annotations

import bisect
import io
import os
import pathlib
from dataclasses import dataclass

from pykvm.fuzz import layout as at
from pykvm.fuzz.errors import FuzzError
from pykvm.typed import Any

MOST_BYTES = 256 << 20
_RELATIVE = 8  # R_X86_64_RELATIVE
_IRELATIVE = 37
_PF_X, _PF_W = 1, 2


@dataclass(frozen=True)
class Segment:
    """Bytes for `[gva, gva + size)`, the rest of it zeros."""

    gva: int
    size: int
    data: bytes
    writable: bool
    executable: bool


class Program:
    """An ELF file, or its bytes. `base`: what a PIE's addresses were moved by.

    Raises `FuzzError` for a file that is no such program.
    """

    def __init__(self, image: str | os.PathLike[str] | bytes) -> None:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        if isinstance(image, bytes):
            self.name, data = "the target", image
        else:
            self.name = os.fspath(image)
            try:
                data = pathlib.Path(image).read_bytes()
            except OSError as error:
                raise FuzzError(f"{self.name}: {error.strerror}") from None
        self.data = data
        try:
            elf = ELFFile(io.BytesIO(data))
            self._read(elf)
        except FuzzError:
            raise
        except (ELFError, ValueError, KeyError, IndexError, TypeError, AssertionError, OSError,
                UnicodeError, OverflowError, AttributeError, MemoryError) as error:  # fmt: skip
            raise FuzzError(f"{self.name} is not a usable ELF file: {error}") from None

    def _read(self, elf: Any) -> None:
        if elf.elfclass != 64 or elf["e_machine"] != "EM_X86_64":
            raise FuzzError(f"{self.name} is not for 64-bit x86; build it with -m64")
        if elf["e_type"] not in ("ET_EXEC", "ET_DYN"):
            raise FuzzError(f"{self.name} is not linked (it is {elf['e_type']}); link it -static")
        self.base = at.PIE_GVA if elf["e_type"] == "ET_DYN" else 0
        self.segments: list[Segment] = []
        total = 0
        for header in elf.iter_segments():
            if header["p_type"] == "PT_INTERP":
                raise FuzzError(f"{self.name} wants a dynamic linker; link it with -static")
            if header["p_type"] != "PT_LOAD" or not header["p_memsz"]:
                continue
            size, filled = header["p_memsz"], header["p_filesz"]
            gva = header["p_vaddr"] + self.base
            total += size
            if total > MOST_BYTES or filled > size:
                raise FuzzError(f"{self.name}: segments of more than {MOST_BYTES} bytes")
            if not at.PAGE <= gva < 1 << 46 or gva + size > 1 << 46:
                raise FuzzError(f"{self.name}: a segment at {gva:#x} is outside user space")
            data = header.data()
            if len(data) != filled:
                raise FuzzError(f"{self.name} is truncated: a segment at {gva:#x} is missing")
            flags = header["p_flags"]
            self.segments.append(Segment(gva, size, data, bool(flags & _PF_W), bool(flags & _PF_X)))
        if not self.segments:
            raise FuzzError(f"{self.name} has nothing to load")
        self.patches = self._relocations(elf)
        self._symbols(elf)

    def _relocations(self, elf: Any) -> list[tuple[int, int]]:
        """(gva, 64-bit value) pairs."""
        from elftools.elf.relocation import RelocationSection

        found = []
        for section in elf.iter_sections():
            if not isinstance(section, RelocationSection) or not section["sh_flags"] & 2:
                continue
            for entry in section.iter_relocations():
                kind = entry["r_info_type"]
                if kind == _RELATIVE:
                    value = (entry["r_addend"] + self.base) & (1 << 64) - 1
                    found.append((entry["r_offset"] + self.base, value))
                elif kind != _IRELATIVE:
                    raise FuzzError(
                        f"{self.name} has a relocation of type {kind}: link it with -static"
                    )
        return found

    def _symbols(self, elf: Any) -> None:
        self.symbols: dict[str, int] = {}
        places: dict[int, tuple[int, str]] = {}
        table = elf.get_section_by_name(".symtab")
        for symbol in table.iter_symbols() if table is not None else ():
            kind = symbol["st_info"]["type"]
            if kind not in ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE") or not symbol.name:
                continue
            if symbol["st_shndx"] in ("SHN_UNDEF", "SHN_ABS"):
                continue
            gva = symbol["st_value"] + self.base
            self.symbols.setdefault(symbol.name, gva)
            if kind == "STT_FUNC":
                places[gva] = (symbol["st_size"], symbol.name)
        self._starts = sorted(places)
        self._places = places

    def symbol(self, name: str) -> int:
        """Where a symbol is (guest-virtual). Raises `FuzzError`."""
        if name not in self.symbols:
            raise FuzzError(f"{self.name} has no symbol {name!r}; give another function")
        return self.symbols[name]

    def functions(self) -> list[tuple[int, int]]:
        """(guest-virtual address, bytes) of each function, in order."""
        return [(start, self._places[start][0]) for start in self._starts]

    def bytes_at(self, gva: int, size: int) -> bytes:
        """What the file has there; shorter where it ends."""
        segment = self.segment_at(gva)
        return segment.data[gva - segment.gva :][:size] if segment else b""

    def segment_at(self, gva: int) -> Segment | None:
        """The segment that an address is in."""
        for segment in self.segments:
            if segment.gva <= gva < segment.gva + segment.size:
                return segment
        return None

    def where(self, gva: int) -> str:
        """ "parse+0x12", or "" outside every function."""
        index = bisect.bisect_right(self._starts, gva) - 1
        if index < 0:
            return ""
        start = self._starts[index]
        size, name = self._places[start]
        if gva - start >= max(size, 1):
            return ""
        return f"{name}+{gva - start:#x}" if gva > start else name
