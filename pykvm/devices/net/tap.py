"""TAP: a network interface of the host (or of a network namespace) whose cable ends in the VM."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from contextlib import suppress

from pykvm.devices.net.backend import NetBackend, NetError
from pykvm.devices.net.ports import PacketPort
from pykvm.devices.virtio import net_features as f
from pykvm.typed import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

# linux/if_tun.h
_SETIFF, _SETOFFLOAD, _SETVNETHDRSZ, _SETQUEUE = 0x400454CA, 0x400454D0, 0x400454D8, 0x400454D9
_TAP, _NO_PI, _VNET_HDR, _MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_ATTACH, _DETACH = 0x0200, 0x0400
_F_CSUM, _F_TSO4, _F_TSO6, _F_ECN, _F_UFO, _F_USO4, _F_USO6 = 1, 2, 4, 8, 0x10, 0x20, 0x40
_GIFFLAGS, _SIFFLAGS, _GIFMTU, _UP = 0x8913, 0x8914, 0x8921, 1
_CLONE_NEWNET = 0x40000000
_IFREQ = struct.Struct("16sH22x")
_GUEST = (
    (f.GUEST_CSUM, _F_CSUM), (f.GUEST_TSO4, _F_TSO4), (f.GUEST_TSO6, _F_TSO6),
    (f.GUEST_ECN, _F_ECN), (f.GUEST_UFO, _F_UFO),
)  # fmt: skip


def in_namespace(netns: str | None, work: Callable[[], _Result]) -> _Result:
    """Runs `work` with the network namespace `netns` (a name of `ip netns`, a path, or None).

    In a thread of its own, as a namespace belongs to a thread. Raises `NetError`.
    """
    if netns is None:
        return work()
    path = netns if "/" in netns else f"/run/netns/{netns}"
    result: list[_Result] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(fd)
        except OSError as error:
            failure.append(
                NetError(f"the network namespace {netns} cannot be entered: {error.strerror}")
            )
            return
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="pykvm-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


class Tap(NetBackend):
    """The TAP interface `ifname`: one that is there, or a new one that goes with the VM.

    - `queues`: pairs; the interface must have been made with `multi_queue` if it is there.
    - `netns`: where the interface is: a name of `ip netns` or a path.
    - `offload`: whether checksums and segments may be left to the other side.

    A new interface is brought up; addresses and bridges are the user's. Raises `NetError`.
    """

    name = "tap"

    def __init__(
        self, ifname: str = "", *, queues: int = 1, netns: str | None = None, offload: bool = True
    ) -> None:
        super().__init__()
        if len(ifname.encode()) > 15 or "/" in ifname or any(c.isspace() for c in ifname):
            raise NetError(f"{ifname[:40]!r} is no name of a network interface: 1 to 15 characters")
        self.ifname = ifname or "pykvm%d"
        self.netns = netns
        self.max_queues = queues
        self._offload = offload
        self._attached = queues
        fds: list[int] = []
        try:
            in_namespace(netns, lambda: self._open(fds))
            header = self._probe(fds[0])
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise NetError(self._remedy(error)) from error
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        self.ports = [PacketPort(fd, header) for fd in fds]

    def _open(self, fds: list[int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            known = self._flags(control)
            want = _TAP | _NO_PI | (_VNET_HDR if self._offload else 0)
            want |= _MULTI_QUEUE if self.max_queues > 1 else 0
            for _ in range(self.max_queues):
                fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
                self._attach(fds[-1], want, alone=self.max_queues == 1)
            flags = self._flags(control) or 0
            if known is None:
                fcntl.ioctl(control, _SIFFLAGS, self._request(flags | _UP))
            raw = fcntl.ioctl(control, _GIFMTU, self._request(0))
            mtu = struct.unpack_from("i", raw, 16)[0]
            self.mtu = mtu if mtu != 1500 and 68 <= mtu <= 65535 else None

    def _attach(self, fd: int, flags: int, *, alone: bool) -> None:
        try:
            raw = fcntl.ioctl(fd, _SETIFF, self._request(flags))
        except OSError as error:
            if error.errno != errno.EINVAL or not alone:
                raise
            raw = fcntl.ioctl(fd, _SETIFF, self._request(flags | _MULTI_QUEUE))
        self.ifname = _IFREQ.unpack(raw)[0].rstrip(b"\0").decode()

    def _request(self, flags: int) -> bytes:
        return _IFREQ.pack(self.ifname.encode(), flags & 0xFFFF)

    def _flags(self, control: socket.socket) -> int | None:
        try:
            return int(_IFREQ.unpack(fcntl.ioctl(control, _GIFFLAGS, self._request(0)))[1])
        except OSError:
            return None

    def _probe(self, fd: int) -> int:
        """Finds the offloads; the bytes of virtio-net header."""
        if not self._offload:
            return 0
        fcntl.ioctl(fd, _SETVNETHDRSZ, struct.pack("i", f.HEADER.size))
        self.offloads = (
            f.CSUM | f.GUEST_CSUM | f.HOST_TSO4 | f.HOST_TSO6 | f.HOST_ECN
            | f.GUEST_TSO4 | f.GUEST_TSO6 | f.GUEST_ECN
        )  # fmt: skip
        base = _F_CSUM | _F_TSO4 | _F_TSO6 | _F_ECN
        for more, features in (
            (_F_UFO, f.GUEST_UFO | f.HOST_UFO),
            (_F_USO4 | _F_USO6, f.GUEST_USO4 | f.GUEST_USO6 | f.HOST_USO),
        ):
            with suppress(OSError):
                fcntl.ioctl(fd, _SETOFFLOAD, base | more)
                self.offloads |= features
        fcntl.ioctl(fd, _SETOFFLOAD, 0)
        return f.HEADER.size

    def _remedy(self, error: OSError) -> str:
        what = f"the TAP interface {self.ifname} cannot be used: {error.strerror}"
        if error.errno in (errno.EPERM, errno.EACCES):
            what += (
                f"; make one for yourself as root: ip tuntap add {self.ifname} mode tap "
                "user $USER, or use --net user"
            )
        elif error.errno == errno.EBUSY:
            what += "; another program uses it"
        elif error.errno == errno.EINVAL:
            what += (
                f"; it has to be a TAP interface, with multi_queue if it shall have "
                f"{self.max_queues} queues"
                if self.max_queues > 1
                else "; it has to be a TAP interface"
            )
        elif error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            what += "; the kernel needs its tun driver (/dev/net/tun)"
        return what

    def start(self, header: int, offloads: int) -> None:
        """Header and offloads as the driver accepted them."""
        if not self._offload:
            return
        flags = 0
        for feature, bit in _GUEST:
            if offloads & feature:
                flags |= bit
        if offloads & f.GUEST_USO4 and offloads & f.GUEST_USO6:
            flags |= _F_USO4 | _F_USO6
        for port in self.ports:
            fcntl.ioctl(port.fd, _SETVNETHDRSZ, struct.pack("i", header))
            port.header = header
        fcntl.ioctl(self.ports[0].fd, _SETOFFLOAD, flags)

    def set_queues(self, pairs: int) -> None:
        """Attaches the queues that the driver uses, detaches the others."""
        for number, port in enumerate(self.ports):
            if (number < pairs) == (number < self._attached):
                continue
            flags = _ATTACH if number < pairs else _DETACH
            fcntl.ioctl(port.fd, _SETQUEUE, self._request(flags))
        self._attached = pairs

    def describe(self) -> str:
        """With the interface."""
        where = f" in {self.netns}" if self.netns else ""
        return f"TAP interface {self.ifname}{where}"
