"""`pykvm gdb` and `run --gdb` where no gdb comes: addresses, ends, and what is left behind."""

from __future__ import annotations

import pathlib
import signal
import subprocess

import pytest
from cli_command import COMMAND, ENVIRONMENT, error_line, pykvm

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "hello64", "-S"), "add --gdb :1234"),
        (("gdb", "hello64", "--listen", "nowhere"), "write it like :1234"),
        (("gdb", "hello64", "--listen", "unix:"), "has no path"),
        (("gdb", "hello64", "--listen", "unix:/nowhere/gdb"), "choose another address"),
        (("gdb", "hello64", "--exec", "--json"), "leave --exec out"),
        (("gdb", "hello64", "--exec", "--serial", "stdio"), "leave out --serial stdio"),
        (("gdb",), "say which image"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], said: str) -> None:
    assert said in error_line(pykvm(*arguments))


def test_a_guest_whom_nobody_debugs_runs_as_ever() -> None:
    done = pykvm("run", "hello64", "--gdb", ":0")
    assert done.returncode == 0
    assert done.stdout == "Hello from 64-bit long mode\n"
    assert done.stderr.startswith("pykvm: gdb can attach with: target remote :")


def test_time_runs_out_while_it_waits(tmp_path: pathlib.Path) -> None:
    done = pykvm("gdb", "hello64", "--listen", "unix:here", "--timeout", "0.2", cwd=tmp_path)
    assert done.returncode == 124
    assert done.stdout == ""
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (("gdb", "spin", "--listen", "unix:here"), signal.SIGINT),
        (("run", "spin", "--gdb", "unix:here"), signal.SIGINT),
        (("gdb", "spin", "--listen", "unix:here"), signal.SIGTERM),
        (("run", "spin", "--gdb", "unix:here"), signal.SIGTERM),
    ],
)
def test_signals_end_it(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*COMMAND, *arguments], stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRONMENT
    ) as process:
        assert process.stderr is not None
        assert b"gdb can attach" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert not (tmp_path / "here").exists()
