"""`StorageDaemon`: QEMU's storage daemon as a private child process, and its QMP monitor.

The child is reached by a socket pair (QMP) and by a Unix socket in a directory of ours (NBD), which
is gone once we are connected. It ends with this process, however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO

from pykvm.devices.block.backend import BlockError
from pykvm.devices.block.images_chain import program, reason
from pykvm.typed import Any

_PACKAGE = "qemu-system-common"
_ANSWER_SECONDS = 60.0
_MESSAGE_LIMIT = 1 << 20
_NODE = "disk"


class StorageDaemon:
    """A running qemu-storage-daemon. All methods raise `BlockError`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._buffer = b""
        self._directory = ""
        self._qmp, theirs = socket.socketpair()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            with theirs:
                fd = theirs.fileno()
                words = [
                    program("qemu-storage-daemon", _PACKAGE),
                    "--chardev", f"socket,id=qmp,fd={fd}", "--monitor", "chardev=qmp",
                ]  # fmt: skip
                self._child = _spawn(words, fd, self._errors)
        except BaseException:
            self._qmp.close()
            self._errors.close()
            raise
        try:
            self._read()  # the greeting
            self.command("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The child's process ID."""
        return self._child.pid

    def command(self, command: str, /, **arguments: Any) -> Any:
        """Runs a QMP command; its result."""
        message = (
            {"execute": command, "arguments": arguments} if arguments else {"execute": command}
        )
        try:
            self._qmp.sendall(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
        except OSError:
            raise self.ended() from None
        while True:
            answer = self._read()
            if "error" in answer:
                words = str(answer["error"].get("desc", "no reason given"))
                raise BlockError(f"{self.name}: {reason(words)}")
            if "return" in answer:
                return answer["return"]

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            self._qmp.settimeout(max(left, 0.001))
            try:
                data = self._qmp.recv(65536)
            except TimeoutError:
                self._child.kill()  # an image that it cannot cope with, or storage that hangs
                raise BlockError(
                    f"{self.name}: qemu-storage-daemon gave no answer for "
                    f"{_ANSWER_SECONDS:g} seconds and was ended"
                ) from None
            except OSError:
                data = b""
            if not data or len(self._buffer) > _MESSAGE_LIMIT:
                raise self.ended()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def ended(self) -> BlockError:
        """Why the child is not there any more."""
        try:
            code = self._child.wait(2)
        except subprocess.TimeoutExpired:
            return BlockError(f"{self.name}: qemu-storage-daemon closed its connection")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        try:
            self._errors.seek(0)
            said = self._errors.read(4096).decode(errors="replace")
        except (OSError, ValueError):
            said = ""
        words = f": {reason(said)}" if said.strip() else ""
        return BlockError(f"{self.name}: qemu-storage-daemon {how}{words}")

    # -- a disk ----------------------------------------------------------------------------------

    def open(self, node: dict[str, Any]) -> None:
        """Opens an image."""
        self.command("blockdev-add", **node, **{"node-name": _NODE})

    def export(self, writable: bool) -> str:
        """Takes NBD connections at the path that is returned, until `unlisten`."""
        self._directory = tempfile.mkdtemp(prefix="pykvm-disk-")
        path = os.path.join(self._directory, "nbd.sock")
        self.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        settings = {"type": "nbd", "id": "export", "node-name": _NODE, "name": ""}
        self.command("block-export-add", writable=writable, **settings)
        return path

    def resize(self, size: int, writable: bool) -> str:
        """Another size in bytes; who is connected is disconnected. The path of the new socket."""
        self.command("nbd-server-stop")
        try:
            self.command("block_resize", **{"node-name": _NODE, "size": size})
        finally:
            path = self.export(writable)
        return path

    def unlisten(self) -> None:
        """The path is gone; who is connected stays so."""
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""

    def close(self) -> None:
        """Ends the child, which finishes its writes; kills it where it does not listen."""
        self.unlisten()
        try:
            self._qmp.sendall(b'{"execute": "quit"}', socket.MSG_NOSIGNAL)
            self._child.wait(_ANSWER_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._child.kill()
        self._child.wait()
        self._qmp.close()
        self._errors.close()


class _Nursery:
    """A thread that starts the children and never ends.

    PR_SET_PDEATHSIG goes by the thread that forked, and a machine may be made in a short-lived one.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="child-starter", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def start(self, words: list[str], fd: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts a program that has `fd`, in that thread."""
        done = threading.Event()
        child: list[subprocess.Popen[bytes]] = []
        failed: list[BaseException] = []

        def job() -> None:
            try:
                child.append(
                    subprocess.Popen(
                        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                        pass_fds=[fd], start_new_session=True, env={**os.environ, "LC_ALL": "C"},
                    )
                )  # fmt: skip
            except BaseException as error:
                failed.append(error)
            done.set()

        self._jobs.put(job)
        done.wait()
        if failed:
            raise failed[0]
        return child[0]


_nursery: _Nursery | None = None
_nursery_lock = threading.Lock()


def _spawn(words: list[str], fd: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a program that is ended with this process. Raises `BlockError`."""
    global _nursery
    with _nursery_lock:
        if _nursery is None or _nursery.pid != os.getpid():  # forked: that thread is not here
            _nursery = _Nursery()
    setpriv = program("setpriv", "util-linux")
    try:
        return _nursery.start([setpriv, "--pdeathsig", "TERM", *words], fd, errors)
    except OSError as error:
        raise BlockError(f"{words[0]} cannot be started: {error.strerror}") from error
