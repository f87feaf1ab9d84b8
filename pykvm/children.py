"""Child processes that do not outlive this one, however it ends (prctl(2), PR_SET_PDEATHSIG)."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int = signal.SIGKILL) -> Callable[[], None] | None:
    """What a new child has to call, such as by `Popen(preexec_fn=)`, to get a signal at our end.

    The signal comes when the *thread* that forked ends; only the main one lasts: None on others.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()  # loaded before the fork

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(0)

    return ask
