"""Disks: raw files, overlays, disks in memory; locks, odd sizes, short and failing I/O."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest

from pykvm.devices.block import BlockBackend, BlockError, MemoryDisk, Overlay, RawFile, open_block


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((n * 7 + n // 251 + seed) & 0xFF for n in range(length))


@pytest.fixture
def image(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(64 << 10))
    return path


@pytest.mark.parametrize("kind", ["raw", "snapshot", "memory"])
def test_reading_and_writing(kind: str, image: pathlib.Path) -> None:
    disk: BlockBackend
    disk = MemoryDisk(image.read_bytes()) if kind == "memory" else open_block(
        image, snapshot=kind == "snapshot"
    )  # fmt: skip
    expected = bytearray(pattern(64 << 10))
    assert disk.size == 64 << 10
    for offset, length in ((0, 512), (3000, 5000), (4096, 4096), (65024, 512), (8191, 2), (7, 0)):
        data = pattern(length, offset)
        disk.write(offset, data)
        expected[offset : offset + length] = data
        assert disk.read(max(0, offset - 100), length + 100) == bytes(
            expected[max(0, offset - 100) : max(0, offset - 100) + length + 100]
        )
    disk.write_zeroes(10_000, 9_000)
    expected[10_000:19_000] = bytes(9_000)
    disk.flush()
    assert disk.read(0, disk.size) == bytes(expected)
    parts = [bytearray(1000), bytearray(0), bytearray(24)]
    disk.readv(512, [memoryview(part) for part in parts])
    assert b"".join(parts) == expected[512 : 512 + 1024]
    disk.writev(512, [memoryview(b"xy"), memoryview(b""), memoryview(b"z")])
    assert disk.read(512, 3) == b"xyz"
    buffer = bytearray(4)
    disk.readinto(512, buffer)
    assert bytes(buffer[:3]) == b"xyz"
    disk.close()
    disk.close()
    on_disk = image.read_bytes()
    assert (on_disk[512:515] == b"xyz") == (kind == "raw")


@pytest.mark.parametrize("kind", ["raw", "snapshot", "memory"])
@pytest.mark.parametrize(("offset", "length"), [(65536, 1), (65535, 2), (-1, 1), (1 << 60, 512)])
def test_accesses_outside_are_refused(
    kind: str, offset: int, length: int, image: pathlib.Path
) -> None:
    disk: BlockBackend
    disk = MemoryDisk(image.read_bytes()) if kind == "memory" else open_block(
        image, snapshot=kind == "snapshot"
    )  # fmt: skip
    for attempt in (
        lambda: disk.read(offset, length),
        lambda: disk.readinto(offset, bytearray(length)),
        lambda: disk.write(offset, bytes(length)),
        lambda: disk.discard(offset, length),
        lambda: disk.write_zeroes(offset, length),
    ):
        with pytest.raises(BlockError, match="reach past its end"):
            attempt()
    disk.close()
    assert image.read_bytes() == pattern(64 << 10)


def test_an_odd_size_is_padded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(pattern(700))
    with_padding = open_block(path)
    assert with_padding.size == 1024
    assert with_padding.read(0, 1024) == pattern(700) + bytes(324)
    assert with_padding.read(900, 100) == bytes(100)
    with_padding.write(100, b"abc")
    with pytest.raises(BlockError, match="incomplete sector"):
        with_padding.write(512, bytes(512))
    with_padding.close()
    assert path.stat().st_size == 700
    overlay = open_block(path, snapshot=True)
    overlay.write(512, b"\x11" * 512)
    assert overlay.read(512, 512) == b"\x11" * 512
    overlay.close()


def test_two_writers_of_one_image_are_refused(image: pathlib.Path) -> None:
    first = RawFile(image)
    with pytest.raises(BlockError, match="in use by another"):
        RawFile(image)
    with pytest.raises(BlockError, match="in use"):
        RawFile(image, read_only=True)
    first.close()
    readers = [RawFile(image, read_only=True) for _ in range(2)]
    with pytest.raises(BlockError, match="in use"):
        RawFile(image)
    for reader in readers:
        reader.close()
    RawFile(image).close()


def test_read_only_disks_refuse_writes(image: pathlib.Path) -> None:
    disk = open_block(image, read_only=True)
    for attempt in (
        lambda: disk.write(0, b"x"),
        lambda: disk.discard(0, 512),
        lambda: disk.write_zeroes(0, 512),
    ):
        with pytest.raises(BlockError, match="read-only") as refused:
            attempt()
        assert refused.value.errno == errno.EROFS
    disk.flush()
    disk.close()


def test_what_is_no_disk_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BlockError, match="cannot be opened: No such file"):
        open_block(tmp_path / "missing")
    with pytest.raises(BlockError, match="cannot be opened: Is a directory"):
        open_block(tmp_path)
    with pytest.raises(BlockError, match="not a disk"):
        open_block("/dev/null")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(BlockError, match="not a disk"):
        open_block(fifo)


def test_short_transfers_are_continued(
    image: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, real_write = os.preadv, os.pwritev
    counts = {"read": 0, "write": 0}

    def short_read(fd: int, views: list[memoryview], offset: int) -> int:
        counts["read"] += 1
        return real_read(fd, [views[0][:777]], offset)

    def short_write(fd: int, views: list[memoryview], offset: int) -> int:
        counts["write"] += 1
        return real_write(fd, [views[0][:777]], offset)

    monkeypatch.setattr(os, "preadv", short_read)
    monkeypatch.setattr(os, "pwritev", short_write)
    disk = open_block(image)
    halves = [bytearray(3000), bytearray(5000)]
    disk.readv(1000, [memoryview(half) for half in halves])
    assert b"".join(halves) == pattern(64 << 10)[1000:9000]
    disk.writev(2000, [memoryview(half) for half in halves])
    disk.close()
    assert image.read_bytes()[2000:10000] == b"".join(halves)
    assert min(counts.values()) > 8


def test_host_errors_are_reported(image: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, "broken")

    disk = open_block(image)
    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "pwritev", fail)
    monkeypatch.setattr(os, "fdatasync", fail)
    for attempt in (lambda: disk.read(0, 512), lambda: disk.write(0, b"x"), disk.flush):
        with pytest.raises(BlockError, match="Input/output error") as failed:
            attempt()
        assert failed.value.errno == errno.EIO
    disk.close()


def test_a_truncated_image_ends_in_an_error(image: pathlib.Path) -> None:
    disk = open_block(image)
    os.truncate(image, 1000)
    assert disk.read(0, 512) == pattern(512)
    with pytest.raises(BlockError, match="truncated"):
        disk.read(512, 1024)
    disk.close()


def test_discard_gives_the_blocks_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xff" * (1 << 20))
    disk = open_block(path)
    before = path.stat().st_blocks
    disk.discard(64 << 10, 512 << 10)
    assert disk.read(0, 64 << 10) == b"\xff" * (64 << 10)
    assert path.stat().st_size == 1 << 20
    if disk.read(64 << 10, 512) == bytes(512):  # file systems without holes keep the data
        assert path.stat().st_blocks < before
    disk.write_zeroes(0, 1 << 20)
    assert disk.read(0, 1 << 20) == bytes(1 << 20)
    disk.close()


def test_an_overlay_holds_only_what_was_written() -> None:
    base = MemoryDisk(pattern(1 << 20), read_only=True)
    overlay = Overlay(base)
    assert not overlay.read_only
    overlay.write(5000, b"hello")
    overlay.write((1 << 20) - 3, b"end")
    assert os.fstat(overlay._top.fd).st_blocks * 512 <= 64 << 10
    whole = bytearray(pattern(1 << 20))
    whole[5000:5005] = b"hello"
    whole[-3:] = b"end"
    assert overlay.read(0, 1 << 20) == bytes(whole)
    assert bytes(base.data) == pattern(1 << 20)
    overlay.close()


def test_an_overlay_without_a_directory_is_in_memory() -> None:
    overlay = Overlay(MemoryDisk(pattern(8192)), directory="/nonexistent")
    overlay.write(100, b"abc")
    assert overlay.read(99, 5) == pattern(8192)[99:100] + b"abc" + pattern(8192)[103:104]
    overlay.close()
