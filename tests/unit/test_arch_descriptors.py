from __future__ import annotations

import struct

import pytest

from pykvm.arch.bits import SegmentType, SystemType
from pykvm.arch.descriptors import (
    DescriptorTable,
    Gate,
    code_segment,
    data_segment,
    decode_idt,
    decode_segment,
    encode_idt,
    encode_segment,
    real_mode_segment,
    segment_from_table,
    system_segment,
)
from pykvm.arch.errors import DescriptorError
from pykvm.arch.state import SegmentState
from pykvm.arch.tss import TSS32_SIZE, TSS64_SIZE, Tss32, Tss64, io_bitmap


@pytest.mark.parametrize(
    ("segment", "value"),
    [
        # The descriptors of Linux's boot GDTs, with the accessed bit.
        (code_segment(64), 0x00AF9B000000FFFF),
        (code_segment(32), 0x00CF9B000000FFFF),
        (data_segment(), 0x00CF93000000FFFF),
        (code_segment(64, dpl=3), 0x00AFFB000000FFFF),
        (code_segment(32, dpl=3), 0x00CFFB000000FFFF),
        (data_segment(dpl=3), 0x00CFF3000000FFFF),
        (code_segment(16), 0x00009B000000FFFF),
        (data_segment(bits=16, base=0x12345678), 0x1200933456_78FFFF),
        (system_segment(SystemType.TSS_BUSY, 0x80000, 0x67), 0x00008B0800000067),
        (system_segment(SystemType.LDT, 0xFEDCBA98, 0xABCDE), 0xFE0A82DCBA98BCDE),
    ],
)
def test_known_descriptors(segment: SegmentState, value: int) -> None:
    assert encode_segment(segment) == value.to_bytes(8, "little")
    assert decode_segment(value.to_bytes(8, "little"), selector=segment.selector) == segment


def test_wide_system_descriptor_holds_a_64_bit_base() -> None:
    tss = system_segment(SystemType.TSS_BUSY, 0xFFFF_8000_1234_5000, 0x67, selector=0x30)
    raw = encode_segment(tss, wide=True)
    assert len(raw) == 16
    assert raw[8:12] == struct.pack("<I", 0xFFFF8000)
    assert raw[12:] == bytes(4)
    assert decode_segment(raw, selector=0x30) == tss


@pytest.mark.parametrize(
    ("segment", "wide", "says"),
    [
        (data_segment().replace(limit=0x12345), False, "low 12 bits"),
        (data_segment().replace(g=0), False, "granularity"),
        (code_segment(64), True, "8 bytes"),
        (system_segment(SystemType.LDT, 1 << 32, 0xFF), False, "32 bits"),
        (data_segment().replace(type=16), False, "type"),
        (data_segment().replace(dpl=4), False, "dpl"),
        (data_segment().replace(base=-1), False, "base"),
    ],
)
def test_what_a_descriptor_cannot_hold(segment: SegmentState, wide: bool, says: str) -> None:
    with pytest.raises(DescriptorError, match=says):
        encode_segment(segment, wide=wide)


def test_absent_descriptor_is_unusable() -> None:
    raw = encode_segment(data_segment().replace(present=0))
    assert decode_segment(raw).unusable == 1
    assert decode_segment(bytes(8)).unusable == 1


@pytest.mark.parametrize("size", [0, 7, 9, 15, 17])
def test_descriptor_of_wrong_size(size: int) -> None:
    with pytest.raises(DescriptorError, match=str(size)):
        decode_segment(bytes(size))


def test_real_mode_segment() -> None:
    cs = real_mode_segment(0xF000, code=True)
    assert (cs.base, cs.limit, cs.type, cs.s, cs.db, cs.g) == (0xF0000, 0xFFFF, 11, 1, 0, 0)
    assert real_mode_segment(0x7C0).type == SegmentType.DATA_RW_ACCESSED
    with pytest.raises(DescriptorError):
        real_mode_segment(0x10000)


