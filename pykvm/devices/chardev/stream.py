"""The engine of all back ends with a file descriptor: a thread that polls, an output queue."""

from __future__ import annotations

import os
import select

from pykvm.devices.chardev.base import Chardev
from pykvm.devices.chardev.output import GATHER_S, OutputQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading

    from pykvm.devices.chardev.base import Receiver

_READ = 4096
#: `poll` conditions that a read or a write turns into data, an end of file or an error.
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL
_WRITABLE = select.POLLOUT | select.POLLHUP | select.POLLERR | select.POLLNVAL


class StreamChardev(Chardev):
    """A back end whose input is `_in_fd` and whose output goes to `_out_fd` (-1: none).

    A subclass opens them in `_open` and closes them in `_shut`. Input is read only when the device
    has taken what was read before, so the other end feels the guest's flow control. One thread does
    the reading and writes what could not be written at once; `close` ends it.
    """

    #: Bytes of output that wait for a slow other end.
    output_limit = 256 << 10
    #: Whether a full queue makes `write` wait (else the oldest output is dropped).
    patient = False
    #: How long `close` waits for an other end that takes nothing, in seconds.
    linger = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._in_fd = -1
        self._out_fd = -1
        self._wake_fd = -1
        self._thread: threading.Thread | None = None
        self._closing = False
        self._output = OutputQueue(
            self._send,
            limit=self.output_limit,
            wait=self._wait_for_room,
            wake=self._wake,
            failed=self._output_failed,
        )
        from threading import Lock

        self._wake_lock = Lock()

    # -- for subclasses ------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the descriptors; raises `ChardevError` and leaves nothing open."""
        raise NotImplementedError

    def _shut(self) -> None:
        """Close the descriptors. The thread has ended."""
        raise NotImplementedError

    def _send(self, data: bytearray) -> int:
        """Write without blocking; BlockingIOError where nothing can be written now."""
        if self._out_fd < 0:
            raise BlockingIOError
        return os.write(self._out_fd, data)

    def _may_read(self) -> bool:
        """The device has taken all input; more is left to the other end until then."""
        return self._input.empty

    def _receive(self) -> bytes:
        """Read what `poll` announced; b"" at the end of the input."""
        return os.read(self._in_fd, _READ)

    def _got_input(self, data: bytes) -> None:
        """Input arrived, on the thread."""
        self._input.feed(data)

    def _input_ended(self, error: OSError | None) -> None:
        """The input is at its end, on the thread."""
        self._in_fd = -1
        self._emit("eof")

    def _output_failed(self, error: OSError) -> None:
        """The output broke; on any thread."""
        self.error = error
        self._emit("hangup")

    def _before_poll(self, poll: select.poll) -> float | None:
        """Register more descriptors; gives the longest time to wait for them in seconds."""
        return None

    def _after_poll(self, ready: dict[int, int]) -> None:
        """Look at the descriptors that `_before_poll` registered."""

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the other end and start the thread. Raises `ChardevError`."""
        if self._thread is not None or self._closing:
            return
        from threading import Thread

        self._open()
        self._output.patient = self.patient
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = Thread(target=self._run, name=f"pykvm-{self.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Flush (waiting `linger` seconds at most for an end that takes nothing) and close."""
        if self._closing:
            return
        self._closing = True
        try:
            if self._thread is not None:
                self._output.flush(self.linger)
        finally:
            self._output.end()
            self._wake()
            self._end_thread()
            self._input.set_receiver(None)
            with self._wake_lock:
                if self._wake_fd >= 0:
                    os.close(self._wake_fd)
                    self._wake_fd = -1
            self._shut()

    def _end_thread(self) -> None:
        from threading import current_thread

        thread = self._thread
        if thread is not None and thread is not current_thread():
            # A read can only hang where another process took the bytes that poll saw; the thread
            # is a daemon, so that even then the program ends.
            thread.join(2.0)

    def write(self, data: bytes) -> None:
        """Output from the guest."""
        self._output.write(data)

    @property
    def congested(self) -> bool:
        """See `Chardev`. Output that is lost rather than waited for never congests."""
        return self._output.congested

    def flush(self) -> None:
        """Write what was gathered; waits `linger` seconds at most for an end that takes nothing."""
        self._output.flush(self.linger)

    def stop_waiting(self) -> None:
        """Lose output rather than wait for the other end, from now on."""
        self._output.stop_waiting()

    def set_receiver(self, receiver: Receiver | None) -> None:
        """Input goes to `receiver`, what came before included."""
        super().set_receiver(receiver)
        self._wake()

    def receiver_ready(self) -> None:
        """Offer the input that waits; where all was taken, the thread reads on."""
        if not self._input.empty and self._input.ready():
            self._wake()

    @property
    def dropped(self) -> int:
        """Bytes of output that were given up because the other end did not read."""
        return self._output.dropped

    # -- the thread ----------------------------------------------------------------------------

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _wait_for_room(self, seconds: float) -> None:
        poll = select.poll()
        if self._out_fd >= 0:
            poll.register(self._out_fd, select.POLLOUT)
        poll.poll(seconds * 1000)

    def _run(self) -> None:
        failures = 0
        while not self._closing and failures < 3:
            try:
                self._turn()
            except Exception as error:
                # A receiver or event handler raised. The guest goes on without this back end's
                # input; the reason is there to be shown.
                self.error = self.error or error
                self._in_fd = -1
                failures += 1

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        timeout = self._before_poll(poll)
        reading = self._in_fd if self._may_read() else -1
        writing = self._out_fd if self._output.blocked else -1
        if reading == writing and reading >= 0:
            poll.register(reading, select.POLLIN | select.POLLOUT)
        else:
            if reading >= 0:
                poll.register(reading, select.POLLIN)
            if writing >= 0:
                poll.register(writing, select.POLLOUT)
        gathering = self._output.gathering and not self._output.blocked
        if gathering:
            timeout = GATHER_S if timeout is None else min(timeout, GATHER_S)
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        if self._closing:
            return
        self._after_poll(ready)
        if writing >= 0 and ready.get(writing, 0) & _WRITABLE:
            self._output.drain()
        elif gathering:
            self._output.tick()
        if reading >= 0 and reading == self._in_fd and ready.get(reading, 0) & _READABLE:
            self._read()

    def _read(self) -> None:
        try:
            data = self._receive()
        except BlockingIOError:
            return
        except OSError as error:
            self._input_ended(error)
            return
        if data:
            self._got_input(data)
        else:
            self._input_ended(None)
