"""The multiboot 2 header that a kernel carries (Multiboot2 Specification 2.0, 3.1)."""

from __future__ import annotations

import struct

from pykvm.boot.errors import ImageError
from pykvm.boot.screens import ScreenRequest
from pykvm.typed import NamedTuple

HEADER_MAGIC = 0xE85250D6
SEARCH = 32768
"""The header lies within this many bytes from the start of the image, 8-byte aligned."""
I386 = 0
"""Architecture: 32-bit protected mode of i386."""
MAX_TAGS = 256

END, INFORMATION, ADDRESS, ENTRY, CONSOLE, FRAMEBUFFER, ALIGN, EFI_SERVICES = range(8)
ENTRY_EFI32, ENTRY_EFI64, RELOCATABLE = 8, 9, 10
OPTIONAL = 1

_MAGIC_BYTES = struct.pack("<I", HEADER_MAGIC)
_LEAST = {ADDRESS: 24, ENTRY: 12, CONSOLE: 12, FRAMEBUFFER: 20, RELOCATABLE: 24}
_LAST_INFORMATION = 21
"""The highest type of boot information that version 2.0 defines."""


class Address(NamedTuple):
    """The address tag: guest-physical addresses as in a multiboot 1 header."""

    header_addr: int
    load_addr: int
    load_end_addr: int
    bss_end_addr: int


class Relocatable(NamedTuple):
    """The relocatable tag: where the kernel may be loaded instead."""

    lowest: int
    highest: int
    """The highest address that any byte may have."""
    align: int
    preference: int
    """0 none, 1 as low as possible, 2 as high as possible."""


class Multiboot2Header:
    """A multiboot 2 header as found in an image: `offset` is its place there."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.address: Address | None = None
        self.entry: int | None = None
        self.screen: ScreenRequest | None = None
        self.needs_screen = False
        self.relocatable: Relocatable | None = None
        self.information: list[int] = []


def _places(data: memoryview) -> list[tuple[int, int, int]]:
    """(offset, architecture, length) of every header whose checksum is right."""
    head = bytes(data[:SEARCH])
    found, at = [], -1
    while (at := head.find(_MAGIC_BYTES, at + 1)) >= 0:
        if at % 8 or at + 16 > len(head):
            continue
        magic, architecture, length, checksum = struct.unpack_from("<4I", head, at)
        if not (magic + architecture + length + checksum) & 0xFFFFFFFF:
            found.append((at, architecture, length))
    return found


def has_multiboot2_header(data: memoryview) -> bool:
    """Whether `data` has a valid multiboot 2 header (8-byte aligned, in the first 32768 bytes)."""
    return bool(_places(data))


def read_header(name: str, data: memoryview) -> Multiboot2Header:
    """The first multiboot 2 header of `data`, decoded.

    Raises `ImageError` if there is none, it is damaged, or it requires what is not known.
    """
    places = _places(data)
    if not places:
        raise ImageError(
            f"{name}: there is no multiboot 2 header in its first {SEARCH} bytes: give a "
            "multiboot 2 kernel, or leave the format out"
        )
    offset, architecture, length = next((p for p in places if p[1] == I386), places[0])
    if architecture != I386:
        raise ImageError(
            f"{name}: its multiboot 2 header is for architecture {architecture}, not for i386 "
            "(0): build it for x86"
        )
    if not 16 <= length <= SEARCH - offset or offset + length > len(data):
        raise ImageError(
            f"{name}: its multiboot 2 header of {length} bytes at file offset {offset:#x} does "
            f"not lie in the first {SEARCH} bytes of the file: correct its length"
        )
    header = Multiboot2Header(offset)
    tags = bytes(data[offset + 16 : offset + length])
    at = 0
    for _ in range(MAX_TAGS):
        if at + 8 > len(tags):
            return header
        kind, flags, size = struct.unpack_from("<HHI", tags, at)
        if kind == END:
            return header
        if size < max(8, _LEAST.get(kind, 8)) or at + size > len(tags):
            raise ImageError(
                f"{name}: tag {kind} of its multiboot 2 header has an impossible size of {size} "
                "bytes: correct the header"
            )
        _read_tag(name, header, kind, flags, tags[at + 8 : at + size])
        at += size + 7 & ~7
    raise ImageError(
        f"{name}: its multiboot 2 header has more than {MAX_TAGS} tags: correct the header"
    )


def _read_tag(name: str, header: Multiboot2Header, kind: int, flags: int, body: bytes) -> None:
    optional = bool(flags & OPTIONAL)
    if kind == INFORMATION:
        header.information = list(struct.unpack_from(f"<{len(body) // 4}I", body))
        unknown = [t for t in header.information if not 0 < t <= _LAST_INFORMATION]
        if unknown and not optional:
            raise ImageError(
                f"{name}: its multiboot 2 header requires boot information of type {unknown[0]}, "
                "which the specification does not define: make the request optional"
            )
    elif kind == ADDRESS:
        header.address = Address(*struct.unpack_from("<4I", body))
    elif kind == ENTRY:
        (header.entry,) = struct.unpack_from("<I", body)
    elif kind == FRAMEBUFFER:
        width, height, depth = struct.unpack_from("<3I", body)
        header.screen = ScreenRequest(not depth, width, height, depth)
        header.needs_screen = not optional
    elif kind == RELOCATABLE:
        header.relocatable = Relocatable(*struct.unpack_from("<4I", body))
    elif kind not in (CONSOLE, ALIGN, EFI_SERVICES, ENTRY_EFI32, ENTRY_EFI64) and not optional:
        raise ImageError(
            f"{name}: its multiboot 2 header requires tag {kind}, which pykvm does not know: make "
            "the tag optional"
        )
