"""`IoThread`: one thread that waits for file descriptors and timers, and calls back.

The work of devices runs here instead of in the vCPU threads: eventfds that the guest's kicks
signal, sockets, completions. Callbacks run one after the other, never two at once.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic

from pykvm.errors import PykvmError
from pykvm.typed import TypeVar

_Result = TypeVar("_Result")
_BATCH = 256  # descriptors that are served between two looks at the posts and timers


class LoopError(PykvmError):
    """An I/O thread that cannot do what was asked: it has stopped."""


class TimerHandle:
    """A pending call of `IoThread.after`."""

    __slots__ = ("cancelled", "deadline", "function")

    def __init__(self, deadline: float, function: Callable[[], object]) -> None:
        self.deadline = deadline
        self.function = function
        self.cancelled = False

    def cancel(self) -> None:
        """It will not be called; one that runs at this moment finishes."""
        self.cancelled = True


class IoThread:
    """An epoll loop in a thread of its own, which starts with the first thing it has to do.

    All methods may be called from any thread, also from callbacks. A callback that raises is
    reported by `threading.excepthook`, and its descriptor is no longer waited for; the others go
    on.
    """

    def __init__(self, name: str = "pykvm-io") -> None:
        self.name = name
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._changed = threading.Condition()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._posts: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._order = count()
        self._thread: threading.Thread | None = None
        self._paused = 0
        self._busy = False  # something is being called back
        self._stopping = False
        self._closed = False

    @property
    def running(self) -> bool:
        """Whether its thread is there."""
        return self._thread is not None

    @property
    def current(self) -> bool:
        """Whether the caller runs on this thread."""
        return self._thread is threading.current_thread()

    # -- descriptors -------------------------------------------------------------------------------

    def add(self, fd: int, callback: Callable[[], object], *, writable: bool = False) -> None:
        """Calls `callback()` whenever `fd` can be read (or written, if `writable`).

        It is called again until what made it ready is gone: read the eventfd, empty the socket.
        Replaces an earlier callback of this descriptor. Raises `LoopError` after `stop`.
        """
        mask = select.EPOLLOUT if writable else select.EPOLLIN
        with self._changed:
            self._check()
            known = fd in self._callbacks
            self._callbacks[fd] = callback
            if known:
                self._epoll.modify(fd, mask)
            else:
                try:
                    self._epoll.register(fd, mask)
                except BaseException:
                    del self._callbacks[fd]
                    raise
            self._start()

    def remove(self, fd: int) -> None:
        """No new call for `fd` begins after this; one that runs may still finish (see `drain`)."""
        with self._changed:
            if self._callbacks.pop(fd, None) is None or self._closed:
                return
            try:
                self._epoll.unregister(fd)
            except OSError:  # it was closed before: then epoll forgot it
                pass

    # -- calls -------------------------------------------------------------------------------------

    def post(self, function: Callable[[], object]) -> None:
        """Calls `function()` there soon, in the order of posting. Raises `LoopError`."""
        with self._changed:
            self._check()
            self._posts.append(function)
            self._start()
        self._rouse()

    def call(self, function: Callable[[], _Result], timeout: float | None = None) -> _Result:
        """Runs `function()` there and gives what it returned, or raises what it raised.

        Descriptors that are ready already are served before it. On this thread itself it runs at
        once. Raises `LoopError` when the thread stops before, and `TimeoutError`. It waits while
        the thread is paused.
        """
        if self.current:
            return function()
        box: list[_Result] = []
        failure: list[BaseException] = []
        done = threading.Event()

        def body() -> None:
            try:
                box.append(function())
            except BaseException as error:
                failure.append(error)
            done.set()

        self.post(body)
        limit = None if timeout is None else monotonic() + timeout
        while not done.wait(0.2 if limit is None else max(0.0, min(0.2, limit - monotonic()))):
            if self._closed and not done.is_set():
                raise LoopError(f"{self.name} was stopped before it could do this")
            if limit is not None and monotonic() >= limit:
                raise TimeoutError(f"{self.name} was busy for {timeout} s")
        if failure:
            raise failure[0]
        return box[0]

    def after(self, seconds: float, function: Callable[[], object]) -> TimerHandle:
        """Calls `function()` there after `seconds`, unless the handle is cancelled before."""
        handle = TimerHandle(monotonic() + max(0.0, seconds), function)
        with self._changed:
            self._check()
            heapq.heappush(self._timers, (handle.deadline, next(self._order), handle))
            self._start()
        self._rouse()
        return handle

    # -- life --------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Nothing is called back from now until as many `resume`s; waits for what runs now.

        From a callback it only asks: the pause begins behind that callback.
        """
        with self._changed:
            self._paused += 1
            if self.current:
                return
            self._changed.wait_for(lambda: not self._busy)

    def resume(self) -> None:
        """Undoes one `pause`."""
        with self._changed:
            if self._paused:
                self._paused -= 1
            self._changed.notify_all()

    def drain(self) -> None:
        """Waits until what is being called back now has returned. Nothing on its own thread."""
        with self._changed:
            if not self.current:
                self._changed.wait_for(lambda: not self._busy)

    def stop(self) -> None:
        """Ends the thread after what runs now; what was posted and not begun is dropped.

        Gives back its descriptors; those that were added stay open. Twice is harmless.
        """
        with self._changed:
            if self._closed:
                return
            self._stopping = True
            self._changed.notify_all()
            thread = self._thread
        self._rouse()
        if thread is threading.current_thread():
            return  # the loop ends, and closes, behind this callback
        if thread is not None:
            thread.join()
        self._close()

    def _close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._thread = None
            self._callbacks.clear()
            self._posts.clear()
            self._timers.clear()
            self._epoll.close()
            os.close(self._wake)

    def __del__(self) -> None:  # one that nobody stopped, and whose thread never started
        if getattr(self, "_closed", True) is False and self._thread is None:
            self._close()

    def _check(self) -> None:
        if self._stopping or self._closed:
            raise LoopError(f"{self.name} was stopped")

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()

    def _rouse(self) -> None:
        with self._changed:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        # Signals are for the threads that run vCPUs and for Python's main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._stopping:
            wait, posts = self._wait()  # what is ready now comes before what was posted by now
            try:
                events = self._epoll.poll(wait, _BATCH)
            except OSError:
                break
            for fd, _ in events:
                if fd == self._wake:
                    self._unwake()
                else:
                    self._serve(fd)
            self._due()
            for _ in range(posts):
                self._invoke(self._posts.popleft() if self._posts else _nothing)
        if self._stopping:
            self._close()

    def _wait(self) -> tuple[float | None, int]:
        """How long there is nothing to do, and how many posts there are."""
        with self._changed:
            if self._paused:
                self._changed.wait_for(lambda: not self._paused or self._stopping)
            if self._stopping or self._posts:
                return 0, len(self._posts)
            while self._timers and self._timers[0][2].cancelled:
                heapq.heappop(self._timers)
            if not self._timers:
                return None, 0
            return max(0.0, self._timers[0][0] - monotonic()), 0

    def _unwake(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _serve(self, fd: int) -> None:
        callback = self._callbacks.get(fd)
        if callback is not None and not self._invoke(callback):
            self.remove(fd)

    def _due(self) -> None:
        while self._timers:
            with self._changed:
                deadline, _, handle = self._timers[0]
                if deadline > monotonic() and not handle.cancelled:
                    return
                heapq.heappop(self._timers)
            if not handle.cancelled:
                self._invoke(handle.function, handle)

    def _invoke(self, function: Callable[[], object], timer: TimerHandle | None = None) -> bool:
        """Calls back, unless paused or stopped meanwhile; False if that raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused or self._stopping)
            if self._stopping or (timer is not None and timer.cancelled):
                return True
            self._busy = True
        try:
            function()
        except Exception:
            import sys

            threading.excepthook(
                threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
            )
            return False
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        return True


def _nothing() -> None:
    pass
