"""A serial port on a Unix or TCP socket, listening or connecting."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat

from pykvm.devices.chardev.base import ChardevError
from pykvm.devices.chardev.pseudoterminal import announce_on_stderr
from pykvm.devices.chardev.stream import StreamChardev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.typed import TypeAlias

    Address: TypeAlias = str | tuple[str, int]


class SocketChardev(StreamChardev):
    """A byte stream over a socket: `address` is a path (Unix) or (host, port) (TCP).

    A server listens, and with `wait` its `start` returns when the first peer has connected. It
    serves one peer at a time; after that one has gone, the next. A client connects in `start`, and
    where the peer goes away, tries again every `reconnect` seconds (`None`: never).

    While nobody is connected, and where a peer reads too slowly, the newest 256 KiB of output are
    kept for whoever reads next. `connected` and `disconnected` come as events.
    """

    name = "socket"
    linger = 1.0

    def __init__(
        self,
        address: Address,
        *,
        server: bool = False,
        wait: bool = True,
        reconnect: float | None = None,
        announce: Callable[[str], object] = announce_on_stderr,
    ) -> None:
        super().__init__()
        self.address = address
        self._server = server
        self._wait = wait
        self._reconnect = None if server else reconnect
        self._announce = announce
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._lost = False
        self._bound: os.stat_result | None = None

    @property
    def spec(self) -> str:
        """The address as a user writes it."""
        if isinstance(self.address, str):
            return f"unix:{self.address}"
        host, port = self.address
        return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"

    @property
    def connected(self) -> bool:
        """A peer is connected."""
        return self._peer is not None and not self._lost

    # -- opening -------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            if self._server:
                self._listen()
                if self._wait:
                    self._announce(f"pykvm: waiting for a connection on {self.spec}")
                    self._accept()
                else:
                    self._announce(f"pykvm: serial port listens on {self.spec}")
            else:
                self._connect(10.0)
        except BaseException as error:
            self._shut()
            if not isinstance(error, OSError | ValueError):
                raise
            reason = getattr(error, "strerror", None) or error
            doing, remedy = ("connect to", "is a server running there, or did you mean ,server?")
            if self._server:
                doing, remedy = ("listen on", "give an address that is free and yours to use")
            raise ChardevError(f"{self.spec}: cannot {doing} it ({reason}); {remedy}") from error
        if self._peer is None:
            self._emit("disconnected")

    def _listen(self) -> None:
        if isinstance(self.address, str):
            self._remove_stale(self.address)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.address)
            self._bound = os.stat(self.address)
        else:
            host, port = self.address
            found = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, where = found[0]
            self._listener = socket.socket(family)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(where)
            self.address = (host, self._listener.getsockname()[1])  # port 0: whichever is free
        self._listener.listen(1)
        self._listener.setblocking(False)

    def _remove_stale(self, path: str) -> None:
        """Remove a socket that its server has left behind; a live one is refused by `bind`."""
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                return
        except OSError:
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                os.unlink(path)

    def _accept(self) -> None:
        assert self._listener is not None
        while self._peer is None:
            poll = select.poll()
            poll.register(self._listener, select.POLLIN)
            poll.poll()
            self._take_connection()

    def _take_connection(self) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the peer has gone again
        self._adopt(peer)

    def _connect(self, timeout: float) -> None:
        if isinstance(self.address, str):
            peer = socket.socket(socket.AF_UNIX)
            try:
                peer.settimeout(timeout)  # a server that accepts nobody would hold us for ever
                peer.connect(self.address)
            except BaseException:
                peer.close()
                raise
        else:
            peer = socket.create_connection(self.address, timeout=timeout)
        self._adopt(peer)

    def _adopt(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lost = False
        self._peer = peer
        self._in_fd = self._out_fd = peer.fileno()
        self._emit("connected")
        self._output.drain()

    # -- the stream ----------------------------------------------------------------------------

    def _send(self, data: bytearray) -> int:
        peer = self._peer
        if peer is None or self._lost:
            raise BlockingIOError
        try:
            return peer.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise
        except OSError:
            # The thread takes it from here; what is in the queue is for the next peer.
            self._lost = True
            raise BlockingIOError from None

    def _receive(self) -> bytes:
        peer = self._peer
        return b"" if peer is None else peer.recv(4096)

    def _input_ended(self, error: OSError | None) -> None:
        self._lost = True

    def _before_poll(self, poll: select.poll) -> float | None:
        if self._lost:
            self._drop_peer()
        if self._peer is not None:
            return None
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
            return None
        return self._reconnect

    def _after_poll(self, ready: dict[int, int]) -> None:
        if self._peer is not None:
            return
        if self._listener is not None:
            if self._listener.fileno() in ready:
                self._take_connection()
        elif self._reconnect is not None and not ready:
            try:
                self._connect(1.0)  # `close` waits for this thread
            except OSError as error:
                self.error = error

    def _drop_peer(self) -> None:
        with self._output.lock:  # nobody is sending
            peer, self._peer = self._peer, None
            self._in_fd = self._out_fd = -1
            self._lost = False
            if peer is not None:
                peer.close()
        self._emit("disconnected")
        if self._listener is None and self._reconnect is None:
            self._output.end()
            self._emit("hangup")

    def flush(self) -> None:
        """Write what was gathered; waits a second at most for a peer that takes nothing."""
        self._output.flush(self.linger if self.connected else 0.0)

    def close(self) -> None:
        """Write what is left, close the connection, remove the socket's path."""
        if not self.connected:
            self.linger = 0.0
        super().close()

    def _shut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        self._in_fd = self._out_fd = -1
        if self._bound is not None and isinstance(self.address, str):
            bound, self._bound = self._bound, None
            try:
                now = os.stat(self.address)
                if (now.st_dev, now.st_ino) == (bound.st_dev, bound.st_ino):
                    os.unlink(self.address)
            except OSError:
                pass  # somebody else has removed it
