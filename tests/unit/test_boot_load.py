"""load_image: arguments, flat images, and placing into guest memory."""

from __future__ import annotations

import itertools
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from boot_images import Elf, Seg, multiboot_elf

from pykvm.boot import ImageError, LoadedImage, load_image
from pykvm.boot.source import COPY_LIMIT
from pykvm.memory import GuestMemory

M = 1 << 20


def load(image: Any, **kwargs: Any) -> LoadedImage:
    return load_image(image, **{"memory_size": 64 * M, **kwargs})


def refused(image: Any, **kwargs: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load(image, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert ": " in text
    return text


def linear_entry(image: LoadedImage) -> int:
    return image.state.linear_rip


def test_flat_defaults() -> None:
    image = load(b"\xf4" * 10)
    assert (image.format, image.mode, image.entry) == ("flat", "real", 0x1000)
    assert [(s.gpa, bytes(s.data), s.mem_size) for s in image.segments] == [
        (0x1000, b"\xf4" * 10, 10)
    ]
    assert image.state.mode == "real"
    assert linear_entry(image) == 0x1000
    assert image.symbols() == {}
    assert image.symbol_at(0x1000) is None


def test_boot_sector() -> None:
    sector = bytes(510) + b"\x55\xaa"
    image = load(sector)
    assert image.entry == linear_entry(image) == 0x7C00
    assert image.state.regs["rdx"] == 0x80
    assert load(sector, load=0x2000).entry == 0x2000
    for other in (sector + b"\0", bytes(512), sector[1:]):
        assert load(other).entry == 0x1000
    assert "rdx" not in load(sector, mode="protected").state.regs or (
        load(sector, mode="protected").state.regs["rdx"] == 0
    )


def test_flat_load_and_entry() -> None:
    image = load(bytes(100), load=0x20000, entry=0x20010)
    assert image.segments[0].gpa == 0x20000
    assert image.entry == linear_entry(image) == 0x20010
    assert load(b"\xf4", load=0).entry == 0


@pytest.mark.parametrize(
    "address", [0, 0x500, 0xFFFF, 0x10000, 0x12345, 0xFFFFF, 0x100000, 0x10FFEF]
)
def test_real_mode_reaches_its_entry(address: int) -> None:
    image = load(bytes(16), load=address, mode="real")
    assert linear_entry(image) == address
    assert image.state.regs["rip"] <= 0xFFFF
    assert image.state.segments["cs"].selector <= 0xFFFF


def test_real_mode_ends_at_one_mebibyte_and_a_bit() -> None:
    assert "0x10fff0" in refused(bytes(16), load=0x10FFF0)


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_flat_in_other_modes(mode: str) -> None:
    image = load(b"\xf4", mode=mode, load=0x200000)
    assert image.mode == image.state.mode == mode
    assert image.state.regs["rip"] == image.entry == 0x200000


def test_flat_above_four_gib() -> None:
    high = 5 << 30
    image = load(b"\xf4", mode="long", load=high, memory_size=6 << 30)
    assert image.state.regs["rip"] == high
    assert "0x140000000" in refused(b"\xf4", mode="protected", load=high, memory_size=6 << 30)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"load": 64 * M}, "does not fit into the guest's memory"),
        ({"load": 64 * M - 1}, "does not fit"),
        ({"load": (1 << 64) - 1}, "does not fit"),
        ({"load": 1 << 64}, "not in 0.."),
        ({"load": -1}, "not in 0.."),
        ({"load": "0x1000"}, "not an integer"),
        ({"load": True}, "not an integer"),
        ({"entry": 0xFFF}, "outside the image"),
        ({"entry": 0x1002}, "outside the image"),
        ({"entry": 10**40}, "not in 0.."),
        ({"mode": "virtual"}, "choose one of real, protected, long"),
        ({"mode": 64}, "choose one of"),
        ({"mode": "a\nb"}, "choose one of"),
        ({"format": "zimage"}, "choose one of auto, flat, elf, multiboot"),
        ({"format": None}, "choose one of"),
        ({"format": []}, "choose one of"),
        ({"memory_size": 0}, "memory"),
        ({"memory_size": -5}, "not in 0.."),
        ({"memory_size": 1.5}, "not an integer"),
        ({"memory_size": 0x1000}, "does not fit"),
        ({"modules": ["x"]}, "only be given to a Linux, PVH or multiboot kernel"),
        ({"cmdline": "x"}, "only be given to a Linux, PVH or multiboot kernel"),
        ({"format": "elf"}, "not an ELF file"),
        ({"format": "multiboot"}, "no multiboot header"),
        ({"ram": []}, "no memory"),
        ({"ram": [(0x2000, M)]}, "does not fit"),
    ],
)
def test_refused_arguments(kwargs: dict[str, Any], words: str) -> None:
    assert words in refused(b"\xf4\xf4", **kwargs)


