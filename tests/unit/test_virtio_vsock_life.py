"""How sockets end, and their device: shutdowns, resets, saved states, trespasses of the guest."""

from __future__ import annotations

import pathlib
import socket
import struct
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from share_driver import until
from virtio_driver import NEEDS_RESET
from vsock_guest import (
    BUFFER,
    CID,
    PORT,
    Guest,
    client,
    from_guest,
    guests,
    stuff,
    to_guest,
)

from pykvm.datapath.loop import IoThread
from pykvm.devices.virtio.vsock import EVENT, RX, TX, VirtioVsock
from pykvm.devices.virtio.vsock_host import VsockError
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
)


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Callable[..., Guest]]:
    yield from guests(tmp_path)


@pytest.fixture
def guest(make: Callable[..., Guest]) -> Guest:
    return make()


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
