"""Formats are found by looking at the bytes."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zipfile

import pytest
from boot_images import Elf, Seg, multiboot_elf, multiboot_flat, multiboot_header

from pykvm.boot.detect import detect
from pykvm.boot.errors import ImageError
from pykvm.boot.multiboot2_header import has_multiboot2_header
from pykvm.boot.multiboot_header import find_header


def kind(data: bytes) -> str:
    return detect("file", memoryview(data))


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        kind(data)
    text = str(caught.value)
    assert text.startswith("file: ")
    assert "\n" not in text
    return text


def bzimage() -> bytes:
    head = bytearray(0x400)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    return bytes(head)


def pe() -> bytes:
    return b"MZ" + bytes(0x3A) + struct.pack("<I", 0x80) + bytes(0x40) + b"PE\0\0" + bytes(64)


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as t:
        t.addfile(tarfile.TarInfo("x"))
    return out.getvalue()


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("x", "y")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tar(), "tar archive"),
        (archive(), "zip archive"),
        (b"#!/bin/sh\nexit 0\n", "a script"),
        (pe(), "a PE executable"),
        (struct.pack("<2sHH", b"MZ", 100, 1) + bytes(100), "a DOS executable"),
        (b"!<arch>\n" + bytes(60), "static library"),
        (b"\xcf\xfa\xed\xfe" + bytes(60), "Mach-O"),
        (bytes(0x8001) + b"CD001", "ISO 9660"),
        (b"QFI\xfb" + bytes(60), "qcow2"),
        (bytes(512) + b"EFI PART", "GUID partition table"),
    ],
)
def test_recognised_and_refused(data: bytes, what: str) -> None:
    text = refused(data)
    assert what in text
    assert 'format="flat"' in text


def test_linux_and_compressed_files() -> None:
    assert kind(bzimage()) == "bzimage"
    assert kind(b"MZ" + bzimage()[2:]) == "bzimage"  # one that UEFI starts, too
    assert kind(gzip.compress(b"kernel")) == "packed"
    assert kind(lzma.compress(b"kernel")) == "packed"
    assert kind(lzma.compress(b"kernel", lzma.FORMAT_ALONE)) == "packed"
    assert kind(b"MZ\0\0zimg" + bytes(60)) == "packed"


@pytest.mark.parametrize(
    "data",
    [
        b"\xf4",
        b"MZ",
        b"MZ" + bytes(100),  # "dec bp; pop dx": no executable's header
        b"\x7fEL",
        b"\x1f\x8b",
        b"BZhello",
        bytes(100000),
        b"some text\n",
        bytes(510) + b"\x55\xaa",
    ],
)
def test_everything_else_is_flat(data: bytes) -> None:
    assert kind(data) == "flat"


def test_elf() -> None:
    assert kind(Elf([Seg(0x100000)]).build()) == "elf"
    assert kind(b"\x7fELF") == "elf"


def test_multiboot_wins_over_elf() -> None:
    assert kind(multiboot_elf()) == "multiboot"
    assert kind(multiboot_elf(bits=64)) == "multiboot"
    assert kind(multiboot_flat()) == "multiboot"


def test_multiboot_header_search() -> None:
    header = multiboot_header(3)
    for offset in (0, 4, 8192 - 12):
        found = find_header(memoryview(bytes(offset) + header + bytes(100)))
        assert found is not None
        assert (found.offset, found.flags) == (offset, 3)
    for offset in (1, 2, 8192 - 8, 8192, 9000):
        assert find_header(memoryview(bytes(offset) + header + bytes(100))) is None
    # The whole header, with its address fields, must be in the first 8192 bytes.
    wide = multiboot_header(1 << 16, 1, 2, 3, 4, 5)
    found = find_header(memoryview(bytes(8192 - 32) + wide))
    assert found is not None
    assert (found.header_addr, found.entry_addr) == (1, 5)
    assert find_header(memoryview(bytes(8192 - 28) + wide)) is None
    assert find_header(memoryview(wide[:31])) is None


def test_multiboot_header_checksum_and_decoys() -> None:
    bad = multiboot_header(3, checksum=123)
    assert find_header(memoryview(bad)) is None
    found = find_header(memoryview(bad + multiboot_header(1)))
    assert found is not None
    assert found.offset == 12
    decoys = multiboot_header(3, checksum=1) * 600 + bytes(2000)
    assert find_header(memoryview(decoys)) is None


def multiboot2() -> bytes:
    return struct.pack("<4I", 0xE85250D6, 0, 16, -(0xE85250D6 + 16) & 0xFFFFFFFF)


def test_multiboot2_header_search() -> None:
    elf = Elf([Seg(0x100000, multiboot2())], pad=-(64 + 56) % 8).build()
    assert has_multiboot2_header(memoryview(elf))
    assert kind(elf) == "multiboot2"
    assert kind(bytes(32768 - 16) + multiboot2()) == "multiboot2"
    assert kind(bytes(32768 - 8) + multiboot2()) == "flat"
    assert kind(bytes(4) + multiboot2()) == "flat"


def test_a_kernel_with_both_headers_is_multiboot_1() -> None:
    assert kind(multiboot2() + multiboot_flat(base=0x100000 - 16)) == "multiboot"
