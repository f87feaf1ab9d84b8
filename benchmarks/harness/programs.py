"""Runs one side of a case as a process, and turns the JSON line it prints into a sample."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .model import BenchError, Sample
from .toolchain import ROOT, built

TIMEOUT = 120
"""Seconds after which a run of one side is given up."""


def run_json(command: Sequence[str], *, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON object on the last line of the command's output.

    Raises BenchError with its last words otherwise.
    """
    try:
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
        )
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not there") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{_short(command)} did not end within {TIMEOUT} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = words[-1] if words else "it said nothing"
        raise BenchError(f"{_short(command)} failed ({done.returncode}): {reason}")
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        raise BenchError(f"{_short(command)} printed no JSON: {lines[-1][:200]}") from None
    if not isinstance(answer, dict):
        raise BenchError(f"{_short(command)} printed no JSON object: {lines[-1][:200]}")
    return answer


def _short(command: Sequence[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:4]])


def per_exit(answer: dict[str, Any], expected: int) -> Sample:
    """Sample of a side that reported `exits` and `ns`.

    A count other than the expected one is an error, not a result.
    """
    exits, ns = int(answer["exits"]), float(answer["ns"])
    if exits != expected:
        raise BenchError(f"{exits} exits were counted, the guest makes {expected}")
    return {"ns": ns / exits, "rate": exits * 1e9 / ns}


def peer(name: str, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs one of the C peers."""
    return run_json([built(name), *arguments], env=env)


def worker_command(*arguments: str) -> list[str]:
    """The command line of pykvm's side, benchmarks/worker.py, under this interpreter."""
    return [sys.executable, str(ROOT / "benchmarks" / "worker.py"), *arguments]


def worker(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs pykvm's side of a case. The time it reports excludes the start of Python."""
    return run_json(worker_command(*arguments), env=env)


def pykvm_command() -> list[str]:
    """What a user's shell would start.

    The installed `pykvm` beside this interpreter, or `python -m pykvm`.
    """
    script = Path(sys.executable).parent / "pykvm"
    return [str(script)] if script.exists() else [sys.executable, "-m", "pykvm"]


def spawn(
    command: Sequence[str], *, status: int, output: bytes, memory: bool, keep: str, stop: bool
) -> Sample:
    """Starts a VMM under `measure`: ns to the first serial byte and to the end, peak bytes.

    The guest must have ended with exit status `status` and have said `output`: a VMM that is quick
    because it did not run the guest is an error. `stop` ends it once `output` has come, for one
    that outlives its guest.
    """
    path = built(f"{keep}.out")
    options = ["-t", "60", "-o", path] + (["-m"] if memory else [])
    options += ["-k", str(len(output))] if stop else []
    answer = run_json([built("measure"), *options, "--", *command])
    said = Path(path).read_bytes()
    if answer["status"] != status or output not in said:
        raise BenchError(
            f"{_short(command)} ended with {answer['status']} and {said[-60:]!r}, expected "
            f"{status} and {output!r}"
        )
    if not memory:
        return {"first": float(answer["first_ns"]), "end": float(answer["end_ns"])}
    return {
        "maxrss": float(answer["maxrss"]),
        "private": float(answer["private"]),
        "shared": float(answer["shared"]),
    }


_I_REFS = re.compile(r"I\s+refs:\s+([\d,]+)")


def instructions(command: Sequence[str], *, env: dict[str, str]) -> float:
    """User-space instructions that the command executes, counted by valgrind.

    Raises BenchError, naming its package.
    """
    valgrind = shutil.which("valgrind")
    if not valgrind:
        raise BenchError("valgrind is not installed: apt-get install valgrind")
    tool = [valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    try:
        done = subprocess.run(
            [*tool, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            env={**os.environ, **env},
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{_short(command)} under valgrind took over {TIMEOUT} s") from None
    found = _I_REFS.search(done.stderr)
    if done.returncode or not found:
        own = [line for line in done.stderr.splitlines() if line and not line.startswith("==")]
        raise BenchError(f"{_short(command)} under valgrind failed: {own[-1] if own else ''}")
    return float(found.group(1).replace(",", ""))
