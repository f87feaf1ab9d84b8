"""The multiboot header that a kernel carries in its first bytes (Multiboot Specification 0.6.96,
3.1)."""

from __future__ import annotations

import struct

from pykvm.typed import NamedTuple

HEADER_MAGIC = 0x1BADB002
SEARCH = 8192
"""The header lies completely within this many bytes from the start of the image, 4-byte aligned."""

PAGE_ALIGN = 1 << 0
"""Modules must start on 4 KiB boundaries."""
MEMORY_INFO = 1 << 1
"""The kernel needs the sizes of its memory."""
VIDEO_MODE = 1 << 2
"""The kernel needs information about a video mode."""
ADDRESS_FIELDS = 1 << 16
"""The address fields are valid and say where to load the image."""

_MAGIC_BYTES = struct.pack("<I", HEADER_MAGIC)


class MultibootHeader(NamedTuple):
    """A multiboot header as found in an image. The address fields are guest-physical."""

    offset: int
    """Where in the image it is."""
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0
    video: tuple[int, int, int, int] | None = None
    """Type (1 is text), width, height and depth of the mode it asks for, if it does."""

    @property
    def has_addresses(self) -> bool:
        """Whether the address fields are valid."""
        return bool(self.flags & ADDRESS_FIELDS)


def find_header(data: memoryview) -> MultibootHeader | None:
    """The first valid multiboot header in `data`, or None.

    Valid: 4-byte aligned, magic, flags and checksum add up to 0 (mod 2**32), and all of it, with
    the address fields if flag bit 16 claims them, is within the first 8192 bytes of the image.
    """
    head = bytes(data[:SEARCH])
    at = -1
    while (at := head.find(_MAGIC_BYTES, at + 1)) >= 0:
        if at % 4 or at + 12 > len(head):
            continue
        flags, checksum = struct.unpack_from("<II", head, at + 4)
        if (HEADER_MAGIC + flags + checksum) & 0xFFFFFFFF:
            continue
        if flags & ADDRESS_FIELDS and at + 32 > len(head):
            continue
        found = MultibootHeader(at, flags)
        if flags & ADDRESS_FIELDS:
            found = MultibootHeader(at, flags, *struct.unpack_from("<5I", head, at + 12))
        if flags & VIDEO_MODE and at + 48 <= len(head):
            kind, width, height, depth = struct.unpack_from("<4I", head, at + 32)
            found = found._replace(video=(kind, width, height, depth))
        return found
    return None
