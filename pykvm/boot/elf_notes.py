"""Notes of an ELF file (gABI ch. 5, "Note Section"): small labelled values for loaders."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pykvm.boot.elf import ElfImage
from pykvm.typed import NamedTuple

MAX_NOTE_BYTES = 1 << 16
"""No more than this is looked at in one PT_NOTE segment."""

XEN_PHYS32_ENTRY = 18
"""XEN_ELFNOTE_PHYS32_ENTRY: guest-physical address of the PVH entry (Xen's elfnote.h)."""


class Note(NamedTuple):
    """One note."""

    owner: str
    type: int
    value: bytes


def notes(elf: ElfImage) -> Iterator[Note]:
    """The notes in all PT_NOTE segments of `elf`; damaged ones end their segment."""
    for offset, size in elf.note_ranges:
        data = bytes(elf.data[offset : offset + min(size, MAX_NOTE_BYTES)])
        at = 0
        while at + 12 <= len(data):
            name_size, value_size, kind = struct.unpack_from("<III", data, at)
            value_at = at + 12 + (name_size + 3 & ~3)
            end = value_at + value_size
            if end > len(data):
                break
            owner = data[at + 12 : at + 12 + name_size].rstrip(b"\0").decode("latin-1")
            yield Note(owner, kind, data[value_at:end])
            at = end + 3 & ~3


def pvh_entry(elf: ElfImage) -> int | None:
    """Guest-physical address of the PVH entry point; None if there is none."""
    for note in notes(elf):
        if note.owner == "Xen" and note.type == XEN_PHYS32_ENTRY and len(note.value) in (4, 8):
            return int.from_bytes(note.value, "little")
    return None
