"""What kind of image some bytes are: found by looking, never by file name.

A bzImage's setup header wins over everything, then a multiboot 1 header, then one of multiboot 2 (a
multiboot kernel usually is an ELF file). Of ELF files, those with a PVH entry and those that are a
Linux kernel have a format of their own (`pykvm.boot.kernels`). Compressed files are unpacked by
`load_image` and looked at again. Files that are plainly something else, which nobody means to run
as raw code, are named and refused; all others are flat. Firmware cannot be told from flat code, so
it has to be asked for.
"""

from __future__ import annotations

import struct

from pykvm.boot.errors import ImageError
from pykvm.boot.multiboot2_header import has_multiboot2_header
from pykvm.boot.multiboot_header import find_header
from pykvm.typed import Literal

Format = Literal[
    "flat", "elf", "multiboot", "multiboot2", "bzimage", "pvh", "linux64", "linux32", "firmware",
    "packed",
]  # fmt: skip
"""What the loaders can load, and "packed" for what has to be unpacked first."""

FORMATS: tuple[Format, ...] = (
    *("flat", "elf", "multiboot", "multiboot2", "bzimage"),
    *("pvh", "linux64", "linux32", "firmware"),
)

ELF_MAGIC = b"\x7fELF"

_NOT_CODE = "give a kernel image"

_PACKED = (
    *(b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"BZh91AY&SY", b"\x28\xb5\x2f\xfd"),
    *(b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18", b"\x89LZO\x00\r\n\x1a\n"),
    b"\x5d\x00\x00",
)
"""How compressed data starts: gzip, xz, bzip2, zstd, lz4 (two kinds), lzop, lzma."""

# (offset, magic bytes, what it is, remedy); the first that matches is taken.
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"!<arch>\n", "an ar archive (a static library)", "link it into an executable first"),
    (0, b"070701", "a cpio archive (an initial RAM disk)", _NOT_CODE),
    (0, b"070702", "a cpio archive (an initial RAM disk)", _NOT_CODE),
    (257, b"ustar", "a tar archive", "unpack it first"),
    (0, b"#!", "a script", _NOT_CODE),
    (0, b"\xfe\xed\xfa\xce", "a Mach-O executable", "build it as ELF"),
    (0, b"\xfe\xed\xfa\xcf", "a Mach-O executable", "build it as ELF"),
    (0, b"\xce\xfa\xed\xfe", "a Mach-O executable", "build it as ELF"),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O executable", "build it as ELF"),
    (0, b"\xca\xfe\xba\xbe", "a Mach-O universal binary or a Java class", "build it as ELF"),
    (0, b"\x00asm\x01\x00\x00\x00", "a WebAssembly module", "build it as ELF"),
    (0, b"BC\xc0\xde", "LLVM bitcode", "compile and link it first"),
    (0, b"\x27\x05\x19\x56", "a U-Boot uImage", "take the kernel out of it first"),
    (0, b"ANDROID!", "an Android boot image", "take the kernel out of it first"),
    (0, b"QFI\xfb", "a qcow2 disk image", _NOT_CODE),
    (0, b"KDMV", "a VMDK disk image", _NOT_CODE),
    (0, b"vhdxfile", "a VHDX disk image", _NOT_CODE),
    (0, b"conectix", "a VHD disk image", _NOT_CODE),
    (64, b"\x7f\x10\xda\xbe", "a VDI disk image", _NOT_CODE),
    (0x8001, b"CD001", "an ISO 9660 disc image", "take the kernel out of it first"),
    (512, b"EFI PART", "a disk image with a GUID partition table", _NOT_CODE),
    (0, b"%PDF-", "a PDF document", _NOT_CODE),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", _NOT_CODE),
    (0, b"\xd0\x0d\xfe\xed", "a flattened device tree", _NOT_CODE),
)


def detect(name: str, data: memoryview) -> Format:
    """The format of the image `data`.

    Raises `ImageError`, with `name` in front, if it is recognised as something pykvm cannot boot.
    """
    if is_bzimage(data):
        return "bzimage"
    if find_header(data) is not None:
        return "multiboot"
    if has_multiboot2_header(data):
        return "multiboot2"
    if bytes(data[:4]) == ELF_MAGIC:
        return "elf"
    if is_packed(data):
        return "packed"
    found = _dos(data) or _foreign(data)
    if found is not None:
        what, remedy = found
        raise ImageError(
            f"{name}: this is {what}, which pykvm cannot boot: {remedy}, "
            'or load it as raw bytes with format="flat"'
        )
    return "flat"


def _foreign(data: memoryview) -> tuple[str, str] | None:
    for offset, magic, what, remedy in _FOREIGN:
        if bytes(data[offset : offset + len(magic)]) == magic:
            return what, remedy
    return None


def is_packed(data: memoryview) -> bool:
    """Whether it is a compressed file, or an EFI zboot file."""
    head = bytes(data[:16])
    if head.startswith(b"MZ") and head[4:8] == b"zimg":
        return True
    if not head.startswith(_PACKED):
        return False
    from pykvm.boot.unpack import compression_of

    return compression_of(data) is not None


def is_bzimage(data: memoryview) -> bool:
    """Whether it starts with a boot sector that carries Linux's setup header."""
    return bytes(data[0x202:0x206]) == b"HdrS" and bytes(data[0x1FE:0x200]) == b"\x55\xaa"


def _dos(data: memoryview) -> tuple[str, str] | None:
    """An MZ or PE file."""
    if bytes(data[:2]) != b"MZ" or len(data) < 0x40:
        return None
    (pe_offset,) = struct.unpack_from("<I", data, 0x3C)
    if bytes(data[pe_offset : pe_offset + 4]) == b"PE\0\0":
        return "a PE executable (Windows or UEFI)", "build it as ELF"
    (last_page, pages) = struct.unpack_from("<HH", data, 2)
    if last_page < 512 and 0 < pages <= len(data) // 512 + 1:
        return "a DOS executable", "build it as a flat binary"
    return None
