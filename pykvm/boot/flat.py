"""Flat images: bytes without a header, loaded at one address and entered there or at another.

A boot sector (512 bytes that end in 55 aa, the PC BIOS convention) goes to 0x7c00 and finds the
drive number 0x80 in DL; everything else goes to 0x1000 by default.
"""

from __future__ import annotations

from pykvm.boot.errors import ImageError, span
from pykvm.boot.image import Segment
from pykvm.boot.layout import Layout

DEFAULT_LOAD = 0x1000
"""Guest-physical address of a flat image when none is given."""
BOOT_SECTOR_LOAD = 0x7C00
"""Guest-physical address where a BIOS puts a boot sector."""
BOOT_DRIVE = 0x80
"""What a boot sector finds in DL: the first hard disk."""


def is_boot_sector(data: memoryview) -> bool:
    """Whether `data` is a PC boot sector."""
    return len(data) == 512 and bytes(data[510:]) == b"\x55\xaa"


def claim(
    layout: Layout, data: memoryview, load: int | None, entry: int | None
) -> tuple[Segment, int]:
    """Take the image's place from `layout`; returns its segment and guest-physical entry address.

    Raises `ImageError` if it does not fit into memory or `entry` is outside the image.
    """
    if load is None:
        load = BOOT_SECTOR_LOAD if is_boot_sector(data) else DEFAULT_LOAD
    layout.claim(load, len(data), "the image")
    if entry is None:
        entry = load
    if not load <= entry < load + len(data):
        raise ImageError(
            f"{layout.name}: the entry address {entry:#x} lies outside the image at "
            f"{span(load, len(data))}: give one inside it, or change the load address"
        )
    return Segment(load, data, len(data), "the image"), entry
