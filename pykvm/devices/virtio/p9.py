"""`VirtioP9`: 9P messages between the guest and a server of the host (device type 9).

VIRTIO 1.2 reserves the type (section 5) and leaves its description to the drivers: one queue, each
request a T message and room for the R message; the configuration is the tag by which the guest
mounts. The messages are 9P2000.L (diod's protocol.md).
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import deque

from pykvm.devices.block.raw import split
from pykvm.devices.vhost.poller import READ, WRITE, Poller
from pykvm.devices.virtio.buffers import gather, scatter
from pykvm.devices.virtio.device import Transport, VirtioDevice
from pykvm.devices.virtio.p9_messages import (
    HEAD,
    MESSAGE_LIMIT,
    RFLUSH,
    TATTACH,
    TFLUSH,
    TVERSION,
    error_reply,
    flushed_tag,
    pack_attach,
)
from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue
from pykvm.errors import PykvmError
from pykvm.memory import GuestMemory
from pykvm.typed import Protocol

DEVICE_ID = 9
F_MOUNT_TAG = 1 << 0
_QUEUE_SIZE = 128
_TAG_LIMIT = 255
_ROOM = 11  # the least that a reply needs: an error
_PATIENCE_S = 3.0  # for requests in flight when the device has to stand still


class P9Server(Protocol):
    """What starts and stops the server: `vhost.diod.Diod`, or a test's."""

    @property
    def aname(self) -> bytes:
        """What the guest is attached to, whatever it asks for."""

    @property
    def user(self) -> int | None:
        """The user that it is attached as, None: whom it says."""

    def start(self) -> socket.socket:
        """A new server; the connection to it. Raises `PykvmError`."""

    def stop(self) -> None:
        """Ends it. Twice is harmless."""


