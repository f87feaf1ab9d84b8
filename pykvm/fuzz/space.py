"""`Space`: a ring-3 address space over a small guest memory, page by page."""

from __future__ import annotations

import struct

from pykvm.arch import presets
from pykvm.arch.bits import CR4, PTE
from pykvm.arch.descriptors import Gate
from pykvm.arch.pagemodes import PAGE_4K
from pykvm.arch.state import CpuState
from pykvm.fuzz import layout as at
from pykvm.fuzz.errors import FuzzError
from pykvm.fuzz.program import Segment
from pykvm.fuzz.stubs import fault_stubs

_USER = PTE.US


class Space:
    """Pages are handed out from `USER` up; `pieces` are what has to be written, `maps` how it is
    mapped. Ring 3 sees what is mapped here and nothing else.
    """

    def __init__(self) -> None:
        self._next = at.USER
        self.maps: list[tuple[int, int, int, int]] = []
        self.pieces: list[tuple[int, bytes]] = []
        self._pages: dict[int, int] = {}  # linear page: guest-physical page, for writing

    @property
    def size(self) -> int:
        """Bytes of guest memory that are needed."""
        return self._next

    def add(self, gva: int, size: int, *, writable: bool, executable: bool) -> int:
        """Maps pages for `[gva, gva + size)`; the guest-physical address of the first byte."""
        first, end = gva & ~(PAGE_4K - 1), -(-(gva + size) // PAGE_4K) * PAGE_4K
        gpa = self._next
        flags = int(_USER) | (int(PTE.RW) if writable else 0)
        flags |= 0 if executable else int(PTE.XD)
        for page in range(first, end, PAGE_4K):
            if page in self._pages:
                raise FuzzError(f"two segments share the page at {page:#x}")
            self._pages[page] = gpa + page - first
        self.maps.append((first, gpa, end - first, flags))
        self._next = gpa + end - first
        return gpa + gva - first

    def add_segments(self, segments: list[Segment]) -> None:
        """A program's; pages that several of them share get the rights of all."""
        for first, end, writable, executable in _merged(segments):
            self.add(first, end - first, writable=writable, executable=executable)
        for segment in segments:
            self.write(segment.gva, segment.data)

    def add_shared(self, gpa: int, gva: int, size: int) -> None:
        """Maps memory of another region."""
        self.maps.append((gva, gpa, size, int(_USER | PTE.RW | PTE.XD)))

    def gpa(self, gva: int) -> int | None:
        """Where a linear address is in guest memory."""
        page = self._pages.get(gva & ~(PAGE_4K - 1))
        return None if page is None else page + gva % PAGE_4K

    def write(self, gva: int, data: bytes) -> None:
        """Bytes that are there at the start."""
        while data:
            gpa = self.gpa(gva)
            if gpa is None:
                raise FuzzError(f"nothing is mapped at {gva:#x}")
            here = min(len(data), PAGE_4K - gva % PAGE_4K)
            self.pieces.append((gpa, data[:here]))
            gva, data = gva + here, data[here:]

    def patch(self, gva: int, value: int) -> None:
        """A 64-bit word."""
        self.write(gva, struct.pack("<Q", value))

    def state(self, entry: int, stack: int) -> CpuState:
        """The CPU in ring 3 at `entry`, with its tables and what faults run."""
        code, entries = fault_stubs(at.FAULTS)
        handlers = {v: Gate(a, presets.KERNEL_CODE, dpl=3 if v in (3, 4) else 0)
                    for v, a in entries.items()}  # fmt: skip
        state = presets.ring3_64(
            entry,
            stack=stack,
            tables=at.TABLES,
            identity=at.USER,
            user=False,
            page_size=PAGE_4K,
            map=self.maps,
            handlers=handlers,
            kernel_stack=at.RING0_STACK_TOP,
            io_ports=at.PORTS,
        )
        end = max(gpa + len(data) for gpa, data in state.memory)
        if end > at.USER:
            raise FuzzError(f"the target needs {end - at.USER} more bytes of page tables")
        # The stubs' OUT is let through twice: a KVM in software knows no IOPL, a CPU in software
        # no I/O bitmap of a busy TSS.
        state.regs["rflags"] |= 3 << 12
        state.cr4 |= int(CR4.OSXSAVE) if self.xsave else 0
        self.pieces.append((at.FAULTS, code))
        return state

    xsave = False


def _merged(segments: list[Segment]) -> list[tuple[int, int, bool, bool]]:
    """Runs of pages with the same rights."""
    rights: dict[int, tuple[bool, bool]] = {}
    for s in segments:
        first, end = s.gva & ~(PAGE_4K - 1), s.gva + s.size
        for page in range(first, end, PAGE_4K):
            w, x = rights.get(page, (False, False))
            rights[page] = (w or s.writable, x or s.executable)
    runs: list[tuple[int, int, bool, bool]] = []
    for page in sorted(rights):
        w, x = rights[page]
        if runs and runs[-1][1] == page and runs[-1][2:] == (w, x):
            runs[-1] = (runs[-1][0], page + PAGE_4K, w, x)
        else:
            runs.append((page, page + PAGE_4K, w, x))
    return runs
