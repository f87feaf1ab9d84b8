"""`pykvm bench`: measure against raw C programs and QEMU. The benchmarks are in the source tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pykvm.cli.common import UsageError

__all__ = ["main"]


def _program() -> Path:
    return Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"


def main(arguments: list[str]) -> int:
    """Runs `benchmarks/run.py` with these arguments and returns its exit code."""
    program = _program()
    if not program.is_file():
        raise UsageError(
            "the benchmarks are not part of an installed pykvm; run `make bench` in its source tree"
        )
    return subprocess.call([sys.executable, str(program), *arguments])
