"""How requests reach disks that are not a file without anybody waiting: `BlkPath`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, monotonic_ns

from pykvm.devices.block.backend import BlockBackend, BlockError
from pykvm.devices.block.request import FLUSH
from pykvm.devices.virtio.blk_request import Request
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.datapath.limits import RateLimit

#: (request, error, ns that it took)
Ended = Callable[[Request, BlockError | None, int], None]
_IDLE_SECONDS = 10.0


class BlkPath:
    """Works on requests in threads, or has the back end work on them if it can (`begin`).

    `ended` is called once for each request given to `take`, from some thread. As many threads as
    the back end allows at once (`BlockBackend.parallel`) start when there is work, and end when
    there was none for ten seconds.
    """

    def __init__(
        self, backend: BlockBackend, limit: RateLimit, ended: Ended, *, write_through: bool,
        flushes: bool, name: str,
    ) -> None:  # fmt: skip
        self.backend, self.limit, self._ended = backend, limit, ended
        self.write_through = write_through
        self._flushes = flushes
        self._name = name
        self._begin: Any = getattr(backend, "begin", None)
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Request, int]] = deque()
        self._threads = self._idle = 0
        self._most = min(max(backend.parallel, 1), 16)
        self._flying = 0
        self._hurry = 0  # nobody waits for tokens while the device comes to rest
        self._stopped = False

    def take(self, request: Request) -> None:
        """Begins a request that is to be done."""
        start = monotonic_ns()
        with self._changed:
            self._flying += 1
            if self._begin is None or len(request.accesses) != 1 or self.limit.limited:
                self._jobs.append((request, start))
                if self._idle:
                    self._changed.notify_all()
                elif self._threads < self._most:
                    self._threads += 1
                    threading.Thread(
                        target=self._work, name=f"pykvm-{self._name}-io", daemon=True
                    ).start()
                return
        access = request.accesses[0]
        if access.kind == FLUSH and not self._flushes:
            self._end(request, None, start)
            return
        if self.write_through and request.writes:
            access = access._replace(durable=True)
        try:
            self._begin(access, lambda error: self._end(request, error, start))
        except BlockError as error:
            self._end(request, error, start)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                found = self._changed.wait_for(lambda: self._jobs or self._stopped, _IDLE_SECONDS)
                self._idle -= 1
                if not found or not self._jobs:
                    self._threads -= 1
                    return
                request, start = self._jobs.popleft()
            if request.limited:
                self._wait_for_tokens(request.moved)
            failure = None
            try:
                request.perform(self.backend, self.write_through, self._flushes)
            except BlockError as error:
                failure = error
            except Exception as error:  # a back end's own mistake is one request's trouble
                failure = BlockError(f"{self.backend.name}: {type(error).__name__}: {error}")
            self._end(request, failure, start)

    def _wait_for_tokens(self, length: int) -> None:
        while ns := self.limit.take(length):
            until = monotonic() + ns / 1e9
            with self._changed:
                if self._hurry or self._stopped:
                    self.limit.charge(length)
                    return
                while not self._hurry and (left := until - monotonic()) > 0:
                    self._changed.wait(left)

    def _end(self, request: Request, error: BlockError | None, start: int) -> None:
        try:
            self._ended(request, error, monotonic_ns() - start)
        finally:
            with self._changed:
                self._flying -= 1
                self._changed.notify_all()

    def drain(self) -> None:
        """Returns when nothing is in flight; nobody gives new requests meanwhile."""
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._flying)
            self._hurry -= 1

    def limits_changed(self) -> None:
        """Those who wait for tokens ask again when their time is over."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends the threads; drained before."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
