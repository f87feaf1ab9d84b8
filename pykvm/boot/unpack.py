"""Compressed kernels, unpacked on the host: gzip, bzip2, xz, lzma, zstd, lz4 and lzo.

A format is found by its magic bytes. Output is bounded, whatever the data says about itself, and
bytes after the end of the compressed stream are ignored: Linux appends the unpacked size to the
payload of a bzImage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from pykvm.boot.errors import ImageError, human_size
from pykvm.typed import Any

MAX_OUTPUT = 1 << 30
"""No kernel unpacks to more bytes than this, ..."""
MAX_RATIO, SMALL_OUTPUT = 32, 64 << 20
"""... nor to more than this many times its size, once it has more bytes than this: kernels shrink
to between a half and a tenth."""

_STEP = 1 << 20
_LZ4_LEGACY_BLOCK = 8 << 20
_LZO_BLOCK = 64 << 20

GZIP = b"\x1f\x8b\x08"
LZMA_DICTIONARY = 64 << 20
"""An lzma header is recognised with a dictionary of at most this many bytes."""


def compression_of(data: memoryview) -> str | None:
    """`gzip`, `xz`, `bzip2`, `zstd`, `lz4`, `lzma` or `lzo`; None if `data` is not compressed."""
    head = bytes(data[:13])
    for magic, name in (
        (GZIP, "gzip"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"BZh", "bzip2"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x89LZO\x00\r\n\x1a\n", "lzo"),
    ):
        if head.startswith(magic):
            return name if name != "bzip2" or bytes(data[4:10]) == b"1AY&SY" else None
    # "lzma alone" has no magic: lc/lp/pb of every encoder, a power-of-two dictionary, an unpacked
    # size that is unknown or sane.
    if len(head) == 13 and head[0] == 0x5D:
        dictionary, size = struct.unpack_from("<IQ", head, 1)
        usual = 1 << 12 <= dictionary <= LZMA_DICTIONARY and not dictionary & (dictionary - 1)
        if usual and (size == (1 << 64) - 1 or 0 < size <= MAX_OUTPUT):
            return "lzma"
    return None


def unpack(name: str, data: memoryview, kind: str, limit: int | None = None) -> bytearray:
    """All of the compressed stream at the start of `data`, at most `limit` bytes of it (by default
    what a kernel may have).

    `kind` is what `compression_of` said; `name` is the image's in messages. Raises `ImageError`
    for damaged data and for data that unpacks to more.
    """
    if limit is None:
        limit = min(max(len(data) * MAX_RATIO, SMALL_OUTPUT), MAX_OUTPUT)
    out = bytearray()  # grows in place: joining pieces would need the memory twice
    try:
        for piece in _READERS[kind](data, limit):
            if len(out) + len(piece) > limit:
                raise ImageError(
                    f"{name}: its {kind} data unpacks to more than {human_size(limit)}, which no "
                    "kernel does: give a kernel image"
                )
            out += piece
    except ImageError:
        raise
    except (MemoryError, OverflowError):
        raise ImageError(
            f"{name}: its {kind} data asks for more memory than there is: the file is damaged, "
            "copy it again"
        ) from None
    except Exception as error:  # each library has its own types; all of them mean damaged data
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        if not reason.isprintable():
            reason = type(error).__name__
        raise ImageError(
            f"{name}: its {kind} data is damaged ({reason}): copy the file again"
        ) from None
    return out


class _TruncatedError(Exception):
    def __str__(self) -> str:
        return "it ends too early"


def _stream(decoder: Any, data: memoryview) -> Iterator[bytes]:
    """The output of a decoder with the interface of `bz2.BZ2Decompressor`."""
    offset = 0
    while not decoder.eof:
        chunk = data[offset : offset + _STEP] if decoder.needs_input else b""
        if decoder.needs_input and not len(chunk):
            raise _TruncatedError
        offset += len(chunk)
        piece = decoder.decompress(chunk, _STEP)
        if piece:
            yield piece


def _gzip(data: memoryview, limit: int) -> Iterator[bytes]:
    import zlib

    decoder = zlib.decompressobj(31)
    offset, chunk = 0, b""
    while not decoder.eof:
        if not chunk:
            chunk = bytes(data[offset : offset + _STEP])
            offset += len(chunk)
            if not chunk:
                raise _TruncatedError
        piece = decoder.decompress(chunk, _STEP)
        chunk = decoder.unconsumed_tail
        if piece:
            yield piece


def _bzip2(data: memoryview, limit: int) -> Iterator[bytes]:
    import bz2

    return _stream(bz2.BZ2Decompressor(), data)


def _xz(data: memoryview, limit: int) -> Iterator[bytes]:
    import lzma

    # 128 MiB is the dictionary of "xz -9" twice; the decoder allocates it before it is filled.
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=160 << 20), data)


def _lzma(data: memoryview, limit: int) -> Iterator[bytes]:
    import lzma

    return _stream(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=160 << 20), data)


def _zstd(data: memoryview, limit: int) -> Iterator[bytes]:
    import zstandard

    # Linux is packed with "zstd -22 --ultra", whose window is 128 MiB.
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    start = zstandard.frame_header_size(bytes(data[:18]))
    # The library would read on into what follows the frame: find its end (RFC 8878, 3.1.1).
    with decoder.stream_reader(data[: _zstd_frame_end(data, start)]) as reader:
        while piece := reader.read(_STEP):
            yield piece


def _zstd_frame_end(data: memoryview, at: int) -> int:
    """Where the frame whose blocks start at `at` ends, its checksum included."""
    last = 0
    while not last:
        if at + 3 > len(data):
            raise _TruncatedError
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == 1 else size)  # a run-length block has one byte
    at += 4 if data[4] & 4 else 0
    if at > len(data):
        raise _TruncatedError
    return at


def _lz4(data: memoryview, limit: int) -> Iterator[bytes]:
    if bytes(data[:4]) == b"\x02\x21\x4c\x18":
        return _lz4_legacy(data, limit)
    import lz4.frame

    return _stream(lz4.frame.LZ4FrameDecompressor(), data)


def _lz4_legacy(data: memoryview, limit: int) -> Iterator[bytes]:
    """The format of `lz4 -l`, which Linux is packed with: a size and a block, each of which
    unpacks to 8 MiB but the last. Four bytes at the end that start no block are the size that Linux
    appends."""
    import lz4.block

    offset, size, ended = 4, 0, False
    while offset + 4 <= len(data) and not ended:
        (size,) = struct.unpack_from("<I", data, offset)
        if size > len(data) - offset - 4 or not size:
            break
        block = data[offset + 4 : offset + 4 + size]
        piece = lz4.block.decompress(block, uncompressed_size=_LZ4_LEGACY_BLOCK)
        offset += 4 + size
        ended = len(piece) < _LZ4_LEGACY_BLOCK
        yield piece
    if not ended and len(data) - offset > 4:
        raise _TruncatedError


def _lzo(data: memoryview, limit: int) -> Iterator[bytes]:
    """The file format of lzop (its lzop.c), as far as Linux's own decoder reads it."""
    from lzallright import LZOCompressor

    at = 9
    version = _be(data, at, 2)
    at += 7 if version >= 0x940 else 6  # version, library version, version needed, method
    at += 1 if version >= 0x940 else 0  # level
    flags = _be(data, at, 4)
    at += 4 + 4 * bool(flags & 0x800)  # flags, filter
    at += 8 + 4 * (version >= 0x940)  # mode, time, high part of the time
    at += 1 + _be(data, at, 1) + 4  # file name, header checksum
    for _ in range(limit // 16):
        unpacked = _be(data, at, 4)
        if not unpacked:
            return
        packed = _be(data, at + 4, 4)
        if not 0 < packed <= unpacked <= _LZO_BLOCK:
            raise ValueError("a block has an impossible size")
        at += 8 + 4 * bool(flags & 1) + 4 * bool(flags & 0x100)  # checksums of the unpacked data
        if packed < unpacked:
            at += 4 * bool(flags & 2) + 4 * bool(flags & 0x200)  # checksums of the packed data
        block = bytes(data[at : at + packed])
        if len(block) < packed:
            raise _TruncatedError
        at += packed
        piece = block if packed == unpacked else LZOCompressor.decompress(block, unpacked)
        if len(piece) != unpacked:
            raise ValueError("a block has another size than it says")
        yield piece


def _be(data: memoryview, at: int, size: int) -> int:
    if at + size > len(data):
        raise _TruncatedError
    return int.from_bytes(data[at : at + size], "big")


_READERS: dict[str, Callable[[memoryview, int], Iterator[bytes]]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "lzma": _lzma,
    "zstd": _zstd,
    "lz4": _lz4,
    "lzo": _lzo,
}