def test_gates_of_known_bytes() -> None:
    gate = Gate(0x12345678, selector=0x08)
    assert gate.encode(32) == bytes.fromhex("78560800008e3412")
    high = Gate(0xFFFFFFFF_80001234, selector=0x10, type=SystemType.TRAP_GATE, dpl=3, ist=5)
    assert high.encode(64) == bytes.fromhex("3412100005ef0080ffffffff00000000")
    assert Gate.decode(gate.encode(32)) == gate
    assert Gate.decode(high.encode(64)) == high
    call = Gate(0x1000, type=SystemType.CALL_GATE, params=3, dpl=3)
    assert Gate.decode(call.encode(32)) == call
    old = Gate(0x1234, type=SystemType.INTERRUPT_GATE16)
    assert Gate.decode(old.encode(32)) == old


@pytest.mark.parametrize(
    ("gate", "bits", "says"),
    [
        (Gate(1 << 32), 32, "32 bits"),
        (Gate(1 << 64), 64, "64 bits"),
        (Gate(0x10000, type=SystemType.INTERRUPT_GATE16), 32, "16 bits"),
        (Gate(0, type=SystemType.TASK_GATE), 64, "64-bit mode"),
        (Gate(0, type=SystemType.LDT), 32, "not a gate"),
        (Gate(0, ist=1), 32, "64-bit gates"),
        (Gate(0, ist=8), 64, "3 bits"),
        (Gate(0, params=1), 64, "call gates"),
        (Gate(0), 16, "32-bit and a 64-bit"),
    ],
)
def test_gates_that_do_not_exist(gate: Gate, bits: int, says: str) -> None:
    with pytest.raises(DescriptorError, match=says):
        gate.encode(bits)


def test_decode_gate_refuses_segments() -> None:
    with pytest.raises(DescriptorError, match="not a gate"):
        Gate.decode(encode_segment(code_segment(32)))
    with pytest.raises(DescriptorError, match="8 or 16"):
        Gate.decode(bytes(4))


def test_descriptor_table_gives_selectors() -> None:
    gdt = DescriptorTable()
    code = gdt.add(code_segment(64))
    data = gdt.add(data_segment(dpl=3))
    tss = gdt.add(system_segment(SystemType.TSS_BUSY, 0x1000, 0x67), wide=True)
    after = gdt.add(data_segment(), rpl=1)
    call = gdt.add_gate(Gate(0x2000, type=SystemType.CALL_GATE), bits=64)
    assert [s.selector for s in (code, data, tss, after)] == [0x08, 0x13, 0x18, 0x29]
    assert call == 0x30
    assert gdt.limit == len(gdt.to_bytes()) - 1 == 0x3F
    table = gdt.to_bytes()
    for segment in (code, data, tss, after):
        found = segment_from_table(table, segment.selector, long_mode=True)
        assert found == segment


def test_ldt_selectors_have_the_table_indicator() -> None:
    ldt = DescriptorTable(ldt=True)
    assert ldt.add(data_segment()).selector == 0x04
    assert ldt.add(data_segment(dpl=3)).selector == 0x0F


def test_descriptor_table_is_limited_to_64_kib() -> None:
    gdt = DescriptorTable()
    for _ in range(8191):
        gdt.add(data_segment())
    assert gdt.limit == 0xFFFF
    with pytest.raises(DescriptorError, match="8192"):
        gdt.add(data_segment())


def test_segment_from_table() -> None:
    table = DescriptorTable()
    table.add(code_segment(32))
    raw = table.to_bytes()
    assert segment_from_table(raw, 0).unusable == 1
    assert segment_from_table(raw, 3).unusable == 1
    assert segment_from_table(raw, 0x0B).selector == 0x0B
    with pytest.raises(DescriptorError, match="outside"):
        segment_from_table(raw, 0x10)
    cut = raw + encode_segment(system_segment(SystemType.TSS_BUSY, 0, 0x67))
    assert segment_from_table(cut, 0x10).type == SystemType.TSS_BUSY
    with pytest.raises(DescriptorError, match="outside"):
        segment_from_table(cut, 0x10, long_mode=True)


