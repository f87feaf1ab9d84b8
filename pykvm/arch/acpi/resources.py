"""Resource descriptors and templates (ACPI 6.5 section 6.4).

Each function gives one descriptor's bytes; `template` joins them to the buffer that _CRS, _PRS and
_SRS hold. Addresses are ports or guest-physical; lengths in bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pykvm.arch.acpi import aml
from pykvm.arch.errors import ArchError

MEMORY, IO, BUS = 0, 1, 2
"""Kinds of address space."""

_FIXED = 0x0C  # the descriptor's minimum and maximum are not to be moved
_READ_WRITE, _CACHEABLE, _PREFETCHABLE = 0x01, 0x02, 0x06
_ENTIRE_IO_RANGE = 0x03


def template(*descriptors: bytes) -> bytes:
    """A buffer of descriptors with the end tag; its checksum 0 stands for "not computed"."""
    return aml.buffer(b"".join(descriptors) + b"\x79\0")


def io(base: int, length: int, *, align: int = 1) -> bytes:
    """Up to 255 ports from `base`, all 16 address bits decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, align, length)


def irq(number: int) -> bytes:
    """An ISA interrupt: edge-triggered, active high, not shared (6.4.2.1, IRQNoFlags)."""
    return struct.pack("<BH", 0x22, 1 << number)


def irq_level(numbers: Sequence[int]) -> bytes:
    """ISA interrupts to choose from: level-triggered, active low, shared (6.4.2.1)."""
    return struct.pack("<BHB", 0x23, sum(1 << n for n in set(numbers)), 0x18)


def memory32_fixed(base: int, length: int, *, writable: bool = True) -> bytes:
    """A fixed range below 4 GiB (6.4.3.4)."""
    if base + length > 1 << 32:
        raise ArchError(f"memory {base:#x} + {length:#x} does not fit a 32-bit descriptor")
    return struct.pack("<BHBII", 0x86, 9, int(writable), base, length)


def interrupt(*gsis: int, level: bool = True, low: bool = False, shared: bool = False) -> bytes:
    """Extended interrupt descriptor: GSIs that the device consumes (6.4.3.6)."""
    flags = 1 | (not level) << 1 | low << 2 | shared << 3
    body = struct.pack(f"<BB{len(gsis)}I", flags, len(gsis), *gsis)
    return struct.pack("<BH", 0x89, len(body)) + body


def bus_range(first: int, last: int) -> bytes:
    """PCI buses that a host bridge produces (WordBusNumber)."""
    return _address(0x88, "H", BUS, 0, first, last)


def io_range(first: int, last: int) -> bytes:
    """Ports that a bridge passes on (WordIO, 6.4.3.5.3)."""
    return _address(0x88, "H", IO, _ENTIRE_IO_RANGE, first, last)


def memory_range32(first: int, last: int, *, cacheable: bool = False) -> bytes:
    """Memory that a bridge passes on, below 4 GiB (DWordMemory, 6.4.3.5.2)."""
    kind = _READ_WRITE | (_CACHEABLE if cacheable else 0)
    return _address(0x87, "I", MEMORY, kind, first, last)


def memory_range64(first: int, last: int, *, prefetchable: bool = True) -> bytes:
    """Memory that a bridge passes on, anywhere (QWordMemory, 6.4.3.5.1)."""
    kind = _READ_WRITE | (_PREFETCHABLE if prefetchable else 0)
    return _address(0x8A, "Q", MEMORY, kind, first, last)


def _address(tag: int, width: str, space: int, kind: int, first: int, last: int) -> bytes:
    size = struct.calcsize(f"<{width}")
    if not 0 <= first <= last < 1 << 8 * size:
        raise ArchError(f"range {first:#x}-{last:#x} does not fit a {8 * size}-bit descriptor")
    # Whole windows that start at 0 have a length that their own width cannot hold; none of ours.
    body = struct.pack(f"<BBB5{width}", space, _FIXED, kind, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body
