"""Every mistake gets one line that names the thing and the remedy, and exit status 125."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from cli_command import COMMAND, ENVIRONMENT, HALT, error_line, image, pykvm

from pykvm import cli

VERBS = list(cli.VERBS)
CHOICES = f"{', '.join(VERBS[:-1])} or {VERBS[-1]}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], f"say what to do: {CHOICES}"),
        (["rum"], "did you mean run?"),
        (["frobnicate"], f"choose {CHOICES}"),
        (["--frobnicate"], "there is no option --frobnicate"),
        (["hello64"], "pykvm run hello64"),
        (["run"], "say which image to run"),
        (["run", "hello64", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["run", "hello64", "--mem", "64M"], "unrecognized arguments: --mem"),
        (["run", "hello46"], "did you mean hello64"),
        (["run", "zzzzzz"], "`pykvm guests` lists"),
        (["run", ""], "there is no file or guest ''"),
        (["run", "hello64", "--load", "here"], "write it like 0x1000"),
        (["run", "hello64", "--load", "-5"], "--load"),
        (["run", "hello64", "--timeout", "soon"], "write it like 5 or 0.5"),
        (["run", "hello64", "--timeout", "0"], "not a time in seconds"),
        (["run", "hello64", "--timeout", "nan"], "not a time in seconds"),
        (["run", "hello64", "--memory", "lots"], "64M"),
        (["run", "hello64", "--memory", "100"], "whole pages"),
        (["run", "hello64", "--mode", "imaginary"], "invalid choice: 'imaginary'"),
        (["run", "hello64", "--format", "docx"], "invalid choice: 'docx'"),
        (["run", "hello64", "--cpus", "1000"], "choose 1 to 64"),
        (["run", "smp", "--irqchip", "none"], "irqchip"),
        (["run", "hello64", "--serial", "smoke-signals"], "stdio"),
        (["run", "hello64", "--serial", "file:/nowhere/at/all"], "/nowhere/at/all"),
        (["run", "hello64", "--json", "--serial", "stdio"], "--json needs stdout"),
        (["run", "pio-loop", "--param", "count"], "write it like count=1000"),
        (["run", "pio-loop", "--param", "colour=1"], "it has"),
        (["run", "hello64", "--module", "x"], "multiboot"),
        (["run", "hello32", "--cmdline", "x"], "multiboot"),
        (["trace", "hello64", "--format", "xml"], "invalid choice: 'xml'"),
        (["trace", "hello64", "--output", "/nowhere/at/all"], "/nowhere/at/all: No such file"),
        (["trace", "hello46"], "did you mean hello64"),
        (["guests", "hello46"], "did you mean hello64"),
        (["guests", "a", "b"], "unrecognized arguments: b"),
        (["doctor", "now"], "unrecognized arguments: now"),
    ],
)
@pytest.mark.kvm
def test_one_line(arguments: list[str], words: str) -> None:
    assert words in error_line(pykvm(*arguments))


@pytest.mark.kvm
def test_files_that_are_not_there_or_no_images(tmp_path: pathlib.Path) -> None:
    image(tmp_path, HALT, "kernel.bin")
    line = error_line(pykvm("run", tmp_path / "kernal.bin"))
    assert "did you mean" in line
    assert str(tmp_path / "kernel.bin") in line
    assert "kernel.bin?" in error_line(pykvm("run", "kernel.bni", cwd=tmp_path))
    assert "is a directory" in error_line(pykvm("run", tmp_path))
    assert "there is no file" in error_line(pykvm("run", "/nowhere/kernel"))
    assert "empty" in error_line(pykvm("run", image(tmp_path, b"", "empty.bin")))
    broken = image(tmp_path, b"\x7fELF" + b"\xff" * 60, "broken.elf")
    assert "broken.elf" in error_line(pykvm("run", broken))
    large = tmp_path / "large.bin"
    with open(large, "wb") as file:
        file.truncate(1 << 30)
    assert "memory" in error_line(pykvm("run", large))
    odd = "nasty\x1b[31m\nname"
    line = error_line(pykvm("run", odd))
    assert "\x1b" not in line


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_the_exit_status_is_0(verb: str) -> None:
    done = pykvm(verb, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    before, word, examples = done.stdout.lower().rpartition("example")
    assert word, before
    assert verb in examples
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_help_and_version() -> None:
    import pykvm as package

    for word in ("--help", "-h", "help"):
        done = pykvm(word)
        assert done.returncode == 0
        assert all(f"  {verb} " in done.stdout for verb in VERBS)
    for word in ("--version", "-V"):
        assert pykvm(word).stdout == f"pykvm {package.__version__}\n"


def test_help_lists_every_verb_that_exists_and_no_other() -> None:
    folder = pathlib.Path(cli.__file__).parent
    assert set(cli.VERBS) == {
        path.stem for path in folder.glob("*.py") if "def main(arguments: list" in path.read_text()
    } - {"__init__"}


def test_the_installed_script_is_the_same_command() -> None:
    script = pathlib.Path(sys.executable).with_name("pykvm")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == pykvm("--version").stdout


def test_stdout_that_is_full_or_closed() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "guests"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT,
        )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr == "pykvm: No space left on device\n"
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "guests"],
        stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    for verb in ("guests", "--help"):
        done = subprocess.run(
            ["sh", "-c", '"$@" | true', "sh", *COMMAND, verb],
            stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT,
        )  # fmt: skip
        assert done.stderr == ""


def test_output_in_a_narrow_encoding() -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--help"],
        capture_output=True, check=False, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == b""
