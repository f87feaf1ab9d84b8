"""A guest's output in a file."""

from __future__ import annotations

import os

from pykvm.devices.chardev.base import ChardevError
from pykvm.devices.chardev.stream import StreamChardev


class FileChardev(StreamChardev):
    """Writes output to the file at `path`, which is emptied first unless `append`.

    A named pipe or a device may be behind the path as well; output waits for it. There is no input.
    A full disk ends the output: `error` says so, and the guest goes on.
    """

    name = "file"
    patient = True

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self._append = append

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        flags |= os.O_APPEND if self._append else os.O_TRUNC
        try:
            self._out_fd = os.open(self.path, flags, 0o666)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ChardevError(
                f"file:{self.path}: cannot be opened for writing ({reason}); "
                "give a path in a directory that you may write to"
            ) from error
        os.set_blocking(self._out_fd, False)

    def _shut(self) -> None:
        if self._out_fd >= 0:
            os.close(self._out_fd)
            self._out_fd = -1
