"""The user's terminal in raw mode, and back: on every way out that a program can see."""

from __future__ import annotations

import atexit
import os
import signal
import termios
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from pykvm.typed import Any

#: Signals that end the process by default, which would leave the terminal raw.
_DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _ISPEED, _OSPEED, _CC = range(7)


def _is_default(number: int) -> bool:
    handler = signal.getsignal(number)
    # A terminal that was restored on another thread could not take its handler back.
    owner = getattr(handler, "__self__", None)
    return handler is signal.SIG_DFL or (isinstance(owner, RawTerminal) and not owner._entered)


class RawTerminal:
    """Takes the terminal behind `fd` into raw mode and restores it.

    Raw: no echo, no line editing, no translation of CR and no XON/XOFF, so that the guest gets each
    key. Output is still post-processed (a lone LF starts a new line). With `signals`, Ctrl-C,
    Ctrl-\\ and Ctrl-Z still do what they do to any program; without, they go to the guest.

    Restored by `restore`, at interpreter exit, and on SIGTERM, SIGHUP, SIGQUIT where those had
    their default action (the process then still dies of them). On SIGTSTP the terminal is restored
    before the process stops; on SIGCONT it is raw again. Signal handlers can only be installed
    where `enter` is called on the main thread. A process in the background leaves the terminal as
    it is.
    """

    def __init__(self, fd: int, *, signals: bool = True) -> None:
        self._fd = fd
        self._signals = signals
        self._cooked: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._entered = False
        self._suspended = False
        # Re-entrant, as a signal handler may interrupt its holder.
        self._lock = threading.RLock()

    @property
    def foreground(self) -> bool:
        """Whether this process may use the terminal; in the background, reading would stop it."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            # Not the controlling terminal: nobody else's job control applies.
            return True

    @property
    def raw(self) -> bool:
        """The terminal is in raw mode because of us."""
        return self._cooked is not None

    def enter(self) -> None:
        """Go raw, now or as soon as the process is in the foreground (`refresh`)."""
        if self._entered:
            return
        self._entered = True
        atexit.register(self.restore)
        self._install_handlers()
        self.refresh()

    def refresh(self) -> bool:
        """Go raw if that is due and possible; whether the terminal is raw."""
        with self._lock:
            wanted = self._entered and not self._suspended
            if wanted and self._cooked is None and self.foreground:
                try:
                    self._cooked = termios.tcgetattr(self._fd)
                except termios.error:
                    return False  # the terminal is gone
                self._set_raw(self._cooked)
            return self._cooked is not None

    def restore(self) -> None:
        """Cook the terminal and take back the signal handlers. May be called twice."""
        with self._lock:
            if not self._entered:
                return
            self._entered = False
            self._cook()
        atexit.unregister(self.restore)
        self._remove_handlers()

    def _set_raw(self, cooked: list[Any]) -> None:
        raw = [*cooked[:_CC], list(cooked[_CC])]
        raw[_IFLAG] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self._signals:
            raw[_LFLAG] &= ~termios.ISIG
        raw[_CC][termios.VMIN] = 1
        raw[_CC][termios.VTIME] = 0
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, raw)
        except termios.error:
            pass  # the terminal is gone

    def _cook(self) -> None:
        with self._lock:
            if self._cooked is None:
                return
            cooked, self._cooked = self._cooked, None
            try:
                # Not TCSADRAIN, which waits for ever where the user has stopped the output.
                termios.tcsetattr(self._fd, termios.TCSANOW, cooked)
            except termios.error:
                pass  # the terminal is gone

    # -- signals -------------------------------------------------------------------------------

    def _install_handlers(self) -> None:
        try:
            for number in _DEADLY:
                if _is_default(number):
                    self._handlers[number] = signal.SIG_DFL
                    signal.signal(number, self._die)
            if _is_default(signal.SIGTSTP):
                self._handlers[signal.SIGTSTP] = signal.SIG_DFL
                signal.signal(signal.SIGTSTP, self._suspend)
            self._handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._resume)
        except ValueError:
            self._handlers.clear()  # not the main thread

    def _remove_handlers(self) -> None:
        try:
            while self._handlers:
                number, handler = self._handlers.popitem()
                signal.signal(number, handler)
        except ValueError:
            pass  # closed on another thread: `_entered` makes our handlers harmless

    def _die(self, number: int, frame: FrameType | None) -> None:
        self._suspended = True  # the reader thread must not take it back
        self._cook()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self._suspended = True
        self._cook()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here again after SIGCONT.
        self._suspended = False
        signal.signal(signal.SIGTSTP, self._suspend)
        self.refresh()

    def _resume(self, number: int, frame: FrameType | None) -> None:
        with self._lock:
            if self._cooked is not None and self._entered and self.foreground:
                # Stopped by SIGSTOP, which nobody can catch: the shell has set its own mode since.
                self._set_raw(self._cooked)
        self.refresh()
        previous = self._handlers.get(signal.SIGCONT)
        if callable(previous):
            previous(number, frame)
