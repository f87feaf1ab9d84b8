"""`Diod`: the 9P2000.L server diod, one process for one shared directory.

diod opens files by path names and follows symbolic links in them, so by itself it would let a guest
out of the directory. It is only ever run in a sandbox that holds nothing else (`sandbox.py`).
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile

from pykvm.devices.vhost import sandbox
from pykvm.devices.vhost.child import Child
from pykvm.errors import PykvmError

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
_START_S = 10.0
_VERSION = b"9P2000.L"
_HELLO = struct.pack("<IBHIH", 13 + len(_VERSION), 100, 0xFFFF, 8192, len(_VERSION)) + _VERSION


class ShareError(PykvmError):
    """A directory that cannot be shared."""


def check_directory(directory: str | os.PathLike[str]) -> str:
    """Its absolute path. Raises `ShareError` where it is no directory that can be shared."""
    path = os.path.realpath(directory)
    if not os.path.isdir(path):
        what = "is not a directory" if os.path.exists(path) else "does not exist"
        raise ShareError(f"{os.fspath(directory)!r} {what}; give a directory to share")
    return path


def find_diod() -> str | None:
    """The program's path, None where it is not installed."""
    return shutil.which("diod", path=_PATH)


class Diod:
    """Serves `directory` to whoever speaks 9P2000.L on the socket that `start` gives.

    Nothing runs before `start`; after `stop` it can be started again. Raises `ShareError`.
    """

    #: What a client has to attach to.
    aname = sandbox.SHARE.encode()

    def __init__(self, directory: str | os.PathLike[str], *, readonly: bool = False) -> None:
        self.directory = check_directory(directory)
        self.readonly = readonly
        self.program = find_diod()
        if self.program is None:
            raise ShareError("sharing by 9p needs diod; install it: apt-get install diod")
        self._child: Child | None = None
        self._root = ""

    @property
    def user(self) -> int | None:
        """The only user that may attach; None: any, as the server is root."""
        return None if os.geteuid() == 0 else os.geteuid()

    def start(self) -> socket.socket:
        """A fresh server; our end of its only connection, blocking."""
        self.stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._root = tempfile.mkdtemp(prefix="pykvm-9p-")
            with theirs:
                self._child = Child(self._command(theirs.fileno()), [theirs.fileno()])
            self._greet(ours)
        except BaseException as error:
            ours.close()
            said = self._child.said if self._child is not None else ""
            self.stop()
            if not isinstance(error, OSError | sandbox.SandboxError | ShareError):
                raise
            raise ShareError(
                f"diod cannot share {self.directory!r}: {said or error}; it needs the right to "
                "make mount namespaces: root, or user namespaces"
            ) from error
        return ours

    def _command(self, fd: int) -> list[str]:
        assert self.program is not None
        argv = [
            self.program, "-f", "-n", "-N", "-c", "/dev/null", "-L", "stderr",
            "-r", str(fd), "-w", str(fd), "-e", sandbox.SHARE,
        ]  # fmt: skip
        return sandbox.command(argv, self.directory, self._root, readonly=self.readonly)

    def _greet(self, ours: socket.socket) -> None:
        """It runs when it answers; then the sandbox can be locked."""
        assert self._child is not None
        ours.settimeout(_START_S)
        ours.sendall(_HELLO)
        answer = b""
        while len(answer) < len(_HELLO):
            piece = ours.recv(len(_HELLO) - len(answer))
            if not piece:
                self._child.wait(1.0)
                raise ShareError("it ended at once")
            answer += piece
        self._child.tell(b"locked\n")
        if not self._child.wait_for(sandbox.READY, _START_S):
            raise ShareError("its sandbox could not be locked")
        ours.settimeout(None)

    def stop(self) -> None:
        """Ends the process. Twice is harmless."""
        if self._child is not None:
            self._child.stop()
            self._child = None
        if self._root:
            os.rmdir(self._root)
            self._root = ""
