"""`pykvm run` on a terminal: raw input, the escape key, and the terminal as before afterwards."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import termios
import time
from collections.abc import Iterator

import pexpect
import pytest
from cli_command import COMMAND, ENVIRONMENT, SPIN, image, say

pytestmark = pytest.mark.kvm

CTRL_A = "\x01"


class Terminal:
    """A shell on a terminal, with what `stty` said before the command."""

    def __init__(self) -> None:
        self.shell = pexpect.spawn(
            "/bin/sh", ["-i"], encoding="utf-8", timeout=20, dimensions=(24, 100),
            env={**ENVIRONMENT, "PS1": "$ ", "ENV": "", "TERM": "xterm"},
        )  # fmt: skip
        self.shell.expect_exact("$ ")
        self.before = self.settings()

    def settings(self) -> list[object]:
        """All flags and control characters of the terminal, as `stty -a` shows them."""
        return termios.tcgetattr(self.shell.child_fd)

    def start(self, *arguments: str) -> None:
        """Types `pykvm ARGUMENTS`."""
        self.shell.sendline(" ".join([*COMMAND, *arguments]))
        self.shell.expect_exact("\n")

    def wait(self) -> int:
        """The exit status of the command that is running."""
        self.shell.expect_exact("$ ")
        assert self.settings() == self.before
        self.shell.sendline("echo status=$?=; stty -a")
        self.shell.expect(r"status=(\d+)=")
        status = int(self.shell.match[1])
        self.shell.expect_exact("$ ")
        shown = f" {self.shell.before} "
        assert all(word in shown.replace(";", "").split() for word in ("echo", "icanon", "isig"))
        return status


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.shell.close(force=True)


def test_typing_reaches_the_guest_key_by_key(terminal: Terminal) -> None:
    terminal.start("run", "echo")
    terminal.shell.expect_exact("echo: Ctrl-D ends")
    terminal.shell.expect_exact("\n")
    assert terminal.settings() != terminal.before  # raw: the guest echoes, not the terminal
    for key in "abc":  # no line editing in between
        terminal.shell.send(key)
        terminal.shell.expect_exact(key)
    terminal.shell.send("\x04")
    terminal.shell.expect_exact("bye")
    assert terminal.wait() == 0


def test_ctrl_a_x_ends_the_guest(terminal: Terminal) -> None:
    terminal.start("run", "echo")
    terminal.shell.expect_exact("echo: Ctrl-D ends")
    terminal.shell.send(CTRL_A + "x")
    assert terminal.wait() == 0


def test_ctrl_a_x_ends_an_endless_loop(terminal: Terminal, tmp_path: pathlib.Path) -> None:
    terminal.start("run", str(image(tmp_path, say("up") + SPIN)))
    terminal.shell.expect_exact("up")
    terminal.shell.send(CTRL_A)
    terminal.shell.send("x")
    assert terminal.wait() == 0


def test_ctrl_a_h_shows_the_keys(terminal: Terminal) -> None:
    terminal.start("run", "echo")
    terminal.shell.expect_exact("echo: Ctrl-D ends")
    terminal.shell.send(CTRL_A + "h")
    terminal.shell.expect_exact("end the machine")
    terminal.shell.send(CTRL_A + "x")
    assert terminal.wait() == 0


def test_ctrl_c_ends_with_130_and_a_usable_terminal(
    terminal: Terminal, tmp_path: pathlib.Path
) -> None:
    terminal.start("run", str(image(tmp_path, say("up") + SPIN)))
    terminal.shell.expect_exact("up")
    terminal.shell.send("\x03")
    assert terminal.wait() == 130
    assert "Traceback" not in terminal.shell.before


def test_ctrl_c_is_a_key_where_signals_are_off(terminal: Terminal) -> None:
    terminal.start("run", "echo", "--serial", "stdio,signals=off")
    terminal.shell.expect_exact("echo: Ctrl-D ends")
    terminal.shell.send("\x03")
    terminal.shell.send("still here\x04")
    terminal.shell.expect_exact("still here")
    assert terminal.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_deadly_signal_leaves_a_usable_terminal(
    terminal: Terminal, tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    marker = tmp_path / "pid"
    program = (
        "import os, sys; from pykvm.cli import main; "
        f"open({str(marker)!r}, 'w').write(str(os.getpid())); sys.exit(main(['run', 'echo']))"
    )
    terminal.shell.sendline(f'{sys.executable} -c "{program}"')
    terminal.shell.expect_exact("echo: Ctrl-D ends")
    os.kill(int(marker.read_text()), number)
    assert terminal.wait() == 128 + number


def test_a_crash_leaves_a_usable_terminal(terminal: Terminal) -> None:
    terminal.start("run", "triplefault")
    terminal.shell.expect_exact("triple fault")
    assert terminal.wait() == 126


def test_a_timeout_leaves_a_usable_terminal(terminal: Terminal) -> None:
    terminal.start("run", "spin", "--timeout", "0.3")
    assert terminal.wait() == 124


def test_suspend_and_resume(terminal: Terminal) -> None:
    terminal.start("run", "echo")
    terminal.shell.expect_exact("echo: Ctrl-D ends")
    raw = terminal.settings()
    terminal.shell.send("\x1a")
    terminal.shell.expect_exact("$ ")
    assert terminal.settings() == terminal.before
    terminal.shell.sendline("fg")
    terminal.shell.expect_exact("\n")
    terminal.shell.expect("run echo")
    for _ in range(100):
        if terminal.settings() == raw:
            break
        time.sleep(0.05)
    terminal.shell.send("back")
    terminal.shell.expect_exact("back")
    terminal.shell.send(CTRL_A + "x")
    assert terminal.wait() == 0
