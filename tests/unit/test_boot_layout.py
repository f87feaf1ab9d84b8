"""Where things go in guest memory."""

from __future__ import annotations

import pytest

from pykvm.boot.errors import ImageError
from pykvm.boot.layout import LOW_END, Layout

M = 1 << 20


def test_ram_is_joined_and_sorted() -> None:
    layout = Layout("k", [(4 << 30, M), (0, M), (M, M)])
    assert layout.ram == [(0, 2 * M), (4 << 30, (4 << 30) + M)]
    assert layout.in_ram(0, 2 * M)
    assert not layout.in_ram(0, 2 * M + 1)
    assert layout.in_ram(4 << 30, M)
    assert not layout.in_ram(3 << 30, 1)


@pytest.mark.parametrize("ram", [[], [(0, 0)], [(0, -1)], [(-1, 5)]])
def test_no_memory(ram: list[tuple[int, int]]) -> None:
    with pytest.raises(ImageError, match=r"^k: "):
        Layout("k", ram)


def test_claims_must_not_overlap() -> None:
    layout = Layout("k", [(0, M)])
    layout.claim(0x2000, 0x1000, "b")
    layout.claim(0x1000, 0x1000, "a")
    layout.claim(0x3000, 0x1000, "c")
    layout.claim(0x2000, 0, "nothing")
    for start, size, other in ((0x3FFF, 1, "c"), (0, 0x1001, "a"), (0x2800, 1, "b"), (0, M, "a")):
        with pytest.raises(ImageError, match=f"overlaps {other} at"):
            layout.claim(start, size, "x")
    layout.claim(0x4000, 1, "d")
    assert [t.what for t in layout.taken] == ["a", "b", "c", "d"]


def test_claims_must_be_in_ram() -> None:
    layout = Layout("k", [(0, M), (4 << 30, M)])
    with pytest.raises(ImageError, match=r"does not fit.*\(0x0-0xfffff, 0x1.*at least|link it"):
        layout.claim(M - 1, 2, "x")
    with pytest.raises(ImageError, match="link it at an address that is RAM"):
        layout.claim((1 << 64) - 1, 1, "x")
    with pytest.raises(ImageError, match="give the guest at least 65 MiB"):
        Layout("k", [(0, M)]).claim(64 * M, 1, "x")


def test_own_data_goes_to_the_top_of_conventional_memory() -> None:
    layout = Layout("k", [(0, 64 * M)])
    layout.claim(M, M, "image")
    assert layout.add(0x3000, "tables") == LOW_END - 0x3000
    assert layout.add(0x10, "info", align=16) == LOW_END - 0x3010
    assert layout.add(0x1000, "stack") == LOW_END - 0x5000
    assert layout.add(0x10, "more", align=16) == LOW_END - 0x3020  # the gap between the two


def test_page_zero_and_the_bios_area_stay_free() -> None:
    layout = Layout("k", [(0, M)])
    assert layout.add(LOW_END - 0x1000, "all of it") == 0x1000
    with pytest.raises(ImageError, match="no room for more"):
        layout.add(1, "more", align=1)


def test_small_memory() -> None:
    assert Layout("k", [(0, 0x8000)]).add(0x1000, "t") == 0x7000
    with pytest.raises(ImageError, match="no room for t"):
        Layout("k", [(0, 0x1000)]).add(0x1000, "t")


def test_full_conventional_memory_falls_back_behind_the_image() -> None:
    layout = Layout("k", [(0, 64 * M)])
    layout.claim(0x1000, 2 * M, "image")
    assert layout.add(0x1000, "t") == 2 * M + 0x1000
    layout = Layout("k", [(0, 4 * M)])
    layout.claim(0, M, "low")
    layout.claim(3 * M, M, "high")
    assert layout.add(0x1000, "t") == 3 * M - 0x1000


def test_avoided_ranges_may_overlap_anything() -> None:
    layout = Layout("k", [(0, 64 * M)])
    layout.avoid(LOW_END - 0x1000, 16 * M)
    layout.avoid(LOW_END - 0x2000, 0x1800)
    assert layout.add(0x1000, "t") == LOW_END - 0x3000
    assert layout.add_high(0x1000, "t") == -(-(LOW_END - 0x1000 + 16 * M) // 4096) * 4096


def test_nothing_goes_above_four_gib() -> None:
    layout = Layout("k", [(4 << 30, 64 * M)])
    with pytest.raises(ImageError, match="no room"):
        layout.add(1, "t")


def test_modules_follow_the_image() -> None:
    layout = Layout("k", [(0, 64 * M)])
    layout.claim(M, 0x1234, "image")
    assert layout.add_high(5, "m") == M + 0x2000
    assert layout.add_high(0x1001, "m") == M + 0x3000
    assert layout.add_high(5, "m") == M + 0x5000
