"""Ports: how the frames of one queue pair go in and out of the host.

A frame may have a virtio-net header of `header` bytes in front. The native data path uses `fd` and
`stream` and does the same in C; a port is used by one of the two.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from pykvm.devices.net.backend import MAX_FRAME, MAX_HEADER
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.datapath.net import StreamState

_AGAIN = (errno.EAGAIN, errno.ENOBUFS)
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.EBADFD, errno.ENODEV)
_LENGTH = struct.Struct(">I")
_IOV_MAX = 1024
_READ = 1 << 16


class PortLostError(PykvmError):
    """The other side closed, or broke the protocol: nothing more will come or go."""


class Port:
    """Base of the ports. `fd` is -1 where there is none to wait for and read."""

    fd = -1
    stream = False
    #: Whether an empty read means that the peer has closed.
    ends = False
    header = 0
    #: A frame that was received and could not be delivered before the data path stopped.
    kept: bytes | None = None
    #: The native data path's parts of frames, for streams.
    state: StreamState | None = None

    def receive(self) -> bytes | bytearray | None:
        """The next frame with its header, None when there is none now. Raises `PortLostError`."""
        return None

    def send(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Sends a frame with its header; false: no room now, try again later.

        Raises `PortLostError`, and `OSError` for a frame that the host refuses.
        """
        return True

    @property
    def blocked(self) -> bool:
        """Whether a part of a frame still has to go out before anything else."""
        return False

    def push(self) -> bool:
        """Sends what is left of a frame; true when nothing is left. Raises `PortLostError`."""
        return True

    def close(self) -> None:
        """Closes the fd."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class PacketPort(Port):
    """An fd on which one read or write is one frame: TAP, datagram and seqpacket sockets.

    It takes over the fd and makes it non-blocking.
    """

    def __init__(self, fd: int, header: int = 0, *, ends: bool = False) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.header = header
        self.ends = ends
        self._buffer = bytearray(MAX_HEADER + MAX_FRAME)

    def receive(self) -> bytes | bytearray | None:
        """One read."""
        try:
            count = os.readv(self.fd, [self._buffer])
        except OSError as error:
            if error.errno in _GONE:
                raise PortLostError(os.strerror(error.errno)) from None
            return None  # nothing there, or an error that was pending for an earlier send
        if count == 0 and self.ends:
            raise PortLostError("the peer closed")
        return self._buffer[:count]

    def send(self, parts: Sequence[memoryview | bytes]) -> bool:
        """One write."""
        if len(parts) > _IOV_MAX:
            parts = [b"".join(parts)]
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno in _AGAIN:
                return False
            if error.errno in _GONE:
                raise PortLostError(os.strerror(error.errno)) from None
            raise
        return True


class StreamPort(Port):
    """A stream socket with 4 bytes of length (big endian) before each frame, as passt has it.

    A length that no frame has ends the connection, since nothing after it could be understood.
    """

    stream = True

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = connection.detach()
        self._in = bytearray()
        self._out = memoryview(b"")

    def receive(self) -> bytes | None:
        """The next whole frame."""
        while True:
            have = self._in
            need = 4
            if len(have) >= 4:
                length = _LENGTH.unpack_from(have)[0]
                if not 1 <= length <= MAX_FRAME:
                    raise PortLostError(f"the peer announced a frame of {length} bytes")
                need = 4 + length
                if len(have) >= need:
                    frame = bytes(have[4:need])
                    del have[:need]
                    return frame
            try:
                more = os.read(self.fd, max(_READ, need - len(have)))
            except BlockingIOError:
                return None
            except OSError as error:
                raise PortLostError(os.strerror(error.errno or errno.EIO)) from None
            if not more:
                raise PortLostError("the peer closed")
            have += more

    @property
    def blocked(self) -> bool:
        """Part of a frame is still to be sent."""
        return len(self._out) > 0

    def push(self) -> bool:
        """Sends more of it."""
        while self._out:
            count = self._write([self._out])
            if count == 0:
                return False
            self._out = self._out[count:]
        return True

    def send(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Sends a frame; what the socket does not take at once is kept, at most one frame."""
        if not self.push():
            return False
        length = sum([len(part) for part in parts])
        all_parts = [_LENGTH.pack(length), *parts]
        if len(all_parts) > _IOV_MAX:
            all_parts = [b"".join(all_parts)]
        count = self._write(all_parts)
        if count == 0:
            return False
        if count < 4 + length:
            self._out = memoryview(b"".join(all_parts))[count:]
        return True

    def _write(self, parts: Sequence[memoryview | bytes]) -> int:
        try:
            return os.writev(self.fd, parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PortLostError(os.strerror(error.errno or errno.EIO)) from None
