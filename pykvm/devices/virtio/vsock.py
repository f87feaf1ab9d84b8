"""`VirtioVsock`: the socket device (VIRTIO 1.2, section 5.10), with Unix sockets on the host."""

from __future__ import annotations

import os
import socket
from collections import deque

from pykvm.devices.base import Clock, MonotonicClock
from pykvm.devices.block.raw import split
from pykvm.devices.state import StateReader
from pykvm.devices.vhost.poller import Poller
from pykvm.devices.virtio.buffers import scatter
from pykvm.devices.virtio.device import Commit, Transport, VirtioDevice
from pykvm.devices.virtio.queue import QueueError, VirtQueue
from pykvm.devices.virtio.vsock_connection import Connection
from pykvm.devices.virtio.vsock_host import HostSide, VsockError
from pykvm.devices.virtio.vsock_packets import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER_SIZE,
    HOST_CID,
    PAYLOAD_LIMIT,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    STREAM,
    Header,
    unpack,
)
from pykvm.memory import GuestMemory

DEVICE_ID = 19
F_STREAM = 1 << 0
RX, TX, EVENT = 0, 1, 2
TRANSPORT_RESET = 0
_QUEUE_SIZES = (256, 256, 8)
_ANSWERS = 256  # RSTs that wait for a buffer; with more of them the guest's packets wait
_PACKETS = 512  # that one call sends or takes before others have their turn
_FIRST_PORT, _LAST_PORT = 1 << 30, (1 << 31) - 1  # of connections that the host makes
_PATIENCE_NS = 10_000_000_000  # for a guest to accept, for a peer to say its port


