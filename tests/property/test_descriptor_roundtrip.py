"""Descriptors, gates and TSSs survive encoding and decoding, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.arch.bits import SystemType
from pykvm.arch.descriptors import (
    DescriptorTable,
    Gate,
    decode_idt,
    decode_segment,
    encode_idt,
    encode_segment,
    segment_from_table,
)
from pykvm.arch.errors import DescriptorError
from pykvm.arch.state import SegmentState
from pykvm.arch.tss import Tss32, Tss64, io_bitmap

bit = st.integers(0, 1)
u16 = st.integers(0, (1 << 16) - 1)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)


@st.composite
def segments(draw: st.DrawFn, *, wide: bool = False) -> SegmentState:
    granular = draw(bit)
    limit = draw(st.integers(0, 0xFFFFF))
    present = draw(bit)
    return SegmentState(
        base=draw(u64 if wide else u32),
        limit=limit << 12 | 0xFFF if granular else limit,
        selector=draw(u16),
        type=draw(st.integers(0, 15)),
        present=present,
        dpl=draw(st.integers(0, 3)),
        db=draw(bit),
        s=0 if wide else draw(bit),
        l=draw(bit),
        g=granular,
        avl=draw(bit),
        unusable=1 - present,
    )


@given(segments())
def test_segment_round_trip(segment: SegmentState) -> None:
    raw = encode_segment(segment)
    assert len(raw) == 8
    assert decode_segment(raw, selector=segment.selector) == segment


@given(segments(wide=True))
def test_wide_segment_round_trip(segment: SegmentState) -> None:
    raw = encode_segment(segment, wide=True)
    assert len(raw) == 16
    assert decode_segment(raw, selector=segment.selector) == segment


@given(st.binary(min_size=8, max_size=8))
def test_every_descriptor_decodes_and_encodes_back(raw: bytes) -> None:
    assert encode_segment(decode_segment(raw)) == raw


@given(st.lists(segments(), max_size=20), st.data())
def test_tables_give_back_what_was_added(added: list[SegmentState], data: Any) -> None:
    table = DescriptorTable()
    stored = [table.add(s, rpl=data.draw(st.integers(0, 3))) for s in added]
    raw = table.to_bytes()
    assert [segment_from_table(raw, s.selector) for s in stored] == stored
    assert len({s.selector & ~7 for s in stored}) == len(stored)


@given(st.binary(max_size=64), u16, st.booleans())
def test_looking_up_any_selector_in_any_table(table: bytes, selector: int, long: bool) -> None:
    offset = selector & 0xFFF8
    if offset and offset + (16 if long else 8) <= len(table):
        assert segment_from_table(table, selector, long_mode=long).selector == selector
    elif offset + 8 > len(table) and selector > 3:
        with pytest.raises(DescriptorError, match="outside"):
            segment_from_table(table, selector, long_mode=long)


gates64 = st.builds(
    Gate,
    offset=u64,
    selector=u16,
    type=st.sampled_from([SystemType.CALL_GATE, SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE]),
    dpl=st.integers(0, 3),
    present=bit,
    ist=st.integers(0, 7),
    params=st.just(0),
)
gates32 = st.builds(
    Gate,
    offset=u32,
    selector=u16,
    type=st.sampled_from([SystemType.CALL_GATE, SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE]),
    dpl=st.integers(0, 3),
    present=bit,
    ist=st.just(0),
    params=st.integers(0, 31),
)
gates16 = st.builds(
    Gate,
    offset=u16,
    selector=u16,
    type=st.sampled_from([SystemType.CALL_GATE16, SystemType.INTERRUPT_GATE16]),
    dpl=st.integers(0, 3),
    present=bit,
    ist=st.just(0),
    params=st.integers(0, 31),
)


@given(gates64)
def test_gate64_round_trip(gate: Gate) -> None:
    assert Gate.decode(gate.encode(64)) == gate


@given(gates32 | gates16)
def test_gate32_round_trip(gate: Gate) -> None:
    assert Gate.decode(gate.encode(32)) == gate


@given(st.dictionaries(st.integers(0, 255), gates64.filter(lambda g: g.present), max_size=30))
@settings(max_examples=50)
def test_idt_round_trip(gates: dict[int, Gate]) -> None:
    assert decode_idt(encode_idt(gates, bits=64, entries=256), bits=64) == gates


@given(st.binary(max_size=5000), st.sampled_from([32, 64]))
@settings(max_examples=50)
def test_any_bytes_decode_as_an_idt(raw: bytes, bits: int) -> None:
    for vector, gate in decode_idt(raw, bits=bits).items():
        assert 0 <= vector <= 255
        assert gate.present


@given(u64, u64, u64, st.lists(u64, min_size=7, max_size=7), st.binary(max_size=300))
def test_tss64_round_trip(a: int, b: int, c: int, ist: list[int], bitmap: bytes) -> None:
    tss = Tss64(a, b, c, ist, bitmap)
    assert Tss64.from_bytes(tss.to_bytes()) == tss


@given(st.lists(u32, min_size=25, max_size=25), u16, st.binary(max_size=300))
def test_tss32_round_trip(values: list[int], trap: int, bitmap: bytes) -> None:
    tss = Tss32(*values, trap, bitmap=bitmap)
    assert Tss32.from_bytes(tss.to_bytes()) == tss


@given(st.binary(min_size=104, max_size=300))
def test_any_bytes_decode_as_a_tss(raw: bytes) -> None:
    for kind in (Tss32, Tss64):
        again = kind.from_bytes(raw).to_bytes()
        assert kind.from_bytes(again) == kind.from_bytes(raw)


@given(st.sets(u16, max_size=40))
@settings(max_examples=50)
def test_io_bitmap_allows_exactly_the_ports(ports: set[int]) -> None:
    bitmap = io_bitmap(ports)
    assert bitmap[-1] == 0xFF
    clear = {p for p in range(len(bitmap) * 8) if not bitmap[p // 8] >> p % 8 & 1}
    assert clear == ports
