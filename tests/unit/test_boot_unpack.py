"""Compressed kernels: every format, damaged and oversized streams, files in several layers."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib

import lz4.frame
import pytest
import zstandard
from kernel_images import M, bzimage, compressed, multiboot2_elf, vmlinux, zboot

from pykvm.boot import ImageError, load_image
from pykvm.boot.unpack import compression_of, unpack

KINDS = sorted(compressed(b""))
DATA = bytes(range(256)) * 4000 + b"the end"


def kind_of(data: bytes) -> str:
    kind = compression_of(memoryview(data))
    assert kind is not None
    return kind


def unpacked(data: bytes, limit: int | None = None) -> bytes:
    return unpack("file", memoryview(data), kind_of(data), limit)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    packed = compressed(DATA)[kind]
    assert kind_of(packed) == kind.split(" ")[0]
    assert unpacked(packed) == DATA
    # What follows the stream is not looked at: Linux appends the size.
    assert unpacked(packed + struct.pack("<I", len(DATA))) == DATA


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(kind: str) -> None:
    packed = compressed(DATA)[kind]
    for cut in (len(packed) // 2, len(packed) - 5 if kind not in ("lzo", "lz4") else 60):
        with pytest.raises(ImageError, match="damaged"):
            unpacked(packed[:cut])


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_bounded(kind: str) -> None:
    bomb = compressed(bytes(8 * M))[kind]
    with pytest.raises(ImageError, match="unpacks to more than 1 MiB"):
        unpacked(bomb, M)


def test_the_usual_bound_grows_with_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.boot.unpack.SMALL_OUTPUT", 10000)
    packed = gzip.compress(bytes(20000))
    with pytest.raises(ImageError, match=r"unpacks to more than 9\.8 KiB"):
        unpacked(packed)
    assert len(unpacked(packed + bytes(1000))) == 20000


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes(kind: str) -> None:
    packed = bytearray(compressed(DATA[:3000])[kind])
    outcomes = []
    for at in range(13, len(packed), 7):
        broken = bytearray(packed)
        broken[at] ^= 0xFF
        try:
            outcomes.append(str(len(unpacked(bytes(broken), M))))
        except ImageError as error:
            outcomes.append(str(error))
    assert all(text.isprintable() for text in outcomes)
    assert any("damaged" in text for text in outcomes) or kind in ("lz4 -l", "lzma")


def test_declared_sizes_are_not_believed() -> None:
    """A header that promises 4 EiB, with a few bytes behind it."""
    lzma_alone = struct.pack("<BIQ", 0x5D, 1 << 20, 1 << 29) + bytes(20)
    with pytest.raises(ImageError, match="damaged"):
        unpacked(lzma_alone)
    frame = zstandard.ZstdCompressor(write_content_size=True).compress(b"x" * 5000)
    huge = bytearray(frame)
    huge[4] = huge[4] & 0x3F | 0xC0
    with pytest.raises(ImageError):
        unpacked(bytes(huge))


def test_a_dictionary_too_large_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 512 << 20}]
    packed = lzma.compress(b"kernel", lzma.FORMAT_XZ, filters=filters)
    with pytest.raises(ImageError, match="damaged"):
        unpacked(packed)


def test_what_is_not_compressed() -> None:
    for data in (b"", b"BZhello world", b"\x5d\0\0\0\0" + bytes(8), b"\x7fELF", b"\x1f\x8b"):
        assert compression_of(memoryview(data)) is None
    other = struct.pack("<BIQ", 0x5D, 12345, 5)
    assert compression_of(memoryview(other)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files(kind: str) -> None:
    assert load_image(compressed(vmlinux())[kind], memory_size=64 * M).format == "linux64"
    assert load_image(compressed(multiboot2_elf())[kind], memory_size=64 * M).format == "multiboot2"


def test_layers() -> None:
    twice = gzip.compress(lzma.compress(bzimage()))
    assert load_image(twice, memory_size=64 * M).format == "bzimage"
    deep = vmlinux()
    for _ in range(4):
        deep = zlib.compress(deep, wbits=31)
    with pytest.raises(ImageError, match="more than 3 times"):
        load_image(deep, memory_size=64 * M)


def test_an_efi_zboot_file() -> None:
    assert load_image(zboot(gzip.compress(vmlinux())), memory_size=64 * M).format == "linux64"
    with pytest.raises(ImageError, match="truncated"):
        load_image(zboot(gzip.compress(vmlinux()))[:0x180], memory_size=64 * M)
    with pytest.raises(ImageError, match="packed in an unknown way"):
        load_image(zboot(b"?" * 100), memory_size=64 * M)


def test_what_holds_no_kernel() -> None:
    with pytest.raises(ImageError, match="no kernel that pykvm knows"):
        load_image(gzip.compress(b"\xf4" * 100), memory_size=64 * M)
    with pytest.raises(ImageError, match="a tar archive"):
        load_image(gzip.compress(bytes(257) + b"ustar" + bytes(300)), memory_size=64 * M)
    # As raw bytes, if that is asked for.
    raw = load_image(lz4.frame.compress(b"x"), memory_size=64 * M, format="flat")
    assert bytes(raw.segments[0].data)[:4] == b"\x04\x22\x4d\x18"
    # A format that was asked for is looked for inside.
    elf = load_image(gzip.compress(vmlinux()), memory_size=64 * M, format="elf")
    assert elf.format == "elf"
