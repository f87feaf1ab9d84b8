"""Sparse files: only the parts that hold data are written and read; holes stay holes.

Offsets and sizes are bytes. A leaf module: it knows nothing of guests. Source: lseek(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType

from pykvm.errors import PykvmError


class SparseFileError(PykvmError):
    """A file that cannot be written or read as asked; says which, and why."""


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of `[start, end)` of the file that hold data, as (offset, length), in order.

    Moves the file position. A file system that knows no holes reports everything as data.
    """
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data any more
                return
            if error.errno in (errno.EINVAL, errno.ESPIPE):  # no SEEK_DATA here (guest_memfd)
                yield at, end - at
                return
            raise
        if data >= end:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data, hole - data
        at = hole


class SparseWriter:
    """Writes a sparse file of `size` bytes that appears under `path` when the `with` block ends.

    An exception in the block leaves no file, and an old file under that name as it was.
    """

    def __init__(self, path: str | os.PathLike[str], size: int) -> None:
        import tempfile  # late: guest memory is used far more often than it is exported

        self.path = os.fspath(path)
        self.written = 0
        """Bytes of data so far."""
        folder, name = os.path.split(os.path.abspath(self.path))
        try:
            self._fd, self._partial = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        except OSError as error:
            raise SparseFileError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            mask = os.umask(0)  # a new file's usual mode, which mkstemp does not give
            os.umask(mask)
            os.fchmod(self._fd, 0o666 & ~mask)
            os.ftruncate(self._fd, size)
        except (OSError, OverflowError) as error:
            self._discard()
            raise SparseFileError(
                f"{self.path} cannot have {size:#x} bytes on this file system; write a part"
            ) from error

    def write(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset`."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], offset + done)
        except OSError as error:
            raise SparseFileError(
                f"cannot write {self.path}: {error.strerror} after {self.written + done:#x} bytes"
            ) from error
        self.written += done

    def __enter__(self) -> SparseWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            os.replace(self._partial, self.path)
        except OSError as error:
            self._discard()
            raise SparseFileError(f"cannot write {self.path}: {error.strerror}") from error
        os.close(self._fd)

    def _discard(self) -> None:
        os.close(self._fd)
        os.unlink(self._partial)


class SparseReader:
    """Reads a sparse file. Refuses what is not a regular file (a pipe would block)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SparseFileError(f"cannot read {self.path}: {error.strerror}") from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise SparseFileError(f"cannot read {self.path}: it is not a regular file")
        self.size = status.st_size
        """The length of the file, holes included."""

    def extents(self) -> list[tuple[int, int]]:
        """The parts that hold data, as (offset, length), in order."""
        return list(data_extents(self._fd, 0, self.size))

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes at `offset`."""
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._fd, [target[done:]], offset + done)
            except OSError as error:
                raise SparseFileError(f"cannot read {self.path}: {error.strerror}") from error
            if count == 0:
                raise SparseFileError(f"{self.path} became shorter while it was read; try again")
            done += count

    def __enter__(self) -> SparseReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)