class VirtioP9(VirtioDevice):
    """A folder that the guest mounts: `mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`.

    Requests go to the server as they come, many at once; replies are read straight into the
    driver's buffers. The server is started with the guest's first request. If it dies, what was in
    flight and what follows gets EIO, until the guest mounts again. A session (open files) is not
    part of a saved state: after a load the guest has to mount again.
    """

    def __init__(self, server: P9Server, tag: str = "share", *, name: str = "virtio-9p") -> None:
        raw = tag.encode()
        if not 1 <= len(raw) <= _TAG_LIMIT or b"\0" in raw:
            raise ValueError(f"the tag {tag!r} is not 1 to {_TAG_LIMIT} bytes of text")
        super().__init__(DEVICE_ID, [_QUEUE_SIZE], F_MOUNT_TAG)
        self.name = name
        self.tag = tag
        self._config = struct.pack("<H", len(raw)) + raw
        self.server = server
        self.poller = Poller()
        self._sock: socket.socket | None = None
        self._lost = False  # the server died; EIO until there is a new session
        self._quiet = self._closed = False
        #: Requests that the server has: tag -> (chain, the tag that a Tflush is about).
        self._flying: dict[int, tuple[Chain, int | None]] = {}
        self._out: deque[list[memoryview]] = deque()  # messages that are not sent yet
        self._forget_reply()
        #: Requests taken, and those that were answered with an error here.
        self.requests = self.refused = 0

    def config(self) -> bytes:
        """Length and text of the tag."""
        return self._config

    # -- what calls the device ---------------------------------------------------------------------

    def attach(self, transport: Transport, memory: GuestMemory) -> None:
        """As the base class; from now on the server's replies are looked at."""
        super().attach(transport, memory)
        if self.io is not None:
            self.io.add(self.poller.fileno(), self.poll)

    def handle(self, queue: VirtQueue) -> None:
        """Every request that is there goes to the server."""
        try:
            while (chain := queue.pop()) is not None:
                self.requests += 1
                self._request(chain)
        finally:
            self._send()
            self.finish(queue)

    def poll(self, timeout: float = 0) -> int:
        """Serves the server's socket, waiting up to `timeout` seconds; how many events it was."""
        with self.lock:
            count = self.poller.poll(timeout)
            self.finish(self.queues[0])
            return count

    # -- requests ----------------------------------------------------------------------------------

    def _request(self, chain: Chain) -> None:
        have, room = chain.readable_bytes, chain.writable_bytes
        if have < HEAD.size or room < _ROOM:
            raise QueueError(f"{self.name}: a request of {have} bytes with {room} for the reply")
        head = gather(chain.readable, HEAD.size)
        size, kind, tag = HEAD.unpack(head)
        if not HEAD.size <= size <= min(have, MESSAGE_LIMIT):
            raise QueueError(
                f"{self.name}: a message says that it has {size} bytes, and has {have} (at most "
                f"{MESSAGE_LIMIT})"
            )
        if tag in self._flying:
            self._refuse(chain, tag, errno.EINVAL)
            return
        if kind == TVERSION and self._sock is not None:
            self._hang_up()  # a new session: by a new server, whatever the guest did to the old
        if self._sock is None and not self._begin(kind):
            self._refuse(chain, tag, errno.EIO)
            return
        rest = split(split(chain.readable, size)[0], HEAD.size)[1]
        about = None
        if kind == TATTACH:
            message = pack_attach(tag, b"".join(rest), self.server.aname, self.server.user)
            if message is None:
                self._refuse(chain, tag, errno.EINVAL)
                return
            self._out.append([memoryview(message)])
        else:
            if kind == TFLUSH:
                about = flushed_tag(gather(rest, 2))
            self._out.append([memoryview(head), *rest])
        self._flying[tag] = chain, about

    def _refuse(self, chain: Chain, tag: int, number: int) -> None:
        """Rlerror from here."""
        self.refused += 1
        self.queues[0].push(chain, scatter(chain.writable, error_reply(tag, number)))

    def _send(self) -> None:
        sock = self._sock
        while sock is not None and self._out:
            views = self._out[0]
            try:
                count = sock.sendmsg(views[:512], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError as error:
                self._server_died(error.strerror or str(error))
                return
            left = split(views, count)[1]
            if left:
                self._out[0] = left
            else:
                self._out.popleft()
        self._arm()

    def _arm(self) -> None:
        if self._sock is not None:
            events = READ | (WRITE if self._out else 0)
            self.poller.watch(self._sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._send()
        if events & ~WRITE:
            self._receive()

    # -- replies -----------------------------------------------------------------------------------

    def _forget_reply(self) -> None:
        self._head = bytearray()
        self._reply: Chain | None = None  # whose reply is being read
        self._space: list[memoryview] = []  # where the rest of it goes
        self._left = self._size = 0  # bytes of it to come, and in all
        self._too_large = False

    def _receive(self) -> None:
        while self._sock is not None:
            try:
                if len(self._head) < HEAD.size:
                    piece = self._sock.recv(HEAD.size - len(self._head))
                    if not piece:
                        self._server_died("it ended")
                        return
                    self._head += piece
                    if len(self._head) < HEAD.size or not self._begin_reply():
                        continue
                if self._left:
                    if self._space:
                        count = self._sock.recvmsg_into(split(self._space, self._left)[0][:512])[0]
                        self._space = split(self._space, count)[1]
                    else:
                        count = len(self._sock.recv(min(self._left, 1 << 16)))  # for nobody
                    if not count:
                        self._server_died("it ended in the middle of a reply")
                        return
                    self._left -= count
                if not self._left:
                    self._end_reply()
            except BlockingIOError:
                return
            except OSError as error:
                self._server_died(error.strerror or str(error))
                return

    def _begin_reply(self) -> bool:
        size, _, tag = HEAD.unpack(self._head)
        if not HEAD.size <= size <= MESSAGE_LIMIT:
            self._server_died(f"it sent a message of {size} bytes")
            return False
        self._size, self._left = size, size - HEAD.size
        self._reply = self._flying[tag][0] if tag in self._flying else None
        if self._reply is None:
            return True  # late, after a flush: read and forgotten
        self._too_large = size > self._reply.writable_bytes
        if not self._too_large:
            place, self._space = split(self._reply.writable, HEAD.size)
            scatter(place, bytes(self._head))
        return True

    def _end_reply(self) -> None:
        _, kind, tag = HEAD.unpack(self._head)
        chain, size, too_large = self._reply, self._size, self._too_large
        self._forget_reply()
        if chain is None:
            return
        _, about = self._flying.pop(tag)
        if kind == RFLUSH and about is not None and about in self._flying:
            # That request is over, and has no reply; its buffers are the driver's again.
            self.queues[0].push(self._flying.pop(about)[0], 0)
        if too_large:
            self._refuse(chain, tag, errno.EMSGSIZE)
        else:
            self.queues[0].push(chain, size)

    # -- the server --------------------------------------------------------------------------------

    def _begin(self, kind: int) -> bool:
        """Starts the server, if this is where a session can begin."""
        if self._lost and kind != TVERSION:
            return False
        try:
            self._sock = self.server.start()
        except PykvmError as error:
            self._lost = True
            self.complain(f"{self.name}: {error}")
            return False
        self._lost = False
        self._sock.setblocking(False)
        self._arm()
        return True

    def _server_died(self, why: str) -> None:
        self.complain(f"{self.name}: the file server is gone ({why}); the guest has to mount again")
        self._hang_up()
        self._lost = True

    def _hang_up(self) -> None:
        """Ends the session; what is in flight gets EIO."""
        flying, self._flying = self._flying, {}
        self._out.clear()
        self._forget_reply()
        if self._sock is not None:
            self.poller.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self.server.stop()
        for tag, (chain, _) in flying.items():
            self._refuse(chain, tag, errno.EIO)

    # -- life --------------------------------------------------------------------------------------

    def quiesce(self) -> None:
        """Waits for the replies that are due; those that do not come in time become EIO."""
        end = time.monotonic() + _PATIENCE_S
        with self.lock:
            if self.io is not None and not self._closed:
                self.io.remove(self.poller.fileno())
            while self._flying and not self._closed and time.monotonic() < end:
                self.poll(0.1)
            if self._flying:
                self.complain(f"{self.name}: {len(self._flying)} requests took too long")
                self._hang_up()
                self.finish(self.queues[0])

    def unquiesce(self) -> None:
        """Goes on."""
        with self.lock:
            if self.io is not None and not self._closed:
                self.io.add(self.poller.fileno(), self.poll)

    def device_reset(self) -> None:
        """The session ends; the next request begins another."""
        self._flying.clear()
        self._hang_up()
        self._lost = False

    def close(self) -> None:
        """Ends the server."""
        super().close()
        with self.lock:
            if self._closed:
                return
            self._closed = True
            if self.io is not None:
                self.io.remove(self.poller.fileno())
            self._flying.clear()
            self._hang_up()
            self.server.stop()
            self.poller.close()
