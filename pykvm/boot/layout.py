"""Which guest-physical addresses are RAM, which are taken, and where the loader's own data goes.

Placement rules (all addresses guest-physical):

- Image segments go exactly where the image says; they must lie in RAM and not overlap one another.
- What the loader adds (page tables, GDT, IDT, boot information, the first stack) goes as high as
  possible in conventional memory: below 0x9f000, the page under the extended BIOS data area, and
  never into page 0 (interrupt vectors and BIOS data). A flat image says nothing about the memory it
  uses after its last byte, so the room right behind it is left alone.
- If conventional memory has no gap that is large enough, it goes above 1 MiB and below 4 GiB: right
  behind the image if there is room, else into the highest gap.
- Boot modules go above 1 MiB, page-aligned, right behind the image, in the order given.
- 0x9f000-0xfffff is never used for the loader's data: firmware tables and device memory live there.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence

from pykvm.boot.errors import ImageError, human_size, span
from pykvm.typed import NamedTuple

PAGE = 0x1000
LOW_START = 0x1000
"""The loader's own data never goes below this: page 0 holds the real-mode interrupt vectors."""
LOW_END = 0x9F000
"""End of conventional memory for the loader's data; the EBDA starts at 0x9fc00 on a PC."""
HIGH_START = 0x100000
"""1 MiB: the start of extended memory."""
FOUR_GIB = 1 << 32


class Span(NamedTuple):
    """A taken piece of guest memory."""

    start: int
    """First guest-physical address."""
    end: int
    """One past the last."""
    what: str
    """What is there, for messages."""


