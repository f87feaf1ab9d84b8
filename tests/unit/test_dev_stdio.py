"""stdin and stdout as a console: a real terminal around a real process, and every way out of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pykvm.devices.chardev.escape import EscapeFilter

#: A program with a guest on its console. The guest says `ready`, then prints what it gets in hex.
GUEST = """
import os, signal, sys, threading, time
from pykvm.devices.chardev import StdioChardev
from pykvm.devices.uart16550 import Uart16550

def out(text):
    for code in text.encode():
        uart.write(0, 1, code)

def guest(seconds=20.0):
    out("ready\\n")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = uart.read(5, 1)
        if status & 0x10:
            out("<break>")
            uart.read(0, 1)
        elif status & 1:
            out("%02x." % uart.read(0, 1))
        else:
            time.sleep(0.001)

backend = StdioChardev(OPTIONS)
uart = Uart16550()
uart.write(2, 1, 1)
uart.connect(backend)
"""


def program(body: str, options: str = "") -> list[str]:
    source = GUEST.replace("OPTIONS", options) + textwrap.dedent(body)
    return [sys.executable, "-c", source]


class Console:
    """A process with a terminal of its own."""

    def __init__(self, command: list[str], **redirected: Any) -> None:
        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)
        streams = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave, **redirected}
        slave = self.slave
        self.process = subprocess.Popen(
            command,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),  # type: ignore[arg-type,return-value]
            **streams,
        )
        self.seen = b""
        self.job = 0

    def expect(self, text: bytes, seconds: float = 10.0) -> None:
        """Read until `text` has come after what was expected before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"{text!r} did not come; saw {self.seen!r}")
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.split(text, 1)[1]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    @property
    def is_raw(self) -> bool:
        return not self.modes()[3] & (termios.ECHO | termios.ICANON)

    def end(self, seconds: float = 10.0) -> int:
        """Wait for the process and check that the terminal is as it was."""
        code = self.process.wait(seconds)
        assert self.modes() == self.before
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for fd in (self.master, self.slave):
            os.close(fd)


@contextlib.contextmanager
def console(body: str, options: str = "", **redirected: Any) -> Iterator[Console]:
    terminal = Console(program(body, options), **redirected)
    try:
        yield terminal
    finally:
        terminal.close()


RUN = """
try:
    with backend:
        guest()
except KeyboardInterrupt:
    sys.exit(3)
"""


def test_keys_reach_the_guest_and_lines_look_right() -> None:
    with console(RUN) as terminal:
        terminal.expect(b"ready\r\n")  # output is still post-processed
        assert terminal.is_raw
        iflag, oflag, _, lflag = terminal.modes()[:4]
        assert oflag & termios.OPOST
        assert lflag & termios.ISIG
        assert not iflag & (termios.ICRNL | termios.IXON)
        terminal.type(b"a\r\n\x04\x13\x11\x7f\xff")
        terminal.expect(b"61.0d.0a.04.13.11.7f.ff.")
        terminal.type(b"\x03")
        assert terminal.end() == 3


def test_without_signals_all_keys_are_the_guests() -> None:
    with console(RUN, "signals=False") as terminal:
        terminal.expect(b"ready")
        terminal.type(b"\x03\x1a\x1c")
        terminal.expect(b"03.1a.1c.")
        terminal.type(b"\x01x")
        assert terminal.end() == 3


def test_escape_keys() -> None:
    with console(RUN) as terminal:
        terminal.expect(b"ready")
        terminal.type(b"\x01\x01")
        terminal.expect(b"01.")
        terminal.type(b"\x01")
        time.sleep(0.05)
        terminal.type(b"a-\x01b")  # Ctrl-A and its key need not come together
        terminal.expect(b"01.2d.")
        terminal.expect(b"<break>")
        terminal.type(b"\x01h")
        terminal.expect(b"Ctrl-A x       end the machine\r\n")
        terminal.type(b"\x01zq")
        terminal.expect(b"71.")
        terminal.type(b"\x01x")
        assert terminal.end() == 3


def test_quit_can_be_handled() -> None:
    body = """
    def handler(event):
        if event == "quit":
            out("bye")
            stop.set()
            return True
    stop = threading.Event()
    backend.add_event_handler(handler)
    with backend:
        out("ready")
        assert stop.wait(10)
    """
    with console(body) as terminal:
        terminal.expect(b"ready")
        terminal.type(b"\x01x")
        terminal.expect(b"bye")
        assert terminal.end() == 0


