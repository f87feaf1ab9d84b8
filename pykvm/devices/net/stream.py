"""Frames over a stream socket, as QEMU's `-netdev stream`: 4 bytes of length, then the frame."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from contextlib import suppress

from pykvm.devices.net.backend import NetBackend, NetError
from pykvm.devices.net.ports import StreamPort
from pykvm.typed import TypeAlias

Address: TypeAlias = "str | tuple[str, int]"
_SOCKET_BUFFER = 1 << 20


def parse_address(text: str) -> Address:
    """`unix:PATH`, `PATH` or `tcp:HOST:PORT`. Raises `NetError`."""
    kind, _, rest = text.partition(":")
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise NetError(f"{text[:80]!r} is no address; write tcp:HOST:PORT or unix:PATH")
        return (host.strip("[]") or "localhost", int(port))
    path = rest if kind == "unix" else text
    if not path or len(os.fsencode(path)) > 107:
        raise NetError(f"{path[:80]!r} is no path for a socket: 1 to 107 bytes are allowed")
    return path


def prepare(connection: socket.socket) -> socket.socket:
    """Buffers for a few hundred frames."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    return connection


def listen_unix(path: str) -> socket.socket:
    """Listens at `path`; a socket file whose owner is gone is replaced. Raises `OSError`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class StreamNet(NetBackend):
    """One peer at `address`: connects to it, or waits for it with `server`.

    A lost peer is looked for again. Raises `NetError`.
    """

    name = "stream"
    reconnects = True

    def __init__(self, address: str, *, server: bool = False) -> None:
        super().__init__()
        self.text = address
        self.address = parse_address(address)
        self._listener: socket.socket | None = None
        self._pending: socket.socket | None = None
        try:
            if server:
                self._listener = self._listen()
            else:
                self._adopt(self._connect(5.0))
        except OSError as error:
            verb = "listened at" if server else "reached"
            raise NetError(
                f"the network peer {address} cannot be {verb}: {error.strerror or error}"
            ) from error

    @classmethod
    def of(cls, connection: socket.socket, name: str = "stream") -> StreamNet:
        """Over a socket that is connected already; it is taken over."""
        self = cls.__new__(cls)
        NetBackend.__init__(self)
        self.text = self.name = name
        self.reconnects = False
        self._listener = self._pending = None
        self._adopt(connection)
        return self

    def _connect(self, timeout: float) -> socket.socket:
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address, timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(self.address)
        except BaseException:
            connection.close()
            raise
        return connection

    def _listen(self) -> socket.socket:
        if isinstance(self.address, tuple):
            listener = socket.create_server(self.address, backlog=1)
            listener.setblocking(False)
            return listener
        return listen_unix(self.address)

    def _adopt(self, connection: socket.socket) -> None:
        self.ports = [StreamPort(prepare(connection))]

    def reconnect(self) -> bool:
        """Accepts who waits, or tries to connect; does not wait itself."""
        try:
            if self._listener is not None:
                self._adopt(self._listener.accept()[0])
                return True
            connection = self._continue()
        except OSError:
            return False
        if connection is not None:
            self._adopt(connection)
        return connection is not None

    def _continue(self) -> socket.socket | None:
        """A connection attempt, begun at one call and looked at again at the next."""
        pending, self._pending = self._pending, None
        if pending is None:
            family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
            if isinstance(self.address, tuple) and ":" in self.address[0]:
                family = socket.AF_INET6
            pending = socket.socket(family, socket.SOCK_STREAM)
            pending.setblocking(False)
            code = pending.connect_ex(self.address)
        else:
            watcher = select.poll()
            watcher.register(pending, select.POLLOUT)
            code = errno.EINPROGRESS
            if watcher.poll(0):
                code = pending.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            return pending
        if code == errno.EINPROGRESS:
            self._pending = pending
        else:
            pending.close()
        return None

    def describe(self) -> str:
        """With the address."""
        return f"{self.name} {self.text}"

    def close(self) -> None:
        """Connection, listener and its file."""
        super().close()
        if self._pending is not None:
            self._pending.close()
            self._pending = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if isinstance(self.address, str):
                with suppress(OSError):
                    os.unlink(self.address)
