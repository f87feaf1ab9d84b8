"""Guest memory without a file: what transparent huge pages are given to where files have none."""

from __future__ import annotations

import os

import pytest

from pykvm.kvm import anonymous
from pykvm.kvm.region import MemoryRegion, RegionError

PAGE, MIB = 4096, 1 << 20


@pytest.fixture
def region(monkeypatch: pytest.MonkeyPatch) -> MemoryRegion:
    monkeypatch.setattr(anonymous, "files_have_thp", lambda: False)
    return MemoryRegion(0, 8 * MIB, huge_pages="thp")


def test_it_is_memory_like_any_other(region: MemoryRegion) -> None:
    before = set(os.listdir("/proc/self/fd"))
    assert region.anonymous
    assert region.fd == -1
    region.write(PAGE - 2, b"over")
    assert region.read(PAGE - 2, 4) == b"over"
    assert region.read(4 * MIB, 8) == bytes(8)
    region.close()
    region.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_which_pages_there_are(region: MemoryRegion) -> None:
    assert list(region.extents()) == []
    region.write(3 * MIB, b"x")
    found = list(region.extents())
    assert len(found) == 1  # a page, or the huge page around it
    at, length = found[0]
    assert at <= 3 * MIB < at + length <= 8 * MIB
    assert list(region.extents(3 * MIB + 7, 3 * MIB + 9)) == [(3 * MIB + 7, 2)]
    region.write(7 * MIB, b"y")
    assert next(iter(region.extents(6 * MIB, 8 * MIB)))[0] >= 6 * MIB
    region.close()


def test_pages_are_given_back(region: MemoryRegion) -> None:
    region.write(0, b"z" * (4 * MIB))
    assert region.discard(PAGE, 4 * MIB) == 4 * MIB
    assert sum(length for _, length in region.extents()) == PAGE
    assert region.read(PAGE, PAGE) == bytes(PAGE)
    assert region.read(0, 4) == b"zzzz"
    region.write(2 * MIB, b"z" * MIB)
    region.fill(2 * MIB, MIB)
    assert region.read(2 * MIB, MIB) == bytes(MIB)
    region.close()


def test_a_file_is_used_where_files_have_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous, "files_have_thp", lambda: True)
    with MemoryRegion(0, 4 * MIB, huge_pages="thp") as region:
        assert not region.anonymous
        assert region.fd >= 0
    with pytest.raises(RegionError, match="offset"):
        MemoryRegion(0, 4 * MIB, huge_pages="thp", offset=PAGE)


def test_without_a_page_map_everything_counts(
    region: MemoryRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*_: object, **__: object) -> object:
        raise PermissionError

    monkeypatch.setattr("builtins.open", no_file)
    assert list(region.extents()) == [(0, 8 * MIB)]
    region.close()
