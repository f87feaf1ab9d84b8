"""Output on its way to a file descriptor: few system calls, no lost time, no unbounded memory."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Gathered output is written at the latest when it has this many bytes.
_GATHER = 2048
#: How long gathered output waits at most, in seconds (`OutputQueue.tick` is called that often).
GATHER_S = 0.002


class OutputQueue:
    """Bytes that wait for a descriptor which is never waited for longer than wanted.

    The first byte after a pause is written at once. What follows within 2 ms is gathered and
    written at each newline, at 2 KiB, and by `tick` 2 ms later. So typing at a prompt echoes
    immediately, and a boot log costs one system call a line instead of one a character.

    `send` writes without blocking and says how many bytes went; it raises BlockingIOError for none.
    Where the other end does not read, up to `limit` bytes wait here. Then `patient` output waits in
    `write` for room (until `stop_waiting`), and other output loses its oldest bytes, counted in
    `dropped`. Any other OSError of `send` ends the output: `failed` is called with it, once.

    Thread-safe.
    """

    def __init__(
        self,
        send: Callable[[bytearray], int],
        *,
        limit: int,
        wait: Callable[[float], object],
        wake: Callable[[], object],
        failed: Callable[[OSError], object],
    ) -> None:
        """`wait(seconds)` waits for room; `wake()` has the reader thread look at the queue."""
        from threading import Lock

        #: Held while `send` runs.
        self.lock = Lock()
        self._buffer = bytearray()
        self._send = send
        self._limit = limit
        self._gather = min(_GATHER, limit)
        self._wait = wait
        self._wake = wake
        self._failed = failed
        self._gone = False
        self._hurry = False
        #: A full queue waits for room instead of losing its oldest bytes.
        self.patient = False
        #: Output came within the last 2 ms: `tick` has to be called.
        self.gathering = False
        #: The descriptor took less than it was given: `drain` has to be called when it has room.
        self.blocked = False
        #: Bytes given up because the other end did not read.
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def congested(self) -> bool:
        """Half of a patient queue is full: who can hold output back should."""
        return self.patient and not self._hurry and len(self._buffer) > self._limit // 2

    def write(self, data: bytes) -> None:
        """Output from the guest."""
        with self.lock:
            buffer = self._buffer
            buffer += data
            if self.gathering and len(buffer) < self._gather and b"\n" not in data:
                return
            if self._gone:
                buffer.clear()
                return
            failure = None
            wake = False
            if not self.gathering:
                self.gathering = wake = True
                failure = self._push()
            elif not self.blocked:  # else the reader thread waits for room
                failure = self._push()
                wake = self.blocked
            too_much = len(buffer) > self._limit
        if wake:
            self._wake()
        if failure is not None:
            self._failed(failure)
        elif too_much:
            self._make_room()

    def _push(self) -> OSError | None:
        """Write as much as goes. Called with the lock held."""
        buffer = self._buffer
        while buffer:
            try:
                sent = self._send(buffer)
            except BlockingIOError:
                self.blocked = True
                return None
            except OSError as error:
                self._swallow()
                return error
            del buffer[:sent]
        self.blocked = False
        return None

    def _make_room(self) -> None:
        while self.patient and not self._hurry and len(self._buffer) > self._limit:
            self._wait(0.1)
            self.drain()
        with self.lock:
            excess = len(self._buffer) - self._limit
            if excess > 0:
                del self._buffer[:excess]
                self.dropped += excess

    def tick(self) -> None:
        """2 ms are over: write what was gathered, or end the gathering where there is nothing."""
        with self.lock:
            if self._buffer and not self.blocked:
                failure = self._push()
            else:
                failure = None
                self.gathering = self.blocked
        if failure is not None:
            self._failed(failure)

    def drain(self) -> None:
        """Write what waits; for when the descriptor has room, or at the end."""
        with self.lock:
            failure = self._push()
        if failure is not None:
            self._failed(failure)

    def flush(self, patience: float) -> None:
        """Write all, giving up after `patience` seconds in which the other end took nothing."""
        from time import monotonic

        end = monotonic() + patience
        left = len(self._buffer)
        self.drain()
        while self._buffer and not self._gone:
            if len(self._buffer) < left:
                left = len(self._buffer)
                end = monotonic() + patience
            if self._hurry or monotonic() >= end:
                return
            self._wait(min(0.1, patience))
            self.drain()

    def stop_waiting(self) -> None:
        """Lose output rather than wait, from now on."""
        self._hurry = True

    def end(self) -> None:
        """Swallow all output from now on."""
        with self.lock:
            self._swallow()

    def _swallow(self) -> None:
        self._gone = True
        self.gathering = self.blocked = False
        self._buffer.clear()
