"""Firmware images: where they go, and the reset state."""

from __future__ import annotations

from typing import Any

import pytest

from pykvm.boot import ImageError, load_image
from pykvm.boot.environment import BootEnvironment

K, M, G = 1 << 10, 1 << 20, 1 << 30


def load(data: bytes, **kwargs: Any) -> Any:
    return load_image(data, memory_size=kwargs.pop("memory", 64 * M), format="firmware", **kwargs)


@pytest.mark.parametrize("size", [4 * K, 64 * K, 128 * K, 256 * K, 2 * M, 16 * M])
def test_placement(size: int) -> None:
    data = bytes(size - 16) + b"\xea" + bytes(15)
    image = load(data)
    ((base, rom),) = image.roms
    assert (base + size, bytes(rom)) == (4 * G, data)
    (copy,) = image.segments
    assert copy.end == M
    assert bytes(copy.data) == data[-128 * K :]
    assert (image.format, image.mode, image.entry) == ("firmware", "real", 0xFFFFFFF0)


def test_the_reset_state() -> None:
    """SDM vol. 3A, table 10-1."""
    state = load(bytes(64 * K)).state
    cs = state.segments["cs"]
    assert (cs.selector, cs.base, cs.limit) == (0xF000, 0xFFFF0000, 0xFFFF)
    assert (state.regs["rip"], state.regs["rflags"]) == (0xFFF0, 2)
    assert (state.cr0, state.cr4, state.efer) == (0x60000010, 0, 0)
    assert state.linear_rip == 0xFFFFFFF0
    assert state.mode == "real"
    assert {state.segments[r].base for r in ("ds", "es", "fs", "gs", "ss")} == {0}
    assert (state.gdt.limit, state.idt.limit) == (0xFFFF, 0xFFFF)


def test_refused() -> None:
    for size, words in (
        (4 * K + 1, "not a multiple of 4 KiB"),
        (100, "not a multiple of 4 KiB"),
        (16 * M + 4 * K, "larger than 16 MiB"),
    ):
        with pytest.raises(ImageError, match=words):
            load(bytes(size))
    with pytest.raises(ImageError, match="is RAM"):
        load(bytes(64 * K), memory=5 * G)
    with pytest.raises(ImageError, match="cannot be given to firmware"):
        load(bytes(64 * K), cmdline="x")
    with pytest.raises(ImageError, match="cannot be given to firmware"):
        load(bytes(64 * K), environment=BootEnvironment(initrd=b"x"))
    with pytest.raises(ImageError, match="says itself"):
        load(bytes(64 * K), entry=0x1000)
    with pytest.raises(ImageError, match="entered in real mode"):
        load(bytes(64 * K), mode="long")


def test_without_ram_below_1_mib_there_is_no_copy() -> None:
    image = load(bytes(64 * K), ram=[(0, 640 * K), (M, 8 * M)])
    assert image.segments == []
    assert "no RAM below 1 MiB" in image.notes[0]


def test_the_machines_tables_are_not_in_its_way() -> None:
    image = load(bytes(64 * K), environment=BootEnvironment(reserved=[(0xE0000, 0x20000)]))
    assert image.segments[0].end == M