def test_quit_works_though_the_guest_reads_nothing() -> None:
    body = """
    try:
        with backend:
            out("ready")
            time.sleep(20)
    except KeyboardInterrupt:
        sys.exit(3)
    """
    with console(body) as terminal:
        terminal.expect(b"ready")
        for _ in range(200):
            terminal.type(b"typing without an answer")
            time.sleep(0.0005)
        terminal.type(b"\x01x")
        assert terminal.end() == 3


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("raise RuntimeError('the guest crashed')", 1),
        ("sys.exit(42)", 42),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(5)", -signal.SIGHUP),
        ("os.kill(os.getpid(), signal.SIGQUIT); time.sleep(5)", -signal.SIGQUIT),
    ],
)
@pytest.mark.parametrize("tidy", [True, False], ids=["with", "atexit"])
def test_the_terminal_is_restored(ending: str, code: int, tidy: bool) -> None:
    body = "backend.start()\nout('ready')\n"
    body += "time.sleep(0.1)\n"
    body += f"try:\n    {ending or 'pass'}\nfinally:\n    backend.close() if {tidy} else None\n"
    with console(body) as terminal:
        terminal.expect(b"ready")
        assert terminal.is_raw
        assert terminal.end() == code


def test_close_and_start_on_another_thread_restores_too() -> None:
    body = """
    def life():
        backend.start()
        out("ready")
        time.sleep(0.2)
        backend.close()
    thread = threading.Thread(target=life)
    thread.start()
    thread.join()
    print("closed", flush=True)
    time.sleep(0.2)
    """
    with console(body) as terminal:
        terminal.expect(b"ready")
        assert terminal.is_raw
        terminal.expect(b"closed")
        assert terminal.modes() == terminal.before
        assert terminal.end() == 0


#: A shell with job control, as small as can be: one job in a process group of its own.
SHELL = """
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    if {foreground}: os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, {command!r})
try: os.setpgid(job, job)
except OSError: pass
say = lambda text: os.write({pipe}, (text + "\\n").encode())
say("job %d" % job)
if not {foreground}:
    os.read({back}, 1)
    os.tcsetpgrp(0, job)
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        say("exit %d" % os.waitstatus_to_exitcode(status))
        break
    cooked = bool(termios.tcgetattr(0)[3] & termios.ICANON)
    say("stopped %d %s" % (os.WSTOPSIG(status), "cooked" if cooked else "raw"))
    os.read({back}, 1)
    os.tcsetpgrp(0, job)
    os.kill(-job, signal.SIGCONT)
"""


@contextlib.contextmanager
def shell(
    body: str, *, foreground: bool = True
) -> Iterator[tuple[Console, Any, Callable[[], None]]]:
    """A console, what the shell says about its job, and a function that continues the job."""
    say_read, say_write = os.pipe()
    go_read, go_write = os.pipe()
    source = SHELL.format(
        command=program(body), pipe=say_write, back=go_read, foreground=foreground
    )
    terminal = Console([sys.executable, "-c", source], pass_fds=(say_write, go_read))
    job = 0
    try:
        with os.fdopen(say_read, "rb", buffering=0) as said:
            job = terminal.job = int(said.readline().split()[1])

            def resume() -> None:
                os.write(go_write, b"g")

            yield terminal, said, resume
    finally:
        with contextlib.suppress(ProcessLookupError):
            if job:
                os.kill(job, signal.SIGKILL)
        terminal.close()
        for fd in (say_write, go_read, go_write):
            os.close(fd)


@pytest.mark.parametrize("how", ["key", "SIGTSTP", "SIGSTOP"])
def test_suspend_and_resume(how: str) -> None:
    with shell(RUN) as (terminal, said, resume):
        terminal.expect(b"ready")
        for _ in range(2):
            assert terminal.is_raw
            if how == "key":
                terminal.type(b"\x1a")
            else:
                os.kill(terminal.job, getattr(signal, how))
            # SIGSTOP cannot be caught: the shell finds the terminal raw, and has to cook it.
            state = "raw" if how == "SIGSTOP" else "cooked"
            number = int(getattr(signal, how, signal.SIGTSTP))
            assert said.readline() == b"stopped %d %s\n" % (number, state.encode())
            if how == "SIGSTOP":
                termios.tcsetattr(terminal.slave, termios.TCSANOW, terminal.before)
            resume()
            end = time.monotonic() + 5
            while not terminal.is_raw and time.monotonic() < end:
                time.sleep(0.01)
            terminal.type(b"k")
            terminal.expect(b"6b.")
        terminal.type(b"\x01x")
        assert said.readline() == b"exit 3\n"
        assert terminal.modes() == terminal.before


