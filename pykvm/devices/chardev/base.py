"""What all back ends have in common, and the way of input from one into a serial device."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pykvm.errors import PykvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pykvm.typed import Literal, Self, TypeAlias

    #: What a back end tells apart from characters:
    #: `break`: the user asked for a break condition; `quit`: the user asked to end the machine;
    #: `hangup`: nobody will ever read the output again; `eof`: no more input will come;
    #: `connected`, `disconnected`: a peer came, went.
    ChardevEvent: TypeAlias = Literal["break", "quit", "hangup", "eof", "connected", "disconnected"]
    EventHandler: TypeAlias = Callable[[ChardevEvent], object]
    Receiver: TypeAlias = Callable[[bytes], int]
else:
    ChardevEvent = str

#: How much input is offered to a device at once; a UART takes 16 bytes at most.
_OFFER = 64


class ChardevError(PykvmError):
    """A back end cannot be made or opened: one sentence with the specification and the remedy."""


class InputPump:
    """Input on its way to the device, kept until the device has room for it.

    `feed` and `ready` may be called from different threads; characters stay in order.
    """

    def __init__(self) -> None:
        from threading import RLock

        self._lock = RLock()
        self._pending = bytearray()
        self._receiver: Receiver | None = None
        self._delivering = False
        self._again = False

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def empty(self) -> bool:
        """The device has taken everything: more may be read from the source."""
        return not self._pending

    @property
    def waiting(self) -> bytes:
        """The input that the device has not taken yet."""
        with self._lock:
            return bytes(self._pending)

    def replace(self, waiting: bytes) -> None:
        """Other input waits instead; the device is offered it when it has room (`ready`)."""
        with self._lock:
            self._pending[:] = waiting

    def set_receiver(self, receiver: Receiver | None) -> None:
        """From now on input goes to `receiver`, what waits included."""
        with self._lock:
            self._receiver = receiver
            self._deliver()

    def feed(self, data: bytes) -> bool:
        """Add input; true where the device took all there is."""
        with self._lock:
            self._pending += data
            self._deliver()
            return not self._pending

    def ready(self) -> bool:
        """The device has room; true where it has taken all there was."""
        with self._lock:
            self._deliver()
            return not self._pending

    def _deliver(self) -> None:
        if self._delivering:
            self._again = True  # the receiver called back: the loop below goes on
            return
        self._delivering = True
        try:
            while self._pending and self._receiver is not None:
                self._again = False
                taken = self._receiver(bytes(self._pending[:_OFFER]))
                if taken > 0:
                    del self._pending[:taken]
                elif not self._again:
                    break
        finally:
            self._delivering = False


class Chardev(ABC):
    """A two-way channel of bytes between a serial device and something on the host.

    `start` opens it, `close` gives everything back; `with` does both. Connect it with its device
    before `start`, which may bring the first input and events. `write` never raises because of what
    the other end does: a back end whose output is gone swallows the rest and says why in `error`.
    """

    #: What messages call the back end.
    name: str = "chardev"

    def __init__(self) -> None:
        self._input = InputPump()
        self._handlers: list[EventHandler] = []
        #: Why the output (or input) ended early; None while all is well.
        self.error: Exception | None = None

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Output from the guest. Called on vCPU threads."""

    @property
    def congested(self) -> bool:
        """The other end is slow, and `write` would wait soon: a device that can shall wait."""
        return False

    def flush(self) -> None:  # noqa: B027 - nothing is held back
        """Hand on everything written so far, as far as the other end takes it."""

    def set_receiver(self, receiver: Receiver | None) -> None:
        """Input goes to `receiver`, which says how many bytes it took, from the front.

        What it did not take is offered again after `receiver_ready`.
        """
        self._input.set_receiver(receiver)

    def receiver_ready(self) -> None:
        """The device has room again: offer the input that waits, on this thread."""
        self._input.ready()

    def add_event_handler(self, handler: EventHandler) -> None:
        """`handler` is called with each `ChardevEvent`, on the thread where it comes up.

        It returns `True` for an event that it has acted on.
        """
        self._handlers.append(handler)

    def _emit(self, event: ChardevEvent) -> bool:
        """Tell all handlers; whether one has acted."""
        acted = False
        for handler in tuple(self._handlers):
            acted |= handler(event) is True
        return acted

    def start(self) -> None:  # noqa: B027 - there may be nothing to open
        """Open the other end. Raises `ChardevError`, with nothing left open."""

    def stop_waiting(self) -> None:  # noqa: B027 - most never wait
        """Never block in `write`, `flush` or `close` from now on; what does not fit is dropped.

        For stopping a machine whose output nobody reads; callable from any thread.
        """

    def close(self) -> None:  # noqa: B027 - there may be nothing to close
        """Flush, end the reader thread, close files, restore the terminal."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class NullChardev(Chardev):
    """Swallows output and never has input."""

    name = "null"

    def write(self, data: bytes) -> None:
        """Swallow `data`."""
