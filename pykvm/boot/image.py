"""A loaded image: what goes where in guest memory, and the CPU state that starts it."""

from __future__ import annotations

from pykvm.boot.errors import ImageError, human_size, span
from pykvm.boot.symbols import SymbolTable
from pykvm.typed import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from pykvm.arch.state import CpuState
    from pykvm.boot.environment import FramebufferInfo
    from pykvm.boot.source import Source

Mode = Literal["real", "protected", "long"]
"""The processor mode an image is entered in: 16-bit real, flat 32-bit without paging, 64-bit
long."""

MODES: tuple[Mode, ...] = ("real", "protected", "long")


class Memory(Protocol):
    """The part of `pykvm.memory.GuestMemory` that placing needs; addresses are guest-physical."""

    def contains(self, gpa: int, n: int, /) -> bool:
        """Whether all of `n` bytes from `gpa` are guest memory."""

    def write(self, gpa: int, data: bytes | memoryview, /) -> None:
        """Copy `data` to `gpa`."""

    def fill(self, gpa: int, n: int, byte: int, /) -> None:
        """Set `n` bytes from `gpa` to `byte`."""


class Segment(NamedTuple):
    """One piece of guest memory that an image fills."""

    gpa: int
    """Guest-physical address of the first byte."""
    data: bytes | memoryview
    """The bytes to copy there; a view of the image where possible, so nothing is copied twice."""
    mem_size: int
    """Size in memory, at least `len(data)`; the rest is filled with zeros when it is placed."""
    what: str = "segment"
    """What this is, for messages and listings."""

    @property
    def end(self) -> int:
        """Guest-physical address one past the last byte."""
        return self.gpa + self.mem_size


class LoadedImage:
    """An image that has been checked and laid out, and not yet copied into a guest.

    It may be placed more than once (a reset loads it again).

    - `name`: the image's name in messages; `format`: one of `detect.FORMATS`.
    - `segments`: all that goes into memory besides the tables of `state`; disjoint pieces of RAM.
    - `entry`: first instruction: guest-physical (linear), or guest-virtual for an ELF entered by
      virtual address; `mode`: the mode the guest starts in.
    - `state`: everything the first vCPU needs, with the tables to be put in memory.
    - `notes`: remarks a user may want to see: choices the loader made, things it left out.
    - `symbol_table`: the image's symbols, read on first use.
    - `sources`: where `segments` take their bytes from.
    - `roms`: (guest-physical address, bytes) pieces outside RAM, for read-only memory that the
      machine makes; `place` leaves them alone.
    - `framebuffer`: the screen that the kernel was told of; the machine turns it on.
    """

    __slots__ = (
        "entry", "format", "framebuffer", "mode", "name", "notes", "roms", "segments", "sources",
        "state", "symbol_table",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        format: str,
        segments: list[Segment],
        entry: int,
        mode: Mode,
        state: CpuState,
        notes: list[str] | None = None,
        symbol_table: SymbolTable | None = None,
        sources: tuple[Source, ...] = (),
        roms: list[tuple[int, bytes | memoryview]] | None = None,
        framebuffer: FramebufferInfo | None = None,
    ) -> None:
        self.name = name
        self.format = format
        self.segments = segments
        self.entry = entry
        self.mode: Mode = mode
        self.state = state
        self.notes = [] if notes is None else notes
        self.symbol_table = SymbolTable() if symbol_table is None else symbol_table
        self.sources = sources
        self.roms = [] if roms is None else roms
        self.framebuffer = framebuffer

    def symbols(self) -> dict[str, int]:
        """All symbols as name → address (as linked: guest-virtual); empty if the image has none.

        Read on first use. Where a name occurs twice, a global symbol wins over a local one.
        """
        return self.symbol_table.names

    def symbol_at(self, address: int) -> str | None:
        """The symbol at or before `address` as `name` or `name+0x12`; None if there is none."""
        return self.symbol_table.at(address)

    def place(self, memory: Memory) -> None:
        """Write the segments and the tables of `state` into guest memory.

        Everything is checked before the first byte is written. Raises `ImageError` if a piece does
        not lie in `memory` or a mapped image file has been cut short.
        """
        for source in self.sources:
            source.check_unchanged()
        pieces = [(s.gpa, s.mem_size, s.what) for s in self.segments]
        pieces += [(gpa, len(data), "tables for the entry mode") for gpa, data in self.state.memory]
        for gpa, size, what in pieces:
            if not memory.contains(gpa, size):
                raise ImageError(
                    f"{self.name}: {what} at {span(gpa, size)} ({human_size(size)}) lies outside "
                    "the guest's memory: give the guest more memory or link the image lower"
                )
        for segment in self.segments:
            loaded = len(segment.data)
            if loaded:
                memory.write(segment.gpa, segment.data)
            if segment.mem_size > loaded:
                memory.fill(segment.gpa + loaded, segment.mem_size - loaded, 0)
        for gpa, data in self.state.memory:
            memory.write(gpa, data)