def test_in_the_background_the_terminal_is_left_alone() -> None:
    with shell(RUN, foreground=False) as (terminal, said, resume):
        terminal.expect(b"ready")
        terminal.type(b"for the shell\n")
        time.sleep(0.5)
        assert not terminal.is_raw
        assert not select.select([said], [], [], 0)[0]  # not stopped by SIGTTIN or SIGTTOU
        termios.tcflush(terminal.slave, termios.TCIFLUSH)
        resume()
        end = time.monotonic() + 5
        while not terminal.is_raw and time.monotonic() < end:
            time.sleep(0.01)
        terminal.type(b"k")
        terminal.expect(b"6b.")
        terminal.type(b"\x01x")
        assert said.readline() == b"exit 3\n"


# -- without a terminal ----------------------------------------------------------------------------


def run(body: str, options: str = "", **how: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(program(body, options), timeout=20, check=False, **how)


PIPED = """
done = threading.Event()
backend.add_event_handler(lambda event: done.set() if event == "eof" else None)
with backend:
    wanted = int(os.environ["WANTED"])
    while wanted:
        if uart.read(5, 1) & 1:
            out("%02x" % uart.read(0, 1))
            wanted -= 1
    assert done.wait(10)
    out("<eof>")
"""


@pytest.mark.parametrize("source", ["pipe", "file", "null"])
def test_piped_input_is_all_the_guests(source: str, tmp_path: Path) -> None:
    """Ctrl-A is a byte like others; the end of the input is an event, not a busy loop."""
    data = b"\x01x\x03\x04" + bytes(range(256)) * 20
    how: dict[str, Any] = {"input": data}
    if source == "file":
        (tmp_path / "in").write_bytes(data)
        how = {"stdin": (tmp_path / "in").open("rb")}
    elif source == "null":
        data = b""
        how = {"stdin": subprocess.DEVNULL}
    done = run(PIPED, env={**os.environ, "WANTED": str(len(data))}, capture_output=True, **how)
    assert done.stderr == b""
    assert done.returncode == 0
    assert done.stdout == data.hex().encode() + b"<eof>"


def test_a_pipe_is_read_only_as_fast_as_the_guest() -> None:
    """What the guest does not take stays in the pipe, for whoever reads it next."""
    read, write = os.pipe()
    body = "with backend:\n    out('up')\n    time.sleep(0.3)\n"
    os.write(write, b"x" * 60_000)
    os.close(write)
    try:
        done = run(body, stdin=read, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        left = 0
        while data := os.read(read, 65536):
            left += len(data)
        assert left == 60_000 - 4096
    finally:
        os.close(read)


def test_the_first_byte_does_not_wait() -> None:
    body = "with backend:\n    out('L')\n    sys.stdin.close()\n    time.sleep(20)\n"
    process = subprocess.Popen(
        program(body, "input=False"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 10)[0]
        assert os.read(process.stdout.fileno(), 10) == b"L"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_output_without_a_newline_comes_by_itself() -> None:
    body = "with backend:\n    out('login: ')\n    time.sleep(20)\n"
    process = subprocess.Popen(
        program(body), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0
    )
    try:
        assert process.stdout is not None
        got = b""
        while len(got) < 7:
            assert select.select([process.stdout], [], [], 10)[0]
            got += process.stdout.read(10)
        assert got == b"login: "
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


ENDLESS = """
gone = threading.Event()
backend.add_event_handler(lambda event: gone.set() if event == "hangup" else None)
with backend:
    while not gone.is_set():
        out("a line of output\\n")
    for _ in range(100):
        out("more\\n")
assert isinstance(backend.error, OSError)
"""


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_goes_away(kind: str) -> None:
    if kind == "pipe":
        ours, theirs = os.pipe()
        close: Callable[[], None] = lambda: os.close(ours)  # noqa: E731
    else:
        one, two = socket.socketpair()
        ours, theirs = one.fileno(), two.detach()
        close = one.close
    process = subprocess.Popen(
        program(ENDLESS), stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    assert os.read(ours, 1) == b"a"
    close()
    assert process.communicate(timeout=15)[1] == b""
    assert process.returncode == 0


def test_a_terminal_that_goes_away() -> None:
    """The window is closed: SIGHUP ends the program, or its output has an end."""
    body = (
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ENDLESS + "open('REPORT', 'w').close()"
    )
    read, write = os.pipe()
    os.set_inheritable(write, True)
    terminal = Console(program(body.replace("'REPORT'", str(write))), pass_fds=(write,))
    os.close(write)
    terminal.expect(b"a line")
    os.close(terminal.master)
    os.close(terminal.slave)
    try:
        assert select.select([read], [], [], 15)[0]
        assert terminal.process.wait(10) == 0
    finally:
        os.close(read)
        terminal.process.kill()


@pytest.mark.parametrize("closed", [0, 1])
def test_closed_standard_streams(closed: int) -> None:
    """And what took their numbers since is not touched."""
    body = """
    other = os.open("/dev/null", os.O_RDWR)
    with backend:
        out("hello\\n")
        time.sleep(0.05)
    sys.stderr.write("fine %d\\n" % other)
    """
    done = subprocess.run(
        program(body),
        preexec_fn=lambda: os.close(closed),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == b"fine %d\n" % closed
    assert done.stdout == (b"" if closed == 1 else b"hello\n")


def test_a_reader_that_stalls_slows_the_guest_until_told_otherwise() -> None:
    body = """
    printed = 0
    def guest():
        global printed
        for _ in range(20_000):
            out("0123456789abcdef" * 4 + "\\n")
            printed += 1
    with backend:
        thread = threading.Thread(target=guest)
        thread.start()
        time.sleep(1.0)
        stalled = printed
        time.sleep(0.3)
        assert printed == stalled < 15_000, (printed, stalled)
        backend.stop_waiting()
        thread.join(15)
        assert not thread.is_alive()
    sys.stderr.write("done\\n")
    """
    process = subprocess.Popen(
        program(body),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.wait(20) == 0
        assert process.stderr.read() == b"done\n"
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()


def test_output_to_file_and_socket(tmp_path: Path) -> None:
    body = "with backend:\n    out('one\\ntwo')\n"
    path = tmp_path / "out"
    with path.open("wb") as file:
        assert run(body, stdin=subprocess.DEVNULL, stdout=file).returncode == 0
    assert path.read_bytes() == b"one\ntwo"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert run(body, stdin=subprocess.DEVNULL, stdout=theirs).returncode == 0
        assert ours.recv(100) == b"one\ntwo"


def test_where_proc_cannot_reopen_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then small writes after a look at `poll` do."""
    from pykvm.devices.chardev import StdioChardev

    read, write = os.pipe()
    real = os.open

    def refuse(path: str, *args: Any, **kwargs: Any) -> int:
        if str(path).startswith("/proc"):
            raise PermissionError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    data = b"x" * 30_000
    with StdioChardev(input=False, out_fd=write) as backend:
        backend.write(data)
    got = b""
    while len(got) < len(data):
        got += os.read(read, 65536)
    assert got == data
    os.close(read)
    os.close(write)


def test_shared_descriptors_stay_blocking_and_open() -> None:
    from pykvm.devices.chardev import StdioChardev

    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    with StdioChardev(in_fd=in_read, out_fd=out_write) as backend:
        got = bytearray()
        backend.set_receiver(lambda data: got.extend(data) or len(data))
        os.write(in_write, b"in")
        backend.write(b"out")
        end = time.monotonic() + 5
        while got != b"in" and time.monotonic() < end:
            time.sleep(0.001)
    assert got == b"in"
    assert os.read(out_read, 10) in (b"out", b"o")
    for fd in (in_read, in_write, out_read, out_write):
        assert os.get_blocking(fd)
        os.close(fd)


# -- the escape key alone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (b"", []),
        (b"plain", [b"plain"]),
        (b"a\x01xb", [b"a", "quit", b"b"]),
        (b"\x01\x01\x01a", [b"\x01\x01"]),
        (b"\x01h\x01?\x01b", ["help", "help", "break"]),
        (b"\x01qz", [b"z"]),
        (b"end\x01", [b"end"]),
    ],
)
def test_escape_filter(typed: bytes, parts: list[object]) -> None:
    assert EscapeFilter().feed(typed) == parts
    # Key by key it comes to the same.
    one_by_one = EscapeFilter()
    flat: list[object] = []
    for code in typed:
        for part in one_by_one.feed(bytes([code])):
            if isinstance(part, bytes) and flat and isinstance(flat[-1], bytes):
                flat[-1] += part
            else:
                flat.append(part)
    assert flat == parts