def test_format_flat_takes_anything() -> None:
    for data in (b"#!/bin/sh\n", Elf([Seg(M)]).build(), multiboot_elf()):
        image = load(data, format="flat")
        assert image.format == "flat"
        assert bytes(image.segments[0].data) == data


def test_messages_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kernel.bin"
    path.write_bytes(bytes(0x2000))
    assert refused(path, memory_size=0x1000).startswith(f"{path}: ")
    path.write_bytes(b"#!/bin/sh")
    assert refused(path).startswith(f"{path}: ")


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
@pytest.mark.parametrize("load_at", [0x1000, 0x9E000, 0x90000, 0x100000, 0x7000])
@pytest.mark.parametrize("size", [1, 0x1001, 0x60000])
def test_everything_is_disjoint_and_inside_memory(mode: str, load_at: int, size: int) -> None:
    image = load(bytes(size), load=load_at, mode=mode)
    pieces = [(s.gpa, s.end) for s in image.segments]
    pieces += [(gpa, gpa + len(data)) for gpa, data in image.state.memory]
    pieces.sort()
    for (_, end), (start, _) in itertools.pairwise(pieces):
        assert end <= start
    assert pieces[-1][1] <= 64 * M
    if mode != "real":
        assert all(start >= 0x1000 for start, _ in pieces)
        stack = image.state.regs["rsp"]
        assert stack % 16 == 0
        assert not any(start < stack and stack - 0x1000 < end for start, end in pieces)
        assert 0x2000 <= stack <= 64 * M


def test_place_writes_all_and_clears_the_rest() -> None:
    with GuestMemory.anonymous([(0, 4 * M)]) as memory:
        memory.fill(0, 4 * M, 0xAA)
        image = load_image(
            Elf([Seg(M, b"code", mem_size=0x3000)], entry=M).build(), memory_size=4 * M
        )
        image.place(memory)
        assert memory.read(M, 6) == b"code\0\0"
        assert memory.read(M + 4, 0x3000 - 4) == bytes(0x3000 - 4)
        assert memory.read(M + 0x3000, 1) == b"\xaa"
        assert memory.read(M - 1, 1) == b"\xaa"
        for gpa, data in image.state.memory:
            assert memory.read(gpa, len(data)) == data
        memory.write(M, b"gone")
        image.place(memory)  # a reset loads it again
        assert memory.read(M, 4) == b"code"


def test_place_refuses_a_smaller_memory_before_writing() -> None:
    image = load(Elf([Seg(M, b"a"), Seg(3 * M, b"b")], entry=M).build())
    with GuestMemory.anonymous([(0, 2 * M)]) as memory:
        with pytest.raises(ImageError, match="outside the guest's memory"):
            image.place(memory)
        assert memory.find(b"a") is None


def test_place_of_a_huge_bss_costs_nothing() -> None:
    size = 1 << 36
    image = load(Elf([Seg(M, b"a", mem_size=size)], entry=M).build(), memory_size=size + 2 * M)
    with GuestMemory.anonymous([(0, size + 2 * M)]) as memory:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.monotonic()
        image.place(memory)
        assert time.monotonic() - started < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
        assert memory.read(M, 2) == b"a\0"


def test_place_checks_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(bytes(COPY_LIMIT + 1))
    image = load(path)
    with GuestMemory.anonymous([(0, 4 * M)]) as memory:
        image.place(memory)
        os.truncate(path, 10)
        with pytest.raises(ImageError, match="shrank"):
            image.place(memory)


def test_ram_with_a_hole() -> None:
    ram = [(0, M), (4 << 30, M)]
    assert "does not fit" in refused(bytes(16), load=M, ram=ram, mode="long")
    assert load(bytes(16), load=4 << 30, ram=ram, mode="long").entry == 4 << 30
