"""Disks: files, block devices, bytes in memory, and throw-away overlays over any of them.

Each name is imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.block.backend import BlockBackend, BlockError, MemoryDisk
    from pykvm.devices.block.overlay import Overlay
    from pykvm.devices.block.raw import RawFile, open_block

_HOMES = {
    "BlockBackend": "backend",
    "BlockError": "backend",
    "MemoryDisk": "backend",
    "Overlay": "overlay",
    "RawFile": "raw",
    "open_block": "raw",
}

__all__ = ["BlockBackend", "BlockError", "MemoryDisk", "Overlay", "RawFile", "open_block"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
