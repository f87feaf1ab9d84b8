"""The container of snapshot files: a header, a description in JSON, and pages.

    0       header: magic, version, sizes, checksums of description and header (little endian)
    4096    the description, UTF-8 JSON
    ...     data: runs of bytes, each at a multiple of 4096, each with a checksum in the description

Checksums are CRC-32: they find damage; a file is not proof against somebody who makes a new one, so
everything in it is checked again by whoever takes it over. Nothing is read or set aside because of
a number in the file before that number was held against the file's real size.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct
import tempfile
import zlib
from contextlib import suppress

from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"pykvmsnp"
VERSION = 1
PAGE = 4096
_HEADER = struct.Struct("<8sIIQQI")  # magic, version, CRC of description, its size, file size, CRC
_DESCRIPTION_LIMIT = 64 << 20
_FIRST = struct.Struct("<8sI")


class Run:
    """Bytes in a file: offset, length, CRC-32."""

    __slots__ = ("crc", "length", "offset")

    def __init__(self, offset: int, length: int, crc: int) -> None:
        self.offset, self.length, self.crc = offset, length, crc

    def plain(self) -> list[int]:
        """For the description."""
        return [self.offset, self.length, self.crc]


class Writer:
    """Writes a file that appears under its name when it is complete."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        directory, name = os.path.split(os.path.abspath(self.path))
        try:
            self._fd, self._temporary = tempfile.mkstemp(".new", f".{name}.", directory)
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be written: {error.strerror}") from None
        self._pieces: list[tuple[int, Buffer]] = []
        self._length = 0

    def add(self, data: Buffer) -> Run:
        """Bytes for the data part; they are written, and copied, by `finish`."""
        view = memoryview(data).cast("B")
        run = Run(self._length, len(view), zlib.crc32(view))
        self._pieces.append((self._length, data))
        self._length += -(-len(view) // PAGE) * PAGE
        return run

    def finish(self, description: dict[str, Any]) -> None:
        """Writes everything. Offsets of runs in `description` count from the start of the data."""
        text = json.dumps(description, separators=(",", ":")).encode()
        start = PAGE + -(-len(text) // PAGE) * PAGE
        total = start + self._length
        head = _HEADER.pack(MAGIC, VERSION, zlib.crc32(text), len(text), total, 0)
        head = head[:-4] + struct.pack("<I", zlib.crc32(head[:-4]))
        try:
            os.truncate(self._fd, total)
            self._write(0, head)
            self._write(PAGE, text)
            for offset, data in self._pieces:
                self._write(start + offset, data)
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be written: {error.strerror}") from None

    def _write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            count = os.pwrite(self._fd, view[: 1 << 26], offset)
            offset += count
            view = view[count:]

    def close(self) -> None:
        """Forgets a file that was not finished."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(OSError):
                os.unlink(self._temporary)


class Reader:
    """A file whose header and description are whole; the data is checked by `data`.

    `lazy`: data is mapped, not read, and not checked; the file must not change from then on.
    """

    def __init__(self, path: str | os.PathLike[str], *, lazy: bool = False) -> None:
        self.path = os.fspath(path)
        try:
            # O_NONBLOCK: a FIFO would make open(2) wait.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                raise self.refuse("it is no regular file")
            with open(fd, "rb") as file:
                self.size = status.st_size
                self._read_head(file)
                flags = mmap.MAP_PRIVATE
                if lazy:
                    self._map: Any = mmap.mmap(
                        file.fileno(), self.size, flags=flags, prot=mmap.PROT_READ
                    )
                else:
                    self._map = mmap.mmap(-1, self.size, flags=flags | mmap.MAP_ANONYMOUS)
                    file.seek(self._start)
                    with memoryview(self._map) as view, view[self._start :] as room:
                        if file.readinto(room) != self.size - self._start:
                            raise self.refuse("it became shorter while it was read")
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be read: {error.strerror}") from None
        self.lazy = lazy
        self._checked: set[tuple[int, int, int]] = set()

    def refuse(self, why: str) -> SnapshotError:
        """The error for this file."""
        return SnapshotError(f"{self.path} is not usable as a snapshot: {why}")

    def _read_head(self, file: Any) -> None:
        head = file.read(_HEADER.size)
        if len(head) < _FIRST.size or head[:8] != MAGIC:
            raise self.refuse("it does not begin as one")
        version = _FIRST.unpack_from(head)[1]
        if version != VERSION:
            raise self.refuse(f"its format has version {version}, this pykvm reads {VERSION}")
        if len(head) < _HEADER.size:
            raise self.refuse(f"it is truncated: its header ends after {len(head)} bytes")
        _, _, crc, length, total, own = _HEADER.unpack(head)
        if zlib.crc32(head[:-4]) != own:
            raise self.refuse("the checksum of its header is wrong")
        if total > self.size:
            raise self.refuse(f"it is truncated: {self.size} bytes of {total} are there")
        if total != self.size:
            raise self.refuse(f"{self.size - total} bytes follow its end")
        if length > _DESCRIPTION_LIMIT or PAGE + length > self.size:
            raise self.refuse(f"its description of {length} bytes does not fit")
        file.seek(PAGE)
        text = file.read(length)
        if zlib.crc32(text) != crc or len(text) != length:
            raise self.refuse("the checksum of its description is wrong")
        self._start = PAGE + -(-length // PAGE) * PAGE
        try:
            self.description: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.refuse(f"its description is no JSON ({type(error).__name__})") from None
        if not isinstance(self.description, dict) or self._start > self.size:
            raise self.refuse("its description describes nothing")

    def data(self, plain: object, what: str, multiple: int = 1) -> memoryview:
        """The bytes of a run as the description has it. Raises `SnapshotError`."""
        if (
            not isinstance(plain, list)
            or len(plain) != 3
            or not all(type(n) is int and n >= 0 for n in plain)
        ):
            raise self.refuse(f"the place of {what} makes no sense")
        offset, length, crc = plain
        room = self.size - self._start
        if offset % PAGE or offset > room or length > room - offset or length % multiple:
            raise self.refuse(f"{what} lies outside the file")
        view = memoryview(self._map)[self._start + offset : self._start + offset + length]
        if not self.lazy and (offset, length, crc) not in self._checked:
            if zlib.crc32(view) != crc:
                raise self.refuse(f"the checksum of {what} is wrong")
            self._checked.add((offset, length, crc))
        return view
