"""`Child`: a server process that belongs to one device, and ends with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Sequence

_KEPT = 4096  # bytes of what it said last


class Child:
    """Runs `argv` with the descriptors `fds`; its own standard input is a pipe of ours.

    What it writes to standard output and error is read and thrown away, but for the end of it
    (`said`), so that it never waits for us. Raises `OSError` where it cannot be started.
    """

    def __init__(self, argv: Sequence[str], fds: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=tuple(fds), start_new_session=True, cwd="/", bufsize=0,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        self._said = b""
        self._line = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="pykvm-child", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            while piece := pipe.read(_KEPT):
                with self._line:
                    self._said = (self._said + piece)[-_KEPT:]
                    self._line.notify_all()
        with self._line:
            self._line.notify_all()

    @property
    def said(self) -> str:
        """The end of what it printed, in one line."""
        with self._line:
            text = self._said.decode("utf-8", "replace")
        return "; ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())

    def wait_for(self, word: bytes, timeout: float) -> bool:
        """Until it prints `word`; False if it ends before, or takes longer (seconds)."""
        with self._line:
            self._line.wait_for(lambda: word in self._said or not self._reader.is_alive(), timeout)
            return word in self._said

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def tell(self, line: bytes) -> None:
        """Writes to its standard input."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(line)

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within `timeout` seconds; then all that it printed was read."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join(timeout)
        return True

    def stop(self, grace: float = 2.0) -> None:
        """Ends it: its input is closed; after `grace` seconds it is killed. Twice is harmless."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        if not self.wait(grace):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()
            self._reader.join(1.0)
