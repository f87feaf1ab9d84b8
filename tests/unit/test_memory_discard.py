"""Giving guest memory back to the host: measured by the blocks of the memory's file."""

from __future__ import annotations

import os
import tempfile

import pytest

from pykvm.memory import GuestMemory, MemoryAccessError, MemoryRegion

PAGE = 4096


def blocks(region: MemoryRegion) -> int:
    """Bytes that the region takes on the host."""
    return os.fstat(region.fd).st_blocks * 512


def test_whole_pages_go_and_read_as_zeros() -> None:
    with GuestMemory.anonymous([(0x10000, 64 * PAGE)]) as memory:
        region = memory.regions[0]
        memory.fill(0x10000, 64 * PAGE, 7)
        assert blocks(region) == 64 * PAGE
        assert memory.discard(0x10000 + 1, 10 * PAGE) == 9 * PAGE
        assert blocks(region) == 55 * PAGE
        assert memory.read(0x10000, PAGE) == b"\x07" * PAGE
        assert memory.read(0x10000 + PAGE, 9 * PAGE) == bytes(9 * PAGE)
        assert memory.read(0x10000 + 10 * PAGE, PAGE) == b"\x07" * PAGE
        assert memory.discard(0x10001, PAGE) == 0


def test_over_the_border_of_two_regions() -> None:
    with GuestMemory.anonymous([(0, 4 * PAGE), (4 * PAGE, 4 * PAGE)]) as memory:
        memory.fill(0, 8 * PAGE, 1)
        assert memory.discard(2 * PAGE, 4 * PAGE) == 4 * PAGE
        assert [blocks(region) for region in memory.regions] == [2 * PAGE, 2 * PAGE]


def test_outside_of_memory_is_an_error() -> None:
    with GuestMemory.anonymous([(0, 4 * PAGE)]) as memory:
        memory.fill(0, 4 * PAGE, 1)
        for gpa, length in ((4 * PAGE, PAGE), (3 * PAGE, 2 * PAGE), (1 << 63, PAGE), (0, -1)):
            with pytest.raises(MemoryAccessError):
                memory.discard(gpa, length)
        assert blocks(memory.regions[0]) == 4 * PAGE


def test_a_private_mapping_keeps_its_pages() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"A" * 4 * PAGE)
        file.flush()
        region = MemoryRegion(0, 4 * PAGE, fd=file.fileno(), private=True, kind="file")
        assert region.discard(0, 4 * PAGE) == 0
        assert region.read(0, 1) == b"A"
        region.close()


def test_the_address_of_a_view() -> None:
    with GuestMemory.anonymous([(0x10000, 4 * PAGE), (0x40000, PAGE)]) as memory:
        assert memory.address_of(memory.view(0x11010, 16)) == 0x11010
        assert memory.address_of(memory.view(0x40FFF, 1)) == 0x40FFF
        assert memory.address_of(memoryview(bytearray(16))) is None


def test_the_map_lists_ordinary_ram_alone() -> None:
    with MemoryRegion(0, PAGE) as ram, MemoryRegion(1 << 32, PAGE, kind="device") as device:
        memory = GuestMemory([ram, device])
        assert memory.ram == [(0, PAGE)]
        assert memory.contains(1 << 32, PAGE)
        memory.close()
