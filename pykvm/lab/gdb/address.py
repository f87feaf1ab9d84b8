"""Where the stub listens: `:1234`, `host:port`, `unix:PATH`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from pykvm.errors import PykvmError
from pykvm.typed import NamedTuple

DEFAULT = ":1234"
LOCALHOST = "127.0.0.1"


class AddressError(PykvmError):
    """The stub cannot listen there."""


class Address(NamedTuple):
    """A TCP host and port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """As a user writes it; a port alone, or `:port`, is this host's only.

        Raises `AddressError`.
        """
        kind, colon, path = text.partition(":")
        if kind == "unix" and colon:
            if not path:
                raise AddressError("unix: has no path; write it like unix:/tmp/gdb")
            return cls("", 0, path)
        host, _, port = text.removeprefix("tcp:").rpartition(":")
        host = host.strip("[]")
        if not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
            raise AddressError(
                f"{text!r} is no address; write it like :1234, host:1234 or unix:/tmp/gdb"
            )
        return cls(host or LOCALHOST, int(port))

    def __str__(self) -> str:
        """As GDB's `target remote` takes it."""
        if self.path:
            return self.path
        if self.host == LOCALHOST:
            return f":{self.port}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listener:
    """A socket that listens; closing it removes a Unix socket's file. `address` has the port that
    was chosen where 0 was asked for."""

    def __init__(self, address: Address) -> None:
        self._bound: os.stat_result | None = None
        self.address = address
        try:
            if address.path:
                self.socket = self._unix(address.path)
            else:
                self.socket = self._tcp(address)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AddressError(
                f"gdb cannot connect to {address}: {reason}; choose another address to listen on"
            ) from error

    def _tcp(self, address: Address) -> socket.socket:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(4)
        except BaseException:
            listening.close()
            raise
        self.address = address._replace(port=listening.getsockname()[1])
        return listening

    def _unix(self, path: str) -> socket.socket:
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(path)
            self._bound = os.stat(path)
            os.chmod(path, 0o600)
            listening.listen(4)
        except BaseException:
            listening.close()
            raise
        return listening

    def close(self) -> None:
        """Stops listening. Twice is harmless."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept()
        self.socket.close()
        if self._bound is not None:
            with contextlib.suppress(OSError):
                now = os.stat(self.address.path)
                if (now.st_dev, now.st_ino) == (self._bound.st_dev, self._bound.st_ino):
                    os.unlink(self.address.path)
            self._bound = None


def _remove_stale(path: str) -> None:
    """Removes a socket that its server has left behind; one that is in use stays."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                os.unlink(path)
