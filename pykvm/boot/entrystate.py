"""The CPU state that an image is entered with, and room in guest memory for its tables and first
stack.

Every mode starts with interrupts off and general registers zero; the details are those of
`pykvm.arch.presets`. The stack is there so that a call or an exception before the guest has set up
its own does no harm:

- Real mode: below 0x7c00 for a boot sector, else below 0xfff0 in segment 0 where the image leaves
  room, else 4 KiB elsewhere below 0x9f000.
- Protected and long mode: 16 KiB (4 KiB where memory is tight), placed as `pykvm.boot.layout`
  says.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.arch.presets import REAL_MODE_STACK, long64, protected32, real_mode, tables_size
from pykvm.arch.state import CpuState
from pykvm.boot.errors import ImageError, human_size
from pykvm.boot.image import Mode
from pykvm.boot.layout import FOUR_GIB, PAGE, Layout

REAL_MODE_END = 0x10FFF0
"""One past the last linear address that real mode reaches (segment 0xffff, offset 0xffff)."""
STACK_SIZES = (16 << 10, 4 << 10)
"""Bytes of the first stack, the preferred size first."""
MAX_SMALL_PAGES = 256 << 20
"""At most this many bytes are mapped with 4 KiB pages; each takes its entry in the page tables."""

_LARGE_PAGE = 2 << 20


def entry_state(
    layout: Layout,
    mode: Mode,
    entry: int,
    mappings: Sequence[tuple[int, int, int]] = (),
    *,
    real_stack: int = REAL_MODE_STACK,
) -> CpuState:
    """The state that starts at `entry` in `mode`, its tables and stack taken from `layout`.

    `entry` is guest-physical (linear), in long mode guest-virtual; `mappings` (long mode only) are
    (virtual, physical, size) pieces on top of the identity map of 4 GiB; `real_stack` is the
    preferred linear stack address in real mode. Raises `ImageError` if the mode cannot reach
    `entry` or memory has no room.
    """
    if mode == "real":
        _check_reach(layout, entry, REAL_MODE_END, "real mode", "load it below 1 MiB")
        # From 1 MiB on only the last segment reaches the entry.
        segment = 0xFFFF if entry >= 1 << 20 else None
        return real_mode(entry, stack=_real_mode_stack(layout, real_stack), segment=segment)
    if mode == "protected":
        _check_reach(layout, entry, FOUR_GIB, "protected mode", "load it below 4 GiB")
        tables, stack = _tables_and_stack(layout, tables_size("protected32"))
        return protected32(entry, stack=stack, tables=tables, kernel_stack=stack)
    _check_mappings(layout, mappings)
    for virtual, physical, size in mappings:
        if virtual != physical:
            # There the identity map is hidden: nothing of ours may be below it.
            layout.avoid(virtual, size)
    tables, stack = _tables_and_stack(layout, tables_size("long64", map=mappings))
    return long64(entry, stack=stack, tables=tables, kernel_stack=stack, map=mappings)


def _check_reach(layout: Layout, entry: int, end: int, what: str, remedy: str) -> None:
    if entry >= end:
        raise ImageError(
            f"{layout.name}: {what} cannot start at {entry:#x}, it ends at {end:#x}: {remedy}, or "
            "choose another mode"
        )


def _check_mappings(layout: Layout, mappings: Sequence[tuple[int, int, int]]) -> None:
    small = sum(size for va, pa, size in mappings if (va - pa) % _LARGE_PAGE)
    if small > MAX_SMALL_PAGES:
        raise ImageError(
            f"{layout.name}: segments of {human_size(small)} would be mapped with 4 KiB pages, "
            f"more than {human_size(MAX_SMALL_PAGES)}: link them at virtual and physical "
            "addresses that are equal modulo 2 MiB"
        )


def _tables_and_stack(layout: Layout, size: int) -> tuple[int, int]:
    """Room for `size` bytes of tables and for a stack: the tables' address and the stack's top."""
    tables = layout.add(size, "descriptor and page tables", align=PAGE)
    for stack_size in STACK_SIZES:
        try:
            return tables, layout.add(stack_size, "the first stack") + stack_size
        except ImageError:
            if stack_size == STACK_SIZES[-1]:
                raise
    raise AssertionError("unreachable")


def _real_mode_stack(layout: Layout, preferred: int) -> int:
    """A linear stack address below 1 MiB with free memory under it, if there is any."""
    if layout.is_free(preferred - PAGE, PAGE):
        return preferred
    try:
        # 16 bytes below the top of the page: the same 64 KiB segment for all of it.
        return layout.add_low(PAGE, "the first stack") + PAGE - 16
    except ImageError:
        return preferred  # no memory to spare; most such guests need no stack before their own
