"""`Poller`: the file descriptors of one device, waited for as one.

It is an epoll set of its own, and an epoll set can be waited for like a file: an I/O thread adds
`fileno()` and calls `poll()`; without a thread, whoever owns the device calls `poll()`.
"""

from __future__ import annotations

import select
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR
_BATCH = 64


class Poller:
    """Calls `callback(events)` for descriptors that are ready (level-triggered).

    `HANGUP` comes unasked; a callback that has nothing to do about it calls `forget`.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._known: dict[int, tuple[int, Callable[[int], None]]] = {}

    def fileno(self) -> int:
        """Readable when `poll` has something to do."""
        return self._epoll.fileno()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Waits for `events` (READ, WRITE, or 0 for a hang-up only) instead of those before."""
        if self._epoll.closed:
            return
        before = self._known.get(fd)
        if before is None:
            self._epoll.register(fd, events)
        elif before[0] != events:
            self._epoll.modify(fd, events)
        self._known[fd] = (events, callback)

    def forget(self, fd: int) -> None:
        """No more calls for `fd`; to be called before it is closed. Harmless if unknown."""
        if self._known.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def poll(self, timeout: float = 0) -> int:
        """Waits up to `timeout` seconds, and serves what is ready; how many that was."""
        if self._epoll.closed:
            return 0
        ready = self._epoll.poll(timeout, _BATCH)
        for fd, events in ready:
            known = self._known.get(fd)
            if known is not None:  # not forgotten by one of the callbacks before
                known[1](events)
        return len(ready)

    def close(self) -> None:
        """Gives the set back; the descriptors stay open. Twice is harmless."""
        self._known.clear()
        self._epoll.close()
