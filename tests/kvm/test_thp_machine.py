"""A machine whose RAM asks for transparent huge pages."""

from __future__ import annotations

import pathlib
import random

import pytest

from pykvm import Machine
from pykvm.errors import PykvmError
from pykvm.kvm import anonymous


def test_disks_read_and_write_it(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(random.Random(2).randbytes(1 << 20))
    with Machine(memory="32M", huge_pages="thp") as m:
        m.add_disk(image, format="raw")
        m.load("virtio-bench", cmdline="blk op=randwrite bs=4096 count=64 qd=4")
        result = m.run(timeout=60)
        assert result.exit_code == 1, result.serial  # it writes 0 to the debug-exit port
        assert b'"errors":0,"bytes":262144' in bytes(result.serial)


def test_it_is_not_shared_with_other_processes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anonymous, "files_have_thp", lambda: False)
    m = Machine(memory="16M", huge_pages="thp")
    with m, pytest.raises(PykvmError, match="shares the guest's memory"):
        m.add_share(tmp_path, tag="x", kind="fs")
