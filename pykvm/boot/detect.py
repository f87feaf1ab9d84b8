"""What kind of image some bytes are: found by looking, never by file name.

A multiboot header wins over ELF (a multiboot kernel usually is an ELF file). Files that are plainly
something else, which nobody means to run as raw code, are named and refused; all others are flat.
"""

from __future__ import annotations

import struct

from pykvm.boot.errors import ImageError
from pykvm.boot.multiboot_header import find_header, has_multiboot2_header
from pykvm.typed import Literal

Format = Literal["flat", "elf", "multiboot"]
"""What the loaders can load."""

FORMATS: tuple[Format, ...] = ("flat", "elf", "multiboot")

ELF_MAGIC = b"\x7fELF"

_DECOMPRESS = "decompress it first"
_NOT_CODE = "give a kernel image"

# (offset, magic bytes, what it is, remedy); the first that matches is taken.
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b\x08", "gzip-compressed data", _DECOMPRESS),
    (0, b"\xfd7zXZ\x00", "xz-compressed data", _DECOMPRESS),
    (0, b"BZh91AY&SY", "bzip2-compressed data", _DECOMPRESS),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data", _DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed data", _DECOMPRESS),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed data", _DECOMPRESS),
    (0, b"\x5d\x00\x00\x80\x00\xff", "lzma-compressed data", _DECOMPRESS),
    (0, b"\x89LZO\x00\r\n\x1a\n", "lzop-compressed data", _DECOMPRESS),
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
    if find_header(data) is not None:
        return "multiboot"
    is_elf = bytes(data[:4]) == ELF_MAGIC
    if has_multiboot2_header(data):
        remedy = "give it a multiboot 1 header too"
        if is_elf:
            remedy += ', or load it as plain ELF with format="elf"'
        raise ImageError(
            f"{name}: this kernel has a multiboot 2 header and pykvm boots multiboot 1: {remedy}"
        )
    if is_elf:
        return "elf"
    found = _linux_or_dos(data) or _foreign(data)
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


def _linux_or_dos(data: memoryview) -> tuple[str, str] | None:
    """A Linux bzImage (Linux x86 boot protocol, ch. "The Real-Mode Kernel Header") or an MZ/PE
    file."""
    if bytes(data[0x202:0x206]) == b"HdrS" and bytes(data[0x1FE:0x200]) == b"\x55\xaa":
        return "a Linux bzImage", "give an ELF, multiboot or flat image"
    if bytes(data[:2]) != b"MZ" or len(data) < 0x40:
        return None
    (pe_offset,) = struct.unpack_from("<I", data, 0x3C)
    if bytes(data[pe_offset : pe_offset + 4]) == b"PE\0\0":
        return "a PE executable (Windows or UEFI)", "build it as ELF"
    (last_page, pages) = struct.unpack_from("<HH", data, 2)
    if last_page < 512 and 0 < pages <= len(data) // 512 + 1:
        return "a DOS executable", "build it as a flat binary"
    return None
