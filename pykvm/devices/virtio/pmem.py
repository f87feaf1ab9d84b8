"""`VirtioPmem`: a host file as persistent memory (VIRTIO 1.2, section 5.19).

The guest reads and writes the file as memory, without exits and without a page cache of its own
(DAX). What it wrote is on stable storage once a flush request came back: fdatasync(2), in a thread
of its own, as that takes as long as the host's disk does.
"""

from __future__ import annotations

import os
import struct
import threading
from time import monotonic_ns

from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.virtio.buffers import gather, scatter
from pykvm.devices.virtio.device import DRIVER_OK, VirtioDevice
from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue

DEVICE_ID = 27
REQ_FLUSH = 0
_QUEUE_SIZE = 64
_CONFIG = struct.Struct("<QQ")
_OK, _FAILED = 0, 1
_ROOM = 4


class VirtioPmem(VirtioDevice):
    """Persistent memory of `size` bytes at guest-physical `gpa`, which is the machine's affair.

    - `fd`: the file; the device's from now on. -1: there is none.
    - `flushes`: guest writes reach the file; if not (read-only, snapshot) a flush does nothing.
    """

    def __init__(
        self, gpa: int, size: int, fd: int = -1, *, flushes: bool = True,
        name: str = "virtio-pmem",
    ) -> None:  # fmt: skip
        super().__init__(DEVICE_ID, [_QUEUE_SIZE])
        self.name = name
        self.gpa, self.size = gpa, size
        self.statistics = IoStatistics(["flush"])
        self._fd = fd
        self._flushes = flushes and fd >= 0
        self._work = threading.Condition(threading.Lock())
        self._waiting: list[tuple[VirtQueue, Chain, int]] = []  # with the time it came
        self._busy = False
        self._thread: threading.Thread | None = None
        self._ended = False

    def config(self) -> bytes:
        """start, size."""
        return _CONFIG.pack(self.gpa, self.size)

    def handle(self, queue: VirtQueue) -> None:
        """Requests: flushes that came together are one fdatasync."""
        batch = []
        try:
            while (chain := queue.pop()) is not None:
                raw = gather(chain.readable, 4)
                if len(raw) < 4 or chain.writable_bytes < _ROOM:
                    raise QueueError(
                        f"{self.name}: a request of {chain.readable_bytes} bytes with room for "
                        f"{chain.writable_bytes}"
                    )
                if struct.unpack("<I", raw)[0] != REQ_FLUSH:
                    queue.push(chain, scatter(chain.writable, struct.pack("<I", _FAILED)))
                    continue
                batch.append((queue, chain, monotonic_ns()))
        finally:
            self.finish(queue)
            if batch and self.io is None:
                self._complete(batch, self._sync())
            elif batch:
                self._hand_over(batch)

    def _sync(self) -> int:
        if not self._flushes:
            return _OK
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self.complain(f"{self.name}: {error.strerror}")
            return _FAILED
        return _OK

    def _complete(self, batch: list[tuple[VirtQueue, Chain, int]], result: int) -> None:
        answer = struct.pack("<I", result)
        queue = batch[0][0]
        with self.lock:
            try:
                for _, chain, since in batch:
                    taken = monotonic_ns() - since
                    self.statistics["flush"].add(0, taken, failed=result != _OK)
                    queue.push(chain, scatter(chain.writable, answer))
                if self.status & DRIVER_OK:
                    self.finish(queue)
            except QueueError as error:
                self.needs_reset(str(error))

    # -- the thread ----------------------------------------------------------------------------

    def _hand_over(self, batch: list[tuple[VirtQueue, Chain, int]]) -> None:
        with self._work:
            self._waiting += batch
            self._work.notify_all()
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(
                    target=self._run, name=f"pykvm-{self.name}", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._work:
                while not self._waiting and not self._ended:
                    self._work.wait()
                if not self._waiting:
                    return
                batch, self._waiting = self._waiting, []
                self._busy = True
            try:
                self._complete(batch, self._sync())
            finally:
                with self._work:
                    self._busy = False
                    self._work.notify_all()

    def quiesce(self) -> None:
        """Waits for the flushes that were begun."""
        with self._work:
            while self._waiting or self._busy:
                self._work.wait()

    def close(self) -> None:
        """Flushes what is under way, and closes the file."""
        super().close()
        with self._work:
            self._ended = True
            self._work.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
