"""`NetBackend`: what a network device sends frames to and receives them from."""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.devices.net.ports import Port

#: The longest frame without segmentation offload: 64 KiB of payload, Ethernet and VLAN headers.
MAX_FRAME = 65536 + 22
#: The longest virtio-net header that a port carries (VIRTIO 1.2, 5.1.6).
MAX_HEADER = 12


class NetError(PykvmError):
    """A network that cannot be made or reached: one sentence with what and the remedy."""


class NetBackend:
    """A network. `ports` has one `Port` for each queue pair, none while it is disconnected.

    The device looks at `ports` when it starts and after `reconnect` said yes; it calls `lost` when
    a port broke. One thread at a time, except for the ports themselves.
    """

    name = "net"
    #: Queue pairs that it can serve.
    max_queues = 1
    #: VIRTIO_NET_F_* bits of the offloads that its ports take and give in a virtio-net header.
    offloads = 0
    #: The MTU that the guest should use, in bytes; None: the guest's own affair.
    mtu: int | None = None
    #: Whether its ports are file descriptors that the native engine can use.
    native = True
    #: Whether a lost connection may come back: the device asks `reconnect` then.
    reconnects = False

    def __init__(self) -> None:
        self.ports: Sequence[Port] = ()

    @property
    def connected(self) -> bool:
        """Whether frames can go both ways: the carrier that the guest sees."""
        return bool(self.ports)

    def start(self, header: int, offloads: int) -> None:
        """The driver is there: frames carry a virtio-net header of `header` bytes where the back
        end can; `offloads`: those of its bits that the driver accepted (GUEST_*: what it may give).
        """

    def set_queues(self, pairs: int) -> None:
        """The driver uses the first `pairs` ports from now on."""

    def lost(self) -> None:
        """A port broke: the peer went away."""
        for port in self.ports:
            port.close()
        self.ports = ()

    def reconnect(self) -> bool:
        """Tries again, without waiting; true where `ports` are new."""
        return False

    def describe(self) -> str:
        """What it is, for messages."""
        return self.name

    def close(self) -> None:
        """Gives everything back. Twice is harmless."""
        for port in self.ports:
            port.close()
        self.ports = ()


class NoNetwork(NetBackend):
    """A cable that leads nowhere: the link is down."""

    name = "none"
