"""Networks without a host: frames in lists for tests and labs, and a cable back to itself."""

from __future__ import annotations

import os
import socket

from pykvm.devices.net.backend import NetBackend
from pykvm.devices.net.ports import PacketPort, Port
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SOCKET_BUFFER = 4 << 20
_WAITING = 4096  # frames


class MemoryNet(NetBackend):
    """The far end of a cable is a Python object: `inject` frames, `take` what the guest sent.

    With `header`, frames carry a virtio-net header, with the `offloads` given.
    """

    name = "memory"
    reconnects = True

    def __init__(
        self, *, queues: int = 1, header: bool = False, offloads: int = 0, mtu: int | None = None
    ) -> None:
        super().__init__()
        self.max_queues = queues
        self.offloads = offloads
        self.mtu = mtu
        self._with_header = header
        self.far: list[socket.socket] = []
        self.pairs = 1
        self._next: list[Port] = []
        self.plug()
        self.reconnect()

    def plug(self) -> None:
        """A new cable, after `unplug`; `reconnect` finds it."""
        ports: list[Port] = []
        for _ in range(self.max_queues):
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            far.setblocking(False)
            self.far.append(far)
            ports.append(PacketPort(near.detach(), 12 if self._with_header else 0, ends=True))
        self._next = ports

    def unplug(self) -> None:
        """The far end goes away."""
        for end in self.far:
            end.close()
        self.far = []

    def start(self, header: int, offloads: int) -> None:
        """Remembers what the driver accepted."""
        self.accepted = offloads
        if self._with_header:
            for port in self.ports:
                port.header = header

    def set_queues(self, pairs: int) -> None:
        """Remembers it."""
        self.pairs = pairs

    def reconnect(self) -> bool:
        """True after `plug`."""
        if not self._next:
            return False
        self.ports, self._next = self._next, []
        return True

    def inject(self, frame: bytes, queue: int = 0) -> bool:
        """A frame for the guest; false if too many wait already."""
        try:
            self.far[queue].send(frame)
        except BlockingIOError:
            return False
        return True

    def take(self, queue: int = 0) -> list[bytes]:
        """What the guest sent since the last call."""
        found = []
        while True:
            try:
                found.append(self.far[queue].recv(1 << 17))
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Both ends."""
        super().close()
        for port in self._next:
            port.close()
        self._next = []
        self.unplug()


class _CallPort(Port):
    """A port of Python functions, with an eventfd that is readable while frames wait."""

    def __init__(self, transmit: Callable[[bytes], object]) -> None:
        self._transmit = transmit
        self._frames: list[bytes] = []
        self.dropped = 0
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def feed(self, frame: bytes) -> None:
        if len(self._frames) >= _WAITING:
            self.dropped += 1
            return
        self._frames.append(frame)
        os.eventfd_write(self.event, 1)

    def receive(self) -> bytes | None:
        """The frame that waits longest."""
        if self._frames:
            return self._frames.pop(0)
        try:
            os.eventfd_read(self.event)
        except BlockingIOError:
            return None
        return self._frames.pop(0) if self._frames else None  # came in between

    def send(self, parts: Sequence[memoryview | bytes]) -> bool:
        """To the function."""
        self._transmit(b"".join(parts))
        return True

    def close(self) -> None:
        if self.event >= 0:
            os.close(self.event)
            self.event = -1


class CallNet(NetBackend):
    """Frames go to the function `transmit`; `feed` gives frames to the guest. For labs."""

    name = "call"
    native = False

    def __init__(self, transmit: Callable[[bytes], object]) -> None:
        super().__init__()
        self._port = _CallPort(transmit)
        self.ports = [self._port]

    def feed(self, frame: bytes) -> None:
        """A frame for the guest; dropped if 4096 wait already."""
        self._port.feed(frame)


class Loopback(CallNet):
    """Every frame comes back."""

    name = "loopback"

    def __init__(self) -> None:
        super().__init__(lambda frame: self.feed(frame))
