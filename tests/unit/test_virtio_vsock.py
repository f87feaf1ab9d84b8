"""The socket device by a driver without a guest: streams both ways, credit, endings, trespasses."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import struct
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from share_driver import SharedBench, until
from virtio_driver import NEEDS_RESET

from pykvm.datapath.loop import IoThread
from pykvm.devices import ManualClock
from pykvm.devices.virtio.vsock import EVENT, RX, TX, VirtioVsock
from pykvm.devices.virtio.vsock_host import VsockError, parse_connect
from pykvm.devices.virtio.vsock_packets import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER_SIZE,
    HOST_CID,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    STREAM,
    Header,
    unpack,
)

CID = 3
BUFFER = 4096  # of data in a packet to the guest
PORT = 1024
ROOM = 64 << 10  # what the guest says it has room for


class Guest(SharedBench):
    """A driver that keeps receive buffers there, and counts what it says and hears."""

    def __init__(self, device: VirtioVsock, *, buffers: int = 32, begin: bool = True) -> None:
        self.vsock = device
        self.amount = buffers
        super().__init__(device, sizes=[64, 64, 8], begin=begin)

    def begin(self, features: int | None = None) -> int:
        features = super().begin(features)
        self.heap = 0x10_0000
        self.out = self.take(HEADER_SIZE + (70 << 10))
        self.events = self.take(64)
        self.buffers: dict[int, int] = {}
        for _ in range(self.amount):
            self.supply(self.take(HEADER_SIZE + BUFFER))
        self.transport.kick(RX)
        return features

    def supply(self, place: int) -> None:
        head = self.queues[RX].add([(place, HEADER_SIZE + BUFFER, True)])
        self.buffers[head] = place

    def send(
        self, op: int, guest_port: int, host_port: int, data: bytes = b"", *,
        flags: int = 0, room: int = ROOM, forwarded: int = 0, **other: int,
    ) -> None:  # fmt: skip
        header = Header(
            CID, HOST_CID, guest_port, host_port, len(data), STREAM, op, flags, room, forwarded
        )._replace(**other)
        self.raw(header.pack() + data)

    def raw(self, data: bytes) -> None:
        self.memory.write(self.out, data)
        self.queues[TX].add([(self.out, len(data), False)])
        self.transport.kick(TX)
        self.queues[TX].used()

    def heard(self) -> list[tuple[Header, bytes]]:
        """Packets that came since the last call; their buffers are given back."""
        self.poll()
        found = []
        for head, length in self.queues[RX].used():
            place = self.buffers.pop(head)
            raw = self.memory.read(place, length)
            header = unpack(raw[:HEADER_SIZE])
            assert header.src_cid == HOST_CID
            assert header.dst_cid == CID
            assert header.len == length - HEADER_SIZE
            found.append((header, raw[HEADER_SIZE:]))
            self.supply(place)
        if found:
            self.transport.kick(RX)
        return found

    def poll(self) -> None:
        if self.vsock.io is None:
            while self.vsock.poll():
                pass

    def expect(self, op: int) -> tuple[Header, bytes]:
        """The next packet, which is of this operation."""
        packets: list[tuple[Header, bytes]] = []

        def some() -> bool:
            packets.extend(self.heard())
            return bool(packets)

        until(some)
        assert [header.op for header, _ in packets] == [op]
        return packets[0]

    def silent(self) -> bool:
        return not self.heard()


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def build(*, buffers: int = 32, begin: bool = True, **options: object) -> Guest:
        options.setdefault("clock", ManualClock())
        device = VirtioVsock(CID, tmp_path / "v", **options)  # type: ignore[arg-type]
        guests.append(Guest(device, buffers=buffers, begin=begin))
        return guests[-1]

    yield build
    for guest in guests:
        guest.close()
    assert not (tmp_path / "v").exists()


@pytest.fixture
def guest(make: Callable[..., Guest]) -> Guest:
    return make()


def service(guest: Guest, port: int) -> socket.socket:
    """A server of the host that the guest can reach."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{guest.vsock.host.path}_{port}")
    listener.listen(200)
    listener.settimeout(10)
    return listener


def from_guest(guest: Guest, port: int = PORT, own: int = 5000) -> socket.socket:
    """A connection that the guest made; the host's end of it."""
    with service(guest, port) as listener:
        guest.send(REQUEST, own, port)
        header, _ = guest.expect(RESPONSE)
        assert (header.src_port, header.dst_port) == (port, own)
        assert header.buf_alloc == guest.vsock.buffer
        peer, _ = listener.accept()
        peer.settimeout(10)
    os.unlink(f"{guest.vsock.host.path}_{port}")
    return peer


