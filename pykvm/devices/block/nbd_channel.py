"""`Channel`: one connection to an NBD server, with many requests in flight.

Whoever has a request sends it, without waiting: what the socket does not take at once is sent by a
thread that is there as long as it is needed. Another thread receives, straight into the requests'
buffers, and reports them done. Only that one gives buffers back: a request that is reported failed
is not written to any more.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from pykvm.devices.block import nbd_wire as wire
from pykvm.devices.block.backend import BlockError
from pykvm.devices.block.nbd_pending import Durability, Pending
from pykvm.devices.block.nbd_wire import Export
from pykvm.devices.block.raw import split

_IOV_MAX = 1024
_ERROR_TEXT = 4096
_STATUS_LIMIT = 1 << 20  # bytes of extents in one answer
_COMMANDS = {
    wire.CMD_READ: "a read", wire.CMD_WRITE: "a write", wire.CMD_FLUSH: "a flush",
    wire.CMD_TRIM: "a discard", wire.CMD_WRITE_ZEROES: "writing zeros",
    wire.CMD_BLOCK_STATUS: "asking for the block status",
}  # fmt: skip
_WRITES = {wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES}
_ZEROS = bytes(1 << 16)


class Channel:
    """One connection.

    `dial` makes a negotiated connection; raises `BlockError`. `timeout`: seconds that a request
    may take. `reconnect`: seconds for which a lost connection is tried again (0: not at all);
    requests in flight are sent anew then.
    """

    def __init__(
        self, name: str, dial: Callable[[], tuple[socket.socket, Export]], timeout: float,
        reconnect: float, durability: Durability, explain: Callable[[BlockError], BlockError],
    ) -> None:  # fmt: skip
        self.name = name
        self.flying: dict[int, Pending] = {}
        self._dial, self._timeout, self._reconnect = dial, timeout, reconnect
        self._durability, self._explain = durability, explain
        self._sending = threading.Condition(threading.Lock())
        self._backlog: deque[list[memoryview]] = deque()
        self._drained: socket.socket | None = None  # by a thread that sends the backlog
        self._next = 0
        self._broken: BlockError | None = None
        self._stuck: BlockError | None = None
        self._closing = threading.Event()
        self._peer, self.export = dial()
        self._sock: socket.socket | None = self._peer
        self._prepare()
        self._thread = threading.Thread(target=self._run, name=f"nbd {name}", daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        # The kernel's time-outs: Python's own cost a poll(2) per call.
        self._peer.settimeout(None)
        for option, seconds in (
            (socket.SO_RCVTIMEO, min(self._timeout / 2, 5.0)), (socket.SO_SNDTIMEO, self._timeout),
        ):  # fmt: skip
            whole = int(seconds)
            value = struct.pack("@ll", whole, int((seconds - whole) * 1e6))
            self._peer.setsockopt(socket.SOL_SOCKET, option, value)

    # -- sending -------------------------------------------------------------------------------

    def submit(self, request: Pending) -> None:
        """Sends a request; its `done` is called once."""
        request.deadline = time.monotonic() + self._timeout
        with self._sending:
            error = self._broken
            if error is None and self._sock is not None and request.command == wire.CMD_FLUSH:
                error = self._durability.take_loss()
            if error is None:
                request.mark = self._durability.mark()
                cookie = self._next = self._next + 1
                self.flying[cookie] = request
                if self._sock is not None:
                    self._send(self._sock, cookie, request)
        if error is not None:
            request.done(error)

    def _send(self, sock: socket.socket, cookie: int, request: Pending) -> None:
        """Sends what the socket takes now; `_sending` is held."""
        header = wire.REQUEST.pack(
            wire.REQUEST_MAGIC, request.flags, request.command, cookie, request.offset,
            request.length,
        )  # fmt: skip
        left = [memoryview(header)]
        if request.command == wire.CMD_WRITE:
            left += request.views
        if not self._backlog:
            try:
                left = _push(sock, left, socket.MSG_DONTWAIT)
            except OSError:
                _shut(sock)  # the receiving thread sees it, and cleans up
                return
        if left:
            self._backlog.append(left)
            if self._drained is None:
                self._drained = sock
                threading.Thread(target=self._drain, args=(sock,), daemon=True).start()

    def _drain(self, sock: socket.socket) -> None:
        """Sends the backlog of a connection."""
        while True:
            with self._sending:
                if self._sock is not sock or not self._backlog:
                    self._drained = None
                    self._sending.notify_all()
                    return
                left = self._backlog[0]
            try:
                left = _push(sock, left, 0)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    self._stuck = self._late("took no request")
                _shut(sock)
                with self._sending:
                    self._backlog.clear()
                continue
            with self._sending:
                if self._backlog and left:
                    self._backlog[0] = left
                elif self._backlog:
                    self._backlog.popleft()

    def _late(self, what: str) -> BlockError:
        return BlockError(
            f"{self.name}: the server {what} for {self._timeout:g} seconds; "
            "the connection was given up", errno.ETIMEDOUT,
        )  # fmt: skip

    # -- receiving -----------------------------------------------------------------------------

    def _run(self) -> None:
        error = BlockError(f"{self.name}: the NBD client failed")
        try:
            while True:
                try:
                    self._serve()
                except BlockError as problem:
                    error = self._stuck or problem
                except OSError as problem:
                    code = problem.errno or errno.EIO
                    error = BlockError(f"{self.name}: the connection broke: {os.strerror(code)}")
                self._revive(error)
        except BlockError as problem:
            error = problem if self._closing.is_set() else self._explain(problem)
        finally:
            self._fail(error)

    def _fail(self, error: BlockError) -> None:
        self._hang_up()
        with self._sending:
            self._broken = error
            left = list(self.flying.values())
            self.flying.clear()
        for request in left:
            request.done(error)

    def _hang_up(self) -> None:
        _shut(self._peer)
        with self._sending:
            self._sock = None
            self._backlog.clear()
            self._sending.wait_for(lambda: self._drained is None)  # it does not use the fd any more
            self._peer.close()

    def _revive(self, why: BlockError) -> None:
        """Connects again, and sends what was in flight. Raises `BlockError` when it is over."""
        self._hang_up()
        if not self._reconnect or self._closing.is_set():
            raise why
        self._durability.interrupted(self.name)
        deadline = time.monotonic() + self._reconnect
        while True:
            try:
                peer, export = self._dial()
                break
            except BlockError as error:
                if self._closing.wait(0.2) or time.monotonic() > deadline:
                    raise BlockError(f"{why}; {error}", error.errno) from None
        if export.size != self.export.size or (export.flags ^ self.export.flags) & wire.READ_ONLY:
            peer.close()
            raise BlockError(f"{self.name}: the server came back with another disk; {why}")
        self._stuck = None
        self._peer, self.export = peer, export
        self._prepare()
        lost: list[Pending] = []
        with self._sending:
            self._sock = peer
            loss: BlockError | None = None
            for cookie, request in list(self.flying.items()):
                if request.command == wire.CMD_FLUSH:
                    loss = loss or self._durability.take_loss()
                    if loss is not None:
                        lost.append(self.flying.pop(cookie))
                        continue
                request.left, request.error = request.length, None
                request.extents.clear()
                request.deadline = time.monotonic() + self._timeout
                self._send(peer, cookie, request)
        for request in lost:
            request.done(loss)

    def _serve(self) -> None:
        """Answers, until the connection ends. Raises `BlockError`, `OSError`."""
        flying, durability = self.flying, self._durability
        while True:
            head = self._take(16)
            magic, code, cookie = wire.SIMPLE.unpack(head)
            request = flying.get(cookie)
            if magic == wire.STRUCTURED_MAGIC and self.export.structured:
                finished = self._chunk(head, request)
            elif magic != wire.SIMPLE_MAGIC:
                raise self._bad("sends no answers but nonsense")
            elif request is None:
                raise self._bad("answers a request that was not made")
            elif code:
                request.error = self._refused(request, code)
                finished = True
            else:
                if request.command == wire.CMD_READ:
                    if self.export.structured:
                        raise self._bad("answers a read without structure, as was agreed")
                    self._fill(request.views, request.length)
                    request.left = 0
                finished = True
            if not finished or request is None:
                continue
            if request.error is None:
                self._complete(request, durability)
            del flying[cookie]
            request.done(request.error)

    def _complete(self, request: Pending, durability: Durability) -> None:
        command = request.command
        if command == wire.CMD_READ:
            if request.left:
                done = request.length - request.left
                raise self._bad(f"answers a read of {request.length} bytes with {done}")
        elif command == wire.CMD_FLUSH:
            durability.flushed(request.mark)
        elif command in _WRITES:
            if not request.flags & wire.FLAG_FUA:
                durability.wrote()
        elif not request.extents:
            raise self._bad("answers without a block status")

    def _chunk(self, head: bytes, request: Pending | None) -> bool:
        """One chunk of a structured answer; True if it was the last."""
        _, flags, kind, _ = struct.unpack(">IHHQ", head)
        (length,) = struct.unpack(">I", self._take(4))
        last = bool(flags & wire.CHUNK_DONE)
        if request is None:
            raise self._bad("answers a request that was not made")
        if not last and time.monotonic() > request.deadline:
            raise self._late("did not finish an answer")
        if kind & 0x8000:
            self._error_chunk(kind, length, request)
        elif kind == wire.CHUNK_NONE:
            if length or not last:
                raise self._bad("sends an empty answer that is not")
        elif kind in (wire.CHUNK_DATA, wire.CHUNK_HOLE) and request.command == wire.CMD_READ:
            self._data_chunk(kind, length, request)
        elif kind == wire.CHUNK_STATUS and request.command == wire.CMD_BLOCK_STATUS:
            if length % 8 != 4 or not 12 <= length <= _STATUS_LIMIT or request.extents:
                raise self._bad(f"sends a block status of {length} bytes")
            body = self._take(length)
            if struct.unpack_from(">I", body)[0] == self.export.allocation:
                request.extents = list(struct.iter_unpack(">II", body[4:]))
        else:
            raise self._bad(f"sends a chunk of type {kind} that does not belong there")
        return last

    def _data_chunk(self, kind: int, length: int, request: Pending) -> None:
        if kind == wire.CHUNK_HOLE:
            if length != 12:
                raise self._bad(f"sends a hole of {length} bytes")
            at, count = struct.unpack(">QI", self._take(12))
        else:
            if length < 9:
                raise self._bad(f"sends data of {length} bytes")
            (at,) = struct.unpack(">Q", self._take(8))
            count = length - 8
        start = at - request.offset
        if not count or start < 0 or start + count > request.length or count > request.left:
            raise self._bad(f"sends {count} bytes from {at:#x}, which were not asked for")
        request.left -= count
        views = request.views
        if start or count < request.length:
            views = split(split(views, start)[1], count)[0]
        if kind == wire.CHUNK_DATA:
            self._fill(views, count)
            return
        zeros = memoryview(_ZEROS)
        for view in views:
            for at in range(0, len(view), len(zeros)):
                piece = view[at : at + len(zeros)]
                piece[:] = zeros[: len(piece)]

    def _error_chunk(self, kind: int, length: int, request: Pending) -> None:
        least = 14 if kind == wire.CHUNK_ERROR_OFFSET else 6
        if not 6 <= length <= _ERROR_TEXT:
            raise self._bad(f"sends an error of {length} bytes")
        body = self._take(length)
        code, size = struct.unpack_from(">IH", body)
        if kind in (wire.CHUNK_ERROR, wire.CHUNK_ERROR_OFFSET) and length != least + size:
            raise self._bad("sends an error whose text has another length")
        text = body[6 : 6 + size].decode(errors="replace")
        request.error = self._refused(request, code or 5, text)

    def _refused(self, request: Pending, code: int, text: str = "") -> BlockError:
        what = f"{_COMMANDS[request.command]} at {request.offset:#x}"
        return wire.server_error(self.name, what, code, text)

    def _take(self, length: int) -> bytes:
        """The next `length` bytes of what is no data of a disk."""
        data = b""
        while True:
            try:
                piece = self._peer.recv(length - len(data), socket.MSG_WAITALL)
            except BlockingIOError:
                self._tick()
                continue
            if not piece:
                raise self._bad("closed the connection")
            data = data + piece if data else piece
            if len(data) == length:
                return data
            self._tick()

    def _fill(self, views: Sequence[memoryview], length: int) -> None:
        """The next `length` bytes go to these buffers."""
        left = views
        while length:
            try:
                if len(left) == 1:
                    count = self._peer.recv_into(left[0], 0, socket.MSG_WAITALL)
                else:
                    count = self._peer.recvmsg_into(left[:_IOV_MAX], 0, socket.MSG_WAITALL)[0]
            except BlockingIOError:
                self._tick()
                continue
            if not count:
                raise self._bad("closed the connection")
            length -= count
            if length:
                left = split(left, count)[1]
                self._tick()

    def _tick(self) -> None:
        """Every now and then: whether the oldest request has waited too long."""
        oldest = list(self.flying.values())[:1]
        if oldest and time.monotonic() > oldest[0].deadline:
            raise self._late("did not answer")

    def _bad(self, what: str) -> BlockError:
        return BlockError(f"{self.name}: the server {what}", errno.EPROTO)

    def close(self) -> None:
        """Says good-bye; what is still in flight fails."""
        self._closing.set()
        with self._sending:
            if self._sock is not None:
                self._send(self._sock, 0, Pending(wire.CMD_DISCONNECT, 0, 0, (), _nothing))
                _shut(self._sock)
        if threading.current_thread() is not self._thread:
            self._thread.join(10)


def _push(sock: socket.socket, left: list[memoryview], flags: int) -> list[memoryview]:
    """Sends buffers; what the socket did not take, with MSG_DONTWAIT. Raises `OSError`."""
    while left:
        try:
            count = sock.sendmsg(left[:_IOV_MAX], (), socket.MSG_NOSIGNAL | flags)
        except BlockingIOError:
            if flags:
                return left
            raise
        if len(left) == 1 and count == len(left[0]):
            return []
        left = split(left, count)[1]
    return left


def _nothing(error: BlockError | None) -> None:
    pass


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
