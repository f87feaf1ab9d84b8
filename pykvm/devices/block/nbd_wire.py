"""The NBD protocol's numbers, and its negotiation (fixed newstyle).

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
Nothing that a server says is trusted: lengths and counts are bounded, and all of it has to be said
before a deadline.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from pykvm.devices.block.backend import BlockError
from pykvm.devices.block.nbd_uri import NbdAddress
from pykvm.typed import NamedTuple

_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_REPLY_MAGIC = 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_LIST, _OPT_GO = 1, 2, 3, 7
_OPT_STRUCTURED, _OPT_SET_META = 8, 10
_REP_ACK, _REP_SERVER, _REP_INFO, _REP_META = 1, 2, 3, 4
_REP_ERROR = 1 << 31
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
ALLOCATION = b"base:allocation"

REQUEST_MAGIC, SIMPLE_MAGIC, STRUCTURED_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
CMD_READ, CMD_WRITE, CMD_DISCONNECT, CMD_FLUSH, CMD_TRIM = range(5)
CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 6, 7
FLAG_FUA, FLAG_NO_HOLE = 1, 2
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS = 0, 1, 2, 5
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 1 << 15 | 1, 1 << 15 | 2
CHUNK_DONE = 1
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
SIMPLE = struct.Struct(">IIQ")  # magic, error, cookie
STRUCTURED = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length

READ_ONLY, HAS_FLUSH, HAS_FUA, HAS_TRIM, HAS_ZEROES, MULTI_CONN = 2, 4, 8, 32, 64, 256

_ERRORS = {
    1: (errno.EPERM, "it is not permitted"),
    5: (errno.EIO, "an I/O error"),
    12: (errno.ENOMEM, "it is out of memory"),
    22: (errno.EINVAL, "it finds the request invalid"),
    28: (errno.ENOSPC, "there is no space left"),
    75: (errno.EOVERFLOW, "the request is too long"),
    95: (errno.ENOTSUP, "it does not support that"),
    108: (errno.ESHUTDOWN, "it is shutting down"),
}
_REFUSALS = {
    2: "its policy forbids it",
    5: "it wants TLS, which is not supported; use an SSH tunnel, or a server without TLS",
    6: "it has no such export",
    7: "it is shutting down",
    9: "the request was too big",
}
_OPTION_LIMIT = 1 << 16  # bytes of one reply, and how many replies there may be
_MAX_SIZE = 1 << 62
_MAX_BLOCK = 32 << 20  # the protocol's, where the server does not say


class Export(NamedTuple):
    """What a server said of an export: size and block sizes in bytes."""

    size: int
    flags: int
    structured: bool = False
    allocation: int | None = None
    min_block: int = 1
    max_block: int = _MAX_BLOCK


def server_error(name: str, what: str, code: int, text: str = "") -> BlockError:
    """What an error number of the protocol means."""
    number, words = _ERRORS.get(code, (errno.EIO, f"error {code}"))
    return BlockError(f"{name}: the server refused {what}: {clean(text) or words}", number)


def clean(text: str) -> str:
    """A server's words, fit for one line."""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()


