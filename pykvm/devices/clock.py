"""Time for device models: real (`MonotonicClock`) or owned by a test (`ManualClock`).

All times are nanoseconds since an arbitrary start. A device asks its clock for a `Timer` and
arms it with a deadline; the callback runs on another thread with a real clock, and inside
`ManualClock.advance` with a manual one.
"""

from __future__ import annotations

from time import monotonic_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from pykvm.typed import Protocol
else:
    Protocol = object  # `typing` costs more start-up time than this module

#: How long the timer thread waits for new work before it ends, in seconds.
_IDLE_S = 0.05
#: The longest single wait, in seconds: a deadline in a hostile snapshot may be centuries ahead.
_LONGEST_WAIT_S = 3600.0


class Timer(Protocol):
    """A one-shot timer that can be armed again and again."""

    def arm(self, deadline_ns: int) -> None:
        """Fire once when the clock reaches `deadline_ns`; replaces an earlier deadline."""

    def cancel(self) -> None:
        """Forget the deadline. A callback that already runs on another thread finishes."""


class Clock(Protocol):
    """What a device knows about time."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A new timer, not armed."""


class _ManualTimer:
    __slots__ = ("callback", "deadline")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.deadline: int | None = None

    def arm(self, deadline_ns: int) -> None:
        self.deadline = deadline_ns

    def cancel(self) -> None:
        self.deadline = None


class ManualClock:
    """A clock that stands still until `advance` moves it, firing the timers on the way in order."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now = now_ns
        self._timers: list[_ManualTimer] = []

    def now_ns(self) -> int:
        """The time that the last `advance` reached."""
        return self._now

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timer that fires inside `advance`."""
        timer = _ManualTimer(callback)
        self._timers.append(timer)
        return timer

    @property
    def armed(self) -> int:
        """How many timers wait for their deadline."""
        return sum(timer.deadline is not None for timer in self._timers)

    def advance(self, nanoseconds: int) -> None:
        """Move time forward; each timer fires at its own deadline."""
        end = self._now + nanoseconds
        while True:
            due = [t for t in self._timers if t.deadline is not None and t.deadline <= end]
            if not due:
                break
            timer = min(due, key=lambda t: t.deadline or 0)
            self._now = max(self._now, timer.deadline or 0)
            timer.deadline = None
            timer.callback()
        self._now = max(self._now, end)


class _RealTimer:
    __slots__ = ("callback", "clock", "deadline")

    def __init__(self, clock: MonotonicClock, callback: Callable[[], None]) -> None:
        self.clock = clock
        self.callback = callback
        self.deadline = 0

    def arm(self, deadline_ns: int) -> None:
        self.clock._arm(self, deadline_ns)

    def cancel(self) -> None:
        self.clock._cancel(self)


class MonotonicClock:
    """`CLOCK_MONOTONIC`, with one thread for all timers.

    The thread exists only while a timer is armed (and 50 ms longer), so a clock that is only read
    costs nothing. `close` ends it.
    """

    def __init__(self) -> None:
        self._condition: threading.Condition | None = None
        self._thread: threading.Thread | None = None
        self._armed: set[_RealTimer] = set()
        self._closed = False
        self._calling = False
        self._holds = 0
        self._held_at = 0

    def now_ns(self) -> int:
        """`time.monotonic_ns()`; while held, the moment when that began."""
        return self._held_at if self._holds else monotonic_ns()

    def hold(self) -> None:
        """Time stands still, and no timer fires, until as many `release`s. Not in a callback."""
        condition = self._condition
        if condition is None:
            import threading

            condition = self._condition = threading.Condition(threading.Lock())
        with condition:
            if not self._holds:
                self._held_at = monotonic_ns()
            self._holds += 1
            while self._calling:
                condition.wait()

    def release(self) -> None:
        """Time goes on, as if it had not stood still."""
        condition = self._condition
        assert condition is not None
        with condition:
            self._holds -= 1
            condition.notify_all()

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timer whose callback runs on the clock's thread and should be short."""
        if self._condition is None:
            import threading

            self._condition = threading.Condition(threading.Lock())
        return _RealTimer(self, callback)

    def _arm(self, timer: _RealTimer, deadline_ns: int) -> None:
        condition = self._condition
        assert condition is not None
        with condition:
            if self._closed:
                return
            timer.deadline = deadline_ns
            self._armed.add(timer)
            if self._thread is None:
                import threading

                self._thread = threading.Thread(
                    target=self._run, args=(condition,), name="pykvm-timer", daemon=True
                )
                self._thread.start()
            else:
                condition.notify()

    def _cancel(self, timer: _RealTimer) -> None:
        condition = self._condition
        assert condition is not None
        with condition:
            self._armed.discard(timer)

    def _run(self, condition: threading.Condition) -> None:
        while True:
            with condition:
                timer = self._next(condition)
            if timer is None:
                return
            try:
                timer.callback()
            except Exception:
                # One device's bug must not take the other devices' timers with it.
                import sys
                import threading

                threading.excepthook(
                    threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
                )
            finally:
                with condition:
                    self._calling = False
                    condition.notify_all()

    def _next(self, condition: threading.Condition) -> _RealTimer | None:
        """Wait for the next timer that is due; None where the thread should end."""
        while not self._closed:
            if self._holds:
                condition.wait(_LONGEST_WAIT_S)
                continue
            if not self._armed:
                condition.wait(_IDLE_S)
                if not self._armed:
                    break
                continue
            timer = min(self._armed, key=lambda t: t.deadline)
            wait = timer.deadline - monotonic_ns()
            if wait <= 0:
                self._armed.discard(timer)
                self._calling = True
                return timer
            condition.wait(min(wait / 1e9, _LONGEST_WAIT_S))
        self._thread = None
        return None

    def close(self) -> None:
        """Forget all timers and end the thread. May be called twice; `now_ns` still works."""
        if self._condition is None:
            self._closed = True
            return
        with self._condition:
            self._closed = True
            self._armed.clear()
            thread = self._thread
            self._condition.notify_all()
        if thread is not None:
            import threading

            if thread is not threading.current_thread():
                thread.join()