def client(guest: Guest, text: bytes = b"CONNECT 52\n") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(guest.vsock.host.path)
    sock.sendall(text)
    return sock


def to_guest(guest: Guest) -> tuple[socket.socket, int]:
    """A connection that the host made; its end of it, and its port."""
    sock = client(guest)
    header, _ = guest.expect(REQUEST)
    assert (header.dst_port, header.type) == (52, STREAM)
    port = header.src_port
    guest.send(RESPONSE, 52, port)
    assert sock.recv(100) == b"OK %d\n" % port
    return sock, port


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


def stuff(guest: Guest) -> int:
    """The guest sends until its credit is used up, to a host that reads nothing; how much."""
    sent, credit = 0, guest.vsock.buffer
    while credit:
        piece = min(credit, 32 << 10)
        guest.send(RW, 5000, PORT, b"s" * piece)
        sent += piece
        credit -= piece
        for header, _ in guest.heard():
            assert header.op == CREDIT_UPDATE
            credit = header.buf_alloc - (sent - header.fwd_cnt)
    return sent


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


# -- endings ---------------------------------------------------------------------------------------


def test_the_host_shuts_one_direction_and_the_other_goes_on(guest: Guest) -> None:
    peer = from_guest(guest)
    peer.sendall(b"last words")
    peer.shutdown(socket.SHUT_WR)
    packets = guest.heard()
    assert [(h.op, h.flags, d) for h, d in packets] == [
        (RW, 0, b"last words"), (SHUTDOWN, 2, b""),
    ]  # fmt: skip
    guest.send(RW, 5000, PORT, b"still here")
    assert peer.recv(100) == b"still here"
    guest.send(SHUTDOWN, 5000, PORT, flags=3)
    assert guest.expect(RST)[0].src_port == PORT
    assert peer.recv(100) == b""
    assert not guest.vsock.connections
    peer.close()


def test_the_guest_shuts_one_direction_and_the_other_goes_on(guest: Guest) -> None:
    peer = from_guest(guest)
    guest.send(RW, 5000, PORT, b"last words")
    guest.send(SHUTDOWN, 5000, PORT, flags=2)
    assert peer.recv(100) == b"last words"
    assert peer.recv(100) == b""
    peer.sendall(b"still here")
    assert guest.expect(RW)[1] == b"still here"
    guest.send(SHUTDOWN, 5000, PORT, flags=1)
    guest.expect(RST)
    peer.close()


def test_a_guest_that_does_not_receive_gets_nothing(guest: Guest) -> None:
    peer = from_guest(guest)
    guest.send(SHUTDOWN, 5000, PORT, flags=1)
    with pytest.raises(BrokenPipeError):
        peer.sendall(b"x")
    assert guest.silent()
    guest.send(RW, 5000, PORT, b"but it sends")
    assert peer.recv(100) == b"but it sends"
    peer.close()


def test_data_after_the_promise_to_send_none_resets(guest: Guest) -> None:
    peer = from_guest(guest)
    guest.send(SHUTDOWN, 5000, PORT, flags=2)
    guest.send(RW, 5000, PORT, b"oh")
    guest.expect(RST)
    peer.close()


def test_the_host_closes_what_it_wrote_arrives(guest: Guest) -> None:
    peer = from_guest(guest)
    peer.sendall(b"bye")
    peer.close()
    packets = guest.heard()
    assert [(h.op, h.flags, d) for h, d in packets] == [(RW, 0, b"bye"), (SHUTDOWN, 3, b"")]
    guest.send(RST, 5000, PORT)
    assert guest.silent()
    assert not guest.vsock.connections


def test_the_host_shuts_and_later_closes(guest: Guest) -> None:
    peer = from_guest(guest)
    peer.shutdown(socket.SHUT_WR)
    assert guest.expect(SHUTDOWN)[0].flags == 2
    peer.close()
    assert guest.expect(SHUTDOWN)[0].flags == 3
    assert guest.silent()
    assert guest.vsock.poll() == 0  # its hang-up does not keep the thread busy


def test_the_host_closes_while_the_guest_has_no_room(guest: Guest) -> None:
    peer = from_guest(guest)
    guest.send(CREDIT_UPDATE, 5000, PORT, room=0)
    peer.sendall(b"wait")
    peer.close()
    assert guest.silent()
    assert guest.vsock.poll() == 0
    guest.send(CREDIT_UPDATE, 5000, PORT)
    assert [(h.op, d) for h, d in guest.heard()] == [(RW, b"wait"), (SHUTDOWN, b"")]


def test_the_host_goes_away_with_data_unread(guest: Guest) -> None:
    peer = from_guest(guest)
    stuff(guest)
    peer.close()
    guest.expect(RST)
    assert not guest.vsock.connections