class VirtioVsock(VirtioDevice):
    """Stream sockets between the guest and Unix sockets of the host; `vsock_host` has the names.

    - `cid`: the guest's address, 3 to 2^32 - 2.
    - `path`: where the host's programs connect to the guest; services are at PATH_port.
    - `connections`: how many there can be; one more is refused.
    - `buffer`: bytes that a connection keeps for a host program that does not read.

    Connections do not survive a snapshot: the driver is told so by a TRANSPORT_RESET event
    (5.10.6.7) when a state is loaded. Raises `VsockError`.
    """

    def __init__(
        self, cid: int, path: str | os.PathLike[str], *, connections: int = 1024,
        buffer: int = 128 << 10, clock: Clock | None = None, name: str = "virtio-vsock",
    ) -> None:  # fmt: skip
        if not 3 <= cid <= 0xFFFF_FFFE:
            raise VsockError(f"CID {cid} cannot be a guest's; choose 3 to 4294967294")
        super().__init__(DEVICE_ID, _QUEUE_SIZES, F_STREAM)
        self.name = name
        self.cid = cid
        self.limit, self.buffer = connections, buffer
        self._own_clock: MonotonicClock | None = None
        if clock is None:
            clock = self._own_clock = MonotonicClock()
        self._clock = clock
        self._timer = clock.timer(self._late)
        self.poller = Poller()
        try:
            self.host = HostSide(
                os.fspath(path), self.poller, self._to_guest,
                lifetime_ns=_PATIENCE_NS, now=clock.now_ns,
            )  # fmt: skip
        except BaseException:
            self.poller.close()
            raise
        self.connections: dict[tuple[int, int], Connection] = {}  # by guest port, host port
        self._waiting: dict[Connection, int] = {}  # for the guest's answer -> deadline in ns
        self._ready: dict[Connection, None] = {}  # have packets for the guest, in turn
        self._answers: deque[Header] = deque()
        self._stalled = False  # the guest's packets wait for room for our answers
        self._loaded = self._quiet = self._closed = False
        self._next_port = _FIRST_PORT
        #: Packets to and from the guest, and those of the guest's that were dropped.
        self.packets_sent = self.packets_taken = self.packets_dropped = 0

    def config(self) -> bytes:
        """The guest's CID (5.10.4)."""
        return self.cid.to_bytes(8, "little")

    # -- what calls the device ---------------------------------------------------------------------

    def attach(self, transport: Transport, memory: GuestMemory) -> None:
        """As the base class; from now on the host's sockets are looked at."""
        super().attach(transport, memory)
        if self.io is not None:
            self.io.add(self.poller.fileno(), self.poll)

    def activated(self) -> None:
        """The host's programs are let in."""
        self.host.open()

    def handle(self, queue: VirtQueue) -> None:
        """Packets of the guest, or buffers for those to it."""
        if queue.index == EVENT:
            self._say_reset()
        elif queue.index == TX:
            self._take_packets()
        self._fill()

    def poll(self, timeout: float = 0) -> int:
        """Serves the host's sockets, waiting up to `timeout` seconds for something to do.

        The I/O thread calls it; without one, the owner of the device does. How many events it was.
        """
        with self.lock:
            if self._quiet:
                return 0
            count = self.poller.poll(timeout)
            self._guarded(self._fill)
            self._arm_timer()
            return count

    def _late(self) -> None:
        """Somebody took too long."""
        with self.lock:
            if self._quiet:
                return
            now = self._clock.now_ns()
            self.host.expire(now)
            for connection in [c for c, deadline in self._waiting.items() if deadline <= now]:
                connection.reset()
            self._guarded(self._fill)
            self._arm_timer()

    def _arm_timer(self) -> None:
        deadlines = [d for d in (self.host.deadline, *self._waiting.values()) if d is not None]
        if deadlines:
            self._timer.arm(min(deadlines))
        else:
            self._timer.cancel()

    # -- the guest's packets -----------------------------------------------------------------------

    def _take_packets(self) -> None:
        queue = self.queues[TX]
        try:
            for _ in range(_PACKETS):
                if len(self._answers) >= _ANSWERS:
                    self._stalled = True
                    return
                chain = queue.pop()
                if chain is None:
                    return
                if chain.writable or chain.readable_bytes < HEADER_SIZE:
                    raise QueueError(
                        f"{self.name}: a packet of {chain.readable_bytes} bytes for reading and "
                        f"{chain.writable_bytes} for writing"
                    )
                head, payload = split(chain.readable, HEADER_SIZE)
                header = unpack(b"".join(head))
                if header.len > min(PAYLOAD_LIMIT, chain.readable_bytes - HEADER_SIZE):
                    raise QueueError(
                        f"{self.name}: a packet says that it has {header.len} bytes of data, but "
                        f"{chain.readable_bytes - HEADER_SIZE} follow (at most {PAYLOAD_LIMIT})"
                    )
                self._packet(header, split(payload, header.len)[0])
                queue.push(chain, 0)
            if self.io is not None:
                self.io.post(lambda: self.kick(TX))  # others have their turn
            else:
                self._stalled = True
        finally:
            self.finish(queue)
            self._arm_timer()

    def _packet(self, header: Header, payload: list[memoryview]) -> None:
        self.packets_taken += 1
        if header.src_cid != self.cid or header.dst_cid != HOST_CID:
            self.packets_dropped += 1  # from or to nobody: there is no one to answer
            return
        if header.type != STREAM:
            self._refuse(header)
            return
        key = header.src_port, header.dst_port
        connection = self.connections.get(key)
        if connection is None:
            if header.op == REQUEST:
                self._to_host(header)
            else:
                self._refuse(header)
            return
        if header.op == RST:
            connection.close()
            self.ended(connection, tell=False)
        elif not connection.established:
            if header.op == RESPONSE:
                del self._waiting[connection]
                self._accepted(connection, header)
            else:
                connection.reset()
        elif header.op in (RW, SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST):
            connection.peer_says(header)
            if header.op == RW:
                connection.receive(payload, header.len)
            elif header.op == SHUTDOWN:
                connection.guest_shut(header.flags)
            elif header.op == CREDIT_REQUEST:
                connection.want(CREDIT_UPDATE)
        else:  # unknown, or not now
            connection.reset()

    def _refuse(self, header: Header) -> None:
        """RST to whoever sent a packet that fits nothing; RST itself is not answered."""
        self.packets_dropped += 1
        if header.op != RST:
            answer = self.header(header.dst_port, header.src_port, RST)
            self._answers.append(answer._replace(type=header.type))

    # -- connections -------------------------------------------------------------------------------

    def _to_host(self, header: Header) -> None:
        """The guest connects to a service of the host."""
        room = len(self.connections) < self.limit
        sock = self.host.connect(header.dst_port) if room else None
        if sock is None:
            self._refuse(header)
            return
        connection = Connection(self, header.src_port, header.dst_port, sock)
        connection.established = connection.from_guest = True
        self.connections[header.src_port, header.dst_port] = connection
        connection.want(RESPONSE)
        connection.peer_says(header)

    def _to_guest(self, sock: socket.socket, port: int) -> None:
        """A program of the host connects to the guest."""
        if len(self.connections) >= self.limit or not self.active:
            sock.close()
            return
        while (port, self._next_port) in self.connections:
            self._advance_port()
        connection = Connection(self, port, self._next_port, sock)
        self._advance_port()
        self.connections[port, connection.host_port] = connection
        self._waiting[connection] = self._clock.now_ns() + _PATIENCE_NS
        connection.want(REQUEST)
        connection.arm()

    def _advance_port(self) -> None:
        self._next_port = _FIRST_PORT if self._next_port == _LAST_PORT else self._next_port + 1

    def _accepted(self, connection: Connection, header: Header) -> None:
        try:
            connection.sock.send(b"OK %d\n" % connection.host_port, socket.MSG_NOSIGNAL)
        except OSError:
            connection.reset()
            return
        connection.established = True
        connection.peer_says(header)

    def ended(self, connection: Connection, *, tell: bool) -> None:
        """A connection closed itself; `tell`: the guest gets RST, unless it never heard of it."""
        self.connections.pop((connection.guest_port, connection.host_port), None)
        self._waiting.pop(connection, None)
        self._ready.pop(connection, None)
        if tell and not connection.pending >> REQUEST & 1:
            self._answers.append(self.header(connection.host_port, connection.guest_port, RST))

    def header(
        self, host_port: int, guest_port: int, op: int, flags: int = 0, length: int = 0,
        forwarded: int = 0,
    ) -> Header:  # fmt: skip
        """Of a packet to the guest."""
        return Header(
            HOST_CID, self.cid, host_port, guest_port, length, STREAM, op, flags,
            0 if op == RST else self.buffer, forwarded,
        )  # fmt: skip

    # -- packets for the guest ---------------------------------------------------------------------

    def enqueue(self, connection: Connection) -> None:
        """A connection has a packet for the guest."""
        self._ready[connection] = None

    def _fill(self) -> None:
        """Puts what waits into the driver's buffers: answers first, connections in turn."""
        queue = self.queues[RX]
        try:
            for _ in range(_PACKETS):
                connection = self._next()
                if connection is None and not self._answers:
                    break
                chain = queue.pop()
                if chain is None:
                    if connection is not None:
                        self._ready[connection] = None
                    return
                if chain.readable or chain.writable_bytes <= HEADER_SIZE:
                    raise QueueError(
                        f"{self.name}: a buffer of {chain.writable_bytes} bytes for a packet"
                    )
                place, space = split(chain.writable, HEADER_SIZE)
                header: Header | None = None
                if connection is not None:
                    header = connection.compose(space)
                    if connection.has_packet:
                        self._ready[connection] = None
                if header is None:
                    header = self._answers.popleft()
                scatter(place, header.pack())
                self.packets_sent += 1
                queue.push(chain, HEADER_SIZE + header.len)
            else:
                if self.io is not None:
                    self.io.post(lambda: self.kick(RX))
        finally:
            self.finish(queue)
        if self._stalled and len(self._answers) < _ANSWERS:
            self._stalled = False
            self._take_packets()

    def _next(self) -> Connection | None:
        """Whose turn it is; None when answers come first or nobody has a packet."""
        if self._answers:
            return None
        while self._ready:
            connection = next(iter(self._ready))
            del self._ready[connection]
            if connection.has_packet:
                return connection
        return None

    def _say_reset(self) -> None:
        """The event that all connections are gone, once there is a buffer for it."""
        if not self._loaded:
            return
        queue = self.queues[EVENT]
        chain = queue.pop()
        if chain is None:
            return
        if chain.readable or chain.writable_bytes < 4:
            raise QueueError(f"{self.name}: an event buffer of {chain.writable_bytes} bytes")
        queue.push(chain, scatter(chain.writable, TRANSPORT_RESET.to_bytes(4, "little")))
        self._loaded = False
        self.finish(queue)

    # -- life --------------------------------------------------------------------------------------

    def needs_reset(self, why: str) -> None:
        """As the base class; the connections end, as nobody would look after them."""
        with self.lock:
            super().needs_reset(why)
            self._drop_all()

    def _drop_all(self) -> None:
        self.host.shut()
        for connection in list(self.connections.values()):
            connection.close()
        self.connections.clear()
        self._waiting.clear()
        self._ready.clear()
        self._answers.clear()
        self._stalled = False
        self._timer.cancel()

    def device_reset(self) -> None:
        """All connections end."""
        self._drop_all()
        self._loaded = False

    def quiesce(self) -> None:
        """Nothing is read from the host's sockets."""
        with self.lock:
            self._quiet = True
            self._timer.cancel()
            if self.io is not None and not self._closed:
                self.io.remove(self.poller.fileno())

    def unquiesce(self) -> None:
        """Goes on; after a load the driver hears that its connections are gone."""
        with self.lock:
            if self._closed:
                return
            self._quiet = False
            self._arm_timer()
            if self.io is not None:
                self.io.add(self.poller.fileno(), self.poll)
            if self.active:
                self._guarded(self._say_reset)

    def take(self, take: StateReader) -> Commit:
        """As the base class; connections are not part of a state."""
        base = super().take(take)

        def commit() -> None:
            base()
            self._loaded = self.active

        return commit

    def close(self) -> None:
        """Ends the connections; the socket's name disappears."""
        super().close()
        with self.lock:
            if self._closed:
                return
            self._closed = True
            if self.io is not None:
                self.io.remove(self.poller.fileno())
            self._drop_all()
            self.host.close()
            self.poller.close()
            if self._own_clock is not None:
                self._own_clock.close()
