"""`Connection`: one stream between a port in the guest and a Unix socket on the host.

Both directions are bounded by credit (VIRTIO 1.2, section 5.10.6.3). Towards the host, at most
`buffer` bytes wait for a slow reader; the guest was told that number, and sending more breaks the
connection. Towards the guest nothing is kept: bytes are read from the socket into the
driver's buffers, as many as the guest has room for.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

from pykvm.devices.block.raw import split
from pykvm.devices.vhost.poller import HANGUP, READ, WRITE
from pykvm.devices.virtio.vsock_packets import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    MASK32,
    PAYLOAD_LIMIT,
    REQUEST,
    RESPONSE,
    RW,
    SHUT_RECEIVE,
    SHUT_SEND,
    SHUTDOWN,
    Header,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.virtio.vsock import VirtioVsock

BOTH = SHUT_RECEIVE | SHUT_SEND
# In this order packets other than data go out.
_ORDER = (REQUEST, RESPONSE, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN)


class Connection:
    """One stream. Its device calls it under the device's lock."""

    def __init__(
        self, device: VirtioVsock, guest_port: int, host_port: int, sock: socket.socket
    ) -> None:
        self.device = device
        self.guest_port, self.host_port = guest_port, host_port
        self.sock = sock
        self.sock.setblocking(False)
        self.established = False
        #: Whether it was asked for by the guest.
        self.from_guest = False
        #: Packets to send, a bit for each operation.
        self.pending = 0
        self.to_host = bytearray()
        self.received = self.forwarded = 0  # bytes from the guest: all, and those the host took
        self.told = 0  # `forwarded` as the guest knows it
        self.sent = 0  # bytes to the guest
        self.peer_alloc = self.peer_forwarded = 0
        self.peer_shut = 0  # SHUT_*, what the guest said
        self.shut = 0  # SHUT_*, what the guest was told
        self._shut_flags = 0  # of a SHUTDOWN that is pending
        self._readable = False
        self._asked = False  # for credit, since there was none
        self._hup = False
        self.dead = False

    # -- credit ------------------------------------------------------------------------------------

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        flying = self.sent - self.peer_forwarded & MASK32
        return max(0, self.peer_alloc - flying)

    def peer_says(self, header: Header) -> None:
        """Every packet of the guest brings its credit."""
        self.peer_alloc, self.peer_forwarded = header.buf_alloc, header.fwd_cnt
        if self.credit:
            self._asked = False
        self.arm()

    def _took(self, count: int) -> None:
        """The host took bytes; the guest hears of it when a quarter of the buffer is free again."""
        self.forwarded = self.forwarded + count & MASK32
        if (self.forwarded - self.told & MASK32) * 4 >= self.device.buffer:
            self.want(CREDIT_UPDATE)

    # -- from the guest ----------------------------------------------------------------------------

    def receive(self, views: list[memoryview], count: int) -> None:
        """Data of one RW packet."""
        if not self.established or self.peer_shut & SHUT_SEND:
            self.reset()
            return
        waiting = self.received - self.forwarded & MASK32
        if waiting + count > self.device.buffer:
            self.device.complain(
                f"{self.device.name}: guest port {self.guest_port} sent {count} bytes without "
                "credit; the connection is reset"
            )
            self.reset()
            return
        self.received = self.received + count & MASK32
        done = 0
        if not self.to_host:
            try:
                done = self.sock.sendmsg(views[:1024], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                pass
            except OSError:
                self.reset()
                return
        for view in views:
            if done < len(view):
                self.to_host += view[done:]
            done = max(0, done - len(view))
        self._took(count - len(self.to_host) if waiting == 0 else 0)
        self.arm()

    def _flush(self) -> None:
        try:
            count = self.sock.send(self.to_host, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self.reset()
            return
        del self.to_host[:count]
        self._took(count)
        self._settle()

    def guest_shut(self, flags: int) -> None:
        """The guest will not receive, or not send, any more; there is no way back."""
        self.peer_shut |= flags & BOTH
        if self.peer_shut & SHUT_RECEIVE:
            self._quietly(socket.SHUT_RD)
            self._readable = False
        self._settle()
        self.arm()

    def _settle(self) -> None:
        """What a SHUTDOWN of the guest means, once the host has all the data."""
        if not self.to_host and self.peer_shut & SHUT_SEND:
            self._quietly(socket.SHUT_WR)
            if self.peer_shut == BOTH:  # 5.10.6.5: a clean end is answered by RST
                self.reset()

    def _quietly(self, how: int) -> None:
        try:
            self.sock.shutdown(how)
        except OSError:  # it is not connected any more
            pass

    # -- to the guest ------------------------------------------------------------------------------

    def want(self, operation: int) -> None:
        """A packet shall go out."""
        if not self.dead:
            self.pending |= 1 << operation
            self.device.enqueue(self)

    def reset(self) -> None:
        """The end: nothing more goes to the host, the guest gets RST."""
        if not self.dead:
            self.close()
            self.device.ended(self, tell=True)

    def close(self) -> None:
        """Gives the socket back."""
        self.dead = True
        self.device.poller.forget(self.sock.fileno())
        self.sock.close()
        self.to_host.clear()

    def _say_shutdown(self, flags: int) -> None:
        if flags & ~(self.shut | self._shut_flags):
            self._shut_flags |= flags
            self.want(SHUTDOWN)

    @property
    def has_packet(self) -> bool:
        """Whether there is something to put into a buffer of the guest."""
        return not self.dead and (bool(self.pending) or (self._readable and self.credit > 0))

    def compose(self, space: list[memoryview]) -> Header | None:
        """The next packet's header; data is read straight into `space` (the driver's buffers).

        None where the connection ended instead. Only to be called when there `has_packet`.
        """
        if not self.pending:
            room = min(sum([len(view) for view in space]), self.credit, PAYLOAD_LIMIT)
            count = self._read(split(space, room)[0], room)
            if self.dead:
                return None
            if count:
                self.arm()
                return self._header(RW, 0, count)
            # Nothing was there, or the end; the buffer is taken already, so something goes out.
            if not self.pending:
                self.pending = 1 << CREDIT_UPDATE
        operation = next(op for op in _ORDER if self.pending >> op & 1)
        self.pending &= ~(1 << operation)
        flags = 0
        if operation == SHUTDOWN:
            flags = self.shut = self.shut | self._shut_flags
        self.arm()
        return self._header(operation, flags)

    def _read(self, views: list[memoryview], limit: int) -> int:
        self._readable = False
        try:
            count = self.sock.recvmsg_into(views[:1024])[0]
        except BlockingIOError:
            return 0
        except OSError:
            self.reset()
            return 0
        if count == 0:
            self._say_shutdown(BOTH if self._hup else SHUT_SEND)
            return 0
        self.sent = self.sent + count & MASK32
        if count == limit:
            raw = fcntl.ioctl(self.sock, termios.FIONREAD, b"\0\0\0\0")
            self._readable = struct.unpack("i", raw)[0] > 0
        if not self.credit and not self._asked:
            # Once per drought: an answer without credit is no reason to ask again.
            self._asked = True
            self.want(CREDIT_REQUEST)
        return count

    def _header(self, operation: int, flags: int = 0, length: int = 0) -> Header:
        self.told = self.forwarded  # it comes with every packet
        self.pending &= ~(1 << CREDIT_UPDATE)
        return self.device.header(
            self.host_port, self.guest_port, operation, flags, length, self.forwarded
        )

    # -- the socket --------------------------------------------------------------------------------

    def arm(self) -> None:
        """Waits for what can be used: data that the guest has room for, room for its data."""
        if self.dead:
            return
        wanted = WRITE if self.to_host else 0
        if self._readable:
            if self.credit:
                self.device.enqueue(self)
        elif (
            self.established
            and self.credit
            and not (self.shut | self._shut_flags) & SHUT_SEND
            and not self.peer_shut & SHUT_RECEIVE
        ):
            wanted |= READ
        if wanted or not self._hup:
            self.device.poller.watch(self.sock.fileno(), wanted, self._ready)
        else:
            self.device.poller.forget(self.sock.fileno())  # its hang-up would come for ever

    def _ready(self, events: int) -> None:
        if events & HANGUP:
            self._hup = True
            if not self.established:
                self.reset()  # who connected to the guest went away before it answered
                return
            if (self.shut | self._shut_flags) & SHUT_SEND:
                self._say_shutdown(BOTH)
        if events & WRITE and self.to_host:
            self._flush()
        if self.dead:
            return
        if events & READ:
            self._readable = True
        self.arm()
