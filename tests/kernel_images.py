"""Small valid kernels of every boot protocol, built field by field: Linux bzImage and vmlinux, PVH,
multiboot 2, and the ways a kernel is compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from functools import cache

import lz4.block
import lz4.frame
import lzallright
import zstandard
from boot_images import PT_NOTE, Elf, Seg

M = 1 << 20
PAGE_OFFSET = 0xFFFFFFFF80000000


def note(owner: bytes, kind: int, value: bytes) -> bytes:
    """One ELF note."""
    name = owner + b"\0"
    raw = struct.pack("<III", len(name), len(value), kind)
    return raw + name + bytes(-len(name) % 4) + value + bytes(-len(value) % 4)


def pvh_elf(
    entry: int = 16 * M,
    code: bytes = b"\xf4" * 64,
    *,
    bits: int = 64,
    wide: bool = True,
    **kw: object,
) -> bytes:
    """An ELF kernel with a PVH note, linked and loaded at 16 MiB."""
    raw = note(b"Xen", 18, entry.to_bytes(8 if wide else 4, "little"))
    segments = [Seg(16 * M, code, mem_size=len(code) + 0x2000), Seg(0x500, raw, type=PT_NOTE)]
    return Elf(segments, entry=16 * M, bits=bits, **kw).build()  # type: ignore[arg-type]


def vmlinux(
    code: bytes = b"\xf4" * 64,
    *,
    bits: int = 64,
    pvh: int | None = None,
    linux_note: bool = True,
    base: int = 16 * M,
    **kw: object,
) -> bytes:
    """A vmlinux: linked high, loaded at 16 MiB, entered by its physical address."""
    offset = PAGE_OFFSET if bits == 64 else 0xC0000000
    notes = note(b"Linux", 0x100, b"\0\0\0\0") if linux_note else b""
    if pvh is not None:
        notes += note(b"Xen", 18, struct.pack("<Q", pvh))
    text = code + b"Linux version 6.1.0-test (nobody)\0"
    segments = [
        Seg(offset + base, text, paddr=base, flags=5),
        Seg(offset + base + 2 * M, b"data", paddr=base + 2 * M, mem_size=0x3000, flags=6),
        Seg(0, b"percpu", paddr=base + 3 * M, flags=6),
    ]
    if notes:
        segments.append(Seg(offset + base, notes, paddr=base, type=PT_NOTE))
    return Elf(segments, entry=base, bits=bits, **kw).build()  # type: ignore[arg-type]


def bzimage(
    kernel: bytes = b"\xf4" * 0x400,
    *,
    setup: bytes = b"",
    version: int = 0x20F,
    setup_sects: int = 3,
    payload: bytes = b"",
    **fields: int,
) -> bytes:
    """A bzImage: `setup` is the real-mode code from its entry on, `kernel` the protected-mode part,
    `payload` is appended to it, and `fields` replaces fields of the header."""
    values = {
        "syssize": None, "loadflags": 1, "code32_start": M, "initrd_addr_max": 0x7FFFFFFF,
        "kernel_alignment": 2 * M, "relocatable_kernel": 1, "min_alignment": 21,
        "xloadflags": 3, "cmdline_size": 2047, "payload_offset": 0, "payload_length": 0,
        "pref_address": 16 * M, "init_size": 0x10000, "jump": 0x6A,
    }  # fmt: skip
    if payload:
        values |= {"payload_offset": len(kernel), "payload_length": len(payload)}
    values |= fields
    body = kernel + payload
    body += bytes(-len(body) % 16)
    if values["syssize"] is None:
        values["syssize"] = len(body) // 16
    head = bytearray((setup_sects + 1) * 512)
    layout = {
        "syssize": (0x1F4, "I"), "loadflags": (0x211, "B"), "code32_start": (0x214, "I"),
        "initrd_addr_max": (0x22C, "I"), "kernel_alignment": (0x230, "I"),
        "relocatable_kernel": (0x234, "B"), "min_alignment": (0x235, "B"),
        "xloadflags": (0x236, "H"), "cmdline_size": (0x238, "I"), "payload_offset": (0x248, "I"),
        "payload_length": (0x24C, "I"), "pref_address": (0x258, "Q"), "init_size": (0x260, "I"),
        "jump": (0x201, "B"),
    }  # fmt: skip
    for name, (offset, kind) in layout.items():
        struct.pack_into("<" + kind, head, offset, values[name])
    head[0x1F1] = setup_sects
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x200] = 0xEB
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    text = b"6.1.0-test (nobody)\0"
    struct.pack_into("<H", head, 0x20E, 0x180)
    head[0x380 : 0x380 + len(text)] = text
    head[0x26C : 0x26C + len(setup)] = setup
    return bytes(head) + body


def tag2(kind: int, body: bytes = b"", flags: int = 0, size: int | None = None) -> bytes:
    """A tag of a multiboot 2 header."""
    raw = struct.pack("<HHI", kind, flags, 8 + len(body) if size is None else size) + body
    return raw + bytes(-len(raw) % 8)


def multiboot2_header(*tags: bytes, architecture: int = 0, end: bool = True) -> bytes:
    """A multiboot 2 header with `tags` and an end tag."""
    body = b"".join(tags) + (tag2(0) if end else b"")
    length = 16 + len(body)
    magic = 0xE85250D6
    checksum = -(magic + architecture + length) & 0xFFFFFFFF
    return struct.pack("<4I", magic, architecture, length, checksum) + body


def multiboot2_elf(
    *tags: bytes, code: bytes = b"\xf4" * 16, bits: int = 32, base: int = M, **kw: object
) -> bytes:
    """A multiboot 2 ELF kernel: header, then `code` as its entry point."""
    header = multiboot2_header(*tags)
    first = 52 + 32 if bits == 32 else 64 + 56
    elf = Elf([Seg(base, header + code)], entry=base + len(header), bits=bits, pad=-first % 8, **kw)  # type: ignore[arg-type]
    return elf.build()


def lzop(data: bytes, block: int = 256 << 10) -> bytes:
    """`data` as lzop writes it, with checksums of the unpacked data."""
    out = b"\x89LZO\x00\r\n\x1a\n" + struct.pack(">HHHBB", 0x1030, 0x20A0, 0x0940, 1, 5)
    out += struct.pack(">IIII", 1, 0o644, 0, 0) + b"\0" + struct.pack(">I", 0)
    compressor = lzallright.LZOCompressor()
    for at in range(0, len(data), block):
        piece = data[at : at + block]
        packed = compressor.compress(piece)
        if len(packed) >= len(piece):
            packed = piece
        out += struct.pack(">III", len(piece), len(packed), 0) + packed
    return out + struct.pack(">I", 0)


def lz4_legacy(data: bytes) -> bytes:
    """`data` as `lz4 -l` writes it."""
    out = b"\x02\x21\x4c\x18"
    for at in range(0, max(len(data), 1), 8 << 20):
        packed = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(packed)) + packed
    return out


@cache
def compressed(data: bytes) -> dict[str, bytes]:
    """`data` in every compression that is understood."""
    return {
        "gzip": gzip.compress(data, mtime=0),
        "bzip2": bz2.compress(data),
        "xz": lzma.compress(data),
        "lzma": lzma.compress(data, lzma.FORMAT_ALONE),
        "zstd": zstandard.compress(data),
        "lz4": lz4.frame.compress(data),
        "lz4 -l": lz4_legacy(data),
        "lzo": lzop(data),
    }


def zboot(payload: bytes) -> bytes:
    """An EFI zboot file around compressed data."""
    head = b"MZ\0\0zimg" + struct.pack("<II", 0x100, len(payload)) + bytes(8) + b"gzip"
    return head.ljust(0x100, b"\0") + payload
