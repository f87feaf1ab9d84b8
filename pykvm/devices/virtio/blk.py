"""`VirtioBlk`: the block device (VIRTIO 1.2, section 5.2)."""

from __future__ import annotations

import struct
from time import monotonic_ns, sleep

from pykvm.datapath.blk import KINDS, BlkEngine, Bounds, queues_are_native
from pykvm.datapath.limits import RateLimit
from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.block.backend import CACHES, SECTOR, BlockBackend, BlockError, Cache
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.blk_path import BlkPath
from pykvm.devices.virtio.blk_request import (
    DISCARD_SECTORS,
    DISCARD_SEGMENTS,
    ID_BYTES,
    REQUEST_LIMIT,
    S_IOERR,
    S_OK,
    SEG_MAX,
    SIZE_MAX,
    ZERO_SECTORS,
    Request,
)
from pykvm.devices.virtio.device import Commit, Transport, VirtioDevice
from pykvm.devices.virtio.queue import QueueError, VirtQueue
from pykvm.memory import GuestMemory
from pykvm.typed import Literal

DEVICE_ID = 2
F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE = 1 << 1, 1 << 2, 1 << 5, 1 << 6
F_FLUSH, F_TOPOLOGY, F_CONFIG_WCE, F_MQ = 1 << 9, 1 << 10, 1 << 11, 1 << 12
F_DISCARD, F_WRITE_ZEROES = 1 << 13, 1 << 14
MAX_QUEUES = 64
_WRITEBACK = 32  # offset of the only field that a driver writes
_CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
_IN_FLIGHT = 512

Engine = Literal["auto", "native", "python"]


