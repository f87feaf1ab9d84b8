"""The example of docs/fuzzing.md, as pasted."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "fuzzing.md"


def test_the_example_finds_its_crash(tmp_path: pathlib.Path) -> None:
    found = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    done = subprocess.run(
        [sys.executable, "-c", found[1]],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"b'bug.*' #PF reading 0x\w+ at .*<LLVMFuzzerTestOneInput\+", done.stdout)
