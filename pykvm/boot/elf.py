"""ELF32 and ELF64 executables for x86 (System V gABI ch. 4 and 5; i386 and x86-64 psABI).

Loaded by physical address (`p_paddr`), as boot loaders do. Entered:

- ELF64 in long mode, at `e_entry` as it is. Where `e_entry` is a virtual address in a segment
  whose virtual and physical addresses differ, every such segment is mapped virtual → physical on
  top of the identity map.
- ELF32 in flat protected mode without paging, at a physical address: a virtual `e_entry` is
  translated through its segment.

`e_entry` counts as virtual if it lies in a segment's virtual range, else as physical; executable
segments are asked first, so that a data segment linked at 0 (Linux's per-CPU data) captures no
physical entry point.

`pykvm.boot.elf_headers` decodes the headers. Counts and offsets are checked here, before anything
is decoded or allocated.
"""

from __future__ import annotations

from collections.abc import Iterable

from pykvm.boot.detect import ELF_MAGIC
from pykvm.boot.elf_headers import (
    EM_386,
    EM_IAMCU,
    EM_X86_64,
    ET_CORE,
    ET_DYN,
    ET_EXEC,
    ET_NONE,
    ET_REL,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
    Headers,
)
from pykvm.boot.errors import ImageError, human_size, span
from pykvm.boot.image import Mode, Segment
from pykvm.boot.layout import FOUR_GIB, PAGE, Layout
from pykvm.typed import Any, NamedTuple

MAX_PROGRAM_HEADERS = 1024
"""More program headers than this are refused; linkers write about ten."""
MAX_SECTIONS = 4096
"""Section headers are used only if there are at most this many."""

_CANONICAL_END = 1 << 47
_CANONICAL_START = (1 << 64) - (1 << 47)
_TOP = 1 << 64


class LoadSegment(NamedTuple):
    """A PT_LOAD program header with something to load."""

    number: int
    """Its place in the program header table."""
    offset: int
    """Where its bytes are in the file."""
    file_size: int
    mem_size: int
    vaddr: int
    paddr: int
    executable: bool

    @property
    def what(self) -> str:
        """What messages call it."""
        return f"segment {self.number}"

    def holds_virtual(self, address: int) -> bool:
        """Whether `address` lies in its virtual range."""
        return self.vaddr <= address < self.vaddr + self.mem_size

    def holds_physical(self, address: int) -> bool:
        """Whether `address` lies in its physical range."""
        return self.paddr <= address < self.paddr + self.mem_size


class Entry(NamedTuple):
    """Where an ELF file starts."""

    physical: int
    """Guest-physical address of the first instruction."""
    virtual: int
    """Guest-virtual address to jump to in long mode; the physical one if no mapping is needed."""

    @property
    def is_mapped(self) -> bool:
        """Whether segments must be mapped for it."""
        return self.physical != self.virtual