@pytest.mark.parametrize("bits", [32, 64])
def test_idt(bits: int) -> None:
    gates = {0: Gate(0x1000), 14: Gate(0x2000, dpl=3), 0x80: Gate(0x3000)}
    size = 16 if bits == 64 else 8
    raw = encode_idt(gates, bits=bits)
    assert len(raw) == 0x81 * size
    assert raw[14 * size : 15 * size] == gates[14].encode(bits)
    assert decode_idt(raw, bits=bits) == gates
    assert len(encode_idt(gates, bits=bits, entries=256)) == 256 * size
    assert encode_idt({}, bits=bits) == b""
    # A guest's IDT can hold anything: a segment where a gate belongs, a cut-off entry.
    junk = bytearray(raw)
    junk[5] = 0x9B
    assert sorted(decode_idt(bytes(junk) + b"\xff" * 5, bits=bits)) == [14, 0x80]
    with pytest.raises(DescriptorError, match="256"):
        encode_idt({256: Gate(0)}, bits=bits)
    with pytest.raises(DescriptorError, match="cannot hold"):
        encode_idt({9: Gate(0)}, bits=bits, entries=9)


def test_tss64_layout() -> None:
    tss = Tss64(rsp0=0x1111, rsp1=0x2222, rsp2=0x3333, ist=list(range(1, 8)), bitmap=b"\x00\xff")
    raw = tss.to_bytes()
    assert len(raw) == TSS64_SIZE + 2 == 106
    assert struct.unpack_from("<Q", raw, 4) == (0x1111,)
    assert struct.unpack_from("<Q", raw, 20) == (0x3333,)
    assert struct.unpack_from("<7Q", raw, 36) == tuple(range(1, 8))
    assert struct.unpack_from("<H", raw, 102) == (104,)
    assert Tss64.from_bytes(raw) == tss
    with pytest.raises(DescriptorError, match="7"):
        Tss64(ist=[0]).to_bytes()
    with pytest.raises(DescriptorError, match="64-bit"):
        Tss64(rsp0=1 << 64).to_bytes()
    with pytest.raises(DescriptorError, match="103"):
        Tss64.from_bytes(raw[:103])


def test_tss32_layout() -> None:
    tss = Tss32(esp0=0x7000, ss0=0x10, cr3=0x9000, eip=0x1234, ldt=0x28, trap=1, bitmap=b"\xff")
    raw = tss.to_bytes()
    assert len(raw) == TSS32_SIZE + 1 == 105
    assert struct.unpack_from("<II", raw, 4) == (0x7000, 0x10)
    assert struct.unpack_from("<II", raw, 28) == (0x9000, 0x1234)
    assert struct.unpack_from("<HH", raw, 100) == (1, 104)
    assert Tss32.from_bytes(raw) == tss
    with pytest.raises(DescriptorError, match="fit"):
        Tss32(esp0=1 << 32).to_bytes()
    with pytest.raises(DescriptorError, match="50"):
        Tss32.from_bytes(raw[:50])


def test_io_bitmap() -> None:
    bitmap = io_bitmap([0x10, 0x3F8])
    assert bitmap[2] == 0xFE
    assert bitmap[0x3F8 // 8] == 0xFE
    assert bitmap[-1] == 0xFF  # the byte of ones that must end it
    assert len(bitmap) == 0x3F8 // 8 + 2
    denied = [p for p in range(len(bitmap) * 8) if bitmap[p // 8] >> p % 8 & 1 == 0]
    assert denied == [0x10, 0x3F8]
    assert io_bitmap([]) == b"\xff"
    assert len(io_bitmap([0xFFFF])) == 8193
    with pytest.raises(DescriptorError, match="0x10000"):
        io_bitmap([0x10000])
