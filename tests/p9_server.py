"""A 9p server that is the test itself."""

from __future__ import annotations

import socket
import struct

from pykvm.errors import PykvmError


class Server:
    """A server that is the test itself."""

    aname = b"/there"
    user: int | None = None

    def __init__(self) -> None:
        self.starts = 0
        self.broken = False
        self.sock: socket.socket | None = None

    def start(self) -> socket.socket:
        if self.broken:
            raise PykvmError("it does not start today")
        self.starts += 1
        ours, self.sock = socket.socketpair()
        self.sock.settimeout(10)
        return ours

    def stop(self) -> None:
        if self.sock is not None:
            self.sock.close()

    def heard(self) -> tuple[int, int, bytes]:
        """(type, tag, body) of the next T message."""
        assert self.sock is not None
        size, kind, tag = struct.unpack("<IBH", self.sock.recv(7, socket.MSG_WAITALL))
        body = self.sock.recv(size - 7, socket.MSG_WAITALL) if size > 7 else b""
        return kind, tag, body

    def say(self, kind: int, tag: int, body: bytes = b"", size: int | None = None) -> None:
        assert self.sock is not None
        size = 7 + len(body) if size is None else size
        self.sock.sendall(struct.pack("<IBH", size, kind, tag) + body)
