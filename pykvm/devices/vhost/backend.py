"""`Backend`: the connection to a vhost-user back end, a process that runs queues for us.

It is another program: it may be slow, dead, or say anything. Each answer has a time limit and is
checked; after the first fault the connection is closed, and every further call raises.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
from threading import RLock

from pykvm.devices.vhost.messages import (
    CONFIG_LIMIT,
    F_PROTOCOL_FEATURES,
    GET_CONFIG,
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_VRING_BASE,
    HEADER,
    NAMES,
    NEED_REPLY,
    PAYLOAD_LIMIT,
    PROTOCOL_CONFIG,
    PROTOCOL_MQ,
    PROTOCOL_REPLY_ACK,
    REGION_LIMIT,
    REPLY,
    SET_CONFIG,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    U64,
    VERSION,
    VERSION_MASK,
    VRING_ADDRESS,
    VRING_STATE,
    Region,
    config_change,
    config_reply,
    config_request,
    memory_table,
)
from pykvm.errors import PykvmError

_WANTED = PROTOCOL_MQ | PROTOCOL_REPLY_ACK | PROTOCOL_CONFIG
_FDS = 8  # descriptors that a message may bring


class BackendError(PykvmError):
    """A vhost-user back end that is not there, does not answer, or answers nonsense."""


class Backend:
    """One connection. `negotiate` first; all calls wait for the back end up to `timeout` seconds.

    `features` are the device's features that it offers, `queue_limit` how many queues it can run
    (0: it did not say). Raises `BackendError`.
    """

    def __init__(self, sock: socket.socket, name: str, timeout: float = 5.0) -> None:
        self.sock = sock
        self.name = name
        self.lock = RLock()  # one conversation at a time
        self.failed = ""
        self.features = self.protocol = 0
        self.queue_limit = 0
        sock.settimeout(timeout)
        self._timeout = timeout

    # -- messages ----------------------------------------------------------------------------------

    def _fail(self, what: str) -> BackendError:
        if not self.failed:
            self.failed = f"the vhost-user back end {self.name} {what}"
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # closed by `close`: its number may be in use
        return BackendError(self.failed)

    def _send(self, request: int, payload: bytes, fds: list[int], flags: int = 0) -> None:
        if self.failed:
            raise BackendError(self.failed)
        data = HEADER.pack(request, VERSION | flags, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self.sock.sendall(data[sent:], socket.MSG_NOSIGNAL)
        except TimeoutError:
            raise self._fail(f"took no {NAMES[request]} for {self._timeout:g} s") from None
        except OSError as error:
            raise self._fail(f"went away at {NAMES[request]}: {error.strerror}") from None

    def _exactly(self, count: int, request: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece, rights, _, _ = self.sock.recvmsg(
                    count - len(data), socket.CMSG_SPACE(4 * _FDS), socket.MSG_CMSG_CLOEXEC
                )
            except TimeoutError:
                what = f"did not answer {NAMES[request]} within {self._timeout:g} s"
                raise self._fail(what) from None
            except OSError as error:
                raise self._fail(f"went away at {NAMES[request]}: {error.strerror}") from None
            _close_all(rights)  # no answer that is read here brings any
            if not piece:
                raise self._fail(f"closed the connection at {NAMES[request]}")
            data += piece
        return data

    def _receive(self, request: int, size: int | None) -> bytes:
        got, flags, length = HEADER.unpack(self._exactly(HEADER.size, request))
        if got != request or flags & (VERSION_MASK | REPLY) != VERSION | REPLY:
            raise self._fail(f"answered {NAMES[request]} with message {got}, flags {flags:#x}")
        if length > PAYLOAD_LIMIT or (size is not None and length != size):
            raise self._fail(f"answered {NAMES[request]} with {length} bytes")
        return self._exactly(length, request)

    def ask(self, request: int, payload: bytes = b"", size: int | None = None) -> bytes:
        """A request that has an answer, of `size` bytes unless None."""
        with self.lock:
            self._send(request, payload, [])
            return self._receive(request, size)

    def tell(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> None:
        """A request without an answer; where REPLY_ACK was agreed on, it is confirmed."""
        with self.lock:
            confirmed = bool(self.protocol & PROTOCOL_REPLY_ACK)
            self._send(request, payload, fds or [], NEED_REPLY if confirmed else 0)
            if confirmed:
                status = U64.unpack(self._receive(request, U64.size))[0]
                if status:
                    raise self._fail(f"refused {NAMES[request]} (it said {status:#x})")

    def _number(self, request: int) -> int:
        return int(U64.unpack(self.ask(request, b"", U64.size))[0])

    def check(self) -> None:
        """Raises if the back end has gone, or says something that nobody asked for."""
        with self.lock:
            if self.failed:
                raise BackendError(self.failed)
            try:
                poll = select.poll()  # a socket with a time limit would wait, MSG_DONTWAIT or not
                poll.register(self.sock, select.POLLIN)
                if not poll.poll(0):
                    return
                seen = self.sock.recv(1, socket.MSG_PEEK)
            except OSError as error:
                raise self._fail(f"went away: {error.strerror}") from None
            raise self._fail("sent what nobody asked for" if seen else "closed the connection")

    # -- conversation ------------------------------------------------------------------------------

    def negotiate(self) -> None:
        """Features, protocol features, ownership."""
        with self.lock:
            self.features = self._number(GET_FEATURES)
            if self.features & F_PROTOCOL_FEATURES:
                offered = self._number(GET_PROTOCOL_FEATURES)
                self.tell(SET_PROTOCOL_FEATURES, U64.pack(offered & _WANTED))
                self.protocol = offered & _WANTED
            if self.protocol & PROTOCOL_MQ:
                self.queue_limit = self._number(GET_QUEUE_NUM)
            self.tell(SET_OWNER)

    def config(self, size: int) -> bytes:
        """The first `size` bytes of the device's configuration structure."""
        if not self.protocol & PROTOCOL_CONFIG:
            raise BackendError(f"the vhost-user back end {self.name} has no configuration to read")
        assert size <= CONFIG_LIMIT
        data = config_reply(self.ask(GET_CONFIG, config_request(size)), size)
        if data is None:
            raise self._fail(f"does not give {size} bytes of configuration")
        return data

    def write_config(self, offset: int, data: bytes) -> None:
        """What the driver wrote."""
        if self.protocol & PROTOCOL_CONFIG:
            self.tell(SET_CONFIG, config_change(offset, data))

    def set_features(self, accepted: int) -> None:
        """What the driver accepted."""
        self.tell(SET_FEATURES, U64.pack(accepted | self.features & F_PROTOCOL_FEATURES))

    def set_memory(self, regions: list[Region]) -> None:
        """All of guest memory, as files. Raises where there are too many pieces."""
        if not 1 <= len(regions) <= REGION_LIMIT:
            raise BackendError(
                f"guest memory is in {len(regions)} shared pieces; vhost-user takes 1 to "
                f"{REGION_LIMIT}"
            )
        self.tell(SET_MEM_TABLE, memory_table(regions), [region.fd for region in regions])

    def start_ring(
        self, index: int, size: int, base: int, areas: tuple[int, int, int], kick: int, call: int
    ) -> None:
        """Runs a queue from available entry `base` on. `areas`: descriptors, available, used."""
        desc, available, used = areas
        state = VRING_STATE.pack
        with self.lock:
            self.tell(SET_VRING_NUM, state(index, size))
            self.tell(SET_VRING_BASE, state(index, base))
            self.tell(SET_VRING_ADDR, VRING_ADDRESS.pack(index, 0, desc, used, available, 0))
            self.tell(SET_VRING_CALL, U64.pack(index), [call])
            self.tell(SET_VRING_KICK, U64.pack(index), [kick])
            if self.features & F_PROTOCOL_FEATURES:
                self.tell(SET_VRING_ENABLE, state(index, 1))

    def stop_ring(self, index: int) -> int:
        """Stops a queue, once its requests in flight are finished; the next available entry."""
        with self.lock:
            reply = self.ask(GET_VRING_BASE, VRING_STATE.pack(index, 0), VRING_STATE.size)
            got, base = VRING_STATE.unpack(reply)
            if got != index:
                raise self._fail(f"stopped queue {got} instead of {index}")
            return int(base) & 0xFFFF

    def close(self) -> None:
        """Hangs up. Twice is harmless."""
        with self.lock:
            self.failed = self.failed or f"the vhost-user back end {self.name} was closed"
            self.sock.close()


def _close_all(rights: list[tuple[int, int, bytes]]) -> None:
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            for (fd,) in struct.iter_unpack("i", data[: len(data) // 4 * 4]):
                os.close(fd)