class ElfImage:
    """The headers of an ELF executable for x86, checked.

    `name` is the image's in messages, `data` the whole file. Raises `ImageError` if it is not a
    static x86 executable or its program headers contradict the file. `load` moves a
    position-independent executable so that its lowest byte is at this guest-physical address.
    """

    def __init__(self, name: str, data: memoryview, load: int | None = None) -> None:
        self.name = name
        self.data = data
        self.bits = _identify(name, data)
        self._headers = Headers(self.bits)
        header = self._headers.ehdr.parse(data[: self._headers.ehdr.size])
        self.header: Any = header
        self._check_machine()
        self._check_type()
        self.note_ranges: list[tuple[int, int]] = []
        """(file offset, size) of the PT_NOTE segments, not checked."""
        self.segments = self._read_segments()
        self.bias = 0
        """What is added to the addresses in the file (position-independent executables only)."""
        if load is not None:
            self._move(load)
        self.entry_address: int = (header.e_entry + self.bias) % _TOP

    @property
    def default_mode(self) -> Mode:
        """`long` for x86-64 code, `protected` for i386 code."""
        return "long" if self.header.e_machine == EM_X86_64 else "protected"

    @property
    def is_higher_half(self) -> bool:
        """Whether code is linked at other addresses than it is loaded at."""
        return any(s.executable and s.vaddr != s.paddr for s in self.segments)

    def claim(self, layout: Layout) -> list[Segment]:
        """Take the segments' physical ranges from `layout` and return what goes there."""
        segments = []
        for s in self.segments:
            layout.claim(s.paddr, s.mem_size, s.what)
            data = self.data[s.offset : s.offset + s.file_size]
            segments.append(Segment(s.paddr, data, s.mem_size, s.what))
        return segments

    def resolve_entry(self, address: int | None = None) -> Entry:
        """Where the image starts: `address`, or the ELF header's entry point.

        Raises `ImageError` if no segment has loaded bytes there.
        """
        if address is None:
            address = self.entry_address
        for executable in (True, False):
            chosen = [s for s in self.segments if s.executable is executable]
            for s in chosen:
                if s.holds_virtual(address):
                    self._check_backed(s, address, address - s.vaddr)
                    return Entry(address - s.vaddr + s.paddr, address)
            for s in chosen:
                if s.holds_physical(address):
                    self._check_backed(s, address, address - s.paddr)
                    return Entry(address, address)
        lowest = min(s.vaddr for s in self.segments)
        raise ImageError(
            f"{self.name}: the entry point {address:#x} lies in no loadable segment (the first "
            f"starts at {lowest:#x}): set ENTRY() in its linker script or give an entry address"
        )

    def mappings(self, entry: Entry) -> list[tuple[int, int, int]]:
        """What long mode needs besides the identity map of 4 GiB, as (virtual, physical, size) in
        whole pages.

        Raises `ImageError` if a segment's virtual address cannot be mapped to its physical one.
        """
        if not entry.is_mapped:
            high = (s for s in self.segments if s.paddr + s.mem_size > FOUR_GIB)
            return _whole_pages(self.name, (s._replace(vaddr=s.paddr) for s in high))
        wanted = _whole_pages(self.name, self.segments)
        return [(va, pa, size) for va, pa, size in wanted if va != pa or va + size > FOUR_GIB]

    def sections(self) -> list[Any]:
        """The section headers; empty if there are none.

        Raises `ImageError` if they are not all in the file or too many.
        """
        header = self.header
        if not header.e_shoff:
            return []
        size = self._headers.shdr.size
        if header.e_shentsize != size:
            raise ImageError(
                f"{self.name}: section headers of {header.e_shentsize} bytes are not the {size} of "
                f"ELF{self.bits}: link it again"
            )
        count = header.e_shnum
        if not 0 < count <= MAX_SECTIONS or header.e_shoff + count * size > len(self.data):
            raise ImageError(
                f"{self.name}: {count} section headers at file offset {header.e_shoff:#x} are too "
                "many or lie outside the file: link it again"
            )
        table = self.data[header.e_shoff : header.e_shoff + count * size]
        parse = self._headers.shdr.parse
        return [parse(table[i : i + size]) for i in range(0, len(table), size)]

    def _check_machine(self) -> None:
        machine = self.header.e_machine
        if machine == EM_X86_64 or (machine in (EM_386, EM_IAMCU) and self.bits == 32):
            return
        raise ImageError(
            f"{self.name}: this ELF{self.bits} file is for machine {machine}, not for x86: "
            "build it for i386 or x86-64"
        )

    def _check_type(self) -> None:
        kind = self.header.e_type
        remedy = {
            ET_REL: ("an object file", "link it first (ld -o kernel.elf …)"),
            ET_CORE: ("a core dump", "give the executable instead"),
            ET_NONE: ("without a type", "link it as an executable"),
        }.get(kind)
        if kind not in (ET_EXEC, ET_DYN) and remedy is None:
            remedy = (f"of type number {kind}", "link it as an executable")
        if kind == ET_DYN and not self.header.e_entry:
            remedy = ("a shared library (it has no entry point)", "link it as a static executable")
        if remedy:
            raise ImageError(f"{self.name}: this ELF file is {remedy[0]}: {remedy[1]}")

    def _read_segments(self) -> list[LoadSegment]:
        header, name = self.header, self.name
        size = self._headers.phdr.size
        count, offset = header.e_phnum, header.e_phoff
        if not count:
            raise ImageError(
                f"{name}: this ELF file has no program headers, so nothing says what to load: "
                "link it first"
            )
        if count > MAX_PROGRAM_HEADERS:
            raise ImageError(
                f"{name}: {count} program headers are more than the {MAX_PROGRAM_HEADERS} that are "
                "accepted: link it with fewer segments"
            )
        if header.e_phentsize != size:
            raise ImageError(
                f"{name}: program headers of {header.e_phentsize} bytes are not the {size} of "
                f"ELF{self.bits}: link it again"
            )
        if offset + count * size > len(self.data):
            raise ImageError(
                f"{name}: its {count} program headers at file offset {offset:#x} lie outside the "
                f"file of {len(self.data)} bytes: the file is truncated, copy or link it again"
            )
        table = self.data[offset : offset + count * size]
        parse = self._headers.phdr.parse
        segments = []
        for index in range(count):
            h = parse(table[index * size : (index + 1) * size])
            if h.p_type == PT_INTERP:
                raise ImageError(
                    f"{name}: this ELF file is dynamically linked (it asks for an interpreter): "
                    "link it with -static"
                )
            if h.p_type == PT_NOTE:
                self.note_ranges.append((h.p_offset, h.p_filesz))
            if h.p_type == PT_LOAD and (h.p_memsz or h.p_filesz):
                segments.append(self._segment(index, h))
        if not segments:
            raise ImageError(f"{name}: this ELF file has nothing to load: link it with some code")
        return _physical_addresses(segments)

    def _segment(self, index: int, h: Any) -> LoadSegment:
        name = self.name
        if h.p_filesz > h.p_memsz:
            raise ImageError(
                f"{name}: segment {index} has {h.p_filesz:#x} bytes in the file for "
                f"{h.p_memsz:#x} in memory: link it again"
            )
        if h.p_offset + h.p_filesz > len(self.data):
            raise ImageError(
                f"{name}: segment {index} takes {human_size(h.p_filesz)} at file offset "
                f"{h.p_offset:#x} and the file has {len(self.data)} bytes: it is truncated, copy "
                "or link it again"
            )
        limit = 1 << self.bits
        if h.p_vaddr + h.p_memsz > limit or h.p_paddr + h.p_memsz > limit:
            raise ImageError(
                f"{name}: segment {index} of {h.p_memsz:#x} bytes at virtual {h.p_vaddr:#x}, "
                f"physical {h.p_paddr:#x} runs past the end of the {self.bits}-bit address space: "
                "correct its linker script"
            )
        return LoadSegment(
            index, h.p_offset, h.p_filesz, h.p_memsz, h.p_vaddr, h.p_paddr, bool(h.p_flags & 1)
        )

    def _move(self, load: int) -> None:
        if self.header.e_type != ET_DYN:
            raise ImageError(
                f"{self.name}: this ELF file is linked for fixed addresses and cannot be loaded "
                f"at {load:#x}: leave out the load address, or load it as raw bytes with "
                'format="flat"'
            )
        lowest = min(s.paddr for s in self.segments)
        self.bias = load - lowest
        if self.bias % PAGE:
            raise ImageError(
                f"{self.name}: the load address {load:#x} is not {lowest % PAGE:#x} modulo the "
                f"page size, as the image needs: give {load + -self.bias % PAGE:#x}"
            )
        moved = []
        for s in self.segments:
            vaddr = s.vaddr + self.bias
            if not 0 <= vaddr <= _TOP - s.mem_size:
                raise ImageError(
                    f"{self.name}: {s.what} at virtual {s.vaddr:#x} cannot move with the load "
                    f"address {load:#x}: leave the load address out"
                )
            moved.append(s._replace(vaddr=vaddr, paddr=s.paddr + self.bias))
        self.segments = moved

    def _check_backed(self, s: LoadSegment, address: int, offset: int) -> None:
        if offset >= s.file_size:
            raise ImageError(
                f"{self.name}: the entry point {address:#x} lies in the zero-filled part of "
                f"{s.what}, where there is no code: set ENTRY() in its linker script or give an "
                "entry address"
            )


