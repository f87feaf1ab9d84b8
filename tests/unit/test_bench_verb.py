"""`pykvm bench` finds the benchmarks of the source tree, or says where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm import cli
from pykvm.cli import bench


def test_the_verb_runs_the_benchmarks(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list"]) == 0
    assert "immediate-exit" in capfd.readouterr().out
    assert cli.main(["bench", "--rounds", "0"]) == 125
    assert "at least 1 is needed" in capfd.readouterr().err


def test_an_installed_pykvm_says_where_the_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_program", lambda: tmp_path / "run.py")
    assert cli.main(["bench"]) == 125
    assert "make bench" in capsys.readouterr().err
