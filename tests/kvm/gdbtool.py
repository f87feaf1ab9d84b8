"""Debian's gdb, driven by a test: commands in, what it says back out."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator

from cli_command import COMMAND, ENVIRONMENT
from debian_tools import need

GUESTS = pathlib.Path(__file__).resolve().parents[2] / "guests"
HERE = pathlib.Path(__file__).resolve().parent
PATIENCE_S = 20
_FLAGS = [
    "-std=gnu11", "-g", "-O1", "-ffreestanding", "-fno-pic", "-masm=intel", "-mgeneral-regs-only",
    "-mno-red-zone", "-fno-stack-protector", "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables", "-nostdlib", "-static", "-no-pie", "-ffunction-sections",
    "-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096,--no-warn-rwx-segments",
    "-Wl,--gc-sections",
]  # fmt: skip


def build(out: pathlib.Path) -> pathlib.Path:
    """gdb_guest.c with debug information."""
    runtime = [path for path in sorted((GUESTS / "lib").iterdir()) if path.suffix in (".c", ".S")]
    subprocess.run(
        ["gcc", *_FLAGS, "-Ilib", "-T", GUESTS / "lib" / "elf64.ld", "-o", out,
         HERE / "gdb_guest.c", *runtime],
        check=True, cwd=GUESTS, timeout=60,
    )  # fmt: skip
    return out


class Talking:
    """A process whose output is read up to a text, with patience but not for ever."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said = ""
        self._pending = b""

    def until(self, text: str) -> str:
        """What it says up to and with `text`."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        wanted = text.encode()
        while wanted not in self._pending:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, left))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise AssertionError(
                    f"{text!r} did not come; it said:\n{self.said}{self._pending.decode()}"
                )
            self._pending += data
        at = self._pending.index(wanted) + len(wanted)
        piece, self._pending = self._pending[:at].decode("utf-8", "replace"), self._pending[at:]
        self.said += piece
        return piece

    def rest(self) -> str:
        """All that comes until it ends."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        piece = (self._pending + out).decode("utf-8", "replace")
        self._pending = b""
        self.said += piece
        return piece


class Gdb(Talking):
    """gdb without a terminal."""

    def __init__(self, file: pathlib.Path | None) -> None:
        command = [need("gdb", package="gdb"), "-q", "-nx"]
        super().__init__(
            subprocess.Popen(
                command if file is None else [*command, os.fspath(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TERM": "dumb", "LC_ALL": "C", "DEBUGINFOD_URLS": ""},
            )
        )
        self._count = 0
        for setting in ("confirm off", "pagination off", "width 0", "style enabled off"):
            self(f"set {setting}")

    def send(self, command: str) -> None:
        """A command whose answer comes later: `answer()`."""
        assert self.process.stdin is not None
        self._count += 1
        self.process.stdin.write(f"{command}\necho \\n@@{self._count}@@\\n\n".encode())
        self.process.stdin.flush()

    def answer(self) -> str:
        """What gdb says to the last command, without prompts."""
        mark = f"@@{self._count}@@\n"
        return self.until(mark).removesuffix(mark).replace("(gdb) ", "").strip()

    def __call__(self, command: str) -> str:
        """A command and its answer."""
        self.send(command)
        return self.answer()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Ends gdb."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


class Guest(Talking):
    """`pykvm gdb` or `pykvm run --gdb`, listening; its output is the guest's and its own."""

    def __init__(self, folder: pathlib.Path, *arguments: str | os.PathLike[str]) -> None:
        super().__init__(
            subprocess.Popen(
                [*COMMAND, *map(os.fspath, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
                cwd=folder,
            )
        )
        said = self.until("target remote ") + self.until("\n")
        found = re.search(r"target remote (\S+)\n", said)
        assert found is not None, said
        self.address = found[1]
        if not self.address.startswith(":"):
            self.address = os.fspath(folder / self.address)

    def ended(self) -> int:
        """Waits for its end; the exit status."""
        self.rest()
        return self.process.returncode


@contextlib.contextmanager
def debugging(
    folder: pathlib.Path, file: pathlib.Path | None, *arguments: str | os.PathLike[str]
) -> Iterator[tuple[Guest, Gdb]]:
    """A guest that waits, and a gdb that is connected to it: `pykvm ARGUMENTS`."""
    guest = Guest(folder, *arguments)
    try:
        gdb = Gdb(file)
        try:
            gdb(f"target remote {guest.address}")
            yield guest, gdb
        finally:
            gdb.close()
    finally:
        guest.process.kill()
        guest.process.communicate()