class VirtioBlk(VirtioDevice):
    """A disk.

    - `backend`: what it shows; closed with the device.
    - `serial`: up to 20 bytes of text that the driver can ask for.
    - `block_size`: the logical block size in bytes that the driver is told: 512 to 4096.
    - `queues`: of `queue_size` entries each.
    - `cache`: "writeback": writes go to the host's page cache, a FLUSH puts them on disk; "none":
      past the page cache, the disk's own cache is flushed; "writethrough" and "directsync": the
      same, and every write is on disk when it completes; "unsafe": FLUSH does nothing.
    - `limit`: requests and bytes a second, reads and writes together.
    - `engine`: "native": the requests are served in C from the file behind the disk; "python": by
      the back end's methods; "auto": native where there is a file and the device has an I/O thread.

    A driver that accepts CONFIG_WCE chooses between write-back and write-through by the field
    `writeback`; one that does not accept FLUSH gets write-through (5.2.5). A request that makes no
    sense gets an error status, and a chain without room for one breaks the device. SECURE_ERASE is
    not offered, as a file cannot promise it, nor GET_LIFETIME, which is about flash memory.
    """

    def __init__(
        self, backend: BlockBackend, serial: str = "", *, block_size: int = SECTOR,
        queues: int = 1, queue_size: int = 256, cache: Cache = "writeback",
        limit: RateLimit | None = None, engine: Engine = "auto", name: str = "virtio-blk",
    ) -> None:  # fmt: skip
        if block_size not in (512, 1024, 2048, 4096):
            raise ValueError(f"a block size of {block_size} is not 512, 1024, 2048 or 4096")
        if not 1 <= queues <= MAX_QUEUES:
            raise ValueError(f"a disk with {queues} queues; it has 1 to {MAX_QUEUES}")
        if cache not in CACHES:
            raise ValueError(f"cache={cache!r} is not one of {', '.join(CACHES)}")
        if engine not in ("auto", "native", "python"):
            raise ValueError(f"engine={engine!r} is not auto, native or python")
        backend.set_cache(cache)
        if engine == "native" and backend.native_fd() is None:
            raise ValueError(f"{backend.name} is not a plain file; use engine='auto'")
        features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE
        features |= F_RO if backend.read_only else F_DISCARD | F_WRITE_ZEROES
        features |= F_MQ if queues > 1 else 0
        super().__init__(DEVICE_ID, [queue_size] * queues, features)
        self.name = name
        self.backend = backend
        self.serial = serial.encode("ascii", "replace")[:ID_BYTES]
        self.cache: Cache = cache
        #: Of the kinds read, write, flush, discard and other; `errors` did not end with OK.
        self.statistics = IoStatistics(KINDS)
        self.limit = limit or RateLimit()
        self._block_size = block_size
        self._seg_max = max(1, min(SEG_MAX, queue_size - 2))
        self._writeback = CACHES[cache][1]
        self._wanted = engine
        self._engine: BlkEngine | None = None
        self._path: BlkPath | None = None
        self._quiet = False

    # -- configuration -------------------------------------------------------------------------

    def config(self) -> bytes:
        """The configuration structure (5.2.4)."""
        backend, block = self.backend, self._block_size
        ratio = max(1, backend.block_size // block)
        return _CONFIG.pack(
            backend.size // SECTOR, SIZE_MAX, self._seg_max,
            0, 0, 0,  # no geometry
            block,
            ratio.bit_length() - 1, 0,  # physical blocks, none of them shifted
            min(max(1, backend.io_min // block), 0xFFFF), backend.io_best // block,
            self._writeback, 0, len(self.queues),
            DISCARD_SECTORS, DISCARD_SEGMENTS, max(block, backend.block_size) // SECTOR,
            ZERO_SECTORS, 1, 1,
        )  # fmt: skip

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver chooses write-back (1) or write-through (0)."""
        if offset != _WRITEBACK or size != 1 or not self.has & F_CONFIG_WCE:
            return
        before, self._writeback = self.write_through, bool(value & 1)
        self._apply_cache()
        if self.write_through and not before:
            try:  # what completed until now was promised nothing; from here on all is durable
                self.backend.flush()
            except BlockError as error:
                self.complain(f"{self.name}: {error}")

    @property
    def write_through(self) -> bool:
        """Whether each write is on stable storage when it completes (5.2.5, 5.2.6.2)."""
        if self.cache == "unsafe":
            return False
        return not self._writeback or not self.has & (F_FLUSH | F_CONFIG_WCE)

    def _apply_cache(self) -> None:
        if self._engine is not None:
            self._engine.set_write_through(self.write_through)
        if self._path is not None:
            self._path.write_through = self.write_through

    def set_limit(
        self, ops_per_s: int = 0, bytes_per_s: int = 0, burst_ops: int = 0, burst_bytes: int = 0
    ) -> None:
        """Other limits (see `RateLimit`), at once, also for requests that wait. 0: none."""
        self.limit.set(ops_per_s, bytes_per_s, burst_ops, burst_bytes)
        with self.lock:
            if self._engine is not None:
                self._engine.limits_changed()
            if self._path is not None:
                self._path.limits_changed()

    def resized(self, backend: BlockBackend | None = None) -> None:
        """The file has another size now, or the disk is another; the driver is told.

        Not with `lock` held. Requests in flight are finished before. Raises `BlockError` where the
        size cannot be had.
        """
        self.freeze()
        try:
            with self.lock:
                if backend is None:
                    self.backend.refresh_size()
                else:
                    backend.set_cache(self.cache)
                    self.backend = backend
                if self._engine is not None or self._path is not None:
                    self._stop()
                    self._start()
        finally:
            self.thaw()
        self.config_changed()

    def resize(self, size: int) -> None:
        """Gives the disk another size in bytes; the driver is told. Raises `BlockError`."""
        self.freeze()
        try:
            self.backend.resize(size)
        finally:
            self.thaw()
        self.resized()

    @property
    def requests(self) -> int:
        """Requests that have ended."""
        return self.statistics.requests

    @property
    def errors(self) -> int:
        """Those among them that failed."""
        return self.statistics.errors

    @property
    def method(self) -> str:
        """What serves the requests: "io_uring", "threads", "python"; "" if nobody yet."""
        if self._engine is not None:
            return self._engine.method
        return "python" if self.status else ""

    # -- who serves ----------------------------------------------------------------------------

    def attach(self, transport: Transport, memory: GuestMemory) -> None:
        """Decides who serves the queues, for the device's life."""
        super().attach(transport, memory)
        native = self._wanted == "native" or (self._wanted == "auto" and self.io is not None)
        if native and queues_are_native(self.queues) and self.backend.native_fd() is not None:
            self.native_queues = frozenset(range(len(self.queues)))

    def activated(self) -> None:
        """Starts what serves the queues."""
        self._stop()
        self._start()

    def _start(self) -> None:
        if not self.native_queues:
            if self.io is not None:
                self._path = BlkPath(
                    self.backend, self.limit, self._ended, write_through=self.write_through,
                    flushes=self.cache != "unsafe", name=self.name,
                )  # fmt: skip
            return
        file = self.backend.native_fd()
        if file is None:
            raise BlockError(f"{self.backend.name} is not a plain file, as the one before was")
        entries = sum(queue.max_size for queue in self.queues)
        engine = BlkEngine(
            file, self.backend.size, queues=len(self.queues), serial=self.serial,
            bounds=Bounds(DISCARD_SECTORS, DISCARD_SEGMENTS, ZERO_SECTORS, REQUEST_LIMIT),
            read_only=self.backend.read_only, unsafe=self.cache == "unsafe",
            requests=min(entries, _IN_FLIGHT), limit=self.limit, statistics=self.statistics,
            broken=self._engine_broke, failed=self._engine_failed, name=self.name,
        )  # fmt: skip
        engine.set_write_through(self.write_through)
        self._engine = engine
        for queue in self.queues:
            if queue.ready:
                self._serve_natively(engine, queue)
        if self._quiet:
            engine.pause()
        engine.start()

    def _serve_natively(self, engine: BlkEngine, queue: VirtQueue) -> None:
        index = queue.index
        engine.set_queue(index, queue, self.kick_fd(index), self.signal_for(index))  # type: ignore[arg-type]

    def _stop(self) -> None:
        engine, self._engine = self._engine, None
        path, self._path = self._path, None
        if engine is not None:
            engine.stop()
        if path is not None:
            path.stop()

    def _engine_broke(self, engine: BlkEngine, error: QueueError) -> None:
        with self.lock:
            if self._engine is engine:
                self.needs_reset(str(error))

    def _engine_failed(self, message: str) -> None:
        self.complain(f"{self.name}: {self.backend.name}: {message}")

    def queue_enabled(self, queue: VirtQueue) -> None:
        """The engine takes it in."""
        engine = self._engine
        if engine is not None:
            engine.pause()
            self._serve_natively(engine, queue)
            engine.resume()

    def queue_reset(self, queue: VirtQueue) -> None:
        """The engine lets go of it."""
        if self._engine is not None:
            self._engine.drop_queue(queue.index)

    def quiesce(self) -> None:
        """Waits for what is in flight; what waits for its rate limit goes at once."""
        self._quiet = True
        if self._engine is not None:
            self._engine.pause()
        if self._path is not None:
            self._path.drain()

    def unquiesce(self) -> None:
        """Goes on."""
        self._quiet = False
        if self._engine is not None:
            self._engine.resume()

    def device_reset(self) -> None:
        """Nobody serves any more; the cache is as the device was made."""
        self._stop()
        self._writeback = CACHES[self.cache][1]

    def close(self) -> None:
        """Closes the disk."""
        self._stop()
        self.backend.close()

    # -- requests, in Python -------------------------------------------------------------------

    def handle(self, queue: VirtQueue) -> None:
        """Every request that is there, in order."""
        if self._engine is not None:  # a kick that was not the engine's
            return
        try:
            while (chain := queue.pop()) is not None:
                request = Request(chain, self.backend, self.serial)
                if request.status is None and self._path is not None:
                    request.queue = queue
                    self._path.take(request)
                else:
                    queue.push(chain, self._serve(request))
        finally:
            self.finish(queue)

    def _serve(self, request: Request) -> int:
        """Does it at once; the bytes written to the chain's writable part."""
        start = monotonic_ns()
        failure = None
        if request.status is None:
            try:
                while request.limited and (ns := self.limit.take(request.moved)):
                    sleep(ns / 1e9)
                request.perform(self.backend, self.write_through, self.cache != "unsafe")
            except BlockError as error:
                failure = error
        return self._account(request, failure, monotonic_ns() - start)

    def _account(self, request: Request, failure: BlockError | None, ns: int) -> int:
        status = request.status
        if failure is not None:
            self.complain(f"{self.name}: {failure}")
            status = S_IOERR
        elif status is None:
            status = S_OK
        failed = status != S_OK
        moved = 0 if failed else request.moved
        self.statistics[request.kind].add(moved, ns, failed=failed)
        return request.finish(status)

    def _ended(self, request: Request, failure: BlockError | None, ns: int) -> None:
        """`BlkPath` is done with one: give it back to the driver."""
        with self.lock:
            written = self._account(request, failure, ns)
            self._guarded(lambda: self._give_back(request, written))

    def _give_back(self, request: Request, written: int) -> None:
        queue = request.queue
        assert queue is not None
        queue.push(request.chain, written)
        self.finish(queue)

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """The base's, and the cache mode that the driver chose. The device is quiet."""
        return {**super().state(), "blk_writeback": self._writeback}

    def take(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take(take)
        writeback = take.boolean("blk_writeback")

        def commit() -> None:
            base()
            self._writeback = writeback

        return commit
