"""`Overlay`: a disk whose writes go to a temporary file, over another that stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pykvm.devices.block.backend import BlockBackend, BlockError, host_error, total
from pykvm.devices.block.raw import split

_CLUSTER = 4096
_GROUP = 1024  # clusters per word of the map
_DIRECTORY = "/var/tmp"  # on disk on most systems, where /tmp is often memory


class Overlay(BlockBackend):
    """Reads what was written here, and else from `base`, which is closed with it.

    The temporary file is sparse, as large as what was written, and has no name. Of each 4 KiB
    cluster it holds all or nothing.
    """

    def __init__(self, base: BlockBackend, directory: str = _DIRECTORY) -> None:
        self.base = base
        self.name = f"{base.name} (snapshot)"
        self.size = base.size
        self._written: dict[int, int] = {}
        try:
            self._fd = _temporary(directory)
        except BaseException:
            base.close()
            raise

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """From both, in runs."""
        self.check(offset, total(views))
        left = list(views)
        for ours, start, length in self._runs(offset, total(views)):
            part, left = split(left, length)
            if ours:
                self._read(start, part)
            else:
                self.base.readv(start, part)

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """To the temporary file; clusters that are written in part are copied first."""
        length = total(views)
        self.check(offset, length, writing=True)
        if not length:
            return
        end = offset + length
        if offset % _CLUSTER:
            self._copy_up(offset // _CLUSTER)
        if end % _CLUSTER and end != self.size:
            self._copy_up(end // _CLUSTER)
        self._write(offset, views)
        for cluster in range(offset // _CLUSTER, (end - 1) // _CLUSTER + 1):
            self._mark(cluster)

    def _copy_up(self, cluster: int) -> None:
        if self._is_written(cluster):
            return
        start = cluster * _CLUSTER
        data = self.base.read(start, min(_CLUSTER, self.size - start))
        self._write(start, [memoryview(data)])
        self._mark(cluster)

    def _is_written(self, cluster: int) -> bool:
        return bool(self._written.get(cluster // _GROUP, 0) >> cluster % _GROUP & 1)

    def _mark(self, cluster: int) -> None:
        group = cluster // _GROUP
        self._written[group] = self._written.get(group, 0) | 1 << cluster % _GROUP

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int, int]]:
        """(written here, offset, length) of stretches that one file holds."""
        end = offset + length
        while offset < end:
            cluster = offset // _CLUSTER
            ours = self._is_written(cluster)
            stop = cluster + 1
            while stop * _CLUSTER < end and self._is_written(stop) == ours:
                stop += 1
            upto = min(stop * _CLUSTER, end)
            yield ours, offset, upto - offset
            offset = upto

    def _read(self, offset: int, views: list[memoryview]) -> None:
        while views:
            try:
                count = os.preadv(self._fd, views[:1024], offset)
            except OSError as error:
                raise host_error(self.name, f"a read at {offset:#x}", error) from error
            if count == 0:
                raise BlockError(f"{self.name}: the temporary file ends at {offset:#x}")
            offset += count
            views = split(views, count)[1]

    def _write(self, offset: int, views: Sequence[memoryview]) -> None:
        left = [view for view in views if len(view)]
        while left:
            try:
                count = os.pwritev(self._fd, left[:1024], offset)
            except OSError as error:
                raise host_error(self.name, f"a write at {offset:#x}", error) from error
            offset += count
            left = split(left, count)[1]

    def close(self) -> None:
        """Throws away what was written, and closes the base."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.base.close()


def _temporary(directory: str) -> int:
    """A file without a name; in memory where the directory cannot hold one."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.memfd_create("pykvm-snapshot", os.MFD_CLOEXEC)
