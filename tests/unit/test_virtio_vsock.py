"""The socket device by a driver without a guest: streams both ways, credit, time, many of them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

import pytest
from virtio_driver import NEEDS_RESET
from vsock_guest import (
    BUFFER,
    PORT,
    ROOM,
    Guest,
    client,
    from_guest,
    guests,
    service,
    stuff,
    to_guest,
)

from pykvm.devices import ManualClock
from pykvm.devices.virtio.vsock_host import parse_connect
from pykvm.devices.virtio.vsock_packets import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    STREAM,
)


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Callable[..., Guest]]:
    yield from guests(tmp_path)


@pytest.fixture
def guest(make: Callable[..., Guest]) -> Guest:
    return make()


# -- both ways -------------------------------------------------------------------------------------


def test_the_guest_connects_to_a_service_and_both_talk(guest: Guest) -> None:
    peer = from_guest(guest)
    guest.send(RW, 5000, PORT, b"hello host")
    assert peer.recv(100) == b"hello host"
    peer.sendall(b"hello guest")
    header, data = guest.expect(RW)
    assert data == b"hello guest"
    assert (header.src_port, header.dst_port, header.fwd_cnt) == (PORT, 5000, 10)
    peer.close()


def test_the_host_connects_to_the_guest_and_both_talk(guest: Guest) -> None:
    sock, port = to_guest(guest)
    sock.sendall(b"ping")
    assert guest.expect(RW)[1] == b"ping"
    guest.send(RW, 52, port, b"pong")
    assert sock.recv(10) == b"pong"
    sock.close()


def test_what_follows_the_greeting_is_the_guests(guest: Guest) -> None:
    sock = client(guest, b"CONNECT 52\nearly")
    port = guest.expect(REQUEST)[0].src_port
    assert guest.silent()
    guest.send(RESPONSE, 52, port)
    assert guest.expect(RW)[1] == b"early"
    sock.close()


def test_a_greeting_in_pieces(guest: Guest) -> None:
    sock = client(guest, b"CONN")
    guest.poll()
    sock.sendall(b"ECT 5")
    guest.poll()
    sock.sendall(b"2\n")
    assert guest.expect(REQUEST)[0].dst_port == 52
    sock.close()


@pytest.mark.parametrize(
    "line", [b"HELLO\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"C" * 40, b"\n"]
)
def test_a_wrong_greeting_is_hung_up(guest: Guest, line: bytes) -> None:
    sock = client(guest, line)
    guest.poll()
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(10) == b""
    assert guest.silent()
    sock.close()


def test_connect_lines() -> None:
    assert parse_connect(b"CONNECT 1234") == 1234
    assert parse_connect(b"connect 1\r") == 1
    assert parse_connect(b"CONNECT 4294967295") == 0xFFFF_FFFF
    assert parse_connect(b"CONNECT -1") is None


def test_a_large_stream_each_way(guest: Guest) -> None:
    peer = from_guest(guest)
    data = os.urandom(1 << 20)
    got = bytearray()
    credit, sent = guest.vsock.buffer, 0
    while len(got) < len(data):
        piece = data[sent : sent + min(60_000, credit)]
        if piece:
            guest.send(RW, 5000, PORT, piece)
            sent += len(piece)
            credit -= len(piece)
        with contextlib.suppress(BlockingIOError):
            got += peer.recv(1 << 17, socket.MSG_DONTWAIT)
        for header, _ in guest.heard():
            assert header.op == CREDIT_UPDATE
            credit = header.buf_alloc - (sent - header.fwd_cnt)
    assert got == data

    back = bytearray()
    peer.setblocking(False)
    given = 0
    while len(back) < len(data):
        with contextlib.suppress(BlockingIOError):
            given += peer.send(data[given : given + 100_000])
        for header, piece in guest.heard():
            if header.op == RW:
                back += piece
        guest.send(CREDIT_UPDATE, 5000, PORT, forwarded=len(back))
    assert back == data
    peer.close()


def test_a_service_that_is_not_there(guest: Guest) -> None:
    guest.send(REQUEST, 7, 8)
    header, _ = guest.expect(RST)
    assert (header.src_port, header.dst_port, header.type) == (8, 7, STREAM)


def test_a_guest_that_does_not_listen(guest: Guest) -> None:
    sock = client(guest)
    port = guest.expect(REQUEST)[0].src_port
    guest.send(RST, 52, port)
    assert sock.recv(10) == b""
    assert not guest.vsock.connections
    sock.close()


# -- credit ----------------------------------------------------------------------------------------


def test_nothing_is_sent_beyond_the_guests_room(guest: Guest) -> None:
    peer = from_guest(guest)
    guest.send(CREDIT_UPDATE, 5000, PORT, room=100)
    peer.sendall(bytes(range(250)))
    packets = guest.heard()
    assert [(h.op, len(d)) for h, d in packets] == [(RW, 100), (CREDIT_REQUEST, 0)]
    guest.send(CREDIT_UPDATE, 5000, PORT, room=100)  # an answer without room
    assert guest.silent()  # is no reason to ask again
    guest.send(CREDIT_UPDATE, 5000, PORT, room=100, forwarded=60)
    packets = guest.heard()
    assert packets[0][1] == bytes(range(100, 160))
    guest.send(CREDIT_UPDATE, 5000, PORT, room=1 << 16, forwarded=160)
    assert guest.expect(RW)[1] == bytes(range(160, 250))
    peer.close()


@pytest.mark.parametrize("forwarded", [1, 0x8000_0000, 0xFFFF_FFFF])
def test_a_guest_that_claims_to_have_read_more_than_it_got(guest: Guest, forwarded: int) -> None:
    peer = from_guest(guest)
    guest.send(CREDIT_UPDATE, 5000, PORT, forwarded=forwarded)
    peer.sendall(b"x" * 10)
    assert sum(len(data) for _, data in guest.heard()) <= 10
    assert guest.vsock.status & NEEDS_RESET == 0
    peer.close()


def test_counters_wrap_at_32_bits(guest: Guest) -> None:
    peer = from_guest(guest)
    (connection,) = guest.vsock.connections.values()
    connection.sent = connection.peer_forwarded = 0xFFFF_FFF0
    connection.received = connection.forwarded = connection.told = 0xFFFF_FFF0
    guest.send(RW, 5000, PORT, b"y" * 40, forwarded=0xFFFF_FFF0)
    assert peer.recv(100) == b"y" * 40
    peer.sendall(b"z" * 40)
    header, data = guest.expect(RW)
    assert (data, header.fwd_cnt) == (b"z" * 40, 24)
    guest.send(CREDIT_UPDATE, 5000, PORT, forwarded=24)
    assert connection.credit == ROOM
    peer.close()


def test_a_host_that_does_not_read_stops_the_guest_and_starts_it_again(guest: Guest) -> None:
    peer = from_guest(guest)
    sent = stuff(guest)
    (connection,) = guest.vsock.connections.values()
    assert len(connection.to_host) == guest.vsock.buffer
    assert guest.silent()
    guest.send(CREDIT_REQUEST, 5000, PORT)
    header, _ = guest.expect(CREDIT_UPDATE)
    assert header.fwd_cnt == sent - guest.vsock.buffer
    got, updates = 0, []
    while got < sent:
        got += len(peer.recv(1 << 20))
        updates += guest.heard()
    assert {header.op for header, _ in updates} == {CREDIT_UPDATE}
    guest.send(RW, 5000, PORT, b"more")
    assert peer.recv(10) == b"more"
    peer.close()


def test_sending_without_credit_resets_the_connection_alone(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    other = from_guest(guest, 77, 78)
    peer = from_guest(guest)
    stuff(guest)
    guest.send(RW, 5000, PORT, b"!")
    assert guest.expect(RST)[0].dst_port == 5000
    assert "without credit" in caplog.text
    guest.send(RW, 78, 77, b"fine")
    assert other.recv(10) == b"fine"
    peer.close()
    other.close()


# -- time ------------------------------------------------------------------------------------------


def test_a_guest_that_never_answers(make: Callable[..., Guest]) -> None:
    clock = ManualClock()
    guest = make(clock=clock)
    sock = client(guest)
    guest.expect(REQUEST)
    clock.advance(9_000_000_000)
    assert guest.silent()
    clock.advance(2_000_000_000)
    guest.expect(RST)
    assert sock.recv(10) == b""
    assert clock.armed == 0
    sock.close()


def test_a_peer_that_never_says_its_port(make: Callable[..., Guest]) -> None:
    clock = ManualClock()
    guest = make(clock=clock)
    sock = client(guest, b"CONN")
    guest.poll()
    clock.advance(11_000_000_000)
    assert sock.recv(10) == b""
    sock.close()


# -- many ------------------------------------------------------------------------------------------


def test_a_hundred_connections_at_once(guest: Guest) -> None:
    peers = {}
    with service(guest, 9) as listener:
        for own in range(100):
            guest.send(REQUEST, own, 9)
            assert guest.expect(RESPONSE)[0].dst_port == own
            peers[own] = listener.accept()[0]
    for own in peers:
        guest.send(RW, own, 9, b"from %d" % own)
    for own, peer in peers.items():
        assert peer.recv(100) == b"from %d" % own
        peer.sendall(b"to %d" % own)
    answers: dict[int, bytes] = {}
    while len(answers) < 100:
        answers |= {header.dst_port: data for header, data in guest.heard()}
    assert answers == {own: b"to %d" % own for own in peers}
    for peer in peers.values():
        peer.close()


def test_one_more_than_the_limit_is_refused(make: Callable[..., Guest]) -> None:
    guest = make(connections=2)
    with service(guest, 9) as listener:
        for own in range(3):
            guest.send(REQUEST, own, 9)
            assert guest.expect(RESPONSE if own < 2 else RST)[0].dst_port == own
        sock = client(guest)
        guest.poll()
        assert sock.recv(10) == b""
        sock.close()
        guest.send(RST, 0, 9)
        guest.send(REQUEST, 5, 9)
        guest.expect(RESPONSE)
        assert listener.fileno() >= 0


def test_connections_take_turns(guest: Guest) -> None:
    one, two = from_guest(guest, 1, 10), from_guest(guest, 2, 20)
    for peer in (one, two):
        peer.sendall(b"d" * (BUFFER * 4))
    packets = guest.heard()
    assert [h.dst_port for h, _ in packets][:2] in ([10, 20], [20, 10])
    assert len({h.dst_port for h, _ in packets[:3]}) == 2
    one.close()
    two.close()
