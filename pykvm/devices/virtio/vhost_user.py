"""`VhostUserDevice`: a virtio device whose queues another process runs (vhost-user, front end).

The back end maps guest memory, waits for the driver's kicks, and interrupts it; this process keeps
the registers. Its conversation with the back end: `pykvm.devices.vhost.backend`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

from pykvm.datapath.loop import IoThread
from pykvm.devices.vhost.backend import Backend, BackendError
from pykvm.devices.vhost.messages import PROTOCOL_CONFIG, Region
from pykvm.devices.virtio.device import (
    RING_EVENT_IDX,
    RING_INDIRECT,
    RING_RESET,
    VERSION_1,
    Transport,
    VirtioDevice,
)
from pykvm.devices.virtio.queue import VirtQueue
from pykvm.errors import PykvmError
from pykvm.memory import GuestMemory

# Bits that this front end does for the back end, or does not: protocol features, logging, IOMMU,
# packed rings, in order, notification data.
_NOT_OURS = 1 << 26 | 1 << 30 | 1 << 33 | 1 << 34 | 1 << 35 | 1 << 38 | RING_RESET
_RINGS = RING_EVENT_IDX | RING_INDIRECT
#: name -> (device type, queues, bytes of configuration that the back end gives)
KINDS = {"net": (1, 2, 0), "blk": (2, 1, 60), "fs": (26, 2, 0)}
_QUEUE_SIZE = 128
_QUEUES_MOST = 64


class VhostUserDevice(VirtioDevice):
    """A device at the socket `where`: a path, or a function that gives a connection.

    - `kind`: "net", "blk", "fs", or the number of a device type (then `queues` has to be said).
    - `config`: the configuration structure, where the back end has none to give.
    - `features`: bits offered beyond those of the back end (such as F_MAC with a `config`).
    - `timeout`: seconds that the back end has for each answer.

    A back end that dies or breaks the protocol puts the device into DEVICE_NEEDS_RESET; when the
    driver starts it again, a new connection is tried. A saved state has the positions of the
    rings; what else the back end knows is its own affair. Raises `BackendError`.
    """

    def __init__(
        self, where: str | Callable[[], socket.socket], kind: str | int, *,
        queues: int | None = None, queue_size: int = _QUEUE_SIZE, config: bytes = b"",
        features: int = 0, timeout: float = 5.0, name: str = "",
    ) -> None:  # fmt: skip
        if isinstance(kind, str) and kind not in KINDS:
            raise ValueError(f"{kind!r} is no device for vhost-user; use {', '.join(KINDS)}")
        number, usual, config_size = KINDS[kind] if isinstance(kind, str) else (kind, 0, 0)
        count = usual if queues is None else queues
        if not 1 <= count <= _QUEUES_MOST:
            raise ValueError(f"{count} queues are not possible; choose 1 to {_QUEUES_MOST}")
        self.name = name or f"vhost-user-{kind}"
        self._where, self._timeout = where, timeout
        self._backend: Backend | None = None
        backend = self._connect()
        try:
            self._config = config or (backend.config(config_size) if config_size else b"")
            if not backend.features & VERSION_1:
                raise BackendError(f"the vhost-user back end {backend.name} is not virtio 1")
            if backend.queue_limit and count > backend.queue_limit:
                raise BackendError(
                    f"the vhost-user back end {backend.name} has {backend.queue_limit} queues, "
                    f"not {count}"
                )
            offered = backend.features & ~_NOT_OURS
            super().__init__(
                number, [queue_size] * count, offered | features,
                features_off=_RINGS & ~backend.features | _NOT_OURS & ~RING_RESET,
            )  # fmt: skip
        except BaseException:
            backend.close()
            raise
        self._local = features
        self.native_queues = frozenset(range(count))
        self._backend = backend
        self._memory: GuestMemory | None = None
        self._running: set[int] = set()
        self._calls: dict[int, int] = {}  # eventfds of queues whose interrupts we pass on
        self._own_io: IoThread | None = None
        self._quiet = self._closed = False

    def config(self) -> bytes:
        """What the back end, or the constructor's caller, says."""
        return self._config

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Goes to the back end, if it has a configuration; then that is read again."""
        backend = self._backend
        if backend is None or not backend.protocol & PROTOCOL_CONFIG:
            return
        if not self._config or offset + size > len(self._config):
            return
        try:
            backend.write_config(offset, value.to_bytes(size, "little"))
            self._config = backend.config(len(self._config))
        except BackendError as error:
            self._lost(error)

    def handle(self, queue: VirtQueue) -> None:
        """Never called: kicks go to the back end."""

    # -- the back end ------------------------------------------------------------------------------

    def _connect(self) -> Backend:
        if callable(self._where):
            sock, name = self._where(), self.name
        else:
            name = self._where
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(self._timeout)
            try:
                sock.connect(name)
            except (OSError, ValueError) as error:
                sock.close()
                why = getattr(error, "strerror", None) or error
                raise BackendError(
                    f"no vhost-user back end listens at {name!r}: {why}; start it first"
                ) from error
        backend = Backend(sock, name, self._timeout)
        try:
            backend.negotiate()
        except BaseException:
            backend.close()
            raise
        return backend

    def _lost(self, error: PykvmError) -> None:
        """The back end is gone: nothing goes on until the driver resets the device."""
        self._hang_up()
        self.needs_reset(str(error))

    def _hang_up(self) -> None:
        self._running.clear()
        backend, self._backend = self._backend, None
        if backend is not None:
            self._listener().remove(backend.sock.fileno())
            backend.close()

    def _listener(self) -> IoThread:
        if self.io is not None:
            return self.io
        if self._own_io is None:
            self._own_io = IoThread(f"pykvm-io-{self.name}")
        return self._own_io

    def _spoke(self, backend: Backend) -> None:
        """The connection is readable: it was closed, or this is an answer to somebody here."""
        with self.lock:
            if backend is not self._backend:
                return
            try:
                backend.check()
            except BackendError as error:
                self._lost(error)

    # -- rings -------------------------------------------------------------------------------------

    def attach(self, transport: Transport, memory: GuestMemory) -> None:
        """As the base class. Raises `BackendError` for memory that cannot be shared."""
        if any(region.anonymous for region in memory.regions):
            raise BackendError(
                f"{self.name} shares the guest's memory with another process, and this host has "
                'transparent huge pages for memory of one process only; leave huge_pages="thp" out'
            )
        super().attach(transport, memory)
        self._memory = memory
        self._watch()

    def _watch(self) -> None:
        backend = self._backend
        if backend is not None and not backend.failed:
            self._listener().add(backend.sock.fileno(), lambda: self._spoke(backend))

    def activated(self) -> None:
        """The back end takes over."""
        if not self._quiet:
            self._start()

    def queue_enabled(self, queue: VirtQueue) -> None:
        """This one too."""
        if not self._quiet:
            self._start()

    def _start(self) -> None:
        try:
            if self._backend is None:
                fresh = self._connect()
                self._backend = fresh
                if self.has & ~(fresh.features | self._local | RING_RESET):
                    raise BackendError(
                        f"the vhost-user back end {fresh.name} has fewer features than before"
                    )
                self._watch()
            backend = self._backend
            if not self._running:
                backend.set_features(self.has & ~self._local & ~RING_RESET)
                backend.set_memory(self._regions())
            for queue in self.queues:
                if queue.ready and queue.index not in self._running:
                    backend.start_ring(
                        queue.index, queue.size, queue.next_avail,
                        (queue.desc, queue.driver, queue.device),
                        self.kick_fd(queue.index), self._call_fd(queue.index),
                    )  # fmt: skip
                    self._running.add(queue.index)
        except PykvmError as error:
            self._lost(error)

    def _regions(self) -> list[Region]:
        assert self._memory is not None
        regions = [r for r in self._memory.regions if not r.private and r.fd >= 0]
        return [Region(r.gpa, r.size, r.offset, r.fd) for r in regions]

    def _call_fd(self, index: int) -> int:
        """Where the back end says that requests are finished.

        The transport's own where writing it is all that there is to do, else one that is passed on
        here (virtio-mmio has an interrupt status that the back end cannot reach).
        """
        signal = self.signal_for(index)
        if signal.isr is None:
            return signal.fd
        fd = self._calls.get(index)
        if fd is None:
            fd = self._calls[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._listener().add(fd, lambda: self._called(index))
        return fd

    def _called(self, index: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._calls[index])
            if self._transport is not None:
                self._transport.queue_interrupt(index)

    def _stop(self) -> None:
        """Every ring stands still afterwards, its requests finished, its position known here."""
        backend = self._backend
        if backend is None or self._memory is None:
            return
        try:
            for index in sorted(self._running):
                queue = self.queues[index]
                queue.next_avail = backend.stop_ring(index)
                queue.next_used = self._memory.read_u16(queue.device + 2)
                self._running.discard(index)
        except BackendError as error:
            self._lost(error)

    # -- life --------------------------------------------------------------------------------------

    def quiesce(self) -> None:
        """The back end finishes what it has, and stops."""
        with self.lock:
            self._quiet = True
            self._stop()

    def unquiesce(self) -> None:
        """It goes on from there."""
        with self.lock:
            self._quiet = False
            if self.active and not self._closed:
                self._start()

    def close(self) -> None:
        """Hangs up; the back end may end then."""
        super().close()
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self._stop()
            self._hang_up()
            for fd in self._calls.values():
                self._listener().remove(fd)
        self._listener().drain()
        for fd in self._calls.values():
            os.close(fd)
        self._calls.clear()
        if self._own_io is not None:
            self._own_io.stop()
