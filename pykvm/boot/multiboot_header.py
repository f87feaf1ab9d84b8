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
_MULTIBOOT2_MAGIC = struct.pack("<I", 0xE85250D6)
_MULTIBOOT2_SEARCH = 32768


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
        if not flags & ADDRESS_FIELDS:
            return MultibootHeader(at, flags)
        if at + 32 <= len(head):
            return MultibootHeader(at, flags, *struct.unpack_from("<5I", head, at + 12))
    return None


def has_multiboot2_header(data: memoryview) -> bool:
    """Whether `data` has a valid multiboot 2 header (8-byte aligned, in the first 32768 bytes)."""
    head = bytes(data[:_MULTIBOOT2_SEARCH])
    at = -1
    while (at := head.find(_MULTIBOOT2_MAGIC, at + 1)) >= 0:
        if (
            at % 8 == 0
            and at + 16 <= len(head)
            and not sum(struct.unpack_from("<4I", head, at)) % (1 << 32)
        ):
            return True
    return False
