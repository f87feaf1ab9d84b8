"""`NativePath`: a queue pair whose frames are moved by the engine in native/src/net*.c."""

from __future__ import annotations

import os

from pykvm.datapath.net import NetEngine, StreamState
from pykvm.devices.net.ports import Port
from pykvm.devices.virtio import net_features as f
from pykvm.devices.virtio import net_path
from pykvm.devices.virtio.net_filter import RxFilter
from pykvm.devices.virtio.queue import QueueError, VirtQueue
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.virtio.net import VirtioNet


def suits(device: VirtioNet) -> bool:
    """Whether engines can serve a device, whose transport and I/O thread are known."""
    return (
        device.native
        and device.io is not None
        and all(queue.c is not None for queue in device.queues)
        and device.backend.native
    )


class NativePath:
    """See `net_path.NetPath`. The engine waits for the kicks itself."""

    def __init__(
        self, device: VirtioNet, receive: VirtQueue, transmit: VirtQueue, port: Port | None
    ) -> None:
        self.device = device
        self._first = receive.index
        stream = None
        if port is not None and port.stream:
            if port.state is None:
                port.state = StreamState()
            stream = port.state
        self._engine = NetEngine(
            receive, transmit,  # type: ignore[arg-type]
            (device.kick_fd(receive.index), device.kick_fd(transmit.index)),
            (device.signal_for(receive.index), device.signal_for(transmit.index)),
            -1 if port is None else port.fd,
            header=device.header, port_header=0 if port is None else port.header,
            mergeable=bool(device.has & f.MRG_RXBUF), stream=stream,
            ends=port is not None and port.ends, stall=net_path.STALL,
            limits=(device.limit_in, device.limit_out), statistics=device.statistics,
            drops=device.drops, pcap_fd=-1 if device.pcap is None else device.pcap.fd,
            lost=self._lost, broken=self._broken, name=device.name,
        )  # fmt: skip
        self._stopped = False

    def _lost(self, why: str) -> None:
        self._tell(lambda: self.device.lost(why))

    def _broken(self, error: QueueError) -> None:
        self._tell(lambda: self.device.needs_reset(str(error)))

    def _tell(self, what: object) -> None:
        """From the engine's thread: whoever holds the device's lock may wait for it."""
        assert self.device.io is not None

        def body() -> None:
            with self.device.lock:
                if not self._stopped:
                    what()  # type: ignore[operator]

        self.device.io.post(body)

    def start(self) -> None:
        """See `NetPath`."""
        self._engine.start()

    def stop(self) -> None:
        """See `NetPath`."""
        self._stopped = True
        self._engine.stop()

    def kicked(self, transmit: bool) -> None:
        """A kick that was heard elsewhere."""
        os.eventfd_write(self.device.kick_fd(self._first + transmit), 1)

    def poll(self) -> None:
        """The engine does it all by itself."""

    def filter_changed(self, accepts: RxFilter) -> None:
        """See `NetPath`."""
        self._engine.set_filter(accepts.image())