def test_what_the_guest_sent_before_it_closed_arrives(guest: Guest) -> None:
    peer = from_guest(guest)
    sent = stuff(guest)
    guest.send(SHUTDOWN, 5000, PORT, flags=3)
    assert guest.silent()  # the end waits for the data
    got = 0
    while piece := peer.recv(1 << 20):
        got += len(piece)
        guest.poll()
    assert got == sent
    assert guest.heard()[-1][0].op == RST
    peer.close()


def test_the_host_gives_up_before_the_guest_answers(guest: Guest) -> None:
    sock = client(guest)
    port = guest.expect(REQUEST)[0].src_port
    sock.close()
    assert guest.expect(RST)[0].src_port == port
    guest.send(RESPONSE, 52, port)
    assert guest.expect(RST)[0].src_port == port


def test_a_request_that_was_never_delivered_is_taken_back_silently(
    make: Callable[..., Guest],
) -> None:
    guest = make(buffers=0)
    sock = client(guest)
    guest.poll()
    assert len(guest.vsock.connections) == 1
    sock.close()
    guest.poll()
    assert not guest.vsock.connections
    assert not guest.vsock._answers


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


# -- trespasses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 8, 99])
def test_packets_of_no_connection_get_rst(guest: Guest, op: int) -> None:
    guest.send(op, 1, 2)
    header, _ = guest.expect(RST)
    assert (header.src_port, header.dst_port) == (2, 1)


def test_rst_of_no_connection_is_not_answered(guest: Guest) -> None:
    guest.send(RST, 1, 2)
    assert guest.silent()


@pytest.mark.parametrize("kind", [0, 2, 3, 0xFFFF])
def test_other_socket_types_get_rst_of_their_type(guest: Guest, kind: int) -> None:
    guest.send(REQUEST, 1, 2, type=kind)
    assert guest.expect(RST)[0].type == kind


@pytest.mark.parametrize("field", ["src_cid", "dst_cid"])
@pytest.mark.parametrize("cid", [0, 1, 4, 1 << 40])
def test_packets_from_or_to_other_cids_are_dropped(guest: Guest, field: str, cid: int) -> None:
    guest.send(REQUEST, 1, 2, b"", **{field: cid})
    assert guest.silent()
    assert guest.vsock.packets_dropped == 1


@pytest.mark.parametrize("op", [0, REQUEST, RESPONSE, 8, 0xFFFF])
def test_wrong_operations_of_a_connection_reset_it(guest: Guest, op: int) -> None:
    peer = from_guest(guest)
    guest.send(op, 5000, PORT)
    guest.expect(RST)
    assert peer.recv(10) == b""
    peer.close()


@pytest.mark.parametrize("op", [REQUEST, RW, SHUTDOWN, CREDIT_UPDATE, 55])
def test_anything_but_an_answer_to_our_request_resets(guest: Guest, op: int) -> None:
    sock = client(guest)
    port = guest.expect(REQUEST)[0].src_port
    guest.send(op, 52, port)
    guest.expect(RST)
    assert sock.recv(10) == b""
    sock.close()


@pytest.mark.parametrize(
    "raw", [bytes(43), Header(3, 2, 1, 2, 5, 1, RW, 0, 0, 0).pack() + b"four",
            Header(3, 2, 1, 2, 65537, 1, RW, 0, 0, 0).pack() + bytes(65537)],
    ids=["short header", "less data than said", "too much data"],
)  # fmt: skip
def test_packets_that_are_none_break_the_device(guest: Guest, raw: bytes) -> None:
    guest.raw(raw)
    assert guest.transport.status() & NEEDS_RESET
    guest.begin()
    assert not guest.transport.status() & NEEDS_RESET
    from_guest(guest).close()


def test_buffers_that_are_too_small_or_readable_break_the_device(
    make: Callable[..., Guest],
) -> None:
    for buffer in [(0x20_0000, HEADER_SIZE, True), (0x20_0000, 4096, False)]:
        guest = make(buffers=0)
        guest.queues[RX].add([buffer])
        guest.send(REQUEST, 1, 2)
        assert guest.transport.status() & NEEDS_RESET
        guest.close()


def test_a_device_that_needs_a_reset_hangs_up(guest: Guest) -> None:
    peer = from_guest(guest)
    guest.raw(b"rubbish")
    assert peer.recv(10) == b""
    peer.close()


