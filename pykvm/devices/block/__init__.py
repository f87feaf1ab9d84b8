"""Disks: files, block devices, images of all formats, NBD, bytes in memory, and overlays.

Each name is imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.block.backend import BlockBackend, BlockError, MemoryDisk
    from pykvm.devices.block.images import ImageDisk
    from pykvm.devices.block.images_open import open_image
    from pykvm.devices.block.nbd import NbdDisk
    from pykvm.devices.block.overlay import Overlay
    from pykvm.devices.block.raw import RawFile, open_block

_HOMES = {
    "BlockBackend": "backend",
    "BlockError": "backend",
    "MemoryDisk": "backend",
    "ImageDisk": "images",
    "NbdDisk": "nbd",
    "Overlay": "overlay",
    "RawFile": "raw",
    "open_block": "raw",
    "open_image": "images_open",
}

__all__ = [
    "BlockBackend",
    "BlockError",
    "ImageDisk",
    "MemoryDisk",
    "NbdDisk",
    "Overlay",
    "RawFile",
    "open_block",
    "open_image",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
