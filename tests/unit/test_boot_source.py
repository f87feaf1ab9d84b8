"""Where image bytes come from: files, buffers, and everything that is neither."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pykvm.boot.errors import ImageError, human_size, printable, span
from pykvm.boot.source import COPY_LIMIT, open_source


def refused(image: object) -> str:
    with pytest.raises(ImageError) as caught:
        open_source(image)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_small_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    source = open_source(path)
    assert bytes(source.data) == b"abc"
    assert source.name == str(path)
    assert source.data.readonly
    path.write_bytes(b"")
    source.check_unchanged()  # a small image no longer depends on its file
    assert bytes(source.data) == b"abc"


def test_large_file_is_mapped_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as f:
        f.truncate(1 << 40)  # 1 TiB: reading it would not end
    source = open_source(str(path))
    assert len(source.data) == 1 << 40
    assert source.data[1 << 39] == 0
    source.check_unchanged()


def test_mapped_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(COPY_LIMIT + 1))
    source = open_source(path)
    os.truncate(path, 100)
    with pytest.raises(ImageError, match="shrank from 1048577 to 100 bytes"):
        source.check_unchanged()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    large.write_bytes(bytes(COPY_LIMIT + 1))
    before = len(os.listdir("/proc/self/fd"))
    for path in (small, large, tmp_path):
        for _ in range(20):
            try:
                open_source(path)
            except ImageError:
                pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_buffers_are_not_copied() -> None:
    buffer = bytearray(b"abc")
    source = open_source(buffer)
    buffer[0] = ord("x")
    assert bytes(source.data) == b"xbc"
    assert source.name == "the image"


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")])
def test_empty_buffer(empty: bytes) -> None:
    assert "the image is empty" in refused(empty)
    assert len(open_source(empty, "module", allow_empty=True).data) == 0


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "e").touch()
    assert "the file is empty" in refused(tmp_path / "e")
    assert len(open_source(tmp_path / "e", allow_empty=True).data) == 0


def test_special_files(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is a FIFO, not a regular file" in refused(fifo)
    assert "is a directory" in refused(tmp_path)
    assert "is a character device" in refused("/dev/zero")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "sock"))
        assert "cannot be opened" in refused(tmp_path / "sock")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nonexistent/kernel", "No such file or directory"),
        ("", "file name is empty"),
        ("a\0b", "NUL character"),
        ("/" + "n" * 5000, "File name too long"),
    ],
)
def test_bad_paths(path: str, words: str) -> None:
    assert words in refused(path)


@pytest.mark.parametrize("thing", [None, 5, 1.5, object(), ["a"], b"x".hex])
def test_not_an_image(thing: object) -> None:
    assert "neither a path nor bytes" in refused(thing)


def test_strided_view() -> None:
    assert "not contiguous" in refused(memoryview(b"abcdef")[::2])


def test_names_cannot_break_the_sentence() -> None:
    assert refused("/no\nsuch\x1b[31mfile").startswith("/no\\nsuch\\x1b[31mfile: ")
    assert len(printable("x" * 1000)) == 200


def test_wording() -> None:
    assert span(0x1000, 0x10) == "0x1000-0x100f"
    assert human_size(512) == "512 bytes"
    assert human_size(64 << 10) == "64 KiB"
    assert human_size((3 << 20) // 2) == "1.5 MiB"
    assert human_size(4 << 30) == "4 GiB"