def _identify(name: str, data: memoryview) -> int:
    """32 or 64, from the identification bytes of the header, after checking them."""
    if bytes(data[:4]) != ELF_MAGIC:
        raise ImageError(
            f"{name}: this is not an ELF file (it starts with "
            f"{bytes(data[:4]).hex(' ') or 'nothing'}): give an ELF file, or "
            'format="flat" for raw bytes'
        )
    bits = {1: 32, 2: 64}.get(data[4] if len(data) > 4 else 1)
    if bits is None:
        raise ImageError(
            f"{name}: ELF class {data[4]} is neither 1 (32-bit) nor 2 (64-bit): link it again"
        )
    if len(data) < (52 if bits == 32 else 64):
        raise ImageError(
            f"{name}: {len(data)} bytes are too few for an ELF{bits} header: the file is "
            "truncated, copy or link it again"
        )
    if data[5] != 1:
        raise ImageError(
            f"{name}: ELF data encoding {data[5]} is not 1 (little-endian): build it for x86"
        )
    return bits


def _physical_addresses(segments: list[LoadSegment]) -> list[LoadSegment]:
    """`segments`, with virtual addresses as physical ones where a linker left all of those zero."""
    if len(segments) > 1 and not any(s.paddr for s in segments):
        return [s._replace(paddr=s.vaddr) for s in segments]
    return segments


def _whole_pages(name: str, segments: Iterable[LoadSegment]) -> list[tuple[int, int, int]]:
    """The segments' (virtual, physical, size) rounded to pages, neighbours with the same offset
    joined."""
    joined: list[tuple[int, int, int]] = []
    before = None
    for s in sorted(segments, key=lambda s: s.vaddr):
        if (s.vaddr - s.paddr) % PAGE:
            raise ImageError(
                f"{name}: {s.what} at virtual {s.vaddr:#x} cannot be mapped to physical "
                f"{s.paddr:#x}, which has another offset in its page: align both in its linker "
                "script"
            )
        start, end = s.vaddr // PAGE * PAGE, -(-(s.vaddr + s.mem_size) // PAGE) * PAGE
        if not (end <= _CANONICAL_END or start >= _CANONICAL_START):
            raise ImageError(
                f"{name}: {s.what} at virtual {span(s.vaddr, s.mem_size)} is no canonical "
                f"address: link it below {_CANONICAL_END:#x} or from {_CANONICAL_START:#x}"
            )
        physical = s.paddr // PAGE * PAGE
        if joined and start <= (previous := joined[-1])[0] + previous[2]:
            va, pa, size = previous
            if physical - start == pa - va:
                joined[-1] = (va, pa, max(size, end - va))
                before = s
                continue
            if start < va + size:
                other = before.what if before else "another"
                raise ImageError(
                    f"{name}: {s.what} shares the virtual page {start:#x} with {other} but lies "
                    "elsewhere in physical memory: align the segments to pages in its linker "
                    "script"
                )
        joined.append((start, physical, end - start))
        before = s
    return joined
