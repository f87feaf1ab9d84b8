"""How the frames of one queue pair move between rings and port, in Python.

The readable twin of native/src/net.c: the same frames, drops and limits; tests hold the two equal.
"""

from __future__ import annotations

import os
from contextlib import suppress
from time import monotonic, monotonic_ns

from pykvm.devices.net.backend import MAX_FRAME
from pykvm.devices.net.pcap import INBOUND, OUTBOUND
from pykvm.devices.net.ports import Port, PortLostError
from pykvm.devices.virtio import net_features as f
from pykvm.devices.virtio.net_filter import RxFilter
from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue
from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pykvm.devices.virtio.net import VirtioNet

#: Seconds that a peer may take nothing before frames for it are dropped instead of kept waiting.
STALL = 1.0
_BATCH = 64


class NetPath(Protocol):
    """One queue pair at work. All with the device's lock held."""

    def start(self) -> None:
        """Frames may move."""

    def stop(self) -> None:
        """None moves any more; nothing that was taken from a ring is kept."""

    def kicked(self, transmit: bool) -> None:
        """The driver kicked one of the two queues."""

    def poll(self) -> None:
        """Move what can be moved now."""

    def filter_changed(self, accepts: RxFilter) -> None:
        """The driver wants other frames."""


class PythonPath:
    """See `NetPath`. `port` is None while there is no carrier."""

    def __init__(
        self, device: VirtioNet, receive: VirtQueue, transmit: VirtQueue, port: Port | None
    ) -> None:
        self.device = device
        self.rx, self.tx = receive, transmit
        self.port = port
        self.io = device.io
        self._filter = device.filter
        self._header = device.header
        self._mergeable = bool(device.has & f.MRG_RXBUF)
        self._waiting: bytes | None = None  # a frame that did not fit yet
        if port is not None:
            self._waiting, port.kept = port.kept, None
        self._charged = False  # its tokens were taken
        self._tried = 0  # so many buffers did not suffice for it
        self._spare: list[Chain] = []  # buffers that did not suffice for it
        self._held: Chain | None = None  # a frame that could not be sent yet
        self._paid = False  # its tokens were taken already
        self._stalled_at = 0.0  # since when the port takes nothing; 0: it does
        self._running = False
        self._watched: list[int] = []
        self._out_fd = -1

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Waits for the port, if there is an I/O thread to wait on."""
        self._running = True
        self.kicked(True)
        self.kicked(False)

    def stop(self) -> None:
        """See `NetPath`. The frame that waits for room stays with the port."""
        self._running = False
        self._give_back()
        if self.port is not None:
            self.port.kept, self._waiting = self._waiting, None
        if self.io is not None:
            for fd in self._watched:
                self.io.remove(fd)
        self._watched = []
        if self._out_fd >= 0:
            os.close(self._out_fd)
            self._out_fd = -1

    def filter_changed(self, accepts: RxFilter) -> None:
        """See `NetPath`."""
        self._filter = accepts

    def kicked(self, transmit: bool) -> None:
        """See `NetPath`."""
        if transmit:
            self._guarded(self._transmit)
        else:
            self._guarded(self._receive)

    def poll(self) -> None:
        """See `NetPath`."""
        self.kicked(True)
        self.kicked(False)

    def _guarded(self, work: object) -> None:
        if not self._running:
            return
        try:
            work()  # type: ignore[operator]
        except PortLostError as error:
            self.device.lost(str(error))

    def _called(self, transmit: bool) -> None:
        """From the I/O thread."""
        device = self.device
        with device.lock:
            if not self._running or not device.active:
                return
            try:
                self.kicked(transmit)
            except QueueError as error:
                device.needs_reset(str(error))

    def _watch(self, transmit: bool, wanted: bool) -> None:
        port, io = self.port, self.io
        if io is None or port is None:
            return
        fd = port.event if hasattr(port, "event") else port.fd
        if transmit:
            if self._out_fd < 0:
                if not wanted:
                    return
                self._out_fd = os.dup(fd)  # the same fd may be waited for once only
            fd = self._out_fd
        if wanted and fd not in self._watched:
            io.add(fd, lambda: self._called(transmit), writable=transmit)
            self._watched.append(fd)
        elif not wanted and fd in self._watched:
            io.remove(fd)
            self._watched.remove(fd)

    def _later(self, seconds: float, transmit: bool) -> None:
        if self.io is not None:
            self.io.after(seconds, lambda: self._called(transmit))

    # -- from the driver -----------------------------------------------------------------------

    def _transmit(self) -> None:
        queue, limit = self.tx, self.device.limit_out
        begun = monotonic_ns()
        try:
            while self._running and not self._blocked():
                chain, self._held = self._held or queue.pop(), None
                if chain is None:
                    return
                length = max(0, chain.readable_bytes - self._header)
                if not self._paid and (wait := limit.take(length)):
                    self._held = chain
                    self._later(wait / 1e9, True)
                    return
                try:
                    sent = self._send(chain, length)
                except PortLostError:
                    self.device.drops.no_link += 1
                    queue.push(chain, 0)
                    raise
                if sent is None:
                    self._held, self._paid = chain, True
                    self._stall()
                    return
                self._paid = False
                queue.push(chain, 0)
                self.device.statistics["transmit"].add(
                    length, monotonic_ns() - begun, failed=not sent
                )
        finally:
            self.device.finish(queue)

    def _give_back(self) -> None:
        """Buffers go back unused; the frame that waits is sent now, or lost."""
        spare, self._spare = self._spare, []
        with suppress(QueueError):
            self.rx.push_batch([(chain, 0) for chain in spare])
        chain, self._held = self._held, None
        if chain is None:
            return
        with suppress(PortLostError):
            if self._send(chain, chain.readable_bytes - self._header) is None:
                self.device.drops.stalled += 1
        with suppress(QueueError):
            self.tx.push(chain, 0)
            self.device.finish(self.tx)

    def _blocked(self) -> bool:
        """Whether nothing can be sent now. A peer that took nothing for long loses frames."""
        port = self.port
        if port is None or not self._stalled_at:
            return False
        if port.push() and not self._full():
            self._stalled_at = 0.0
            self._watch(True, False)
            return False
        return monotonic() - self._stalled_at < STALL

    def _full(self) -> bool:
        import select

        assert self.port is not None
        if self.port.fd < 0:
            return False
        watcher = select.poll()
        watcher.register(self.port.fd, select.POLLOUT)
        return not watcher.poll(0)

    def _stall(self) -> None:
        if not self._stalled_at:
            self._stalled_at = monotonic()
            self._later(STALL, True)
        self._watch(True, True)

    def _send(self, chain: Chain, length: int) -> bool | None:
        """True: sent; False: dropped; None: no room, try again."""
        drops, port = self.device.drops, self.port
        if chain.writable or length < f.FRAME_MIN or length > MAX_FRAME:
            drops.bad += 1
            return False
        if port is None:
            drops.no_link += 1
            return False
        if self._stalled_at:
            drops.stalled += 1
            return False
        parts = chain.readable
        frame = _behind(parts, self._header)
        if port.header != self._header:
            head = b"".join(_first(parts, self._header))
            if head[0] & f.HDR_NEEDS_CSUM or head[1] != f.GSO_NONE:
                drops.bad += 1
                return False
            parts = frame
        try:
            if not port.send(parts):
                return None
        except OSError:
            drops.refused += 1
            return False
        if self.device.pcap is not None:
            self.device.pcap.frame(frame, OUTBOUND)
        return True

    # -- for the driver ------------------------------------------------------------------------

    def _receive(self) -> None:
        port, queue, limit = self.port, self.rx, self.device.limit_in
        if port is None:
            return
        begun = monotonic_ns()
        done = 0
        try:
            while self._running:
                if self._waiting is None:
                    if not self._spare and not queue.want_kicks(True):
                        self._watch(False, False)
                        return
                    frame = port.receive()
                    if frame is None:
                        self._watch(False, True)
                        return
                    if not self._wanted(frame, port.header):
                        continue
                    self._waiting, self._charged, self._tried = bytes(frame), False, 0
                length = len(self._waiting) - port.header
                if not self._charged:
                    if wait := limit.take(length):
                        self._watch(False, False)
                        self._later(wait / 1e9, False)
                        return
                    self._charged = True
                if self._deliver(self._waiting, port.header):
                    self.device.statistics["receive"].add(length, monotonic_ns() - begun)
                elif self._spare and (not self._mergeable or 0 < self._tried < len(self._spare)):
                    self.device.drops.no_room += 1
                else:  # more buffers may come
                    self._tried = len(self._spare)
                    self._watch(False, False)
                    return
                self._waiting = None
                done += 1
                if done >= _BATCH and self.io is not None:  # others want to be served too
                    self._watch(False, True)
                    return
        finally:
            self.device.finish(queue)

    def _wanted(self, frame: bytes | bytearray, header: int) -> bool:
        if len(frame) < header + f.FRAME_MIN:
            self.device.drops.bad += 1
            return False
        if self._filter.accepts(memoryview(frame)[header:]):
            return True
        self.device.drops.filtered += 1
        return False

    def _deliver(self, frame: bytes, header: int) -> bool:
        """Into the driver's buffers, all of it or nothing; false: it does not fit (yet)."""
        size = self._header
        data = (frame[:header] if header == size else bytes(size)) + frame[header:]
        left = len(data)
        chains: list[tuple[Chain, int]] = []
        while left:
            chain = self._next_buffer()
            if chain is None:
                break
            written = min(left, chain.writable_bytes)
            chains.append((chain, written))
            left -= written
            if not self._mergeable:
                break
        if left:
            self._spare = [chain for chain, _ in chains] + self._spare
            return False
        if size == f.HEADER.size:
            data = data[:10] + len(chains).to_bytes(2, "little") + data[12:]
        source = memoryview(data)
        for chain, written in chains:
            _scatter(chain.writable, source[:written])
            source = source[written:]
        if self.device.pcap is not None:
            self.device.pcap.frame([frame[header:]], INBOUND)
        self.rx.push_batch(chains)  # all at once: the driver counts on it (5.1.6.4)
        return True

    def _next_buffer(self) -> Chain | None:
        if self._spare:
            return self._spare.pop(0)
        chain = self.rx.pop()
        if chain is not None and (chain.readable or chain.writable_bytes < self._header):
            raise QueueError(f"{self.device.name}: a receive buffer without room for a header")
        return chain


def _first(parts: list[memoryview], count: int) -> list[memoryview]:
    head = []
    for part in parts:
        head.append(part[:count])
        count -= len(head[-1])
        if not count:
            break
    return head


def _behind(parts: list[memoryview], count: int) -> list[memoryview]:
    rest = []
    for part in parts:
        if count < len(part):
            rest.append(part[count:] if count else part)
            count = 0
        else:
            count -= len(part)
    return rest


def _scatter(views: list[memoryview], data: memoryview) -> None:
    for view in views:
        piece = data[: len(view)]
        view[: len(piece)] = piece
        data = data[len(piece) :]
        if not data:
            return
