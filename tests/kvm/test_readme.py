"""The README's code works as pasted."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

README = (pathlib.Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_machine_tutorial() -> None:
    out = run(BLOCKS[0])
    assert out.startswith("the guest wrote H\ndebug-exit after ")
    assert "0x15" in out
    assert "16: Count(count=2" in out


def test_the_driver_tutorial() -> None:
    out = run(BLOCKS[1]).splitlines()
    assert out[0] == "out 0x3f8 ← 'H' (1 byte) at 0x1005: out dx, al"
    assert out[1] == "halted at 0x1006: hlt"


def test_every_block_is_tested() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_the_tutorial_is_short(block: str) -> None:
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
