"""The C program that times a process from outside; needs a compiler, not /dev/kvm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.programs import run_json
from benchmarks.harness.toolchain import C_FLAGS, SOURCES


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("measure") / "measure")
    subprocess.run(["gcc", *C_FLAGS, "-o", path, str(SOURCES / "peers" / "measure.c")], check=True)
    return path


def measure(program: str, *arguments: str) -> dict[str, Any]:
    return run_json([program, *arguments])


def test_the_first_byte_comes_before_the_end(program: str) -> None:
    answer = measure(program, "--", "sh", "-c", "echo hello; sleep 0.2; exit 3")
    assert answer["status"] == 3
    assert 0 < answer["first_ns"] < answer["end_ns"] - 100_000_000
    assert answer["timeout"] is False


def test_silence_has_no_first_byte(program: str) -> None:
    assert measure(program, "--", "true")["first_ns"] is None


def test_what_takes_too_long_is_ended_and_said(program: str) -> None:
    answer = measure(program, "-t", "1", "--", "sleep", "20")
    assert answer["timeout"] is True
    assert answer["status"] == 128 + 9
    assert answer["end_ns"] < 5e9


def test_a_process_is_ended_once_it_has_said_enough(program: str) -> None:
    answer = measure(program, "-k", "5", "-t", "20", "--", "sh", "-c", "echo hello; sleep 20")
    assert answer["status"] == 128 + 9
    assert answer["timeout"] is False
    assert answer["end_ns"] < 5e9


def test_the_output_is_kept(program: str, tmp_path: Path) -> None:
    measure(program, "-o", str(tmp_path / "out"), "--", "printf", "one line")
    assert (tmp_path / "out").read_bytes() == b"one line"


def test_memory_tells_private_from_shared(program: str) -> None:
    size = 32 << 20
    private = f"x = bytearray({size}); print(len(x), flush=True); import time; time.sleep(0.05)"
    shared = (
        "import mmap, os, time; f = os.memfd_create('ram');"
        f"os.ftruncate(f, {size}); m = mmap.mmap(f, {size}); m.write(b'x' * {size // 2});"
        "print(1, flush=True); time.sleep(0.05)"
    )
    first = measure(program, "-m", "--", sys.executable, "-c", private)
    assert first["private"] > size
    assert first["shared"] < 1 << 20
    second = measure(program, "-m", "--", sys.executable, "-c", shared)
    assert size // 2 <= second["shared"] <= size
    assert second["maxrss"] >= second["shared"]


def test_the_peak_does_not_include_the_parent(program: str) -> None:
    # This test process is far larger than /bin/true.
    assert measure(program, "--", "true")["maxrss"] < 8 << 20


def test_a_command_that_is_not_there_is_a_status(program: str) -> None:
    assert measure(program, "--", "/nonexistent/program")["status"] == 127
