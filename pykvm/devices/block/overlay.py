"""`Overlay`: a disk whose writes go to a temporary file, over another that stays as it is."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence

from pykvm.devices.block.backend import BlockBackend, BlockError, host_error, total
from pykvm.devices.block.raw import split
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CLUSTER = 4096
_GROUP = 1024  # clusters per word of the map
_DIRECTORY = "/var/tmp"  # on disk on most systems, where /tmp is often memory


class _Layer:
    """A temporary file of clusters and the map of those that it has; closed when it is garbage."""

    def __init__(self, directory: str) -> None:
        self.fd = _temporary(directory)
        self.written: dict[int, int] = {}
        self.close = weakref.finalize(self, os.close, self.fd)

    def has(self, cluster: int) -> bool:
        return bool(self.written.get(cluster // _GROUP, 0) >> cluster % _GROUP & 1)

    def mark(self, cluster: int) -> None:
        group = cluster // _GROUP
        self.written[group] = self.written.get(group, 0) | 1 << cluster % _GROUP


class Overlay(BlockBackend):
    """Reads what was written here, and else from `base`, which is closed with it.

    The temporary file is sparse, as large as what was written, and has no name. Of each 4 KiB
    cluster it holds all or nothing. A checkpoint freezes it, and what is written later goes to
    another one on top.
    """

    def __init__(self, base: BlockBackend, directory: str = _DIRECTORY) -> None:
        self.base = base
        self.name = f"{base.name} (snapshot)"
        self.size = base.size
        self._directory = directory
        self._frozen: tuple[_Layer, ...] = ()  # the newest last
        try:
            self._top: _Layer | None = _Layer(directory)
        except BaseException:
            base.close()
            raise

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """From all of them, in runs."""
        self.check(offset, total(views))
        left = list(views)
        for layer, start, length in self._runs(offset, total(views)):
            part, left = split(left, length)
            if layer is not None:
                self._read(layer, start, part)
            else:
                self.base.readv(start, part)

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """To the temporary file; clusters that are written in part are copied first."""
        length = total(views)
        self.check(offset, length, writing=True)
        if not length:
            return
        top = self._top
        if top is None:
            top = self._top = _Layer(self._directory)
        end = offset + length
        if offset % _CLUSTER:
            self._copy_up(top, offset // _CLUSTER)
        if end % _CLUSTER and end != self.size:
            self._copy_up(top, end // _CLUSTER)
        self._write(top, offset, views)
        for cluster in range(offset // _CLUSTER, (end - 1) // _CLUSTER + 1):
            top.mark(cluster)

    def _copy_up(self, top: _Layer, cluster: int) -> None:
        if top.has(cluster):
            return
        start = cluster * _CLUSTER
        data = self.read(start, min(_CLUSTER, self.size - start))
        self._write(top, start, [memoryview(data)])
        top.mark(cluster)

    def _holder(self, cluster: int) -> _Layer | None:
        if self._top is not None and self._top.has(cluster):
            return self._top
        for layer in reversed(self._frozen):
            if layer.has(cluster):
                return layer
        return None

    def _runs(self, offset: int, length: int) -> Iterator[tuple[_Layer | None, int, int]]:
        """(who has it, offset, length) of stretches that one file holds."""
        end = offset + length
        while offset < end:
            cluster = offset // _CLUSTER
            holder = self._holder(cluster)
            stop = cluster + 1
            while stop * _CLUSTER < end and self._holder(stop) is holder:
                stop += 1
            upto = min(stop * _CLUSTER, end)
            yield holder, offset, upto - offset
            offset = upto

    def _read(self, layer: _Layer, offset: int, views: list[memoryview]) -> None:
        while views:
            try:
                count = os.preadv(layer.fd, views[:1024], offset)
            except OSError as error:
                raise host_error(self.name, f"a read at {offset:#x}", error) from error
            if count == 0:
                raise BlockError(f"{self.name}: the temporary file ends at {offset:#x}")
            offset += count
            views = split(views, count)[1]

    def _write(self, layer: _Layer, offset: int, views: Sequence[memoryview]) -> None:
        left = [view for view in views if len(view)]
        while left:
            try:
                count = os.pwritev(layer.fd, left[:1024], offset)
            except OSError as error:
                raise host_error(self.name, f"a write at {offset:#x}", error) from error
            offset += count
            left = split(left, count)[1]

    # -- going back ----------------------------------------------------------------------------

    def checkpoint(self) -> tuple[_Layer, ...]:
        """Freezes what was written so far."""
        if self._top is not None and self._top.written:
            self._frozen = (*self._frozen, self._top)
            self._top = None
        return self._frozen

    def rollback(self, mark: object) -> None:
        """Forgets what was written on top of it, or since another checkpoint."""
        assert isinstance(mark, tuple)
        self._frozen = mark
        if self._top is not None and self._top.written:
            self._top = None

    def export_checkpoint(self, mark: object) -> Iterator[tuple[int, bytes]]:
        """The clusters that are not the base's, in order, 1 MiB at most at a time."""
        assert isinstance(mark, tuple)
        for offset, length in _stretches(mark, self.size):
            data = bytearray(length)
            left = [memoryview(data)]
            for at in range(offset, offset + length, _CLUSTER):
                part, left = split(left, min(_CLUSTER, offset + length - at))
                layer = next(la for la in reversed(mark) if la.has(at // _CLUSTER))
                self._read(layer, at, part)
            yield offset, bytes(data)

    def import_checkpoint(self, pieces: Sequence[tuple[int, Buffer]] | None) -> tuple[_Layer, ...]:
        """A frozen layer with them."""
        layer = _Layer(self._directory)
        for offset, data in pieces or ():
            view = memoryview(data).cast("B")
            end = offset + len(view)
            if offset % _CLUSTER or end > self.size or (end % _CLUSTER and end != self.size):
                raise BlockError(f"{self.name}: {len(view)} bytes at {offset:#x} are no clusters")
            self._write(layer, offset, [view])
            for cluster in range(offset // _CLUSTER, -(-end // _CLUSTER)):
                layer.mark(cluster)
        return (layer,)

    def close(self) -> None:
        """Throws away what was written, and closes the base."""
        self._top, self._frozen = None, ()
        self.base.close()


def _temporary(directory: str) -> int:
    """A file without a name; in memory where the directory cannot hold one."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.memfd_create("pykvm-snapshot", os.MFD_CLOEXEC)


def _stretches(layers: tuple[_Layer, ...], size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what the layers have, 1 MiB at most at a time."""
    groups: dict[int, int] = {}
    for layer in layers:
        for group, bits in layer.written.items():
            groups[group] = groups.get(group, 0) | bits
    for group in sorted(groups):
        bits, cluster = groups[group], 0
        while bits >> cluster:
            first = cluster
            while bits >> cluster & 1 and cluster - first < 256:
                cluster += 1
            if cluster == first:
                cluster += 1
                continue
            offset = (group * _GROUP + first) * _CLUSTER
            yield offset, min((cluster - first) * _CLUSTER, size - offset)
