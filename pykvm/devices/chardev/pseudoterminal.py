"""A pseudo-terminal: a terminal program such as `screen` or `picocom` opens its other end."""

from __future__ import annotations

import os
import stat
import sys

from pykvm.devices.chardev.base import ChardevError
from pykvm.devices.chardev.stream import StreamChardev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def announce_on_stderr(line: str) -> None:
    """Tell the user where to connect to."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # nobody listens there


class PtyChardev(StreamChardev):
    """A new pseudo-terminal in raw mode; `slave` is the name of the end to open.

    `start` says that name through `announce`, and makes a symbolic link to it at `link` (removed by
    `close`; an old link of that kind is replaced). Programs may open and close the slave at any
    time. While nobody reads, the kernel keeps the first 4 KiB or so of output and this back end the
    newest 256 KiB after that.
    """

    name = "pty"

    def __init__(
        self,
        *,
        link: str | os.PathLike[str] | None = None,
        announce: Callable[[str], object] = announce_on_stderr,
    ) -> None:
        super().__init__()
        self.slave = ""
        self.link = None if link is None else os.fspath(link)
        self._announce = announce
        self._held = -1
        self._linked = False

    def _open(self) -> None:
        import tty

        try:
            # The slave stays open here: without any opener, reading the master would fail.
            self._in_fd, self._held = os.openpty()
        except OSError as error:
            raise ChardevError(
                f"pty: no pseudo-terminal to be had ({error.strerror}); is /dev/pts mounted?"
            ) from error
        self._out_fd = self._in_fd
        os.set_blocking(self._in_fd, False)
        tty.setraw(self._held)
        self.slave = os.ttyname(self._held)
        try:
            if self.link is not None:
                self._make_link(self.link)
        except OSError as error:
            self._shut()
            raise ChardevError(
                f"pty: cannot make the link {self.link} ({error.strerror}); "
                "give a path that is free, in a directory that you may write to"
            ) from error
        where = f"{self.slave} ({self.link})" if self.link else self.slave
        self._announce(f"pykvm: serial port is at {where}")

    def _make_link(self, link: str) -> None:
        try:
            if stat.S_ISLNK(os.lstat(link).st_mode) and os.readlink(link).startswith("/dev/pts/"):
                os.unlink(link)  # left behind by a program that was killed
        except FileNotFoundError:
            pass
        os.symlink(self.slave, link)
        self._linked = True

    def _shut(self) -> None:
        if self._linked and self.link is not None:
            self._linked = False
            try:
                if os.readlink(self.link) == self.slave:
                    os.unlink(self.link)
            except OSError:
                pass  # somebody else has removed or replaced it
        for fd in (self._held, self._out_fd):
            if fd >= 0:
                os.close(fd)
        self._held = self._in_fd = self._out_fd = -1