class Layout:
    """The guest's RAM and what is in it so far.

    `ram` is a list of (guest-physical address, size) pieces; `name` the image's, for messages.
    """

    def __init__(self, name: str, ram: Sequence[tuple[int, int]]) -> None:
        self.name = name
        self.ram = _merged(name, ram)
        self.taken: list[Span] = []
        """What is in use: ascending, never overlapping."""
        self._avoided: list[tuple[int, int]] = []

    def in_ram(self, start: int, size: int) -> bool:
        """Whether all of `size` bytes from `start` are RAM."""
        return any(low <= start and start + size <= high for low, high in self.ram)

    def is_free(self, start: int, size: int) -> bool:
        """Whether `size` bytes from `start` are RAM that nothing has taken."""
        return self.in_ram(start, size) and not any(
            start < t.end and t.start < start + size for t in self.taken
        )

    def claim(self, start: int, size: int, what: str) -> None:
        """Take the `size` bytes from `start`, which the image demands.

        Raises `ImageError` if they are not all RAM, or taken already.
        """
        if not size:
            return
        if not self.in_ram(start, size):
            raise ImageError(
                f"{self.name}: {what} at {span(start, size)} ({human_size(size)}) does not fit "
                f"into the guest's memory ({self.describe()}): {self._remedy(start, size)}"
            )
        # The taken spans are sorted and disjoint: only the neighbours can overlap.
        place = bisect_right(self.taken, start, key=lambda t: t.start)
        for other in self.taken[max(place - 1, 0) : place + 1]:
            if start < other.end and other.start < start + size:
                raise ImageError(
                    f"{self.name}: {what} at {span(start, size)} overlaps {other.what} at "
                    f"{span(other.start, other.end - other.start)}: correct the addresses in its "
                    "linker script"
                )
        self.taken.insert(place, Span(start, start + size, what))

    def avoid(self, start: int, size: int) -> None:
        """Keep the loader's own data out of `size` bytes from `start`, whatever is there."""
        self._avoided.append((start, start + size))

    def add(self, size: int, what: str, *, align: int = PAGE) -> int:
        """Find room for `size` bytes of the loader's own data (see the module's rules) and take it.

        Returns its guest-physical address. Raises `ImageError` if there is none.
        """
        gpa = self._find_low(size, align)
        return self._take(self._find_high(size, align) if gpa is None else gpa, size, what)

    def add_low(self, size: int, what: str, *, align: int = PAGE) -> int:
        """Like `add`, but only in conventional memory."""
        return self._take(self._find_low(size, align), size, what)

    def add_high(self, size: int, what: str, *, align: int = PAGE) -> int:
        """Like `add`, but only above 1 MiB and below 4 GiB, right behind the image if possible."""
        return self._take(self._find_high(size, align), size, what)

    def add_top(
        self, size: int, what: str, *, ceiling: int, floor: int = HIGH_START, align: int = PAGE
    ) -> int | None:
        """Take the highest free place for `size` bytes from `floor` that ends at or below
        `ceiling`; None if there is none."""
        gpa = self._highest(floor, ceiling, size, align)
        return None if gpa is None else self._take(gpa, size, what)

    def find_up(self, size: int, floor: int, ceiling: int, align: int) -> int | None:
        """The lowest free place for `size` bytes between `floor` and `ceiling`, not taken yet."""
        for start, end in self._gaps(floor, ceiling):
            if (base := _up(start, align)) + size <= end:
                return base
        return None

    def find_down(self, size: int, floor: int, ceiling: int, align: int) -> int | None:
        """The highest free place for `size` bytes between `floor` and `ceiling`, not taken yet."""
        return self._highest(floor, ceiling, size, align)

    def describe(self) -> str:
        """The RAM in words, for messages."""
        return ", ".join(span(start, end - start) for start, end in self.ram)

    def _find_low(self, size: int, align: int) -> int | None:
        """The highest place for `size` bytes in conventional memory; None if there is none."""
        return self._highest(LOW_START, LOW_END, size, align)

    def _find_high(self, size: int, align: int) -> int | None:
        """The place for `size` bytes above 1 MiB; None if there is none."""
        last = max((t.end for t in self.taken if t.start < FOUR_GIB), default=0)
        for start, end in self._gaps(max(HIGH_START, last), FOUR_GIB):
            if (base := _up(start, align)) + size <= end:
                return base
        return self._highest(HIGH_START, FOUR_GIB, size, align)

    def _highest(self, floor: int, ceiling: int, size: int, align: int) -> int | None:
        for start, end in reversed(list(self._gaps(floor, ceiling))):
            if (top := _down(end - size, align)) >= start:
                return top
        return None

    def _take(self, start: int | None, size: int, what: str) -> int:
        if start is None:
            raise ImageError(
                f"{self.name}: no room for {what} ({human_size(size)}) in the guest's memory "
                f"({self.describe()}): give the guest more memory"
            )
        insort(self.taken, Span(start, start + size, what))
        return start

    def _gaps(self, floor: int, ceiling: int) -> Iterator[tuple[int, int]]:
        """Free (start, end) pieces of RAM between `floor` and `ceiling`, ascending."""
        blocked = sorted((*((t.start, t.end) for t in self.taken), *self._avoided))
        for ram_start, ram_end in self.ram:
            start, limit = max(ram_start, floor), min(ram_end, ceiling)
            for low, high in blocked:
                if high <= start or low >= limit:
                    continue
                if low > start:
                    yield start, low
                start = max(start, high)
            if start < limit:
                yield start, limit

    def _remedy(self, start: int, size: int) -> str:
        need = start + size
        if need > self.ram[-1][1] and need <= FOUR_GIB * 256:
            return f"give the guest at least {human_size(_up(need, 1 << 20))}, or link it lower"
        return "link it at an address that is RAM"


def _merged(name: str, ram: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """`ram` as ascending, joined (start, end) pairs."""
    merged: list[tuple[int, int]] = []
    for start, size in sorted(ram):
        if size <= 0 or start < 0:
            raise ImageError(
                f"{name}: the guest's memory of {size} bytes at {start:#x} is not a range: "
                "give a positive size"
            )
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], start + size))
        else:
            merged.append((start, start + size))
    if not merged:
        raise ImageError(f"{name}: the guest has no memory: give it some")
    return merged


def _down(value: int, align: int) -> int:
    return value // align * align


def _up(value: int, align: int) -> int:
    return -(-value // align) * align
