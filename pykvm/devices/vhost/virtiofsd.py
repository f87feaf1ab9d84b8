"""`Virtiofsd`: the program virtiofsd, the C one of QEMU up to 7.2 or the Rust one, as a child."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile

from pykvm.devices.vhost.child import Child
from pykvm.devices.vhost.diod import ShareError, check_directory

_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
_ANSWER_S = 5.0


def find_virtiofsd() -> str | None:
    """The program's path, None where it is not installed."""
    found = shutil.which("virtiofsd")
    return found or next((p for p in _PLACES if os.access(p, os.X_OK)), None)


class Virtiofsd:
    """Serves `directory` over vhost-user to whoever calls `start`, which gives the connection.

    Nothing runs before `start`; each start is a new process, which ends with its connection.
    It locks itself into the directory: by namespaces, or by chroot where those are forbidden.
    Raises `ShareError`.
    """

    def __init__(self, directory: str | os.PathLike[str], *, readonly: bool = False) -> None:
        self.directory = check_directory(directory)
        self.readonly = readonly
        program = find_virtiofsd()
        if program is None:
            raise ShareError(
                "sharing by virtio-fs needs virtiofsd; install it: apt-get install virtiofsd "
                "(Debian 12: qemu-system-common)"
            )
        self.program = program
        self._child: Child | None = None
        self._help = ""
        self._sandboxes = ["namespace"] + (["chroot"] if os.geteuid() == 0 else [])

    def _options(self, fd: int, sandbox: str) -> list[str]:
        if not self._help:
            result = subprocess.run(
                [self.program, "--help"], stdin=subprocess.DEVNULL, capture_output=True,
                timeout=10, check=False,
            )  # fmt: skip
            self._help = (result.stdout + result.stderr).decode("utf-8", "replace")
        if "--shared-dir" in self._help:  # the Rust one
            words = ["--shared-dir", self.directory, "--sandbox", sandbox, f"--fd={fd}"]
            if self.readonly:
                if "--readonly" not in self._help:
                    raise ShareError(
                        f"{self.program} has no --readonly; use kind=9p for a read-only share"
                    )
                words.append("--readonly")
            return [self.program, *words]
        if os.geteuid() != 0:
            raise ShareError(f"{self.program} runs only as root; use kind=9p or a newer virtiofsd")
        if "," in self.directory:
            raise ShareError(
                f"{self.program} cannot share {self.directory!r}: a comma separates its options"
            )
        words = [
            self.program, "-f", f"--fd={fd}", "-o", f"source={self.directory}",
            "-o", f"sandbox={sandbox}", "-o", "log_level=warn", "-o", "cache=auto",
        ]  # fmt: skip
        if self.readonly:
            # It has no such option: it gets a mount namespace in which the directory is so.
            script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
            words = ["unshare", "--mount", "sh", "-c", script, "readonly", self.directory, *words]
        return words

    def start(self) -> socket.socket:
        """A new process; the connection to it, on which it has answered nothing yet."""
        self.stop()
        said = ""
        for sandbox in list(self._sandboxes):
            sock = self._try(sandbox)
            if sock is not None:
                self._sandboxes = [sandbox]
                return sock
            said = self._child.said if self._child is not None else ""
            self.stop()
        raise ShareError(f"virtiofsd cannot share {self.directory!r}: {said or 'it ended at once'}")

    def _try(self, sandbox: str) -> socket.socket | None:
        folder = tempfile.mkdtemp(prefix="pykvm-fs-")
        path = os.path.join(folder, "socket")
        ours = socket.socket(socket.AF_UNIX)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(1)
                argv = self._options(listener.fileno(), sandbox)
                try:
                    self._child = Child(argv, [listener.fileno()])
                except OSError as error:
                    raise ShareError(f"{argv[0]} does not start: {error.strerror}") from error
                ours.connect(path)
            # It has the only listener now. Where its sandbox fails it ends, and we are hung up on.
            ours.settimeout(_ANSWER_S)
            if not _answers(ours):
                ours.close()
                self._child.wait(1.0)
                return None
        except BaseException:
            ours.close()
            self.stop()
            raise
        finally:
            os.unlink(path)
            os.rmdir(folder)
        return ours

    def stop(self) -> None:
        """Ends the process. Twice is harmless."""
        if self._child is not None:
            self._child.stop()
            self._child = None


def _answers(sock: socket.socket) -> bool:
    """Whether it answers GET_FEATURES, which may be asked as often as one likes."""
    from pykvm.devices.vhost.backend import Backend, BackendError
    from pykvm.devices.vhost.messages import GET_FEATURES, U64

    try:
        Backend(sock, "virtiofsd", _ANSWER_S).ask(GET_FEATURES, b"", U64.size)
    except BackendError:
        return False
    return True
