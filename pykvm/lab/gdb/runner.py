"""Who may run the target, and who may interrupt it: one thread runs, others interrupt."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pykvm.lab.gdb.target import SIGINT, Resume, Stop, Target


class Runner:
    """Runs a target for whoever has the say, and interrupts it for who does not.

    An interrupt counts if the target runs or is about to; otherwise it is dropped.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.RLock()  # a signal handler may interrupt what it interrupts
        self.running = False

    def resume(self, resume: Resume, is_unwanted: Callable[[], bool] = lambda: False) -> Stop:
        """As `Target.resume`; not at all if `is_unwanted()` says that an interrupt has come."""
        with self._lock:
            if is_unwanted():
                return Stop(SIGINT, resume.cpu)
            self.running = True
        try:
            return self._target.resume(resume)
        finally:
            with self._lock:
                self.running = False

    def interrupt(self) -> None:
        """From another thread."""
        with self._lock:
            if self.running:
                self._target.interrupt()
