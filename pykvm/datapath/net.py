"""`NetEngine`: moves frames between a queue pair and a file descriptor without Python.

The work is done in native/src/net*.c. This is the handle: starting, stopping, and what is told of
the driver's and the peer's mistakes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pykvm._native import ffi, lib
from pykvm.datapath.ring import QueueError
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pykvm.datapath.limits import RateLimit
    from pykvm.datapath.queue import NativeQueue
    from pykvm.datapath.statistics import IoStatistics

REASONS = ("filtered", "no_room", "bad", "refused", "no_link", "stalled")


class Filter(Protocol):
    """See `pykvm.devices.virtio.net_filter.FilterImage`."""

    @property
    def modes(self) -> tuple[bool, ...]: ...
    @property
    def vlans_on(self) -> bool: ...
    @property
    def mac(self) -> bytes: ...
    @property
    def unicast(self) -> tuple[bytes, ...]: ...
    @property
    def multicast(self) -> tuple[bytes, ...]: ...
    @property
    def vlans(self) -> bytes: ...


def _counter(name: str) -> Any:
    def get(self: NetDrops) -> int:
        return int(getattr(self.native, name))

    def put(self: NetDrops, value: int) -> None:
        setattr(self.native, name, value)

    return property(get, put)


class NetDrops:
    """Frames that went nowhere, by reason; engines count in `native` (`struct pykvm_net_drops`).

    `filtered`: the driver does not want them; `no_room`: they do not fit into its buffers; `bad`:
    too short, too long, or with a header that was not negotiated; `refused`: by the host;
    `no_link`: sent without carrier; `stalled`: the peer takes nothing.
    """

    filtered = _counter("filtered")
    no_room = _counter("no_room")
    bad = _counter("bad")
    refused = _counter("refused")
    no_link = _counter("no_link")
    stalled = _counter("stalled")

    def __init__(self) -> None:
        self.native: Any = ffi.new("struct pykvm_net_drops *")

    def as_dict(self) -> dict[str, int]:
        """All of them."""
        return {reason: getattr(self, reason) for reason in REASONS}


class StreamState:
    """Parts of frames on a stream socket; lives as long as the connection."""

    def __init__(self) -> None:
        self._in = ffi.new("uint8_t[]", lib.PYKVM_NET_IN)
        self._out = ffi.new("uint8_t[]", lib.PYKVM_NET_OUT)
        self.native: Any = ffi.new("struct pykvm_net_stream *", {"in": self._in, "out": self._out})


class NetEngine:
    """Serves a queue pair from `start` until `stop`, once.

    - `fd` of the port, -1 without carrier; `stream`: frames on it have a length in front;
      `ends`: an empty read means that the peer has closed.
    - `header`, `port_header`: bytes of virtio-net header in the rings and on the port.
    - `lost(why)`, `broken(error)`: the peer is gone; the driver broke a rule. Called from the
      engine's thread, which has ended its work then; they must not wait for `stop`.

    The guest memory that is mapped now stays mapped until it is freed.
    """

    def __init__(
        self, receive: NativeQueue, transmit: NativeQueue, kicks: tuple[int, int],
        signals: tuple[Any, Any], fd: int, *, header: int, port_header: int, mergeable: bool,
        stream: StreamState | None, ends: bool, stall: float, limits: tuple[RateLimit, RateLimit],
        statistics: IoStatistics, drops: NetDrops, pcap_fd: int = -1,
        lost: Callable[[str], object], broken: Callable[[QueueError], object],
        name: str = "virtio-net",
    ) -> None:  # fmt: skip
        self.name = name
        self._queues = (receive, transmit)
        self._lost, self._broken = lost, broken
        for queue in self._queues:
            queue.refresh()
        self._maps = [queue.map for queue in self._queues]
        self._keep = (stream, limits, statistics, drops)
        flags = (
            (stream is not None) * lib.PYKVM_NET_STREAM
            | mergeable * lib.PYKVM_NET_MERGEABLE
            | ends * lib.PYKVM_NET_ENDS
        )
        config = ffi.new(
            "struct pykvm_net_config *",
            {
                "rx": receive.c, "tx": transmit.c, "rx_kick": kicks[0], "tx_kick": kicks[1],
                "fd": fd, "pcap_fd": pcap_fd, "flags": flags, "header": header,
                "port_header": port_header, "stall_ns": int(stall * 1e9),
                "limit_in": limits[0].native, "limit_out": limits[1].native,
                "stats": statistics.native, "drops": drops.native,
                "stream": stream.native if stream is not None else ffi.NULL,
            },
        )  # fmt: skip
        for place, (signal_fd, isr, bits) in zip(("rx_signal", "tx_signal"), signals, strict=True):
            signal = getattr(config, place)
            signal.fd, signal.bits = signal_fd, bits
            signal.isr = ffi.NULL if isr is None else isr
        self._c: Any = lib.pykvm_net_new(config)
        if self._c == ffi.NULL:
            raise PykvmError(f"{name}: no memory, or no file descriptors, for its engine")
        self._thread: threading.Thread | None = None

    def set_filter(self, image: Filter) -> None:
        """Which frames the driver wants. At any time before `stop`."""
        table = b"".join((*image.unicast, *image.multicast))
        names = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")
        native = ffi.new("struct pykvm_net_filter *")
        for name, value in zip(names, image.modes, strict=True):
            setattr(native, name, value)
        native.vlans_on = image.vlans_on
        native.unicast, native.multicast = len(image.unicast), len(image.multicast)
        ffi.memmove(native.mac, image.mac, 6)
        ffi.memmove(native.table, table, len(table))
        ffi.memmove(native.vlans, image.vlans, 512)
        lib.pykvm_net_set_filter(self._c, native)

    def start(self) -> None:
        """Starts the thread."""
        # A daemon: a machine that nobody closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name=f"pykvm-{self.name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        c = self._c
        while True:
            result = lib.pykvm_net_run(c)
            if result == lib.PYKVM_NET_STOPPED:
                return
            queue = self._queues[result == lib.PYKVM_NET_TX_BROKEN]
            if result == lib.PYKVM_NET_LOST or not queue.c.error or not queue.outdated():
                break
            for queue in self._queues:  # memory was added since: the buffer may lie there
                queue.refresh()
            self._maps = [queue.map for queue in self._queues]
        why = ffi.string(lib.pykvm_net_why(c)).decode()
        if result == lib.PYKVM_NET_LOST:
            self._lost(why)
            return
        if queue.c.error:
            self._broken(queue.error())
        else:
            self._broken(QueueError(f"{self.name}: {why}"))

    def stop(self) -> None:
        """Returns when queues, memory and port are not touched any more. Twice is harmless."""
        c, self._c = self._c, None
        if c is None:
            return
        lib.pykvm_net_stop(c)
        if self._thread is not None:
            self._thread.join()
        lib.pykvm_net_free(c)
