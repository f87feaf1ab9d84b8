"""The program's own standard input and output as a guest's console."""

from __future__ import annotations

import os
import select
import stat
import sys

from pykvm.devices.chardev.stream import StreamChardev

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from pykvm.devices.chardev.escape import EscapeFilter
    from pykvm.devices.chardev.terminal import RawTerminal

#: How often a process in the background looks whether it has come to the foreground, in seconds.
_BACKGROUND_S = 0.25
#: Typing kept for a guest that does not read, in bytes.
_TYPE_AHEAD = 64 << 10
#: Written at once to a descriptor that might block: pipes and terminals that poll ready take it.
_CAREFUL = 256


class StdioChardev(StreamChardev):
    """Output to stdout, input from stdin.

    Where stdin is a terminal it is in raw mode between `start` and `close`, and Ctrl-A is the
    escape key (`escape.HELP`). The commands come as events; a `quit` on which no handler acts is
    SIGINT. With `signals` (the default) Ctrl-C, Ctrl-\\ and Ctrl-Z do what they do to any program;
    without, they are keys for the guest. Up to 64 KiB of typing wait for the guest.

    Where stdin is a pipe or a file, its bytes are the input, as fast as the guest takes them, with
    no escape key.

    Output waits for a slow reader (`stop_waiting` ends that). Where stdout is closed or its reader
    has gone, output is swallowed and a `hangup` event comes. Neither descriptor is closed, and
    neither is made non-blocking: other programs share them.
    """

    name = "stdio"
    patient = True
    linger = 30.0

    def __init__(
        self, *, signals: bool = True, input: bool = True, in_fd: int = 0, out_fd: int = 1
    ) -> None:
        """`input=False` leaves stdin and the terminal alone."""
        super().__init__()
        self._signals = signals
        self._stdin = in_fd if input else -1
        self._stdout = out_fd
        self._reopened = -1
        self._socket: socket.socket | None = None
        self._careful = False
        self._terminal: RawTerminal | None = None
        self._escape: EscapeFilter | None = None

    def _open(self) -> None:
        # A descriptor that was closed when the program started may be another file by now.
        if self._stdin == 0 and sys.__stdin__ is None:
            self._stdin = -1
        if self._stdout == 1 and sys.__stdout__ is None:
            self._stdout = -1
        self._open_output()
        if self._stdin >= 0 and os.isatty(self._stdin):
            from pykvm.devices.chardev.escape import EscapeFilter
            from pykvm.devices.chardev.terminal import RawTerminal

            self._escape = EscapeFilter()
            self._terminal = RawTerminal(self._stdin, signals=self._signals)
            self._terminal.enter()
        self._in_fd = self._stdin

    def _open_output(self) -> None:
        """Find a way to write that cannot block, without changing the shared descriptor."""
        if self._stdout == 1 and sys.stdout is not None:
            try:
                sys.stdout.flush()  # what the program has printed comes before the guest's output
            except (OSError, ValueError):
                pass
        try:
            mode = os.fstat(self._stdout).st_mode
        except OSError as error:
            self._output.end()
            self.error = error
            return
        self._out_fd = self._stdout
        if stat.S_ISSOCK(mode):
            import socket

            self._socket = socket.socket(fileno=os.dup(self._stdout))
        elif stat.S_ISFIFO(mode) or os.isatty(self._stdout):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self._out_fd = self._reopened = os.open(f"/proc/self/fd/{self._stdout}", flags)
            except OSError:
                self._careful = True

    def _send(self, data: bytearray) -> int:
        if self._socket is not None:
            import socket

            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._careful:
            poll = select.poll()
            poll.register(self._out_fd, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
            return os.write(self._out_fd, data[:_CAREFUL])
        return super()._send(data)

    def _before_poll(self, poll: select.poll) -> float | None:
        terminal = self._terminal
        if terminal is None or self._stdin < 0:
            return None
        if terminal.foreground:
            terminal.refresh()
            self._in_fd = self._stdin
            return None
        self._in_fd = -1
        return _BACKGROUND_S

    def _may_read(self) -> bool:
        # The escape key must work though the guest reads nothing.
        return self._terminal is not None or super()._may_read()

    def _receive(self) -> bytes:
        if self._terminal is not None and not self._terminal.foreground:
            raise BlockingIOError  # reading would stop the process (SIGTTIN)
        return super()._receive()

    def _got_input(self, data: bytes) -> None:
        if self._escape is None:
            super()._got_input(data)
            return
        for part in self._escape.feed(data):
            if isinstance(part, bytes):
                if len(self._input) < _TYPE_AHEAD:
                    super()._got_input(part)
            elif part == "help":
                self._show_help()
            elif not self._emit(part) and part == "quit":
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    def _show_help(self) -> None:
        from pykvm.devices.chardev.escape import HELP

        text = ("\n" + HELP).encode()
        if self._out_fd >= 0 and os.isatty(self._out_fd):
            self._output.write(text)
            return
        try:
            os.write(2, text)  # stdout goes elsewhere
        except OSError:
            pass

    def _input_ended(self, error: OSError | None) -> None:
        self._stdin = -1
        super()._input_ended(error)

    def close(self) -> None:
        """Restore the terminal, then write what is left; 30 s at most for a reader that stalls."""
        if self._terminal is not None:
            self._terminal.restore()
        super().close()

    def _shut(self) -> None:
        self._in_fd = self._out_fd = -1
        if self._reopened >= 0:
            os.close(self._reopened)
            self._reopened = -1
        if self._socket is not None:
            self._socket.close()
            self._socket = None
