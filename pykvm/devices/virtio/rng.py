"""`VirtioRng`: the entropy device (VIRTIO 1.2, section 5.4)."""

from __future__ import annotations

import os
import stat

from pykvm.datapath.limits import RateLimit
from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.base import Clock, MonotonicClock
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.buffers import scatter
from pykvm.devices.virtio.device import Commit, VirtioDevice
from pykvm.devices.virtio.queue import QueueError, VirtQueue
from pykvm.errors import PykvmError

DEVICE_ID = 4
_QUEUE_SIZE = 64
_MOST = 4 << 10  # bytes for one request; the driver comes again for more
_RETRY_NS = 20_000_000  # until a source that has nothing now is asked again


class RngError(PykvmError):
    """The source of random bytes cannot be used."""


class VirtioRng(VirtioDevice):
    """Random bytes for the guest.

    - `source`: "" for the host kernel's generator (getrandom(2)), or a file to read: a device such
      as /dev/hwrng, a pipe, or a regular file (each byte of it is given out once).
    - `rate`: bytes a second, None for no limit; more waits in the queue. It is the host's affair:
      neither a reset by the guest nor a saved state changes it.

    Raises `RngError` for a source that cannot be read.
    """

    def __init__(
        self, source: str | os.PathLike[str] = "", *, rate: int | None = None,
        clock: Clock | None = None, name: str = "virtio-rng",
    ) -> None:  # fmt: skip
        if rate is not None and rate < 1:
            raise RngError(f"a rate of {rate} bytes a second gives nothing; leave rate out")
        self._fd = -1
        self.source = os.fspath(source)
        if self.source:
            self._open(self.source)
        super().__init__(DEVICE_ID, [_QUEUE_SIZE])
        self.name = name
        #: The limit; `limit.set(0, bytes_per_s)` changes it while the guest runs.
        self.limit = RateLimit(0, rate or 0)
        self.statistics = IoStatistics(["read"])
        self._own_clock: MonotonicClock | None = None
        if clock is None:
            clock = self._own_clock = MonotonicClock()
        self._clock = clock
        self._timer = clock.timer(self._again)
        self._waiting = False
        #: A regular file that served as source has been read to its end.
        self.exhausted = False

    def _open(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            if stat.S_ISDIR(os.fstat(self._fd).st_mode):
                raise IsADirectoryError(21, os.strerror(21))
        except (OSError, ValueError) as error:
            self.close()
            why = getattr(error, "strerror", None) or error
            raise RngError(
                f"random numbers cannot be read from {path!r}: {why}; "
                "give a file, or leave it out for the host's own"
            ) from error

    # -- requests ------------------------------------------------------------------------------

    def handle(self, queue: VirtQueue) -> None:
        """Fills the buffers that are there, as far as limit and source allow."""
        try:
            # A driver that adds buffers as fast as they are filled must not keep us for ever.
            for _ in range(4 * queue.max_size):
                wait = self.limit.take(0, self._clock.now_ns())
                if wait:
                    self._wait(wait)
                    return
                data = self._read(self._piece())
                if not data:
                    self._wait(_RETRY_NS)
                    return
                chain = queue.pop()
                if chain is None:
                    self._unread(data)
                    return
                if chain.readable or not chain.writable:
                    raise QueueError(f"{self.name}: a buffer that the device cannot write to")
                written = scatter(chain.writable, data)
                self._unread(data[written:])
                self.limit.charge(written, self._clock.now_ns())
                self.statistics["read"].add(written)
                queue.push(chain, written)
            self._wait(0)  # no end in sight: others come first
        finally:
            self.finish(queue)

    _left = b""

    def _unread(self, data: bytes) -> None:
        """What a file gave and nobody took is the next request's; the kernel's is free."""
        self._left = data if self._fd >= 0 else b""

    def _read(self, length: int) -> bytes:
        if self._left:
            data, self._left = self._left[:length], self._left[length:]
            return data
        if self.exhausted:
            return b""
        if self._fd < 0:
            return os.getrandom(length) if not self.source else b""
        try:
            data = os.read(self._fd, length)
        except BlockingIOError:
            return b""
        except OSError as error:
            self.exhausted = True
            self.complain(f"{self.name}: {self.source}: {error.strerror}; nothing more comes")
            return b""
        if not data and stat.S_ISREG(os.fstat(self._fd).st_mode):
            self.exhausted = True
            self.complain(f"{self.name}: {self.source} is at its end; nothing more comes")
        return data

    def _piece(self) -> int:
        """Bytes for one request: a tenth of a second's worth where there is a limit."""
        rate = self.limit.bytes_per_s
        return max(1, min(_MOST, rate // 10)) if rate else _MOST

    def _wait(self, nanoseconds: int) -> None:
        if self.exhausted:
            return
        self._waiting = True
        self._timer.arm(self._clock.now_ns() + max(nanoseconds, 1_000_000))

    def _again(self) -> None:
        self._waiting = False
        self.kick(0)

    # -- life ----------------------------------------------------------------------------------

    def device_reset(self) -> None:
        """Nobody waits any more."""
        self._timer.cancel()
        self._waiting = False

    def state(self) -> dict[str, object]:
        """The base class's, and whether a request waits."""
        return {**super().state(), "rng_waiting": self._waiting}

    def take(self, take: StateReader) -> Commit:
        """As the base class; requests that waited when the state was saved go on."""
        base = super().take(take)
        waiting = take.boolean("rng_waiting")

        def commit() -> None:
            base()
            self._timer.cancel()
            self._waiting = waiting
            if waiting:
                self._timer.arm(self._clock.now_ns())

        return commit

    def close(self) -> None:
        """Closes the source."""
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        timer = getattr(self, "_timer", None)
        if timer is not None:
            timer.cancel()
            if self._own_clock is not None:
                self._own_clock.close()
