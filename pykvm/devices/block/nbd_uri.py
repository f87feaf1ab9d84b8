"""NBD URIs: `nbd://HOST[:PORT][/EXPORT]` and `nbd+unix:///[EXPORT]?socket=PATH`.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
"""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

from pykvm.devices.block.backend import BlockError
from pykvm.typed import NamedTuple

PORT = 10809
SCHEMES = ("nbd", "nbd+unix", "nbds", "nbds+unix", "nbd+vsock", "nbds+vsock")
_NAME_LIMIT = 4096  # bytes of a string in the protocol


class NbdAddress(NamedTuple):
    """Where a server is, and which of its exports is meant.

    A Unix `socket` path, or `host` and `port`.
    """

    export: str = ""
    socket: str = ""
    host: str = ""
    port: int = PORT

    def __str__(self) -> str:
        if self.socket:
            return f"nbd+unix:///{self.export}?socket={self.socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORT else f":{self.port}"
        return f"nbd://{host}{port}/{self.export}"


def is_uri(text: str) -> bool:
    """Whether a disk's name is an NBD URI, and no file's."""
    return text.partition(":")[0].lower() in SCHEMES and "://" in text


def parse_uri(uri: str) -> NbdAddress:
    """The address that a URI names. Raises `BlockError`."""
    try:
        parts = urlsplit(uri)
        port = parts.port
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise BlockError(f"{uri} is no NBD URI: {error}") from None
    if parts.scheme not in ("nbd", "nbd+unix"):
        raise BlockError(
            f"{uri}: {parts.scheme} is not supported; use nbd:// or nbd+unix:// "
            "(an SSH tunnel encrypts them)"
        )
    export = unquote(parts.path.removeprefix("/"))
    if len(export.encode()) > _NAME_LIMIT:
        raise BlockError(f"the NBD URI's export name is longer than {_NAME_LIMIT} bytes")
    unknown = sorted(query.keys() - {"socket"})
    if unknown:
        raise BlockError(f"{uri}: {unknown[0]} is no parameter of an NBD URI; use socket=PATH")
    path = (query.get("socket") or [""])[0]
    if parts.scheme == "nbd+unix":
        if not path or parts.netloc:
            raise BlockError(f"{uri} has no socket; write it like nbd+unix:///?socket=/run/a.sock")
        return NbdAddress(export, socket=path)
    if path or not parts.hostname:
        raise BlockError(f"{uri} names no host; write it like nbd://localhost:10809/export")
    return NbdAddress(export, host=parts.hostname, port=PORT if port is None else port)
