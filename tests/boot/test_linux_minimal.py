"""Our minimal kernel (guests/linux), not patched, to a 32-bit busybox shell on any /dev/kvm: also
where ring 0 is emulated and instructions are refused."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import time

import pytest
from linux_guest import CONSOLE, FRUGAL, Boot, files, initrd, section

pytestmark = pytest.mark.boot

# Seconds; a quiet machine needs a tenth.
SECONDS = 300


def minimal(kind: str, script: str, **options: object) -> Boot:
    return Boot(
        files()[kind] / "vmlinux",
        script=script,
        bits=32,
        append=f"quiet {FRUGAL} {options.pop('append', '')}",
        timeout=SECONDS,
        **options,  # type: ignore[arg-type]
    )


def test_one_cpu_without_acpi_and_pci() -> None:
    script = section("cpus", "grep -c ^processor /proc/cpuinfo") + section("sum", "echo $((6 * 7))")
    done = minimal("mmio", script, append="reboot=t", board="microvm", memory="32M", acpi=False)
    assert done.section("cpus") == "1\n"
    assert done.section("sum") == "42\n"
    # Without ACPI there is no way to switch off: the kernel halts for good.
    assert (done.result.reason, done.result.exit_code) == ("halted", 0)


@pytest.mark.parametrize("board", ["microvm", "pc"])
def test_two_cpus(board: str) -> None:
    done = minimal("pc", section("cpus", "nproc"), board=board, cpus=2, memory="48M")
    assert done.section("cpus") == "2\n"
    assert (done.result.reason, done.result.exit_code) == ("power-off", 0)


def test_a_shell_answers_on_the_console(tmp_path: pathlib.Path) -> None:
    (tmp_path / "initrd").write_bytes(initrd(32, None))
    command = [sys.executable, "-m", "pykvm", "run", str(files()["mmio"] / "vmlinux")]
    command += ["--initrd", str(tmp_path / "initrd"), "--machine", "microvm", "--memory", "32M"]
    command += ["--append", f"{CONSOLE} quiet reboot=t {FRUGAL}", "--timeout", str(SECONDS)]
    command += ["--no-acpi"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = b""
        for expect, typed in (
            (rb"# ", b"echo $((1000 + 234))\n"),
            (rb"\n1234\r?\n.*# ", b"exit\n"),
        ):
            deadline = time.monotonic() + SECONDS
            while not re.search(expect, seen, re.S):
                part = process.stdout.read1(4096)
                assert part, seen
                assert time.monotonic() < deadline, seen
                seen += part
            process.stdin.write(typed)
            process.stdin.flush()
        rest = process.stdout.read()
    assert b"init: done" in seen + rest
    assert process.returncode == 0
