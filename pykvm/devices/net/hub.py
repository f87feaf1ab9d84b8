"""A hub: an Ethernet switch behind a Unix socket, which joins VMs, TAPs and network namespaces.

Members speak the stream protocol (`ports.StreamPort`), so QEMU's `-netdev stream` and `socat` can
join. The first VM with `hub=PATH` makes it, in its own process; when that one ends, the first to
notice makes it anew and the others join again. Frames go where their target was seen last, or to
all. A member that does not read loses frames; it holds up nobody and nothing is kept for it but the
rest of one frame.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress

from pykvm.datapath.loop import IoThread
from pykvm.devices.net.backend import NetBackend, NetError
from pykvm.devices.net.ports import Port, PortLostError, StreamPort
from pykvm.devices.net.stream import StreamNet, listen_unix, prepare

MAX_MEMBERS = 64
MAX_ADDRESSES = 4096
_BATCH = 64  # frames from one member, before the others have their turn


class _Member:
    def __init__(self, name: str, port: Port) -> None:
        self.name = name
        self.port = port
        self.out_fd = os.dup(port.fd)  # waits for room, while `port.fd` waits for frames
        self.waiting = False
        self.received = self.sent = self.dropped = 0


class Hub:
    """The switch, listening at the Unix socket `path`. Raises `NetError`.

    `members` counts frames by member. `add(backend)` joins a TAP or a network namespace.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._listener = listen_unix(self.path)
        except OSError as error:
            raise NetError(f"no hub can be made at {self.path}: {error.strerror}") from error
        self._members: list[_Member] = []
        self._backends: list[NetBackend] = []
        self._places: dict[bytes, _Member] = {}
        self._number = 0
        self._closed = False
        #: Frames whose member or protocol was bad, and members that were refused.
        self.bad = self.refused = 0
        self.io = IoThread("pykvm-hub")
        self.io.add(self._listener.fileno(), self._accept)

    @property
    def members(self) -> dict[str, dict[str, int]]:
        """Frames by member: received from it, sent to it, dropped as it did not read."""
        return {
            m.name: {"received": m.received, "sent": m.sent, "dropped": m.dropped}
            for m in list(self._members)
        }

    def add(self, backend: NetBackend) -> None:
        """Joins a back end's first port, such as a `Tap`; it is closed with the hub."""
        self._backends.append(backend)
        backend.start(0, 0)
        self.io.call(lambda: self._join(backend.describe(), backend.ports[0]))

    def close(self) -> None:
        """Everybody out. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self.io.stop()
        self._listener.close()
        with suppress(OSError):
            os.unlink(self.path)
        for member in list(self._members):
            self._drop(member)
        for backend in self._backends:
            backend.close()

    # -- on the thread -------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._members) >= MAX_MEMBERS:
            self.refused += 1
            connection.close()
            return
        self._number += 1
        self._join(f"member {self._number}", StreamPort(prepare(connection)))

    def _join(self, name: str, port: Port) -> None:
        member = _Member(name, port)
        self._members.append(member)
        self.io.add(port.fd, lambda: self._serve(member))

    def _drop(self, member: _Member) -> None:
        if member not in self._members:
            return
        self._members.remove(member)
        if not self._closed:
            self.io.remove(member.port.fd)
            self.io.remove(member.out_fd)
        os.close(member.out_fd)
        member.port.close()
        for address in [a for a, m in self._places.items() if m is member]:
            del self._places[address]

    def _serve(self, member: _Member) -> None:
        try:
            for _ in range(_BATCH):
                frame = member.port.receive()
                if frame is None:
                    return
                member.received += 1
                self._forward(member, bytes(frame))
        except PortLostError:
            self._drop(member)

    def _forward(self, source: _Member, frame: bytes) -> None:
        if len(frame) < 14:
            self.bad += 1
            return
        sender, target = frame[6:12], frame[:6]
        if not sender[0] & 1 and self._places.get(sender) is not source:
            if len(self._places) >= MAX_ADDRESSES:
                del self._places[next(iter(self._places))]
            self._places[sender] = source
        to = None if target[0] & 1 else self._places.get(target)
        if to is not None:
            if to is not source:
                self._give(to, frame)
            return
        for member in list(self._members):
            if member is not source:
                self._give(member, frame)

    def _give(self, member: _Member, frame: bytes) -> None:
        try:
            if member.port.send([frame]):
                member.sent += 1
            else:
                member.dropped += 1
            if member.port.blocked and not member.waiting:
                member.waiting = True
                self.io.add(member.out_fd, lambda: self._room(member), writable=True)
        except PortLostError:
            self._drop(member)
        except OSError:
            member.dropped += 1

    def _room(self, member: _Member) -> None:
        try:
            if member.port.push():
                member.waiting = False
                self.io.remove(member.out_fd)
        except PortLostError:
            self._drop(member)


class HubClient(StreamNet):
    """A member of the hub at `path`, which it makes if nobody has. Raises `NetError`."""

    name = "hub"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.hub: Hub | None = None
        super().__init__(f"unix:{os.fspath(path)}")

    def _connect(self, timeout: float) -> socket.socket:
        assert isinstance(self.address, str)
        # One at a time, so that two VMs do not both make the hub.
        lock = os.open(f"{self.address}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                return super()._connect(timeout)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.hub is not None:
                    self.hub.close()
                self.hub = Hub(self.address)
            return super()._connect(timeout)
        finally:
            os.close(lock)

    def reconnect(self) -> bool:
        """Joins again, making the hub if it is gone."""
        try:
            self._adopt(self._connect(0.2))
        except (OSError, NetError):
            return False
        return True

    def close(self) -> None:
        """Leaves; a hub that it made ends."""
        super().close()
        if self.hub is not None:
            self.hub.close()
            self.hub = None
