"""`TerminalView`: keeps a terminal showing a guest's text screen, at a bounded rate.

Only rows that changed are written again. A graphics mode is told in one line.
"""

from __future__ import annotations

import threading

from pykvm.devices.display.screen import Screen
from pykvm.typed import Protocol

RATE = 20.0  # frames a second at most
_FIRST = "\x1b[?25l\x1b[2J"  # no cursor, empty screen
_LAST = "\x1b[0m\x1b[?25h"


class TextOutput(Protocol):
    """Where the frames go: a text stream."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class TerminalView:
    """Draws `screen` on `output`, in a thread between `start()` and `stop()`, or by `refresh()`."""

    def __init__(self, screen: Screen, output: TextOutput, rate: float = RATE) -> None:
        self._screen = screen
        self._output = output
        self._interval = 1 / rate
        self._shown: list[str] | None = None
        self._cursor: tuple[int, int] | None = None
        self._generation = -1
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def refresh(self) -> bool:
        """Writes what changed since the last time; whether there was anything."""
        with self._lock:
            generation = self._screen.vga.generation
            if generation == self._generation:
                return False
            self._generation = generation
            update = self._update()
            if update:
                self._output.write(update)
                self._output.flush()
            return bool(update)

    def _update(self) -> str:
        if self._screen.mode == "text":
            frame = self._screen.frame()
            rows = [frame.ansi_row(i) for i in range(frame.rows)]
            cursor = frame.cursor
        else:
            rows, cursor = [self._screen.ansi()], None
        parts = []
        shown = self._shown
        if shown is None or len(shown) != len(rows):
            parts.append(_FIRST)
            shown = [""] * len(rows)
        changed = False
        for i, row in enumerate(rows):
            if row != shown[i]:
                parts.append(f"\x1b[{i + 1};1H{row}")
                changed = True
        if changed or parts or cursor != self._cursor:
            if cursor is None:
                parts.append("\x1b[?25l")
            else:
                parts.append(f"\x1b[{cursor[0] + 1};{cursor[1] + 1}H\x1b[?25h")
        self._shown, self._cursor = rows, cursor
        return "".join(parts)

    def start(self) -> None:
        """Draws in a thread of its own from now on."""
        if self._thread is None:
            self._end.clear()
            self._thread = threading.Thread(target=self._run, name="pykvm-screen", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            try:
                self.refresh()
            except (OSError, ValueError):  # the terminal is gone, or the machine was closed
                return

    def stop(self) -> None:
        """Draws a last time, gives the terminal its colours and cursor back. Twice is harmless."""
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None
        try:
            self.refresh()
            if self._shown is not None:
                self._output.write(f"\x1b[{len(self._shown) + 1};1H{_LAST}\n")
                self._output.flush()
                self._shown = None
        except (OSError, ValueError):
            pass
