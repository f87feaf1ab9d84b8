"""What a fork server counts, in a file for its campaign: AFL++ writes its own once a minute."""

from __future__ import annotations

import json
import os
import pathlib
import time
from dataclasses import asdict, dataclass

from pykvm.fuzz.result import Result

VARIABLE = "PYKVM_FUZZ_NUMBERS"
"""The environment variable with the file's name."""
_EVERY = 1.0  # seconds


@dataclass
class Numbers:
    """Since the server started: runs, pages put back, time in the guest and for the way back."""

    runs: int = 0
    pages: int = 0
    run_ns: int = 0
    reset_ns: int = 0
    seconds: float = 0.0


class Counter:
    """Adds up results, and writes them once a second."""

    def __init__(self, path: str | None) -> None:
        self.numbers = Numbers()
        self._path = path
        self._start = time.monotonic()
        self._next = self._start + _EVERY

    def add(self, result: Result) -> None:
        """One run."""
        numbers = self.numbers
        numbers.runs += 1
        numbers.pages += result.pages
        numbers.run_ns += result.run_ns
        numbers.reset_ns += result.reset_ns
        if self._path is not None and (now := time.monotonic()) >= self._next:
            self._next = now + _EVERY
            self.write()

    def write(self) -> None:
        """Writes the file now."""
        if self._path is None:
            return
        self.numbers.seconds = time.monotonic() - self._start
        new = f"{self._path}.{os.getpid()}"
        try:
            pathlib.Path(new).write_text(json.dumps(asdict(self.numbers)))
            os.replace(new, self._path)
        except OSError:
            self._path = None  # the directory is gone: nobody reads it


def read(path: str | os.PathLike[str]) -> Numbers:
    """What a server wrote; zeros where there is nothing yet."""
    try:
        return Numbers(**json.loads(pathlib.Path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return Numbers()
