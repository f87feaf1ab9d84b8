"""Raw images and block devices: byte n of the disk is byte n of the file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence

from pykvm.devices.block.backend import SECTOR, BlockBackend, BlockError, host_error, total

_IOV_MAX = 1024
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # linux/falloc.h
_NO_LOCKS = {errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EBADF}


class RawFile(BlockBackend):
    """A raw image file or a block device of the host.

    The file is locked (flock(2): shared for `read_only`, else exclusive) as long as it is open, so
    that two machines do not write to one disk. A size that is no multiple of 512 is rounded up: the
    missing bytes read as zeros, and a write that reaches them is refused. Raises `BlockError`.
    """

    def __init__(
        self, path: str | os.PathLike[str], read_only: bool = False, *, lock: bool = True
    ) -> None:
        self.name = os.fspath(path)
        self.read_only = read_only
        self._fd = -1
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
        try:
            self._fd = os.open(path, flags)
            mode = os.fstat(self._fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise BlockError(
                    f"{self.name} is not a disk: give a regular file or a block device",
                    errno.ENOTBLK,
                )
            if lock:
                self._lock()
            self._bytes = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            hint = ""
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and not read_only:
                hint = "; open it read-only, or with snapshot"
            code = error.errno or errno.EIO
            raise BlockError(
                f"the disk {self.name} cannot be opened: {os.strerror(code)}{hint}", code
            ) from error
        except BaseException:
            self.close()
            raise
        self.size = -(-self._bytes // SECTOR) * SECTOR

    def _lock(self) -> None:
        kind = fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockError(
                f"the disk {self.name} is in use by another machine or process; "
                "open it with snapshot, or stop the other one",
                errno.EBUSY,
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # a file system without locks: nothing to be had
                raise

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """preadv(2), repeated until all is there."""
        length = total(views)
        self.check(offset, length)
        left = list(views)
        have = max(0, min(length, self._bytes - offset))
        if have < length:
            left, tail = split(left, have)
            for view in tail:
                view[:] = bytes(len(view))
        while left:
            try:
                count = os.preadv(self._fd, left[:_IOV_MAX], offset)
            except OSError as error:
                raise host_error(self.name, f"a read at {offset:#x}", error) from error
            if count == 0:
                raise BlockError(f"{self.name}: the file ends at {offset:#x}; it was truncated")
            offset += count
            left = split(left, count)[1]

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """pwritev(2), repeated until all is written."""
        length = total(views)
        self.check(offset, length, writing=True)
        if offset + length > self._bytes:
            raise BlockError(
                f"{self.name}: a write to its last, incomplete sector; "
                f"make its size of {self._bytes} bytes a multiple of {SECTOR}",
                errno.ENOSPC,
            )
        left = list(views)
        while left:
            try:
                count = os.pwritev(self._fd, left[:_IOV_MAX], offset)
            except OSError as error:
                raise host_error(self.name, f"a write at {offset:#x}", error) from error
            if count == 0 and total(left):
                raise BlockError(f"{self.name}: nothing could be written at {offset:#x}")
            offset += count
            left = split(left, count)[1]

    def flush(self) -> None:
        """fdatasync(2)."""
        if self.read_only:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise host_error(self.name, "a flush", error) from error

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole, where the host can."""
        self.check(offset, length, writing=True)
        self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, min(length, self._bytes - offset))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zero the range by the file system, or by writing."""
        self.check(offset, length, writing=True)
        if offset + length <= self._bytes:
            for mode in (_ZERO_RANGE, _PUNCH_HOLE):
                if self._fallocate(mode | _KEEP_SIZE, offset, length):
                    return
        super().write_zeroes(offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        if length <= 0:
            return True
        import ctypes  # os has no fallocate with a mode; few disks are ever trimmed

        libc = ctypes.CDLL(None, use_errno=True)
        off = ctypes.c_int64
        return int(libc.fallocate(self._fd, mode, off(offset), off(length))) == 0

    def close(self) -> None:
        """Closes the file, which unlocks it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def split(views: Sequence[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `count` bytes of a list of buffers, and the rest, without empty buffers."""
    head: list[memoryview] = []
    for at, view in enumerate(views):
        if count < len(view):
            if count:
                head.append(view[:count])
            return head, [view[count:], *[v for v in views[at + 1 :] if len(v)]]
        if len(view):
            head.append(view)
        count -= len(view)
    return head, []


def open_block(
    path: str | os.PathLike[str], read_only: bool = False, snapshot: bool = False
) -> BlockBackend:
    """Opens a raw image or block device as a disk.

    `snapshot`: the file stays as it is; what is written goes to a temporary overlay that is thrown
    away with `close`. Raises `BlockError`.
    """
    if not snapshot:
        return RawFile(path, read_only)
    from pykvm.devices.block.overlay import Overlay

    return Overlay(RawFile(path, read_only=True))
