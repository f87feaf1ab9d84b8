"""`BlockBackend`: what a disk device model reads from and writes to.

Offsets and lengths are bytes. Data goes straight between the disk and the caller's buffers, which
may be views of guest memory.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

SECTOR = 512
Cache = Literal["writeback", "none", "writethrough", "directsync", "unsafe"]
#: Cache modes, as QEMU calls them: (past the host's page cache, write-back to the guest).
CACHES: dict[str, tuple[bool, bool]] = {
    "writeback": (False, True),
    "none": (True, True),
    "writethrough": (False, False),
    "directsync": (True, False),
    "unsafe": (False, True),  # and a flush does nothing
}
_ZEROS = bytes(1 << 16)


class BlockError(PykvmError):
    """A disk that cannot be opened, or an access that failed; `.errno` says which kind."""

    def __init__(self, message: str, code: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = code


class NativeFile(NamedTuple):
    """A disk that is part of a file, for engines that read and write it without the back end.

    Descriptors stay the back end's. `fd` may be O_DIRECT (`direct`): then file offsets and lengths
    are multiples of `align`, buffers in memory of `memory_align` bytes, and `plain_fd` is the same
    file without O_DIRECT; else it is `fd`. Neither is O_NONBLOCK.
    """

    fd: int
    plain_fd: int
    #: Bytes: where the disk begins in the file, and how many of the disk's bytes the file has.
    offset: int
    size: int
    direct: bool = False
    block_device: bool = False
    align: int = SECTOR
    memory_align: int = SECTOR
    #: A write that makes the first or last sector look like another format's is refused.
    guarded: bool = False


class BlockBackend(ABC):
    """A disk of `size` bytes, a multiple of 512.

    Every access may raise `BlockError`: outside the disk, a write to a `read_only` one, an error
    of the host. One thread at a time, unless `parallel` says how many may be in it.
    """

    name: str = "disk"
    size: int = 0
    read_only: bool = False
    #: How many threads may make accesses at the same time. With more than 1, `flush` covers what
    #: was written before it was called.
    parallel: int = 1
    #: The smallest access in bytes that is done without reading around it, a power of two.
    block_size: int = SECTOR
    #: The sizes in bytes that accesses should have: not smaller than, and best (0: unknown).
    io_min: int = 0
    io_best: int = 0

    def native_fd(self) -> NativeFile | None:
        """The file that is this disk byte by byte, or None where there is no such file."""
        return None

    def set_cache(self, cache: Cache) -> None:  # noqa: B027 - most have no cache to go round
        """Uses the host's page cache or not, as far as this disk can; before the first access.

        What a flush does is the caller's affair: "unsafe" ones do not call it.
        """

    def resize(self, size: int) -> None:
        """Gives the disk another size in bytes; it is quiet."""
        raise BlockError(f"{self.name} keeps its size", errno.ENOTSUP)

    def check_size(self, size: int) -> None:
        """Raises `BlockError` for a size in bytes that this disk cannot be given."""
        if self.read_only:
            raise BlockError(f"{self.name} is read-only and keeps its size", errno.EROFS)
        if not 0 < size <= 1 << 60 or size % SECTOR:
            raise BlockError(
                f"{self.name}: a size of {size} bytes is no positive multiple of {SECTOR}",
                errno.EINVAL,
            )

    def refresh_size(self) -> int:
        """Takes over the size that the file has now, and returns it; the disk is quiet."""
        return self.size

    @abstractmethod
    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the buffers, in order, from byte `offset` on."""

    @abstractmethod
    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the buffers, in order, from byte `offset` on."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        self.check(offset, length)
        data = bytearray(length)
        self.readv(offset, [memoryview(data)])
        return bytes(data)

    def readinto(self, offset: int, view: Buffer) -> None:
        """Fill one buffer from `offset` on."""
        self.readv(offset, [memoryview(view).cast("B")])

    def write(self, offset: int, data: Buffer) -> None:
        """Write one buffer at `offset`."""
        self.writev(offset, [memoryview(data).cast("B")])

    def flush(self) -> None:  # noqa: B027 - a disk in memory has nothing to flush
        """What was written is on stable storage when this returns."""

    def discard(self, offset: int, length: int) -> None:
        """The contents are not needed any more; they read as zeros or as before."""
        self.check(offset, length, writing=True)

    def write_zeroes(self, offset: int, length: int) -> None:
        """As writing zeros, where possible without writing them."""
        self.check(offset, length, writing=True)
        zeros = memoryview(_ZEROS)
        while length:
            count = min(length, len(zeros))
            self.writev(offset, [zeros[:count]])
            offset += count
            length -= count

    def zero_in_place(self, offset: int, length: int) -> None:
        """As `write_zeroes`, but the blocks behind it stay allocated."""
        BlockBackend.write_zeroes(self, offset, length)

    def checkpoint(self) -> object:
        """A mark to which `rollback` puts the contents back, any number of times; it is quiet.

        Raises `BlockError` where that cannot be done: the disk is written in place.
        """
        if self.read_only:
            return None
        raise BlockError(
            f"the disk {self.name} is written in place, so that its contents cannot be put back; "
            "add it with snapshot=True or readonly=True",
            errno.ENOTSUP,
        )

    def rollback(self, mark: object) -> None:  # noqa: B027 - a read-only disk has not changed
        """The contents are those of a `checkpoint` of this disk again; it is quiet."""

    def export_checkpoint(self, mark: object) -> Iterator[tuple[int, Buffer]] | None:
        """What a checkpoint has beside what the disk had when it was opened: (offset, bytes)."""
        return None

    def import_checkpoint(self, pieces: Sequence[tuple[int, Buffer]] | None) -> object:
        """A checkpoint of that; the disk was opened with the same contents.

        Raises `BlockError` for pieces that are not of this disk.
        """
        if pieces is not None:
            raise BlockError(f"{self.name} has no contents of its own")
        return self.checkpoint()

    def close(self) -> None:  # noqa: B027 - a disk in memory has nothing to close
        """Give the file back. Twice is harmless."""

    def check(self, offset: int, length: int, *, writing: bool = False) -> None:
        """Raises `BlockError` for an access outside the disk, or a write that is not allowed."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BlockError(
                f"{self.name}: {length} bytes at {offset:#x} reach past its end at {self.size:#x}"
            )
        if writing and self.read_only:
            raise BlockError(f"{self.name} is read-only", errno.EROFS)


def total(views: Sequence[memoryview]) -> int:
    """Bytes in a list of buffers."""
    return sum([len(view) for view in views])


class MemoryDisk(BlockBackend):
    """A disk of bytes in memory, padded with zeros to a multiple of 512."""

    def __init__(self, data: bytes = b"", *, read_only: bool = False, name: str = "memory") -> None:
        self.data = bytearray(data) + bytes(-len(data) % SECTOR)
        self.size = len(self.data)
        self.read_only = read_only
        self.name = name
        self.flushes = 0
        self._mark: bytes | None = None  # the contents of the last checkpoint, while they are those

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy out."""
        self.check(offset, total(views))
        with memoryview(self.data) as data:
            for view in views:
                view[:] = data[offset : offset + len(view)]
                offset += len(view)

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy in."""
        self.check(offset, total(views), writing=True)
        self._mark = None
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        """Counted, for tests."""
        self.flushes += 1

    def checkpoint(self) -> bytes:
        """A copy, unless nothing was written since the last."""
        if self._mark is None:
            self._mark = bytes(self.data)
        return self._mark

    def rollback(self, mark: object) -> None:
        """Copies it back."""
        assert isinstance(mark, bytes)
        if self._mark is not mark:
            self.data[:] = mark
            self._mark = mark

    def export_checkpoint(self, mark: object) -> Iterator[tuple[int, Buffer]]:
        """All of it."""
        assert isinstance(mark, bytes)
        return iter([(0, mark)])

    def import_checkpoint(self, pieces: Sequence[tuple[int, Buffer]] | None) -> bytes:
        """All of it."""
        if pieces is None or len(pieces) != 1 or pieces[0][0]:
            raise BlockError(f"{self.name}: its contents are not there")
        mark = bytes(pieces[0][1])
        if len(mark) != self.size:
            raise BlockError(f"{self.name}: {len(mark)} bytes are not its {self.size}")
        return mark


def host_error(name: str, what: str, error: OSError) -> BlockError:
    """An error of the host's, as one of ours."""
    code = error.errno or errno.EIO
    return BlockError(f"{name}: {what} failed: {os.strerror(code)}", code)
