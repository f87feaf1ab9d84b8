"""`VirtioNet`: the network device (VIRTIO 1.2, section 5.1)."""

from __future__ import annotations

from pykvm.datapath.limits import RateLimit
from pykvm.datapath.net import NetDrops
from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.net.backend import NetBackend, NetError
from pykvm.devices.state import StateReader
from pykvm.devices.virtio import net_control
from pykvm.devices.virtio import net_features as f
from pykvm.devices.virtio.device import VERSION_1, Transport, VirtioDevice
from pykvm.devices.virtio.net_filter import RxFilter
from pykvm.devices.virtio.net_path import NetPath, PythonPath
from pykvm.devices.virtio.queue import QueueError, VirtQueue
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.datapath.loop import TimerHandle
    from pykvm.devices.net.pcap import PcapWriter
    from pykvm.devices.net.ports import Port

DEVICE_ID = 1
MAX_PAIRS = 64
_RETRY = 0.5  # seconds between attempts to reach a lost peer again
_CONTROL_SIZE = 64
_OWN = (
    f.MAC | f.STATUS | f.CTRL_VQ | f.CTRL_RX | f.CTRL_VLAN | f.CTRL_RX_EXTRA | f.CTRL_MAC_ADDR
    | f.GUEST_ANNOUNCE | f.MRG_RXBUF | f.SPEED_DUPLEX
)  # fmt: skip


