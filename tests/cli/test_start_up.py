"""What a guest's start must not wait for: heavy modules stay out until something needs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "argparse", "capstone", "ctypes", "dataclasses", "elftools", "enum", "inspect", "json",
    "logging", "pathlib", "re", "rich", "socket", "subprocess", "tempfile", "typing",
}  # fmt: skip
CODE = """
import sys
before = set(sys.modules)
from pykvm.cli import main
code = main({words!r})
print(*sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.kvm
def test_a_plain_run_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(words=["run", "hello64"])],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout == "Hello from 64-bit long mode\n"
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "pykvm" in loaded
    assert not loaded & HEAVY


@pytest.mark.kvm
def test_defaults_are_argparses_own() -> None:
    """A command line without options gets the same namespace as from argparse."""
    from pykvm.cli import run
    from pykvm.cli.parser import Parser

    seen = []

    def keep(parser: Parser, words: list[str]) -> object:
        seen.append(
            (vars(parser._without_options(words)), vars(parser._argparse().parse_args(words)))
        )
        raise KeyboardInterrupt

    original = Parser.parse_args
    Parser.parse_args = keep
    try:
        with pytest.raises(KeyboardInterrupt):
            run.main(["hello64"])
    finally:
        Parser.parse_args = original
    quick, full = seen[0]
    assert quick == full
