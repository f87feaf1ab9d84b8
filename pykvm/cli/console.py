"""The guest's serial port and debug console, joined to what the user asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.devices.chardev import Chardev
    from pykvm.machine import Machine


class Console:
    """The back ends of COM1 and of the debug console; `hangup`: nobody reads the output."""

    def __init__(self, serial: Chardev, debugcon: Chardev | None) -> None:
        self.serial = serial
        self.debugcon = debugcon
        self.hangup = False
        self._options: Namespace | None = None

    @classmethod
    def for_run(cls, options: Namespace) -> Console:
        """COM1 on stdio; with `--json` its output is captured only, and a pipe is its input."""
        from pykvm.devices.chardev import NullChardev, StdioChardev, open_chardev

        serial: Chardev
        if options.serial is not None:
            serial = open_chardev(options.serial)
        elif options.display == "text" or (options.console or "").startswith("stdio"):
            serial = NullChardev()
        elif not options.json:
            serial = StdioChardev()
        elif _stdin_is_terminal():
            serial = NullChardev()
        else:
            serial = StdioChardev(out_fd=os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        if options.console_log is not None:
            from pykvm.devices.chardev import FileChardev, TeeChardev

            serial = TeeChardev(FileChardev(options.console_log), serial)
        console = cls(serial, _debugcon(options))
        console._options = options
        return console

    @classmethod
    def for_trace(cls, options: Namespace, out_fd: int | None) -> Console:
        """COM1 on `out_fd` (None: nowhere, the trace shows it), unless the user said otherwise."""
        from pykvm.devices.chardev import NullChardev, StdioChardev, open_chardev

        serial: Chardev
        if options.serial is not None:
            serial = open_chardev(options.serial)
        elif out_fd is not None:
            serial = StdioChardev(out_fd=out_fd)
        elif _stdin_is_terminal():
            serial = NullChardev()
        else:
            serial = StdioChardev(out_fd=os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        return cls(serial, _debugcon(options))

    @contextmanager
    def attached(self, machine: Machine) -> Iterator[None]:
        """Opens the back ends for the time of a run; the terminal is as before afterwards."""

        def on_event(event: str) -> bool:
            if event not in ("quit", "hangup"):
                return False
            self.hangup |= event == "hangup"
            machine.stop()
            for backend in (self.serial, *getattr(self._options, "console_backends", ())):
                backend.stop_waiting()
            return True

        with ExitStack() as stack:
            # Those of other consoles, which the machine got with its devices.
            others = getattr(self._options, "console_backends", ())
            for backend in (self.serial, self.debugcon, *others):
                if backend is not None:
                    backend.add_event_handler(on_event)
                    stack.enter_context(backend)
            try:
                yield
            except BaseException:
                self.serial.stop_waiting()
                raise


def _debugcon(options: Namespace) -> Chardev | None:
    if options.debugcon is None:
        return None
    from pykvm.devices.chardev import open_chardev

    return open_chardev(options.debugcon)


def _stdin_is_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return True
