"""An NBD server in a thread, for tests: well-behaved unless it is told otherwise."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from typing import Any

OPTION_MAGIC, REPLY_MAGIC = b"IHAVEOPT", 0x0003E889045565A9
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES, STATUS = 0, 1, 2, 3, 4, 6, 7
HAS_FLAGS, READ_ONLY, CAN_FLUSH, CAN_FUA, CAN_TRIM, CAN_ZERO = 1, 2, 4, 8, 32, 64
MULTI_CONN = 256
ALL = HAS_FLAGS | CAN_FLUSH | CAN_FUA | CAN_TRIM | CAN_ZERO | MULTI_CONN
ACK, SERVER, INFO, META = 1, 2, 3, 4
ERROR = 1 << 31


class Gone(Exception):
    """The client went, or the test wants the connection closed."""


class FakeServer:
    """Serves `data` as the export "" at a Unix socket.

    - `greet(peer)`, `option(peer, number, data)`, `answer(peer, request)` take the place of what a
      good server does; `option` and `answer` return True if they did, None if they leave it to it.
    - `log` has the (command, flags, offset, length) of all requests.
    """

    def __init__(
        self, data: bytes = bytes(1 << 20), *, flags: int = ALL, structured: bool = True,
        blocks: tuple[int, int, int] | None = None,
        greet: Callable[[Peer], bool | None] | None = None,
        option: Callable[[Peer, int, bytes], bool | None] | None = None,
        answer: Callable[[Peer, Request], bool | None] | None = None,
    ) -> None:  # fmt: skip
        self.data = bytearray(data)
        self.flags, self.structured, self.blocks = flags, structured, blocks
        self.greet, self.option, self.answer = greet, option, answer
        self.log: list[tuple[int, int, int, int]] = []
        self.connections = 0
        self._folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._folder.name, "nbd")
        self.uri = f"nbd+unix:///?socket={self.path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(20)
        self._peers: list[Peer] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                peer = Peer(self, sock)
                self._peers.append(peer)
                threading.Thread(target=peer.run, daemon=True).start()

    def close(self) -> None:
        """No more connections, and the end of those that there are."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            peer.hang_up()
        self._folder.cleanup()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Request:
    """What a client asked for."""

    def __init__(self, header: bytes) -> None:
        magic, self.flags, self.command, self.cookie, self.offset, self.length = struct.unpack(
            ">IHHQQI", header
        )
        assert magic == 0x25609513
        self.data = b""


class Peer:
    """The server's end of a connection."""

    def __init__(self, server: FakeServer, sock: socket.socket) -> None:
        self.server, self.sock = server, sock
        self.structured = self.meta = False
        self.served = 0

    def run(self) -> None:
        with contextlib.suppress(Gone, OSError):
            try:
                if not (self.server.greet and self.server.greet(self)):
                    self.send(b"NBDMAGIC", OPTION_MAGIC, struct.pack(">H", 3))
                self.take(4)
                while not self.options():
                    pass
                while True:
                    self.request()
            finally:
                self.hang_up()

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        self.sock.sendall(b"".join(parts))

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise Gone
            data += piece
        return data

    def reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self.send(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)), data)

    def options(self) -> bool:
        magic, option, length = struct.unpack(">8sII", self.take(16))
        assert magic == OPTION_MAGIC
        data = self.take(length)
        if self.server.option and self.server.option(self, option, data):
            return False
        size = len(self.server.data)
        if option == 1:
            self.send(struct.pack(">QH", size, self.server.flags))
            return True
        if option == 3:
            for name in (b"", b"other"):
                self.reply(option, SERVER, struct.pack(">I", len(name)) + name)
        elif option == 8 and self.server.structured:
            self.structured = True
        elif option == 10 and self.structured:
            self.meta = True
            self.reply(option, META, struct.pack(">I", 7) + b"base:allocation")
        elif option == 7:
            self.reply(option, INFO, struct.pack(">HQH", 0, size, self.server.flags))
            if self.server.blocks:
                self.reply(option, INFO, struct.pack(">HIII", 3, *self.server.blocks))
        elif option != 2:
            self.reply(option, ERROR | 1)
            return False
        self.reply(option, ACK)
        if option == 2:
            raise Gone
        return option == 7

    def request(self) -> None:
        request = Request(self.take(28))
        if request.command == WRITE:
            request.data = self.take(request.length)
        server = self.server
        server.log.append((request.command, request.flags, request.offset, request.length))
        self.served += 1
        if server.answer and server.answer(self, request):
            return
        if request.command == DISCONNECT:
            raise Gone
        self.serve(request)

    def serve(self, request: Request) -> None:
        """The right answer."""
        data, at, end = self.server.data, request.offset, request.offset + request.length
        assert end <= len(data)
        if request.command == READ and self.structured:
            self.data_chunk(request, at, bytes(data[at:end]), last=True)
            return
        if request.command == STATUS:
            body = struct.pack(">III", 7, request.length, 3)
            self.chunk(request, 5, body, last=True)
            return
        if request.command == WRITE:
            data[at:end] = request.data
        elif request.command in (TRIM, ZEROES):
            data[at:end] = bytes(request.length)
        self.simple(request, bytes(data[at:end]) if request.command == READ else b"")

    def simple(self, request: Request, data: bytes = b"", error: int = 0) -> None:
        self.send(struct.pack(">IIQ", 0x67446698, error, request.cookie), data)

    def chunk(self, request: Request, kind: int, body: bytes = b"", last: bool = False) -> None:
        header = struct.pack(">IHHQI", 0x668E33EF, int(last), kind, request.cookie, len(body))
        self.send(header, body)

    def data_chunk(self, request: Request, at: int, data: bytes, last: bool = False) -> None:
        self.chunk(request, 1, struct.pack(">Q", at) + data, last)


def disk_of(server: FakeServer, **options: Any) -> Any:
    """An `NbdDisk` of a server."""
    from pykvm.devices.block.nbd import NbdDisk

    return NbdDisk(server.uri, **options)


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from sector to sector."""
    return b"".join(
        struct.pack("<QQ", seed, n) * 32 for n in range(-(-length // 512))
    )[:length]  # fmt: skip


def scratch(folder: pathlib.Path, name: str, data: bytes) -> str:
    """A file."""
    path = folder / name
    path.write_bytes(data)
    return str(path)
