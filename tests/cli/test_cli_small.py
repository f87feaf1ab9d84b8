"""The options of the smaller paravirtual devices."""

from __future__ import annotations

import pathlib

import pytest
from cli_command import pykvm

pytestmark = pytest.mark.kvm

HELLO = "Hello from 64-bit long mode\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--rng"],
        ["--rng=rate=1000"],
        ["--balloon"],
        ["--balloon=8M,stats=2,hinting=off"],
        ["--virtio-mem", "1G,requested=64M"],
        ["--input", "keyboard", "--input", "tablet", "--gpu"],
    ],
)
def test_devices_come_with_an_option(words: list[str]) -> None:
    done = pykvm("run", *words, "hello64")
    assert (done.returncode, done.stdout) == (0, HELLO)


def test_files_behind_ports_and_memory(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "pmem"
    image.write_bytes(bytes(2 << 20))
    done = pykvm(
        "run", "--pmem", f"{image},snapshot", "--console", f"file:{tmp_path / 'console'}",
        "--port", f"name=a.b,path=file:{tmp_path / 'port'}", "hello64",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, HELLO)
    assert (tmp_path / "console").read_bytes() == (tmp_path / "port").read_bytes() == b""


def test_a_virtio_console_on_stdio_has_the_terminal_for_itself() -> None:
    done = pykvm("run", "--console", "stdio", "hello64")
    assert (done.returncode, done.stdout) == (0, "")  # COM1 goes nowhere
    done = pykvm("run", "--console", "null", "hello64")
    assert done.stdout == HELLO


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rng=x"], "no property of --rng"),
        (["--rng=rate=0"], "rate=0"),
        (["--rng=source=/nowhere"], "cannot be read from"),
        (["--balloon=foo"], "not a number"),
        (["--port", "x"], "name"),
        (["--port", "path=null"], "no port"),
        (["--port", "name=a/b"], "not a name"),
        (["--pmem", "/nowhere"], "cannot be opened"),
        (["--pmem", "/etc/passwd,readonly"], "truncate"),
        (["--virtio-mem", "3M"], "blocks"),
        (["--virtio-mem", "1G,requested=2G"], "more than the region"),
        (["--gpu=1"], "1024x768"),
        (["--gpu=0x5"], "not possible"),
        (["--gpu-screenshot", "x.png"], "add --gpu"),
        (["--serial2", "nothing"], "not known"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words: list[str], message: str) -> None:
    done = pykvm("run", *words, "hello64")
    assert done.returncode == 125
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
