"""Back ends in Python: a buffer that keeps the output, and a function that gets it."""

from __future__ import annotations

from pykvm.devices.chardev.base import Chardev

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

#: How much output a buffer keeps unless told, in bytes: a guest may print for ever.
DEFAULT_LIMIT = 16 << 20


class BufferChardev(Chardev):
    """Keeps the newest `limit` bytes of output in memory (`None`: all of it).

    `feed` types input into the guest; it waits here until the guest takes it.
    """

    name = "buffer"

    def __init__(self, limit: int | None = DEFAULT_LIMIT) -> None:
        super().__init__()
        if limit is not None and limit < 1:
            raise ValueError(f"a buffer of {limit} bytes keeps nothing; give at least 1, or None")
        self._data = bytearray()
        self._limit = limit
        # Cutting off the front now and then, not with each byte, keeps writing cheap.
        self._cut_at = None if limit is None else limit + max(4096, limit // 8)
        self._cut = 0
        self._changed: threading.Condition | None = None

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._data += data
        if self._cut_at is not None and len(self._data) > self._cut_at:
            self._trim()
        if self._changed is not None:
            with self._changed:
                self._changed.notify_all()

    def _trim(self) -> None:
        if self._limit is not None and len(self._data) > self._limit:
            excess = len(self._data) - self._limit
            del self._data[:excess]
            self._cut += excess

    @property
    def data(self) -> bytes:
        """The newest output, at most `limit` bytes."""
        data = bytes(self._data)
        return data if self._limit is None else data[-self._limit :]

    @property
    def text(self) -> str:
        """`data` as UTF-8, with replacement characters for what is not."""
        return self.data.decode("utf-8", "replace")

    @property
    def dropped(self) -> int:
        """How many bytes of older output were given up to stay within the limit."""
        over = 0 if self._limit is None else max(0, len(self._data) - self._limit)
        return self._cut + over

    def clear(self) -> None:
        """Forget the output so far."""
        self._data.clear()
        self._cut = 0

    def feed(self, data: bytes | str) -> None:
        """Input for the guest, as if typed; `str` is sent as UTF-8."""
        self._input.feed(data.encode() if isinstance(data, str) else bytes(data))

    def wait_for(self, pattern: bytes | str, timeout: float) -> bool:
        """Wait until the output holds `pattern`, at most `timeout` seconds; whether it came.

        For another thread than the one that runs the guest.
        """
        from threading import Condition
        from time import monotonic

        wanted = pattern.encode() if isinstance(pattern, str) else pattern
        if self._changed is None:
            self._changed = Condition()
        end = monotonic() + timeout
        with self._changed:
            while wanted not in self._data:
                left = end - monotonic()
                if left <= 0:
                    return False
                # `write` looks for waiters without the lock: what slips through is seen later.
                self._changed.wait(min(left, 0.05))
        return True


class CallableChardev(Chardev):
    """Hands each piece of output to `function`, on the vCPU's thread; `feed` types input."""

    name = "callable"

    def __init__(self, function: Callable[[bytes], object]) -> None:
        super().__init__()
        self._function = function

    def write(self, data: bytes) -> None:
        """Call the function."""
        self._function(data)

    def feed(self, data: bytes | str) -> None:
        """Input for the guest, as if typed; `str` is sent as UTF-8."""
        self._input.feed(data.encode() if isinstance(data, str) else bytes(data))
