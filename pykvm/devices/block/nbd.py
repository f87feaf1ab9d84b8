"""`NbdDisk`: a disk that an NBD server has."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Sequence

from pykvm.devices.block import nbd_wire as wire
from pykvm.devices.block.backend import SECTOR, BlockBackend, BlockError, total
from pykvm.devices.block.nbd_channel import Channel
from pykvm.devices.block.nbd_pending import Durability, Pending
from pykvm.devices.block.nbd_uri import NbdAddress, parse_uri
from pykvm.devices.block.nbd_wire import Export, Negotiation
from pykvm.devices.block.raw import split
from pykvm.devices.block.request import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    WRITE_ZEROES,
    BlockRequest,
    Done,
)
from pykvm.typed import NamedTuple

CONNECT_SECONDS, REQUEST_SECONDS = 10.0, 60.0
MAX_CONNECTIONS = 16
_MAX_CLEAR = 1 << 30  # bytes of one TRIM or WRITE_ZEROES


class Extent(NamedTuple):
    """A stretch of a disk, in bytes: whether it has storage, whether it is zero."""

    offset: int
    length: int
    allocated: bool
    zero: bool


class NbdDisk(BlockBackend):
    """An export of an NBD server; many requests at a time, by any threads.

    - `address`: an `NbdAddress`, or a URI (`nbd://host/export`, `nbd+unix:///?socket=PATH`).
    - `connections`: that many, where the server lets several share a disk.
    - `timeout`: seconds that a request may take before the connection is given up.
    - `reconnect`: seconds for which a lost connection is tried again (default: not at all). If
      writes were acknowledged but not flushed by then, the next flush fails.
    - `write_through`: each write is on stable storage before it is done.

    Raises `BlockError`, also for all that a server says and that makes no sense.
    """

    parallel = 64

    def __init__(
        self, address: NbdAddress | str, read_only: bool = False, *, connections: int = 1,
        timeout: float = REQUEST_SECONDS, connect_timeout: float = CONNECT_SECONDS,
        reconnect: float = 0.0, write_through: bool = False, name: str = "",
    ) -> None:  # fmt: skip
        if not 1 <= connections <= MAX_CONNECTIONS:
            raise BlockError(
                f"{connections} connections to an NBD server are not 1 to {MAX_CONNECTIONS}"
            )
        self.address = parse_uri(address) if isinstance(address, str) else address
        self.name = name or str(self.address)
        self._connect_timeout = connect_timeout
        self._durability = Durability()
        self._options = (timeout, reconnect)
        self._connections = connections
        self.write_through = write_through
        self._asked_read_only = read_only
        self._rmw = threading.Lock()
        self._channels: list[Channel] = []
        self.connect()

    def connect(self) -> None:
        """Connects, and looks at the export: its size may be another one than before."""
        try:
            self._channels.append(self._channel())
            export = self._channels[0].export
            if export.flags & wire.MULTI_CONN:
                while len(self._channels) < self._connections:
                    self._channels.append(self._channel())
        except BaseException:
            self.disconnect()
            raise
        self._export = export
        self._bytes = export.size
        #: The smallest piece that the server takes; unaligned accesses cost more.
        self.block_size = max(SECTOR, export.min_block)
        self.size = -(-export.size // self.block_size) * self.block_size
        self.read_only = self._asked_read_only or bool(export.flags & wire.READ_ONLY)

    @property
    def least_block(self) -> int:
        """The smallest access in bytes that the server takes: what the guest should be told."""
        return self._export.min_block

    def _channel(self) -> Channel:
        return Channel(self.name, self._dial, *self._options, self._durability, self.explain)

    def explain(self, error: BlockError) -> BlockError:
        """The error with which a connection ended, in better words where there are some."""
        return error

    def _dial(self) -> tuple[socket.socket, Export]:
        sock = wire.connect(self.address, self._connect_timeout)
        try:
            talk = Negotiation(sock, self.name, self._connect_timeout)
            talk.start()
            return sock, talk.go(self.address.export)
        except BaseException:
            sock.close()
            raise

    # -- many at a time ------------------------------------------------------------------------

    def begin(self, request: BlockRequest, done: Done) -> None:
        """Starts an access; `done(error)` is called once, by another thread or before this ends."""
        try:
            kind, offset, length, views, durable, keep = request
            if kind == FLUSH:
                self._flush(done)
                return
            if kind == READ and offset + length > self._bytes:
                views, length = self._without_tail(offset, length, views)
            self._check(offset, length, kind != READ)
        except BlockError as error:
            done(error)
            return
        if not length:
            done(None)
        elif kind == READ:
            self._pieces(wire.CMD_READ, offset, length, views, done, self._export.max_block)
        elif kind == WRITE:
            self._write(wire.CMD_WRITE, offset, length, views, done, durable)
        elif kind == WRITE_ZEROES and self._export.flags & wire.HAS_ZEROES:
            flags = wire.FLAG_NO_HOLE if keep else 0
            self._write(wire.CMD_WRITE_ZEROES, offset, length, (), done, durable, flags)
        elif kind == WRITE_ZEROES:
            zeros = memoryview(bytes(min(length, 1 << 20)))
            parts = [zeros] * (length // len(zeros))
            parts += [zeros[: length % len(zeros)]] if length % len(zeros) else []
            self._write(wire.CMD_WRITE, offset, length, parts, done, durable)
        elif self._export.flags & wire.HAS_TRIM:
            self._pieces(wire.CMD_TRIM, offset, length, (), done, _MAX_CLEAR)
        else:
            done(None)

    def _without_tail(
        self, offset: int, length: int, views: Sequence[memoryview]
    ) -> tuple[Sequence[memoryview], int]:
        """What the server has of a read that reaches its incomplete last block; zeros beyond."""
        self.check(offset, length)
        have = max(0, self._bytes - offset)
        views, tail = split(views, have)
        for view in tail:
            view[:] = bytes(len(view))
        return views, have

    def _check(self, offset: int, length: int, writing: bool) -> None:
        self.check(offset, length, writing=writing)
        least = self._export.min_block
        if offset % least or length % least or offset + length > self._bytes:
            raise BlockError(
                f"{self.name}: {length} bytes at {offset:#x} are no whole blocks of {least} bytes "
                "of the server's", errno.EINVAL,
            )  # fmt: skip

    def _write(
        self, command: int, offset: int, length: int, views: Sequence[memoryview], done: Done,
        durable: bool, flags: int = 0,
    ) -> None:  # fmt: skip
        durable = durable or self.write_through
        most = self._export.max_block if command == wire.CMD_WRITE else _MAX_CLEAR
        if durable and self._export.flags & wire.HAS_FUA:
            flags |= wire.FLAG_FUA
        elif durable:
            written = done

            def flush(error: BlockError | None) -> None:
                if error is None:
                    self._flush(written)
                else:
                    written(error)

            done = flush
        self._pieces(command, offset, length, views, done, most, flags)

    def _flush(self, done: Done) -> None:
        if self._export.flags & wire.HAS_FLUSH and not self.read_only:
            self._submit(Pending(wire.CMD_FLUSH, 0, 0, (), done))
        else:
            done(None)

    def _pieces(
        self, command: int, offset: int, length: int, views: Sequence[memoryview], done: Done,
        most: int, flags: int = 0,
    ) -> None:  # fmt: skip
        """One request, or several where the server's limit is lower."""
        if length <= most:
            self._submit(Pending(command, offset, length, views, done, flags))
            return
        most -= most % self._export.min_block
        joined = _Joined(-(-length // most), done)
        while length:
            count = min(length, most)
            piece, views = split(views, count)
            self._submit(Pending(command, offset, count, piece, joined.one_done, flags))
            offset += count
            length -= count

    def _submit(self, pending: Pending) -> None:
        channels = self._channels
        if not channels:
            pending.done(BlockError(f"{self.name} is closed", errno.EBADF))
        elif len(channels) == 1:
            channels[0].submit(pending)
        else:
            min(channels, key=lambda channel: len(channel.flying)).submit(pending)

    # -- one at a time -------------------------------------------------------------------------

    def _wait(self, request: BlockRequest) -> None:
        wait_for(self.begin, request)

    def readv(self, offset: int, views: Sequence[memoryview]) -> None:
        """Waits for the data."""
        length = total(views)
        self.check(offset, length)
        least = self._export.min_block
        if offset % least == 0 and length % least == 0 and offset + length <= self._bytes:
            self._wait(BlockRequest(READ, offset, length, views))
            return
        start = offset // least * least
        end = min(-(-(offset + length) // least) * least, self._bytes // least * least)
        data = bytearray(-(-(offset + length) // least) * least - start)
        if end > start:
            whole = memoryview(data)[: end - start]
            self._wait(BlockRequest(READ, start, len(whole), [whole]))
        at = offset - start
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Waits until the server has it; blocks that are written in part are read first."""
        length = total(views)
        self.check(offset, length, writing=True)
        least = self._export.min_block
        if offset + length > self._bytes // least * least and length:
            raise BlockError(f"{self.name}: a write to its incomplete last block", errno.ENOSPC)
        if offset % least == 0 and length % least == 0:
            self._wait(BlockRequest(WRITE, offset, length, views))
            return
        with self._rmw:
            start, end = offset // least * least, -(-(offset + length) // least) * least
            data = bytearray(self.read(start, end - start))
            data[offset - start : offset - start + length] = b"".join(views)
            self._wait(BlockRequest(WRITE, start, len(data), [memoryview(data)]))

    def flush(self) -> None:
        """NBD_CMD_FLUSH: all that was written is on the server's stable storage."""
        self._wait(BlockRequest(FLUSH))

    def discard(self, offset: int, length: int) -> None:
        """NBD_CMD_TRIM, of the whole blocks in the range."""
        self.check(offset, length, writing=True)
        least = self._export.min_block
        start = -(-offset // least) * least
        end = min(offset + length, self._bytes) // least * least
        if end > start:
            self._wait(BlockRequest(DISCARD, start, end - start))

    def write_zeroes(self, offset: int, length: int) -> None:
        """NBD_CMD_WRITE_ZEROES where the server has it; it may give storage back."""
        self._zero(offset, length, False)

    def zero_in_place(self, offset: int, length: int) -> None:
        """The same; the server keeps the storage."""
        self._zero(offset, length, True)

    def _zero(self, offset: int, length: int, keep: bool) -> None:
        self.check(offset, length, writing=True)
        least = self._export.min_block
        if offset % least or length % least or offset + length > self._bytes:
            super().write_zeroes(offset, length)
        else:
            self._wait(BlockRequest(WRITE_ZEROES, offset, length, keep=keep))

    def block_status(self, offset: int, length: int) -> list[Extent]:
        """What is allocated and what reads as zeros; all data where the server does not say."""
        self.check(offset, length)
        found: list[Extent] = []
        end = min(offset + length, self._bytes)
        while self._export.allocation is not None and offset < end:
            count = min(end - offset, _MAX_CLEAR)
            pending = Pending(wire.CMD_BLOCK_STATUS, offset, count, (), _ignore)
            answers = _call(self._submit, pending)
            for span, flags in answers.extents:
                if not span or offset >= end:
                    raise BlockError(f"{self.name}: the server sends a senseless block status")
                span = min(span, end - offset)
                found.append(Extent(offset, span, not flags & 1, bool(flags & 2)))
                offset += span
        if offset < end:
            found.append(Extent(offset, end - offset, True, False))
        return found

    def disconnect(self) -> None:
        """Ends the connections. Requests in flight fail."""
        channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()

    def close(self) -> None:
        """Ends the connections; twice is harmless."""
        self.disconnect()


class _Joined:
    """Reports several requests as one."""

    def __init__(self, count: int, done: Done) -> None:
        self._left, self._done = count, done
        self._error: BlockError | None = None
        self._lock = threading.Lock()

    def one_done(self, error: BlockError | None) -> None:
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            finished = self._left == 0
        if finished:
            self._done(self._error)


def _ignore(error: BlockError | None) -> None:
    pass


def _call(submit: Callable[[Pending], None], pending: Pending) -> Pending:
    """Submits a request and waits for it. Raises `BlockError`."""
    ready = threading.Event()
    failed: list[BlockError] = []

    def done(error: BlockError | None) -> None:
        if error is not None:
            failed.append(error)
        ready.set()

    pending.done = done
    submit(pending)
    ready.wait()
    if failed:
        raise failed[0]
    return pending


def wait_for(begin: Callable[[BlockRequest, Done], None], request: BlockRequest) -> None:
    """Begins an access and waits for its end. Raises its error."""
    waiting = threading.Lock()
    waiting.acquire()
    failed: list[BlockError] = []

    def done(error: BlockError | None) -> None:
        if error is not None:
            failed.append(error)
        waiting.release()

    begin(request, done)
    waiting.acquire()
    if failed:
        # A new one: several requests may have got the same, and tracebacks would pile up on it.
        raise BlockError(str(failed[0]), failed[0].errno)


def list_exports(address: NbdAddress | str, timeout: float = CONNECT_SECONDS) -> list[str]:
    """The names of a server's exports. Raises `BlockError`."""
    where = parse_uri(address) if isinstance(address, str) else address
    with wire.connect(where, timeout) as sock:
        talk = Negotiation(sock, str(where), timeout)
        talk.start()
        names = talk.exports()
        talk.abort()
        return names
