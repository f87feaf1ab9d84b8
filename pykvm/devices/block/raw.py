"""Raw images and block devices: byte n of the disk is byte n of the file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence

from pykvm.devices.block.backend import (
    CACHES,
    SECTOR,
    BlockBackend,
    BlockError,
    Cache,
    NativeFile,
    host_error,
    total,
)

_IOV_MAX = 1024
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # linux/falloc.h
_BLKDISCARD, _BLKSSZGET, _BLKPBSZGET = 0x1277, 0x1268, 0x127B  # linux/fs.h
_BLKIOMIN, _BLKIOOPT, _BLKROGET = 0x1278, 0x1279, 0x125E
_NO_LOCKS = {errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EBADF}
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL}


class RawFile(BlockBackend):
    """A raw image file or a block device of the host.

    The file is locked (flock(2): shared for `read_only`, else exclusive) as long as it is open, so
    that two machines do not write to one disk. A size that is no multiple of 512 is rounded up: the
    missing bytes read as zeros, and a write that reaches them is refused. Raises `BlockError`.

    `cache`: with "none" and "directsync" engines go past the host's page cache (O_DIRECT), where
    the file system can do that; `direct` tells. The methods here always go through it, which the
    kernel keeps coherent.
    """

    parallel = 8

    def __init__(
        self, path: str | os.PathLike[str], read_only: bool = False, *, lock: bool = True,
        cache: Cache = "writeback",
    ) -> None:  # fmt: skip
        self.name = os.fspath(path)
        self.read_only = read_only
        self._fd = self._direct_fd = -1
        self._align = self._memory_align = SECTOR
        # O_NONBLOCK: a FIFO or a tape drive would make open(2) wait.
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
        try:
            self._fd = os.open(path, flags)
            mode = os.fstat(self._fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise BlockError(
                    f"{self.name} is not a disk: give a regular file or a block device",
                    errno.ENOTBLK,
                )
            os.set_blocking(self._fd, True)  # io_uring takes O_NONBLOCK of files seriously
            if lock:
                self._lock()
            self._bytes = os.lseek(self._fd, 0, os.SEEK_END)
            self.block_device = stat.S_ISBLK(mode)
            if self.block_device:
                self._ask_device()
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
        try:
            self.set_cache(cache)
        except BaseException:
            self.close()
            raise

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

    def _ask_device(self) -> None:
        """Block sizes of the device; one that is write-protected must be opened so."""
        if not self.read_only and self._device_number(_BLKROGET):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._align = self._memory_align = self._device_number(_BLKSSZGET) or SECTOR
        self.block_size = max(self._align, self._device_number(_BLKPBSZGET))
        self.io_min = self._device_number(_BLKIOMIN)
        self.io_best = self._device_number(_BLKIOOPT)

    def _device_number(self, request: int) -> int:
        number = bytearray(4)
        fcntl.ioctl(self._fd, request, number)
        return int.from_bytes(number, "little")

    def set_cache(self, cache: Cache) -> None:
        """Opens the file past the page cache too, or not any more."""
        direct = CACHES[cache][0]
        if direct == self.direct:
            return
        if not direct:
            os.close(self._direct_fd)
            self._direct_fd = -1
            return
        flags = os.O_CLOEXEC | os.O_DIRECT | (os.O_RDONLY if self.read_only else os.O_RDWR)
        try:
            self._direct_fd = os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise host_error(self.name, "opening it with O_DIRECT", error) from error
            return  # a file system in memory: there is no cache to go past
        if not self.block_device:
            self._align, self._memory_align = _direct_terms(self._direct_fd)
            self.block_size = max(self.block_size, self._align)

    @property
    def direct(self) -> bool:
        """Whether engines go past the host's page cache."""
        return self._direct_fd >= 0

    def native_fd(self) -> NativeFile | None:
        """The file itself."""
        if self._fd < 0:
            return None
        fd = self._direct_fd if self.direct else self._fd
        return NativeFile(
            fd, self._fd, 0, self._bytes, self.direct, self.block_device, self._align,
            self._memory_align,
        )  # fmt: skip

    def resize(self, size: int) -> None:
        """ftruncate(2); a block device keeps its size."""
        self.check_size(size)
        if self.block_device:
            super().resize(size)
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise host_error(self.name, "giving it another size", error) from error
        self.refresh_size()

    def refresh_size(self) -> int:
        """The file may have grown or shrunk. Raises `BlockError`."""
        try:
            self._bytes = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise host_error(self.name, "asking for its size", error) from error
        self.size = -(-self._bytes // SECTOR) * SECTOR
        return self.size

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
        """Punches a hole (BLKDISCARD on a device); a host that cannot leaves it as it is."""
        self.check(offset, length, writing=True)
        length = min(length, self._bytes - offset)
        if length <= 0:
            return
        if self.block_device:
            span = offset.to_bytes(8, "little") + length.to_bytes(8, "little")
            try:
                fcntl.ioctl(self._fd, _BLKDISCARD, span)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise host_error(self.name, f"a discard at {offset:#x}", error) from error
            return
        self._fallocate(_PUNCH_HOLE, offset, length, "a discard")

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zeros the range by a hole or by the file system, or writes."""
        self._zero(offset, length, (_PUNCH_HOLE, _ZERO_RANGE))

    def zero_in_place(self, offset: int, length: int) -> None:
        """Without a hole."""
        self._zero(offset, length, (_ZERO_RANGE,))

    def _zero(self, offset: int, length: int, modes: tuple[int, ...]) -> None:
        self.check(offset, length, writing=True)
        have = max(0, min(length, self._bytes - offset))  # what is not there is zeros
        for mode in modes:
            if self._fallocate(mode, offset, have, "zeroing"):
                return
        super().write_zeroes(offset, have)

    def _fallocate(self, mode: int, offset: int, length: int, what: str) -> bool:
        """False where the host cannot."""
        if length <= 0:
            return True
        import ctypes  # os has no fallocate with a mode; few disks are ever trimmed

        libc = ctypes.CDLL(None, use_errno=True)
        off = ctypes.c_int64
        if libc.fallocate(self._fd, mode | _KEEP_SIZE, off(offset), off(length)) == 0:
            return True
        error = OSError(ctypes.get_errno(), "")
        if error.errno in _CANNOT:
            return False
        raise host_error(self.name, f"{what} at {offset:#x}", error)

    def close(self) -> None:
        """Closes the file, which unlocks it."""
        for fd in (self._direct_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1


def _direct_terms(fd: int) -> tuple[int, int]:
    """What O_DIRECT asks of (file offsets and lengths, buffers): found by trying, in bytes.

    statx(2) has it in new kernels only, and an answer of some file systems is as good.
    """
    import mmap

    with mmap.mmap(-1, 8192) as page, memoryview(page) as view:

        def works(at: int, length: int) -> bool:
            try:
                os.preadv(fd, [view[at : at + length]], 0)
            except OSError:
                return False
            return True

        align = next((n for n in (512, 1024, 2048, 4096) if works(0, n)), 4096)
    # Buffers could often be less aligned, but not where they cross pages in unlucky places.
    return align, align


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
