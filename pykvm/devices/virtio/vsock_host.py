"""The host's end of virtio sockets: Unix sockets in the convention that Firecracker made known.

- Host to guest: connect to PATH, send `CONNECT <port>\\n`; when the guest has accepted, the answer
  is `OK <port>\\n`, and then the stream is the guest's. A closed connection means no.
- Guest to host: a connection of the guest to CID 2, port N goes to the Unix socket PATH_N.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable

from pykvm.devices.vhost.poller import READ, Poller
from pykvm.errors import PykvmError

GREETINGS = 64  # peers that have connected and not yet said to which port
GREETING_BYTES = 32
_PATH_LIMIT = 107  # bytes of sun_path
_SUFFIX = 11  # "_4294967295"


class VsockError(PykvmError):
    """The host's side of virtio sockets cannot be as asked."""


class HostSide:
    """Listens at `path` for peers that want to reach the guest; opens connections for the guest.

    `on_connect(socket, port)` gets a peer that has said its port. Nothing is accepted before
    `open`. Raises `VsockError`.
    """

    def __init__(
        self, path: str, poller: Poller, on_connect: Callable[[socket.socket, int], None],
        *, lifetime_ns: int, now: Callable[[], int],
    ) -> None:  # fmt: skip
        self.path = path
        if len(os.fsencode(path)) + _SUFFIX > _PATH_LIMIT or not path or "\0" in path:
            raise VsockError(
                f"the path {path!r} does not do for Unix sockets: with _PORT behind it, it may "
                f"have {_PATH_LIMIT} bytes; choose a shorter one"
            )
        self._poller, self._on_connect = poller, on_connect
        self._lifetime, self._now = lifetime_ns, now
        self._greetings: dict[socket.socket, int] = {}  # -> deadline in ns
        self._open = False
        self._listener = self._listen()
        self._bound = os.stat(path)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(self.path)
            listener.bind(self.path)
            listener.listen(128)
            listener.setblocking(False)
        except (OSError, ValueError) as error:
            listener.close()
            why = getattr(error, "strerror", None) or error
            raise VsockError(
                f"cannot listen on {self.path!r}: {why}; give a path that is free and yours to use"
            ) from error
        return listener

    # -- host to guest -----------------------------------------------------------------------------

    def open(self) -> None:
        """From now on peers are accepted; before, they wait."""
        self._open = True
        self._arm()

    def shut(self) -> None:
        """Those who have said nothing yet are sent away, and nobody is accepted any more."""
        self._open = False
        self._arm()
        for peer in list(self._greetings):
            self._dismiss(peer)

    def _arm(self) -> None:
        fd = self._listener.fileno()
        if fd < 0:
            return
        if self._open and len(self._greetings) < GREETINGS:
            self._poller.watch(fd, READ, self._accept)
        else:
            self._poller.forget(fd)

    def _accept(self, events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:  # gone again, or out of descriptors: then the next event tries again
            return
        peer.setblocking(False)
        line = bytearray()
        self._greetings[peer] = self._now() + self._lifetime
        self._poller.watch(peer.fileno(), READ, lambda events: self._greeted(peer, line))
        self._arm()

    def _greeted(self, peer: socket.socket, line: bytearray) -> None:
        """Takes the line byte by byte: what follows it is the guest's."""
        while True:
            try:
                byte = peer.recv(1)
            except BlockingIOError:
                return
            except OSError:
                byte = b""
            if byte == b"\n":
                break
            line += byte
            if not byte or len(line) > GREETING_BYTES:
                self._dismiss(peer)
                return
        port = parse_connect(bytes(line))
        if port is None:
            self._dismiss(peer)
            return
        del self._greetings[peer]
        self._poller.forget(peer.fileno())
        self._arm()
        self._on_connect(peer, port)

    def _dismiss(self, peer: socket.socket) -> None:
        self._greetings.pop(peer, None)
        self._poller.forget(peer.fileno())
        peer.close()
        self._arm()

    # -- time --------------------------------------------------------------------------------------

    def expire(self, now: int) -> None:
        """Sends away who did not say a port in time."""
        for peer in [peer for peer, deadline in self._greetings.items() if deadline <= now]:
            self._dismiss(peer)

    @property
    def deadline(self) -> int | None:
        """When `expire` has something to do."""
        return min(self._greetings.values(), default=None)

    # -- guest to host -----------------------------------------------------------------------------

    def connect(self, port: int) -> socket.socket | None:
        """A connection to the service at PATH_port, None where nobody serves it."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)  # a full backlog is a no, not a wait
        try:
            sock.connect(f"{self.path}_{port}")
        except OSError:
            sock.close()
            return None
        return sock

    def close(self) -> None:
        """Stops listening and removes the socket's name. Twice is harmless."""
        self.shut()
        if self._listener.fileno() < 0:
            return
        self._listener.close()
        try:
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) == (self._bound.st_dev, self._bound.st_ino):
                os.unlink(self.path)
        except OSError:
            pass


def parse_connect(line: bytes) -> int | None:
    """The port in `CONNECT <port>`; None where it is not that."""
    word, _, digits = line.rstrip(b"\r").partition(b" ")
    if word.upper() != b"CONNECT" or not digits.isdigit() or len(digits) > 10:
        return None
    port = int(digits)
    return port if port < 1 << 32 else None


def _remove_stale(path: str) -> None:
    """Removes a socket that its server left behind; a live one is refused by `bind`."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)
