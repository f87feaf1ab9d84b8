"""GuestMemory without a VM: bounds, types, borders, search, sparse files."""

from __future__ import annotations

import ctypes
import os
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from pykvm.kvm.errors import ClosedError
from pykvm.memory import GuestMemory, MemoryAccessError, MemoryRegion, RegionError
from pykvm.sparsefile import SparseFileError

MIB = 1 << 20
HIGH = 1 << 32


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Two adjacent regions, a hole, a third one above 4 GiB."""
    with GuestMemory.anonymous([(HIGH, MIB), (0, 0xA0000), (0xA0000, 0x10000)]) as memory:
        yield memory


def test_shape(memory: GuestMemory) -> None:
    assert [region.gpa for region in memory.regions] == [0, 0xA0000, HIGH]
    assert memory.size == 0xB0000 + MIB
    assert memory.end == HIGH + MIB
    assert repr(memory) == (
        "<GuestMemory 0x0..0x9ffff, 0xa0000..0xaffff, 0x100000000..0x1000fffff>"
    )


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("gpa", [0, 3, 0x9FFFF, 0x9FFFD, HIGH, HIGH + MIB - 8])
def test_numbers_are_little_endian_also_across_a_border(
    memory: GuestMemory, bits: int, gpa: int
) -> None:
    value = 0x8877665544332211 & ((1 << bits) - 1)
    getattr(memory, f"write_u{bits}")(gpa, value)
    assert memory.read(gpa, bits // 8) == value.to_bytes(bits // 8, "little")
    assert getattr(memory, f"read_u{bits}")(gpa) == value
    for wrong in (-1, 1 << bits):
        with pytest.raises(MemoryAccessError, match=f"{bits} bits"):
            getattr(memory, f"write_u{bits}")(gpa, wrong)
    assert getattr(memory, f"read_u{bits}")(gpa) == value


OUTSIDE = [
    (0xAFFFF, 2),
    (0xB0000, 1),
    (HIGH - 1, 2),
    (HIGH + MIB - 1, 2),
    (HIGH + MIB, 1),
    (-1, 1),
    (-1, 4),
    ((1 << 64) - 2, 4),
    ((1 << 64) - 1, 1),
    (1 << 64, 1),
    (0, 1 << 64),
    (0, (1 << 64) + 1),
    (0, -1),
    (-1, 0),
    ((1 << 64) + 1, 0),
]


@pytest.mark.parametrize(("gpa", "length"), OUTSIDE)
def test_a_byte_outside_refuses_the_whole_access(
    memory: GuestMemory, gpa: int, length: int
) -> None:
    assert not memory.contains(gpa, length)
    for access in (memory.read, memory.view, memory.fill):
        with pytest.raises(MemoryAccessError) as caught:
            access(gpa, length)
        assert (caught.value.gpa, caught.value.length) == (gpa, length)
        assert hex(gpa) in str(caught.value)
    if 0 < length < 16:
        with pytest.raises(MemoryAccessError):
            memory.write(gpa, b"\xff" * length)
    for region in memory.regions:
        assert list(region.extents()) == []  # nothing was written, not even in part


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_numbers_outside_are_refused(memory: GuestMemory, bits: int) -> None:
    for gpa in (0xAFFFF, HIGH + MIB - 1, -1, (1 << 64) - 1):
        with pytest.raises(MemoryAccessError):
            getattr(memory, f"read_u{bits}")(gpa)
        with pytest.raises(MemoryAccessError):
            getattr(memory, f"write_u{bits}")(gpa, 1)
    assert memory.read_u8(0xAFFFF) == 0


def test_the_error_names_the_nearest_region(memory: GuestMemory) -> None:
    with pytest.raises(MemoryAccessError, match=r"nearest region is 0xa0000\.\.0xaffff"):
        memory.read(0xB0004, 4)
    with pytest.raises(MemoryAccessError, match=r"nearest region is 0x100000000\.\."):
        memory.read(HIGH - 0x1000, 4)
    with pytest.raises(MemoryAccessError, match="no regions"):
        GuestMemory().read(0, 1)


@pytest.mark.parametrize("gpa", [0, 0xA0000, 0xB0000, 0xC0000, HIGH + MIB, 1 << 64])
def test_no_bytes_touch_nothing(memory: GuestMemory, gpa: int) -> None:
    assert memory.contains(gpa, 0)
    assert memory.read(gpa, 0) == b""
    assert len(memory.view(gpa, 0)) == 0
    memory.write(gpa, b"")
    memory.fill(gpa, 0)


def test_views_are_the_memory_itself(memory: GuestMemory) -> None:
    view = memory.view(0x1000, 16)
    view[4:8] = b"page"
    assert memory.read(0x1004, 4) == b"page"
    memory.write(0x1000, b"back")
    assert bytes(view[:8]) == b"backpage"
    with pytest.raises(MemoryAccessError, match="cross"):
        memory.view(0x9FFFF, 2)


def test_any_buffer_can_be_written(memory: GuestMemory) -> None:
    class Pair(ctypes.Structure):
        _fields_ = [("a", ctypes.c_uint16), ("b", ctypes.c_uint32)]

    memory.write(0, bytearray(b"ab"))
    memory.write(2, memoryview(b"xcdx")[1:3])
    memory.write(4, Pair(0x6665, 0x6867))
    assert memory.read(0, 12) == b"abcdef\0\0gh\0\0"


def test_structs(memory: GuestMemory) -> None:
    class Descriptor(ctypes.LittleEndianStructure):
        _fields_ = [
            ("addr", ctypes.c_uint64),
            ("len", ctypes.c_uint32),
            ("flags", ctypes.c_uint16),
            ("next", ctypes.c_uint16),
        ]

    memory.write_struct("QIHH", 0x9FFF8, 0x1122334455667788, 4096, 1, 7)  # across the border
    assert memory.read_struct("QIHH", 0x9FFF8) == (0x1122334455667788, 4096, 1, 7)
    descriptor = memory.read_struct(Descriptor, 0x9FFF8)
    assert (descriptor.addr, descriptor.len) == (0x1122334455667788, 4096)
    descriptor.len = 1
    assert memory.read_struct("<I", 0xA0000) == (4096,)  # a copy
    memory.write_struct(descriptor, 0x2000)
    assert memory.read_struct(">I", 0x2008) == (0x01000000,)
    with pytest.raises(MemoryAccessError, match="do not fit"):
        memory.write_struct("B", 0, 256)
    with pytest.raises(MemoryAccessError):
        memory.read_struct(Descriptor, 0xAFFF8)


def test_fill(memory: GuestMemory) -> None:
    memory.fill(0x9FFF0, 0x20, 0x5A)
    assert memory.read(0x9FFEF, 0x22) == b"\0" + b"\x5a" * 0x20 + b"\0"
    memory.fill(0, 0xB0000)
    assert memory.read(0, 0xB0000) == bytes(0xB0000)
    for byte in (-1, 256):
        with pytest.raises(MemoryAccessError, match="8 bits"):
            memory.fill(0, 1, byte)


def test_regions_come_and_go(memory: GuestMemory) -> None:
    with MemoryRegion(0xB0000, 0x1000) as region:
        memory.add(region)
        memory.write(0xAFFFE, b"abcd")
        assert region.read(0xB0000, 2) == b"cd"
        for gpa in (0xB0000, 0):
            with MemoryRegion(gpa, 0x1000) as other, pytest.raises(RegionError, match="overlaps"):
                memory.add(other)
        memory.remove(region)
        with pytest.raises(MemoryAccessError):
            memory.read(0xB0000, 1)
        with pytest.raises(RegionError, match="not part"):
            memory.remove(region)
        assert not region.closed


def test_a_closed_region_is_a_clear_error(memory: GuestMemory) -> None:
    memory.write(HIGH - 0 + 8, b"x")
    for region in memory.regions:
        region.close()
    uses: list[Callable[[], object]] = [
        lambda: memory.read(0, 1),
        lambda: memory.read(0x9FFFF, 2),
        lambda: memory.write(HIGH, b"x"),
        lambda: memory.read_u32(HIGH),
        lambda: memory.write_u16(0, 1),
        lambda: memory.view(0, 1),
        lambda: memory.fill(0, 1),
        lambda: memory.find(b"x"),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_find(memory: GuestMemory) -> None:
    assert memory.find(b"needle") is None
    for gpa in (0x100, 0x9FFFD, HIGH + MIB - 6):
        memory.write(gpa, b"needle")
    assert memory.find_all(b"needle") == [0x100, 0x9FFFD, HIGH + MIB - 6]
    assert memory.find_all(b"needle", limit=2) == [0x100, 0x9FFFD]
    assert memory.find_all(b"needle", limit=0) == []
    assert memory.find(b"needle", 0x101) == 0x9FFFD
    assert memory.find(b"needle", 0x101, 0xA0003) == 0x9FFFD
    assert memory.find(b"needle", 0x101, 0xA0002) is None
    assert memory.find(b"needle", 0xB0000) == HIGH + MIB - 6
    assert memory.find(b"needle", 0x200, 0x100) is None
    assert memory.find(b"needle", 1 << 64) is None
    assert memory.find(b"\0needle\0") == 0xFF
    assert memory.find(b"needle\0", HIGH) is None
    with pytest.raises(MemoryAccessError, match="empty"):
        memory.find(b"")
    with pytest.raises(MemoryAccessError):
        memory.find(b"x", -1)


def test_find_knows_that_holes_are_zero_and_leaves_them_holes() -> None:
    with GuestMemory.anonymous([(0, 1 << 40)]) as memory:
        assert memory.find(bytes(1 << 20), 5) == 5
        memory.write(1 << 39, b"\1")
        assert memory.find(b"\0\1\0", 7) == (1 << 39) - 1
        assert memory.find(b"\1", 7, 1 << 39) is None
        assert memory.find(bytes(1 << 20), (1 << 39) - (1 << 20) + 1) == (1 << 39) + 1
        assert memory.find_all(bytes(1 << 20), 1, limit=3) == [1, (1 << 20) + 1, (2 << 20) + 1]
        assert sum(length for _, length in memory.regions[0].extents()) < 2 << 20


def test_find_across_regions_smaller_than_the_pattern() -> None:
    with GuestMemory.anonymous([(0x1000 * n, 0x1000) for n in range(4)]) as memory:
        pattern = bytes(n % 251 for n in range(0x2800))
        memory.write(0x900, pattern)
        assert memory.find(pattern) == 0x900
        assert memory.find(pattern, 0x901) is None
        assert memory.find(pattern, 0, 0x3100) == 0x900
        assert memory.find(pattern, 0, 0x30FF) is None


def test_export_and_import_keep_holes(memory: GuestMemory, tmp_path: pathlib.Path) -> None:
    memory.write(0x9FFFE, b"abcd")
    memory.write(HIGH + 0x5000, b"high")
    path = tmp_path / "guest.mem"
    written = memory.export(path)
    status = path.stat()
    assert status.st_size == memory.end
    assert status.st_blocks * 512 <= written + 8192 < 1 << 20
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 6, 0x9FFFD) == b"\0abcd\0"
        assert os.pread(file.fileno(), 4, HIGH + 0x5000) == b"high"
    pieces = [(0, 0xB0000), (HIGH, MIB)]
    with GuestMemory.anonymous(pieces) as copy:
        copy.write(0x3000, b"old")
        assert copy.import_file(path) == written
        assert copy.read(0, 0xB0000) == memory.read(0, 0xB0000)
        assert copy.read(HIGH, MIB) == memory.read(HIGH, MIB)
    assert list(tmp_path.iterdir()) == [path]


def test_export_of_a_part(memory: GuestMemory, tmp_path: pathlib.Path) -> None:
    memory.write(0x9FFFE, b"abcd")
    path = tmp_path / "part"
    memory.export(path, 0x9FFFF, 0xA0001)
    assert path.read_bytes() == b"bc"
    with pytest.raises(MemoryAccessError, match="not a range"):
        memory.export(path, 5, 4)
    assert path.read_bytes() == b"bc"
    with pytest.raises(SparseFileError, match="cannot write"):
        memory.export(tmp_path / "no" / "folder")
    with pytest.raises(SparseFileError, match="file system"):
        memory.export(path, 0, 1 << 64)
    assert list(tmp_path.iterdir()) == [path]


def test_import_refuses_what_does_not_fit(memory: GuestMemory, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 0x1000)
    memory.write(0xAF000, b"before")
    for gpa in (0xAF800, 0xB0000, HIGH + MIB - 1, -1):
        with pytest.raises(MemoryAccessError):
            memory.import_file(path, gpa)
    assert memory.read(0xAF000, 6) == b"before"
    assert memory.import_file(path, 0xAF000) == 0x1000
    assert memory.read(0xAF000, 0x1000) == b"x" * 0x1000
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nothing", "."):
        with pytest.raises(SparseFileError, match="cannot read"):
            memory.import_file(tmp_path / name)


def test_readers_do_not_notice_regions_that_come_and_go(memory: GuestMemory) -> None:
    memory.write(0x1000, b"constant")
    memory.write(0x9FFFC, b"crossing")
    wrong: list[object] = []
    stop = threading.Event()

    def reader() -> None:
        while not stop.is_set():
            try:
                if (memory.read(0x1000, 8), memory.read(0x9FFFC, 8)) != (b"constant", b"crossing"):
                    wrong.append("bytes")
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    for number in range(300):
        with MemoryRegion((2 + number % 3) * HIGH, 16 * MIB) as region:
            memory.add(region)
            memory.remove(region)
    stop.set()
    thread.join()
    assert wrong == []