class VirtioNet(VirtioDevice):
    """A network card.

    - `backend`: where its frames go; closed with the device.
    - `mac`: its address, six bytes. `queues`: pairs, at most what the back end has.
    - `mtu`: in bytes, told to the driver; else what the back end says.
    - `pcap`: a capture of all frames; closed with the device.
    - `limit_in`, `limit_out`: frames and bytes a second, to and from the driver.
    - `native`: False keeps frames out of the C engine, for labs and tests.

    `statistics` counts frames by direction ("receive": for the driver, "transmit"), `drops` those
    that went nowhere, by reason. Raises `NetError`.
    """

    def __init__(
        self, backend: NetBackend, mac: bytes, *, queues: int = 1, mtu: int | None = None,
        pcap: PcapWriter | None = None, limit_in: RateLimit | None = None,
        limit_out: RateLimit | None = None, native: bool = True, queue_size: int = 256,
        name: str = "virtio-net",
    ) -> None:  # fmt: skip
        if len(mac) != 6:
            raise NetError(f"a MAC address has six bytes, not {len(mac)}")
        if not 1 <= queues <= min(backend.max_queues, MAX_PAIRS):
            raise NetError(
                f"{backend.describe()} serves 1 to {min(backend.max_queues, MAX_PAIRS)} queue "
                f"pairs, not {queues}"
            )
        mtu = backend.mtu if mtu is None else mtu
        if mtu is not None and not 68 <= mtu <= 65535:
            raise NetError(f"an MTU of {mtu} bytes is not in 68 to 65535")
        features = _OWN | backend.offloads
        if backend.offloads & f.GUEST_OFFLOADS:
            features |= f.CTRL_GUEST_OFFLOADS
        if queues > 1:
            features |= f.MQ
        if mtu is not None:
            features |= f.MTU
        super().__init__(DEVICE_ID, [queue_size] * 2 * queues + [_CONTROL_SIZE], features)
        self.name = name
        self.backend = backend
        self.max_pairs = queues
        self.mtu = mtu
        self.pcap = pcap
        self.own_mac = mac
        self.filter = RxFilter(mac)
        self.limit_in = limit_in or RateLimit()
        self.limit_out = limit_out or RateLimit()
        self.statistics = IoStatistics(["receive", "transmit"])
        self.drops = NetDrops()
        self.native = native
        #: Called when the device is closed: gives back what belongs to it alone.
        self.on_close: Callable[[], object] | None = None
        self._paths: list[NetPath] = []
        self._pairs = 1
        self._cable = True  # the user has not taken it out
        self._announce = False
        self._offloads: int | None = None  # what the driver has set; None: all that it accepted
        self._quiet = False
        self._retry: TimerHandle | None = None
        self._closed = False

    # -- the link ------------------------------------------------------------------------------

    @property
    def link(self) -> bool:
        """Whether the guest has a carrier."""
        return self._cable and self.backend.connected

    def set_link(self, up: bool) -> None:
        """Plugs the cable in or takes it out; the driver is told."""
        with self.lock:
            before = self.link
            self._cable = up
            self._link_moved(before)

    def _link_moved(self, before: bool) -> None:
        if self.link == before:
            return
        if self.link and self.has & f.GUEST_ANNOUNCE and self.active:
            self._announce = True  # others should learn where the guest is now
        self._restart()
        self.config_changed()

    def announced(self) -> None:
        """The driver has announced itself (5.1.6.5.4)."""
        self._announce = False

    def lost(self, why: str) -> None:
        """The back end's peer is gone: the link goes down, and maybe up again later."""
        with self.lock:
            before = self.link
            self._stop_paths()
            if self.backend.connected:
                self.complain(f"{self.name}: {self.backend.describe()}: {why}")
            self.backend.lost()
            self._link_moved(before)
            self._try_later()

    def _try_later(self) -> None:
        if self.io is None or not self.backend.reconnects or self._retry is not None:
            return
        if not self._closed and not self.backend.connected:
            self._retry = self.io.after(_RETRY, self._try)

    def _try(self) -> None:
        with self.lock:
            self._retry = None
            if self._closed or self.backend.connected:
                return
            self.reconnect()
            self._try_later()

    def reconnect(self) -> bool:
        """Asks the back end whether its peer is there again; true if so."""
        with self.lock:
            before = self.link
            if self.backend.connected or not self.backend.reconnect():
                return self.backend.connected
            self._link_moved(before)
            return True

    # -- configuration -------------------------------------------------------------------------

    def config(self) -> bytes:
        """The configuration structure (5.1.4)."""
        status = f.S_LINK_UP if self.link else 0
        if self._announce:
            status |= f.S_ANNOUNCE
        return f.CONFIG.pack(
            self.filter.mac, status, self.max_pairs, self.mtu or 0, 0xFFFF_FFFF, 0xFF
        )

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A legacy driver sets the address here (5.1.4.2)."""
        if self.has & VERSION_1 or offset + size > 6:
            return
        mac = bytearray(self.filter.mac)
        mac[offset : offset + size] = value.to_bytes(size, "little")
        self.filter.mac = bytes(mac)
        self.filter_changed()

    @property
    def header(self) -> int:
        """Bytes of virtio-net header before each frame in the rings (5.1.6)."""
        return f.HEADER.size if self.has & (VERSION_1 | f.MRG_RXBUF) else f.SHORT_HEADER

    @property
    def guest_offloads(self) -> int:
        """The GUEST_* features that the driver accepted."""
        return f.usable_guest_offloads(self.has)

    def set_guest_offloads(self, wanted: int) -> None:
        """Those of them that are on from now (5.1.6.5.6)."""
        self._offloads = wanted
        self._restart()

    def set_pairs(self, pairs: int) -> None:
        """The driver uses the first so many queue pairs (5.1.6.5.5)."""
        self._stop_paths()
        self._pairs = pairs
        self._restart()

    def filter_changed(self) -> None:
        """Tells the data path."""
        for path in self._paths:
            path.filter_changed(self.filter)

    # -- requests ------------------------------------------------------------------------------

    @property
    def _control(self) -> int:
        return 2 * self.max_pairs if self.has & f.MQ else 2

    def handle(self, queue: VirtQueue) -> None:
        """Frames to send, room for frames, or a command."""
        if queue.index == self._control:
            try:
                while (chain := queue.pop()) is not None:
                    if not chain.writable:
                        raise QueueError(f"{self.name}: a command without room for its status")
                    chain.writable[0][0] = net_control.execute(self, chain)
                    queue.push(chain, 1)
            finally:
                self.finish(queue)
            return
        if queue.index >> 1 < len(self._paths):
            self._paths[queue.index >> 1].kicked(queue.index & 1 == 1)

    def poll(self) -> None:
        """Moves what can be moved, on devices without an I/O thread: tests, labs."""
        with self.lock:
            for path in list(self._paths):
                path.poll()

    # -- life ----------------------------------------------------------------------------------

    def activated(self) -> None:
        """Starts moving frames."""
        self.filter.vlans_on = bool(self.has & f.CTRL_VLAN)
        if self.native_queues:  # without MQ the control queue is the third
            self.native_queues = frozenset(range(self._control))
        self._restart()

    def _restart(self) -> None:
        self._stop_paths()
        if not self.active or self._quiet or self._closed:
            return
        offloads = self.guest_offloads if self._offloads is None else self._offloads
        pairs = self._pairs if self.has & f.MQ else 1
        try:
            if self.backend.connected:
                self.backend.start(self.header, offloads | self.has & f.HOST_OFFLOADS)
                self.backend.set_queues(pairs)
        except OSError as error:
            self.complain(f"{self.name}: {self.backend.describe()}: {error}")
        for pair in range(pairs):
            receive, transmit = self.queues[2 * pair : 2 * pair + 2]
            if not (receive.ready and transmit.ready):
                break
            port = self.backend.ports[pair] if self.link else None
            path = self._path(receive, transmit, port)
            self._paths.append(path)
            path.filter_changed(self.filter)
            try:
                path.start()
            except QueueError as error:
                self.needs_reset(str(error))
                return
            if path not in self._paths:
                return  # the peer was found gone: this was done again meanwhile
        if not self.backend.connected:
            self._try_later()

    def _path(self, receive: VirtQueue, transmit: VirtQueue, port: Port | None) -> NetPath:
        if self.native_queues:
            from pykvm.devices.virtio.net_native import NativePath

            return NativePath(self, receive, transmit, port)
        return PythonPath(self, receive, transmit, port)

    def attach(self, transport: Transport, memory: GuestMemory) -> None:
        """Decides who moves the frames."""
        super().attach(transport, memory)
        from pykvm.devices.virtio.net_native import suits

        if suits(self):
            self.native_queues = frozenset(range(2 * self.max_pairs))

    def _stop_paths(self) -> None:
        paths, self._paths = self._paths, []
        for path in paths:
            path.stop()

    def queue_reset(self, queue: VirtQueue) -> None:
        """Nothing: the device is quiet, and starts anew."""

    def queue_enabled(self, queue: VirtQueue) -> None:
        """A queue is back."""
        self._restart()

    def quiesce(self) -> None:
        """No frame moves."""
        with self.lock:
            self._quiet = True
            self._stop_paths()

    def unquiesce(self) -> None:
        """Frames move again."""
        with self.lock:
            self._quiet = False
            self._restart()

    def device_reset(self) -> None:
        """Address, filters, queue pairs and offloads as at power-on."""
        self._stop_paths()
        self.filter.mac = self.own_mac
        self.filter.reset()
        self._pairs = 1
        self._announce = False
        self._offloads = None

    def close(self) -> None:
        """Closes back end and capture."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self._stop_paths()
            if self._retry is not None:
                self._retry.cancel()
            self.backend.close()
            if self.pcap is not None:
                self.pcap.close()
            if self.on_close is not None:
                self.on_close()

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """With address, filters, cable, queue pairs and offloads; frames in the host are not."""
        return {
            **super().state(),
            **self.filter.state(),
            "net_pairs": self._pairs,
            "net_cable": self._cable,
            "net_announce": self._announce,
            "net_offloads": self._offloads,
        }

    def take(self, take: StateReader) -> Callable[[], None]:
        """Reads them back. A driver that can is asked to announce itself where it is now."""
        base = super().take(take)
        accept = self.filter.take(take)
        pairs = take.integer("net_pairs", self.max_pairs, 1)
        cable = take.boolean("net_cable")
        announce = take.boolean("net_announce")
        offloads = take.optional("net_offloads", f.GUEST_OFFLOADS)

        def commit() -> None:
            self._stop_paths()
            accept()
            self._pairs, self._cable = pairs, cable
            self._announce, self._offloads = announce, offloads
            base()

        return commit
