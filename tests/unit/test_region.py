"""MemoryRegion: sparse mappings, bounds, huge pages, file backing, and what close() leaves."""

from __future__ import annotations

import gc
import os
import pathlib

import pytest

from pykvm.kvm.errors import ClosedError
from pykvm.kvm.region import MemoryAccessError, MemoryRegion, RegionError

MIB = 1 << 20


def open_fds() -> int:
    """Open files of this process, without those that only garbage still holds."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    """Mappings of memory files in this process, without those that only garbage still holds."""
    gc.collect()
    return pathlib.Path("/proc/self/maps").read_text().count("memfd:pykvm-ram")


def test_bytes_written_are_read_back_and_visible_in_the_file() -> None:
    with MemoryRegion(0x10000, MIB) as region:
        region.write(0x10FFE, b"abcd")
        assert region.read(0x10FFD, 6) == b"\0abcd\0"
        assert os.pread(region.fd, 4, 0xFFE) == b"abcd"
        region.view[0xFFF] = ord("X")
        assert region.read(0x10FFE, 4) == b"aXcd"
        assert region.host_address % 4096 == 0


def test_a_terabyte_costs_nothing_until_it_is_used() -> None:
    with MemoryRegion(0, 1 << 40) as region:
        assert list(region.extents()) == []
        region.write((1 << 40) - 1, b"!")
        ((offset, length),) = region.extents()
        assert offset + length == 1 << 40
        assert os.fstat(region.fd).st_blocks * 512 == length


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0xFFF, 1), (0x2000, 1), (0x1FFF, 2), (0x1000, 0x1001), (0x1000, -1), (-1, 1), (1 << 64, 1)],
)
def test_accesses_outside_are_refused(gpa: int, length: int) -> None:
    with MemoryRegion(0x1000, 0x1000) as region:
        with pytest.raises(MemoryAccessError, match=hex(gpa)):
            region.read(gpa, length)
        if length > 0:
            with pytest.raises(MemoryAccessError):
                region.write(gpa, bytes(length))
        assert list(region.extents()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpa": 1, "size": 4096}, "not aligned"),
        ({"gpa": -4096, "size": 4096}, "not aligned"),
        ({"gpa": 0, "size": 4095}, "positive number"),
        ({"gpa": 0, "size": 0}, "positive number"),
        ({"gpa": (1 << 64) - 4096, "size": 8192}, "above 2\\^64"),
        ({"gpa": 0, "size": 1 << 63}, "0x8000000000000000"),
        ({"gpa": 0, "size": 1 << 60}, "cannot m"),
        ({"gpa": 0, "size": 4096, "huge_pages": "4M"}, "huge_pages"),
        ({"gpa": 0, "size": 4096, "huge_pages": "2M"}, "2M pages"),
        ({"gpa": 4096, "size": 2 * MIB, "huge_pages": "2M"}, "2M pages"),
        ({"gpa": 0, "size": 4096, "fd": 9999}, "Bad file descriptor"),
        ({"gpa": 0, "size": 4096, "offset": 4096}, "offset"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    arguments: dict[str, object], message: str
) -> None:
    before = open_fds(), mappings()
    with pytest.raises(RegionError, match=message):
        MemoryRegion(**arguments)  # type: ignore[arg-type]
    assert (open_fds(), mappings()) == before


def test_huge_pages_that_are_not_there_name_the_remedy() -> None:
    """More 1 GiB pages than any machine has; the reservation fails at once, not as SIGBUS later."""
    with pytest.raises(RegionError, match="huge page"):
        MemoryRegion(0, 1 << 46, huge_pages="1G")
    with pytest.raises(RegionError, match=r"huge page"):
        MemoryRegion(0, 1 << 46, huge_pages="2M")


def test_transparent_huge_pages_can_be_asked_for() -> None:
    with MemoryRegion(0, 4 * MIB, huge_pages="thp") as region:
        region.write(0, b"x")
        smaps = pathlib.Path("/proc/self/smaps").read_text()
        mapping = smaps.split(f"{region.host_address:x}-")[1].split("VmFlags:")[1].splitlines()[0]
        assert " hg" in mapping


def test_a_file_backs_a_region_shared_or_private(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"\0" * 4096 + b"hello" + b"\0" * 8187)
    with path.open("r+b") as file:
        with MemoryRegion(0, 8192, fd=file.fileno(), offset=4096, private=True) as region:
            assert region.read(0, 5) == b"hello"
            region.write(0, b"J")
            assert list(region.extents()) == [(0, 8192)]
        assert path.read_bytes()[4096:4101] == b"hello"
        with MemoryRegion(0, 8192, fd=file.fileno(), offset=4096) as region:
            region.write(0, b"J")
        assert path.read_bytes()[4096:4101] == b"Jello"
        with pytest.raises(RegionError, match="the region needs"):
            MemoryRegion(0, 16384, fd=file.fileno(), offset=4096)
        with pytest.raises(RegionError, match="not aligned"):
            MemoryRegion(0, 4096, fd=file.fileno(), offset=1)
        assert os.fstat(file.fileno()).st_size == 12288


def test_a_pipe_cannot_back_a_region() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(RegionError, match="regular file"):
            MemoryRegion(0, 4096, fd=read)
    finally:
        os.close(read)
        os.close(write)


def test_the_file_cannot_be_cut_under_the_mapping() -> None:
    with MemoryRegion(0, MIB) as region, pytest.raises(PermissionError):
        os.ftruncate(region.fd, 0)


def test_fill_with_zeros_gives_pages_back_and_keeps_the_neighbours() -> None:
    with MemoryRegion(0, MIB) as region:
        region.fill(0, MIB, 0xAB)
        region.fill(0x1801, 0x80000)
        assert sum(length for _, length in region.extents()) <= MIB - 0x7F000
        assert region.read(0x1800, 1) == b"\xab"
        assert region.read(0x1801, 0x80000) == bytes(0x80000)
        assert region.read(0x81801, 1) == b"\xab"
        with pytest.raises(MemoryAccessError):
            region.fill(MIB - 1, 2)


def test_fill_of_a_private_region_does_not_bring_the_file_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"\x11" * MIB)
    with path.open("r+b") as file, MemoryRegion(0, MIB, fd=file.fileno(), private=True) as region:
        region.fill(0, MIB)
        assert region.read(0, MIB) == bytes(MIB)
        assert path.read_bytes() == b"\x11" * MIB


def test_use_after_close_is_an_error_and_views_stay_valid() -> None:
    before = mappings()
    region = MemoryRegion(0, MIB)
    view = region.view[16:32]
    region.close()
    region.close()
    assert region.closed
    assert region.fd == -1
    for use in (lambda: region.read(0, 1), lambda: region.write(0, b"x"), lambda: region.view):
        with pytest.raises(ClosedError, match="closed"):
            use()
    view[:] = b"0123456789abcdef"  # the pages are still there
    assert bytes(view) == b"0123456789abcdef"
    assert mappings() == before + 1
    del view
    assert mappings() == before


def test_guest_memfd_goes_with_the_region() -> None:
    fd = os.memfd_create("stands-for-guest-memfd")
    region = MemoryRegion(0, 4096, guest_memfd=fd, slot=3, flags=4)
    assert (region.guest_memfd, region.slot, region.flags) == (fd, 3, 4)
    region.close()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_thousand_rounds_leave_nothing() -> None:
    gc.collect()
    before = open_fds(), mappings()
    for number in range(1000):
        region = MemoryRegion(0, 64 * MIB)
        region.write(0, b"used")
        if number % 2:
            region.close()
        del region
    assert (open_fds(), mappings()) == before
