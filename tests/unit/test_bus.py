"""The buses without a guest: who owns what, splitting, layers, and changes while it runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import BusError, MmioBus, PioBus


class Bytes:
    """A device of bytes; logs (offset, size) of each access."""

    def __init__(self, name: str, length: int, max_access: int) -> None:
        self.name = name
        self.max_access = max_access
        self.data = bytearray(range(1, length + 1))
        self.log: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append((offset, size))
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size))
        self.data[offset : offset + size] = value.to_bytes(size, "little")


def ones(kind: str, address: int, size: int, value: int | None) -> int:
    return (1 << 8 * size) - 1


def test_an_access_is_split_at_the_end_of_a_range() -> None:
    bus = PioBus(ones)
    a, b = Bytes("a", 2, 4), Bytes("b", 1, 4)
    bus.add_device(a, 0x10, 2)
    bus.add_device(b, 0x12, 1)
    assert bus.read(0x10, 4) == 0xFF_01_02_01
    assert a.log == [(0, 2)]
    assert b.log == [(0, 1)]
    bus.write(0x11, 4, 0x44332211)
    assert (a.data, b.data) == (b"\x01\x11", b"\x22")


def test_a_wide_access_to_a_narrow_device_is_split() -> None:
    bus = MmioBus(ones)
    device = Bytes("d", 8, 2)
    bus.add_device(device, 0x1000, 8)
    assert bus.read(0x1001, 5) == 0x0605040302
    assert device.log == [(1, 2), (3, 2), (5, 1)]


def test_the_port_table_says_how_far_an_access_may_reach() -> None:
    bus = PioBus(ones)
    bus.add_device(Bytes("d", 4, 4), 0x10, 4)
    assert [bus.table[p].limit for p in range(0x10, 0x14)] == [4, 3, 2, 1]
    hook = bus.add("hook", 0x12, 1, lambda o, s: 0, lambda o, s, v: None, layer=1)
    assert [bus.table[p].limit for p in range(0x10, 0x14)] == [2, 1, 1, 1]
    hook.remove()
    assert [bus.table[p].limit for p in range(0x10, 0x14)] == [4, 3, 2, 1]


def test_any_width_from_one_port() -> None:
    bus = PioBus(ones)
    seen = []
    bus.add("h", 0x10, 1, lambda o, s: seen.append(s) or 0, lambda o, s, v: None, any_width=True)
    assert bus.table[0x10].limit == 8
    bus.read(0x10, 4)
    assert seen == [4]
    assert bus.table[0x11] is None


def test_the_last_port_wraps_around() -> None:
    bus = PioBus(ones)
    first, last = Bytes("first", 1, 4), Bytes("last", 1, 4)
    bus.add_device(first, 0, 1)
    bus.add_device(last, 0xFFFF, 1)
    bus.write(0xFFFF, 2, 0xBBAA)
    assert (last.data, first.data) == (b"\xaa", b"\xbb")


@pytest.mark.parametrize(
    ("start", "length"), [(0x10, 0), (-1, 2), (0xFFFF, 2), (0x10, -5), (0x10000, 1)]
)
def test_impossible_ranges(start: int, length: int) -> None:
    with pytest.raises(BusError, match="range"):
        PioBus(ones).add_device(Bytes("d", 1, 1), start, length)


def test_overlaps_in_a_layer_are_refused_and_leave_nothing() -> None:
    bus = MmioBus(ones)
    bus.add_device(Bytes("a", 16, 4), 0x1000, 16)
    with pytest.raises(BusError, match=r"overlaps a at 0x1000"):
        bus.add_device(Bytes("b", 16, 4), 0x100F, 16)
    assert len(bus.ranges) == 1
    assert bus.span(0x1010).end == 0


def test_a_change_replaces_the_index() -> None:
    bus = MmioBus(ones)
    before = bus.index
    claimed = bus.add_device(Bytes("a", 16, 4), 0x1000, 16)
    assert bus.index is not before
    assert (bus.span(0x1008).first, bus.span(0x1008).end) == (0x1000, 0x1010)
    assert bus.span(0x1008).sizes == {1, 2, 4}
    claimed.remove()
    assert bus.span(0x1008).end == 0
    claimed.remove()  # harmless


ranges = st.lists(
    st.tuples(
        st.integers(0, 60), st.integers(1, 12), st.integers(0, 1), st.sampled_from([1, 2, 4])
    ),
    max_size=8,
)


@given(ranges, st.lists(st.tuples(st.integers(0, 63), st.integers(1, 8)), max_size=12))
def test_every_byte_goes_to_its_owner(
    wanted: list[tuple[int, int, int, int]], accesses: list[tuple[int, int]]
) -> None:
    """Against a byte-by-byte model: the highest layer that covers an address owns it."""
    bus = MmioBus(ones)
    owner: dict[int, tuple[int, Bytes, int]] = {}
    for number, (start, length, layer, width) in enumerate(wanted):
        device = Bytes(f"d{number}", length, width)
        device.data = bytearray((number * 16 + i) & 0xFF for i in range(length))
        try:
            bus.add(
                device.name, start, length, device.read, device.write,
                max_access=width, layer=layer,
            )  # fmt: skip
        except BusError:
            continue
        for i in range(length):
            if owner.get(start + i, (-1,))[0] < layer:
                owner[start + i] = (layer, device, i)
    for address, size in accesses:
        expected = bytes(
            owner[a][1].data[owner[a][2]] if a in owner else 0xFF
            for a in range(address, address + size)
        )
        assert bus.read(address, size).to_bytes(size, "little") == expected
        span = bus.span(address)
        assert (span.end > address) == (address in owner)
