"""`ImageDisk`: a disk image in any format, read and written by qemu-storage-daemon."""

from __future__ import annotations

import os

from pykvm.devices.block.backend import BlockError, Cache
from pykvm.devices.block.images_chain import Layer, close_layers, open_chain
from pykvm.devices.block.images_detect import driver_of
from pykvm.devices.block.nbd import NbdDisk
from pykvm.devices.block.nbd_uri import NbdAddress
from pykvm.typed import Any

_COW_DRIVERS = {"qcow2", "qcow", "qed", "vmdk"}
_SECONDS = 300.0  # for one request: the child ends it, or its end does
_CONNECTIONS = 2  # qemu works on 16 requests of each at a time


class ImageDisk(NbdDisk):
    """An image in a format of its own, behind a private qemu-storage-daemon.

    `format`: its name, or QEMU's of it. `cache`: see docs/disks.md. Raises `BlockError`.
    """

    def __init__(
        self, path: str | os.PathLike[str], format: str, read_only: bool = False, *,
        cache: Cache = "writeback",
    ) -> None:  # fmt: skip
        from pykvm.devices.block.images_qmp import StorageDaemon

        self.path = os.fspath(path)
        self._layers = open_chain(self.path, driver_of(format), not read_only)
        try:
            self._daemon = StorageDaemon(self.path)
        except BaseException:
            close_layers(self._layers)
            raise
        try:
            self._open_node(cache, read_only)
            super().__init__(
                NbdAddress(socket=self._daemon.export(not read_only)),
                read_only,
                connections=_CONNECTIONS,
                timeout=_SECONDS,
                write_through=cache in ("writethrough", "directsync"),
                name=self.path,
            )
        except BaseException:
            self._shut()
            raise
        self._daemon.unlisten()

    def _open_node(self, cache: Cache, read_only: bool) -> None:
        direct, fast = cache in ("none", "directsync"), cache == "unsafe"
        for aio in ("io_uring", "threads"):
            node = _node(self._layers, direct, fast, aio, not read_only)
            try:
                self._daemon.open(node)
                return
            except BlockError as error:
                if aio == "threads" or "io_uring" not in str(error):
                    raise

    @property
    def pid(self) -> int:
        """The process ID of the child."""
        return self._daemon.pid

    def explain(self, error: BlockError) -> BlockError:
        """The child's end is why the connection ended."""
        return self._daemon.ended()

    def resize(self, size: int) -> None:
        """Another size in bytes. No request may be in flight."""
        self.check_size(size)
        self.flush()
        self.disconnect()
        try:
            path = self._daemon.resize(size, not self.read_only)
        finally:
            self.address = NbdAddress(socket=path)
            self.connect()
            self._daemon.unlisten()

    def close(self) -> None:
        """Disconnects, ends the child, unlocks the images."""
        super().close()
        self._shut()

    def _shut(self) -> None:
        self._daemon.close()
        close_layers(self._layers)


def _node(
    layers: list[Layer], direct: bool, fast: bool, aio: str, writable: bool
) -> dict[str, Any]:
    """QEMU's description of an image and of all that it stands on."""
    layer, rest = layers[0], layers[1:]
    common = {
        "read-only": not writable,
        "cache": {"direct": direct, "no-flush": fast},
        "discard": "unmap",
    }
    node = {"driver": layer.driver, **common, "file": {**layer.protocol(), **common, "aio": aio}}
    if layer.driver in _COW_DRIVERS:
        node["backing"] = _node(rest, direct, fast, aio, False) if rest else None
    return node