def connect(address: NbdAddress, seconds: float) -> socket.socket:
    """A connected socket with `seconds` as its time-out. Raises `BlockError`."""
    try:
        if address.socket:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                sock.settimeout(seconds)
                sock.connect(address.socket)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((address.host, address.port), seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock
    except TimeoutError:
        raise BlockError(
            f"{address}: no connection within {seconds:g} seconds; is a server there?",
            errno.ETIMEDOUT,
        ) from None
    except (OSError, UnicodeError) as error:
        code = getattr(error, "errno", None) or errno.EINVAL
        why = os.strerror(code) if code > 0 else str(error)
        raise BlockError(
            f"{address} cannot be reached: {why}; start the NBD server, or check the address", code
        ) from None


class Negotiation:
    """The first half of a connection. All its methods raise `BlockError`."""

    def __init__(self, sock: socket.socket, name: str, seconds: float) -> None:
        self.sock, self.name = sock, name
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._no_zeroes = False

    def start(self) -> None:
        """Greeting and flags."""
        greeting = self._take(16)
        if greeting[:8] != _MAGIC:
            raise self._bad("is no NBD server")
        if greeting[8:] != _OPTION_MAGIC:
            raise self._bad("speaks the old NBD protocol, without options; update it")
        (flags,) = struct.unpack(">H", self._take(2))
        if not flags & _FIXED_NEWSTYLE:
            raise self._bad("does not know the fixed newstyle negotiation; update it")
        self._no_zeroes = bool(flags & _NO_ZEROES)
        self._give(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))

    def exports(self) -> list[str]:
        """The names of the exports, as far as the server tells them."""
        found = []
        for kind, data in self._ask(_OPT_LIST):
            if kind == _REP_SERVER and len(data) >= 4:
                (length,) = struct.unpack_from(">I", data)
                found.append(data[4 : 4 + length].decode(errors="replace"))
        return found

    def abort(self) -> None:
        """Says good-bye before an export was chosen."""
        self._give(struct.pack(">8sII", _OPTION_MAGIC, _OPT_ABORT, 0))

    def go(self, export: str) -> Export:
        """Chooses the export; requests may follow."""
        name = export.encode()
        structured = self._try(_OPT_STRUCTURED) is not None
        allocation = self._allocation(name) if structured else None
        query = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
        replies = self._try(_OPT_GO, query)
        if replies is None:  # a server older than NBD_OPT_GO
            return self._export_name(name)._replace(structured=structured)
        size, flags, smallest, largest = -1, 0, 1, _MAX_BLOCK
        for kind, data in replies:
            if kind != _REP_INFO or len(data) < 2:
                continue
            (what,) = struct.unpack_from(">H", data)
            if what == _INFO_EXPORT and len(data) == 12:
                size, flags = struct.unpack_from(">QH", data, 2)
            elif what == _INFO_BLOCK_SIZE and len(data) == 14:
                smallest, _, largest = struct.unpack_from(">III", data, 2)
        if size < 0:
            raise self._bad("does not say how large its disk is")
        if smallest & (smallest - 1) or not 0 < smallest <= 65536 or largest < max(smallest, 4096):
            raise self._bad(f"wants blocks of {smallest} to {largest} bytes, which makes no sense")
        largest = min(largest, _MAX_BLOCK) // smallest * smallest
        return self._sane(Export(size, flags, structured, allocation, smallest, largest))

    def _sane(self, export: Export) -> Export:
        if export.size > _MAX_SIZE:
            raise self._bad(f"says that its disk has {export.size} bytes, which is absurd")
        return export

    def _allocation(self, name: bytes) -> int | None:
        """The number that block status goes by; None where the server has none."""
        query = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(ALLOCATION))
        for kind, data in self._try(_OPT_SET_META, query + ALLOCATION) or ():
            if kind == _REP_META and data[4:] == ALLOCATION:
                return int(struct.unpack_from(">I", data)[0])
        return None

    def _export_name(self, name: bytes) -> Export:
        self._give(struct.pack(">8sII", _OPTION_MAGIC, _OPT_EXPORT_NAME, len(name)) + name)
        size, flags = struct.unpack(">QH", self._take(10))
        if not self._no_zeroes:
            self._take(124)
        return self._sane(Export(size, flags))

    def _try(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]] | None:
        """The replies to an option; None where the server does not know it."""
        try:
            return self._ask(option, data)
        except _Unsupported:
            return None

    def _ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        self._give(struct.pack(">8sII", _OPTION_MAGIC, option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        for _ in range(_OPTION_LIMIT):
            magic, echoed, kind, length = struct.unpack(">QIII", self._take(20))
            if magic != _REPLY_MAGIC or echoed != option or length > _OPTION_LIMIT:
                raise self._bad("answers an option with nonsense")
            body = self._take(length)
            if kind == _REP_ACK:
                return replies
            if kind & _REP_ERROR:
                code = kind & ~_REP_ERROR
                words = clean(body.decode(errors="replace"))
                if code == 1:
                    raise _Unsupported(f"{self.name}: the server does not know option {option}")
                why = _REFUSALS.get(code) or words or f"error {code}"
                raise BlockError(f"{self.name}: the server refuses: {why}", errno.ENOENT)
            replies.append((kind, body))
        raise self._bad("does not come to an end with its answers")

    def _bad(self, what: str) -> BlockError:
        return BlockError(f"{self.name}: the server {what}", errno.EPROTO)

    def _late(self) -> BlockError:
        return BlockError(
            f"{self.name}: the server did not finish the negotiation within "
            f"{self._seconds:g} seconds",
            errno.ETIMEDOUT,
        )

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        self.sock.settimeout(left)

    def _give(self, data: bytes) -> None:
        self._wait()
        try:
            self.sock.sendall(data, socket.MSG_NOSIGNAL)
        except TimeoutError:
            raise self._late() from None
        except OSError:
            raise self._bad("closed the connection during the negotiation") from None

    def _take(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait()
            try:
                piece = self.sock.recv(length - len(data))
            except TimeoutError:
                raise self._late() from None
            except OSError:
                piece = b""
            if not piece:
                raise self._bad("closed the connection during the negotiation")
            data += piece
        return bytes(data)


class _Unsupported(BlockError):
    """The server does not know an option."""
