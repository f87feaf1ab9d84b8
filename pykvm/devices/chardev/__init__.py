"""Back ends of serial devices: where a guest's characters go, and where its input comes from.

`open_chardev` makes one from what a user types; each class can be made directly as well.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.chardev.base import (
        Chardev,
        ChardevError,
        ChardevEvent,
        NullChardev,
    )
    from pykvm.devices.chardev.buffer import BufferChardev, CallableChardev
    from pykvm.devices.chardev.file import FileChardev
    from pykvm.devices.chardev.parse import open_chardev
    from pykvm.devices.chardev.pseudoterminal import PtyChardev
    from pykvm.devices.chardev.sockets import SocketChardev
    from pykvm.devices.chardev.stdio import StdioChardev
    from pykvm.devices.chardev.tee import TeeChardev

__all__ = [
    "BufferChardev",
    "CallableChardev",
    "Chardev",
    "ChardevError",
    "ChardevEvent",
    "FileChardev",
    "NullChardev",
    "PtyChardev",
    "SocketChardev",
    "StdioChardev",
    "TeeChardev",
    "open_chardev",
]

_HOMES = {
    "BufferChardev": "buffer",
    "CallableChardev": "buffer",
    "FileChardev": "file",
    "PtyChardev": "pseudoterminal",
    "SocketChardev": "sockets",
    "StdioChardev": "stdio",
    "TeeChardev": "tee",
    "open_chardev": "parse",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'base')}"), name)
    globals()[name] = value
    return value
