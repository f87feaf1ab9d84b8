"""`BlkEngine`: serves virtio-blk queues from a file, in a thread that does not need Python.

The work is done in native/src/blk*.c: requests are taken from the rings, checked, and their data
moved between the file and guest memory by io_uring, or by a pool of threads where the host has
none. This is the handle: starting, pausing, stopping, and what is told of the guest's and the
host's mistakes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from pykvm._native import ffi, lib
from pykvm.datapath.limits import RateLimit
from pykvm.datapath.ring import QueueError
from pykvm.datapath.statistics import IoStatistics
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from pykvm.datapath.queue import NativeQueue

KINDS = ("read", "write", "flush", "discard", "other")
_NAMES = {0: "a read", 1: "a write", 4: "a flush", 11: "a discard", 13: "zeroing"}
_REPORTS = 10


class File(Protocol):
    """A file that is a disk; see `pykvm.devices.block.backend.NativeFile`."""

    @property
    def fd(self) -> int: ...
    @property
    def plain_fd(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def direct(self) -> bool: ...
    @property
    def block_device(self) -> bool: ...
    @property
    def align(self) -> int: ...
    @property
    def memory_align(self) -> int: ...
    @property
    def guarded(self) -> bool: ...


class Bounds(NamedTuple):
    """What one request may ask for: sectors of 512 bytes, segments, bytes."""

    discard_sectors: int
    discard_segments: int
    zero_sectors: int
    request_bytes: int


class BlkEngine:
    """Serves queues once `start` was called, until `stop`.

    - `size`: of the disk in bytes, a multiple of 512; up to 511 more than the file has.
    - `statistics`: of the kinds `KINDS`.
    - `broken(engine, error)`: the driver broke a rule of a queue; nothing is served any more.
      `failed(message)`: the host refused a request; only the first ten.
      Both are called from the engine's thread, when nothing is in flight.
    - `uring`: False for the pool of threads though the host has io_uring.

    The guest memory that is mapped when a queue is set stays mapped as long as it is set.
    """

    def __init__(
        self, file: File, size: int, *, queues: int, serial: bytes, bounds: Bounds,
        read_only: bool = False, unsafe: bool = False, requests: int = 256,
        limit: RateLimit | None = None, statistics: IoStatistics | None = None,
        broken: Callable[[BlkEngine, QueueError], object] = lambda engine, error: None,
        failed: Callable[[str], object] = lambda message: None,
        uring: bool = True, name: str = "virtio-blk",
    ) -> None:  # fmt: skip
        self.name = name
        self.statistics = statistics or IoStatistics(KINDS)
        self.limit = limit
        self._broken, self._failed = broken, failed
        self._queues: list[tuple[NativeQueue, object] | None] = [None] * queues
        flags = (
            read_only * lib.PYKVM_BLK_READ_ONLY | file.direct * lib.PYKVM_BLK_DIRECT
            | unsafe * lib.PYKVM_BLK_UNSAFE | file.block_device * lib.PYKVM_BLK_DEVICE
            | (not uring) * lib.PYKVM_BLK_THREADS | file.guarded * lib.PYKVM_BLK_GUARDED
        )  # fmt: skip
        config = ffi.new(
            "struct pykvm_blk_config *",
            {
                "fd": file.fd, "plain_fd": file.plain_fd, "flags": flags,
                "align": file.align, "memory_align": file.memory_align,
                "offset": file.offset, "size": size, "bytes": min(size, file.size),
                "discard_sectors": bounds.discard_sectors,
                "discard_segments": min(bounds.discard_segments, 16),
                "zero_sectors": bounds.zero_sectors, "request_bytes": bounds.request_bytes,
                "queues": queues, "requests": requests, "reports": _REPORTS,
                "serial": serial.ljust(20, b"\0")[:20],
                "limit": limit.native if limit is not None else ffi.NULL,
                "stats": self.statistics.native,
            },
        )  # fmt: skip
        self._c: Any = lib.pykvm_blk_new(config)
        if self._c == ffi.NULL:
            raise PykvmError(f"{name}: no memory, or no file descriptors, for its I/O engine")
        self._event = ffi.new("struct pykvm_blk_event *")
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._alive = threading.Lock()  # held while others than the thread use `_c`

    # -- queues --------------------------------------------------------------------------------

    def set_queue(self, index: int, queue: NativeQueue, kick_fd: int, signal: Any) -> None:
        """Serves `queue`; before `start`, or paused.

        `signal`: (eventfd, `uint32_t *` or None, bits), see
        `pykvm.devices.virtio.transport.Signal`.
        """
        fd, isr, bits = signal
        c_signal = ffi.new("struct pykvm_vq_signal *", (isr or ffi.NULL, bits, fd))
        lib.pykvm_blk_set_queue(self._c, index, queue.c, kick_fd, c_signal)
        self._queues[index] = (queue, queue.map)

    def drop_queue(self, index: int) -> None:
        """Serves a queue no more; before `start`, or paused."""
        lib.pykvm_blk_set_queue(self._c, index, ffi.NULL, -1, ffi.NULL)
        self._queues[index] = None

    def set_size(self, size: int, file_size: int) -> None:
        """Another size of the disk and of the file; paused."""
        lib.pykvm_blk_set_size(self._c, size, min(size, file_size))

    def set_write_through(self, on: bool) -> None:
        """Whether each write is on stable storage when it completes. At any time."""
        with self._alive:
            if not self._stopped:
                lib.pykvm_blk_set_write_through(self._c, on)

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread."""
        # A daemon: a machine that nobody closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name=f"pykvm-{self.name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        c, event = self._c, self._event
        while lib.pykvm_blk_run(c) == lib.PYKVM_BLK_EVENT:
            lib.pykvm_blk_take_event(c, event)
            if event.kind == lib.PYKVM_BLK_BROKEN:
                self._queue_broke(event)
            elif event.kind == lib.PYKVM_BLK_FAILED:
                import os

                what = _NAMES.get(event.request, "a request")
                self._failed(f"{what} at {event.offset:#x} failed: {os.strerror(event.error)}")
        lib.pykvm_blk_free(c)

    def _queue_broke(self, event: Any) -> None:
        index = event.queue
        held = self._queues[index]
        if held is None or self._stopped:
            return
        queue = held[0]
        queue.c.error, queue.c.detail = event.rule, list(event.detail)
        if not event.rule:
            error = QueueError(f"{self.name}: a request without room for its status")
        elif queue.outdated():  # memory was added since: the buffer may lie there
            queue.refresh()
            self._queues[index] = (queue, queue.map)
            lib.pykvm_blk_mend(self._c)
            return
        else:
            error = queue.error()
        self._broken(self, error)

    def pause(self) -> None:
        """Returns when nothing is in flight; nothing begins before as many `resume`s.

        Requests that wait for their rate limit go at once. Not from the callbacks.
        """
        if not self._stopped:
            lib.pykvm_blk_pause(self._c)

    def resume(self) -> None:
        """Undoes one `pause`."""
        if not self._stopped:
            lib.pykvm_blk_resume(self._c)

    def stop(self) -> None:
        """Finishes what is in flight and ends the thread; does not wait for its callbacks.

        Queues, memory and file are not touched any more when this returns. Twice is harmless.
        """
        if self._stopped:
            return
        self.pause()
        with self._alive:
            self._stopped = True
        if self._thread is None:
            lib.pykvm_blk_free(self._c)
        else:
            lib.pykvm_blk_stop(self._c)

    def limits_changed(self) -> None:
        """Requests that wait look at their limit again."""
        with self._alive:
            if not self._stopped:
                lib.pykvm_blk_wake(self._c)

    # -- looking -------------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """How the data is moved: "io_uring" or "threads"; "" before the first request."""
        with self._alive:
            known = -1 if self._stopped else lib.pykvm_blk_uses_uring(self._c)
        return {1: "io_uring", 0: "threads"}.get(known, "")

    @property
    def in_flight(self) -> int:
        """Requests that are being worked on at this moment."""
        with self._alive:
            return 0 if self._stopped else int(lib.pykvm_blk_in_flight(self._c))


def queues_are_native(queues: Sequence[Any]) -> bool:
    """Whether an engine can walk these queues."""
    return all(queue.c is not None for queue in queues)