def test_answers_are_bounded_the_guest_waits(make: Callable[..., Guest]) -> None:
    guest = make(buffers=0)
    header = Header(CID, HOST_CID, 1, 2, 0, STREAM, RW, 0, 0, 0).pack()
    guest.memory.write(guest.out, header)
    returned = 0
    for _ in range(20):
        for _ in range(32):
            guest.queues[TX].add([(guest.out, HEADER_SIZE, False)])
        guest.transport.kick(TX)
        returned += len(guest.queues[TX].used())
        if guest.vsock._stalled:
            break
    assert len(guest.vsock._answers) == 256
    assert returned == 256
    heard = 0
    for _ in range(32):
        guest.supply(guest.take(HEADER_SIZE + BUFFER))
    while answers := len(guest.heard()):
        heard += answers
    assert heard >= 256
    assert not guest.vsock._answers


# -- life ------------------------------------------------------------------------------------------


def test_config_space_is_the_cid(guest: Guest) -> None:
    assert [guest.transport.config(at, 4) for at in (0, 4)] == [CID, 0]


def test_nobody_is_let_in_before_the_driver_is_there(make: Callable[..., Guest]) -> None:
    guest = make(begin=False)
    sock = client(guest)
    assert guest.vsock.poll() == 0
    guest.begin()
    assert guest.expect(REQUEST)[0].dst_port == 52
    sock.close()


def test_a_reset_ends_all_connections(guest: Guest) -> None:
    peer, (sock, _) = from_guest(guest), to_guest(guest)
    guest.begin()
    assert peer.recv(10) == sock.recv(10) == b""
    assert not guest.vsock.connections
    guest.send(RW, 5000, PORT, b"?")
    guest.expect(RST)
    peer.close()
    sock.close()


def test_after_a_load_the_driver_hears_that_its_connections_are_gone(guest: Guest) -> None:
    peer = from_guest(guest)
    saved = guest.outer.save()
    guest.send(RW, 5000, PORT, b"a save disturbs nobody")
    assert peer.recv(100) == b"a save disturbs nobody"
    guest.queues[EVENT].add([(guest.events, 4, True)])
    guest.memory.write_u32(guest.events, 0xFFFF_FFFF)
    guest.outer.load(saved)
    assert peer.recv(10) == b""
    assert guest.queues[EVENT].used() == [(0, 4)]
    assert guest.memory.read_u32(guest.events) == 0
    guest.queues[EVENT].add([(guest.events, 4, True)])
    guest.transport.kick(EVENT)
    assert guest.queues[EVENT].used() == []  # once
    peer.close()


def test_the_event_waits_for_a_buffer(guest: Guest) -> None:
    guest.outer.load(guest.outer.save())
    guest.queues[EVENT].add([(guest.events, 4, True)])
    guest.transport.kick(EVENT)
    assert guest.queues[EVENT].used() == [(0, 4)]


def test_paths_and_cids_that_cannot_be(tmp_path: pathlib.Path) -> None:
    for cid in (0, 2, 0xFFFF_FFFF, 1 << 40):
        with pytest.raises(VsockError, match="CID"):
            VirtioVsock(cid, tmp_path / "v")
    with pytest.raises(VsockError, match="shorter"):
        VirtioVsock(3, tmp_path / ("v" * 100))
    with pytest.raises(VsockError, match="cannot listen"):
        VirtioVsock(3, tmp_path / "no" / "v")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VsockError, match="cannot listen"):
        VirtioVsock(3, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_path_in_use_is_refused_and_a_stale_one_taken(tmp_path: pathlib.Path) -> None:
    first = VirtioVsock(3, tmp_path / "v")
    with pytest.raises(VsockError, match="cannot listen"):
        VirtioVsock(4, tmp_path / "v")
    first.host._listener.close()  # as if its process had died
    second = VirtioVsock(4, tmp_path / "v")
    first.close()
    assert (tmp_path / "v").exists()
    second.close()
    second.close()
    assert not (tmp_path / "v").exists()


def test_on_an_io_thread(tmp_path: pathlib.Path) -> None:
    device = VirtioVsock(CID, tmp_path / "v")
    device.io = IoThread()
    guest = Guest(device)
    try:
        sock, port = to_guest(guest)
        sock.sendall(b"x" * 20_000)
        got = bytearray()

        def all_there() -> bool:
            got.extend(b"".join(data for _, data in guest.heard()))
            return len(got) == 20_000

        until(all_there)
        numbers = count()
        for _ in range(50):
            text = struct.pack("<I", next(numbers))
            guest.send(RW, 52, port, text, forwarded=20_000)
            assert sock.recv(4) == text
        saved = guest.outer.save()
        sock.sendall(b"after")
        assert guest.expect(RW)[1] == b"after"
        guest.outer.load(saved)
        assert sock.recv(1) == b""
        sock.close()
    finally:
        guest.close()
        device.io.stop()
