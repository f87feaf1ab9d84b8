"""GDB's packets on the wire: what is sent is what arrives, and nothing hostile does harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.lab.gdb.packets import (
    MAX_PACKET,
    Decoder,
    Kind,
    Message,
    checksum,
    encode,
    escape,
    unescape,
)


def decoded(*pieces: bytes) -> list[Message]:
    decoder = Decoder()
    return [message for piece in pieces for message in decoder.feed(piece)]


@given(st.binary(max_size=300))
def test_what_is_escaped_comes_back(data: bytes) -> None:
    escaped = escape(data)
    assert not set(b"$#*") & set(escaped)
    assert unescape(escaped) == data
    assert decoded(encode(escaped)) == [Message(Kind.PACKET, data)]


@given(st.lists(st.binary(max_size=40), max_size=5), st.data())
def test_packets_arrive_in_pieces_of_any_size(packets: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(encode(escape(packet)) for packet in packets)
    pieces = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        pieces.append(stream[:cut])
        stream = stream[cut:]
    assert decoded(*pieces) == [Message(Kind.PACKET, packet) for packet in packets]


@given(st.lists(st.binary(max_size=200)))
def test_any_bytes_are_taken_without_an_exception(pieces: list[bytes]) -> None:
    for message in decoded(*pieces):
        assert isinstance(message, Message)


def test_acknowledgments_and_the_interrupt_byte() -> None:
    kinds = [message.kind for message in decoded(b"+-\x03 noise +")]
    assert kinds == [Kind.ACK, Kind.NACK, Kind.INTERRUPT, Kind.ACK]


def test_the_interrupt_byte_inside_a_packet_is_data() -> None:
    assert decoded(encode(b"X1,1:\x03")) == [Message(Kind.PACKET, b"X1,1:\x03")]


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (b"$g#00", b"wrong"),
        (b"$g#zz", b"no number"),
        (b"$g#+1", b"no number"),
        (b"$g# 7", b"no number"),
        (b"$" + b"a" * (MAX_PACKET + 1) + b"#00", b"longer"),
    ],
)
def test_bad_packets_say_why_and_the_next_is_good(wire: bytes, why: bytes) -> None:
    bad, good = decoded(wire, b"$g#67")
    assert bad.kind is Kind.BAD
    assert why in bad.data
    assert good == Message(Kind.PACKET, b"g")


def test_a_packet_that_is_cut_off_gives_way_to_the_next() -> None:
    assert decoded(b"$m1234", b",4$g#67") == [Message(Kind.PACKET, b"g")]


def test_the_longest_packet_is_taken() -> None:
    body = b"a" * MAX_PACKET
    assert decoded(encode(body)) == [Message(Kind.PACKET, body)]


def test_endless_data_without_an_end_is_not_kept() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b"$")) == []
    for _ in range(100):
        assert list(decoder.feed(b"a" * 10_000)) == []
        assert len(decoder._body or b"") <= MAX_PACKET
    bad, good = [*decoder.feed(b"#00"), *decoder.feed(encode(b"g"))]
    assert bad.kind is Kind.BAD
    assert good.data == b"g"


def test_the_checksum_is_the_manuals() -> None:
    assert checksum(b"g") == 0x67
    assert encode(b"OK") == b"$OK#9a"
