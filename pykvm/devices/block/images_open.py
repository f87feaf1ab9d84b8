"""`open_image`: opens what somebody calls a disk: a file of any format, a device, an NBD URI."""

from __future__ import annotations

import os

from pykvm.devices.block.backend import CACHES, BlockBackend, BlockError, Cache
from pykvm.devices.block.images_detect import detect, driver_of
from pykvm.devices.block.nbd_uri import is_uri
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.block.nbd import NbdDisk


def open_image(
    image: str | os.PathLike[str],
    *,
    read_only: bool = False,
    snapshot: bool = False,
    format: str = "auto",
    cache: Cache = "writeback",
    overlay: str | os.PathLike[str] | None = None,
) -> BlockBackend:
    """Opens a disk: an image file, a block device of the host, or an NBD URI.

    - `format`: one of `images_detect.FORMATS`; "auto" looks at the bytes. A disk that was taken for
      raw in this way refuses a write that would make it look like another format.
    - `snapshot`: the image stays as it is; writes go to a temporary file.
    - `overlay`: a qcow2 file that takes the writes and keeps them, with the image as its backing
      file; it is made if it is not there.
    - `cache`: when data is on stable storage, see docs/disks.md.

    Raises `BlockError`.
    """
    path = os.fspath(image)
    if cache not in CACHES:
        raise BlockError(f"cache={cache!r} is no cache mode; use {', '.join(CACHES)}")
    if format != "auto":
        driver_of(format)
    if not path:
        raise BlockError("the disk has no name; give a file, a block device or an NBD URI")
    disk: BlockBackend
    if is_uri(path):
        if overlay is not None:
            raise BlockError(f"{path}: an overlay needs a file below it, not an NBD server")
        disk = _open_nbd(path, format, cache, read_only or snapshot)
    else:
        disk = _open_file(path, format, cache, read_only or snapshot, overlay)
    if not snapshot:
        return disk
    from pykvm.devices.block.overlay import Overlay

    return Overlay(disk)


def _open_nbd(path: str, format: str, cache: Cache, read_only: bool) -> NbdDisk:
    from pykvm.devices.block.nbd import NbdDisk

    if format not in ("auto", "raw"):
        raise BlockError(f"{path}: an NBD server gives plain disks; leave out format={format}")
    if cache not in ("writeback", "writethrough"):
        raise BlockError(
            f"{path}: cache={cache} is the NBD server's to choose; use writeback or writethrough"
        )
    return NbdDisk(path, read_only, write_through=cache == "writethrough")


def _open_file(
    path: str, format: str, cache: Cache, read_only: bool, overlay: str | os.PathLike[str] | None
) -> BlockBackend:
    if path.partition(":")[0] == "file" and not os.path.exists(path):
        path = path.removeprefix("file:").removeprefix("//")
    kind = detect(path) if format == "auto" else format
    if overlay is not None:
        from pykvm.devices.block.images_overlay import prepare_overlay

        path, kind = prepare_overlay(path, driver_of(kind), os.fspath(overlay)), "qcow2"
    if kind != "raw":
        from pykvm.devices.block.images import ImageDisk

        return ImageDisk(path, kind, read_only, cache=cache)
    if format == "auto":
        from pykvm.devices.block.images_raw import ProbedRaw

        return ProbedRaw(path, read_only, cache=cache)
    from pykvm.devices.block.raw import RawFile

    return RawFile(path, read_only, cache=cache)
