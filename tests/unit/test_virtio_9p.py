"""The 9p device: messages, flushes, a server that lies or dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from p9_client import (
    ATTACH,
    FLUSH,
    READ,
    U32,
    VERSION,
    P9Client,
    P9Error,
    text,
)
from p9_server import Server
from virtio_driver import NEEDS_RESET

from pykvm.devices.virtio.p9 import VirtioP9
from pykvm.devices.virtio.p9_messages import pack_attach


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> Iterator[P9Client]:
    client = P9Client(VirtioP9(server, "tag"))
    yield client
    client.close()


def error_of(client: P9Client, head: int) -> int:
    kind, _, body = client.reply(head)
    assert kind == 7
    return int(U32.unpack(body)[0])


# -- messages --------------------------------------------------------------------------------------


def test_the_tag_is_the_configuration(client: P9Client) -> None:
    assert bytes(client.transport.config(at, 1) for at in range(6)) == b"\x03\0tag\0"


@pytest.mark.parametrize("tag", ["", "x" * 256, "a\0b"])
def test_tags_that_cannot_be(server: Server, tag: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        VirtioP9(server, tag)


def test_many_requests_in_flight_answered_in_any_order(client: P9Client, server: Server) -> None:
    heads = [client.send(READ, b"request %d" % tag, tag) for tag in range(40)]
    client.transport.kick(0)
    seen = [server.heard() for _ in heads]
    assert seen == [(READ, tag, b"request %d" % tag) for tag in range(40)]
    for tag in reversed(range(40)):
        server.say(READ + 1, tag, b"answer %d" % tag)
    for tag, head in enumerate(heads):
        assert client.reply(head) == (READ + 1, tag, b"answer %d" % tag)


def test_a_reply_in_pieces(client: P9Client, server: Server) -> None:
    head = client.send(READ)
    client.transport.kick(0)
    raw = struct.pack("<IBH", 107, READ + 1, 1) + bytes(range(100))
    for at in range(0, len(raw), 9):
        assert server.sock is not None
        server.sock.sendall(raw[at : at + 9])
        client.poll()
    assert client.reply(head)[2] == bytes(range(100))


def test_requests_wait_for_a_slow_server(client: P9Client, server: Server) -> None:
    body = os.urandom(100_000)
    heads = [client.send(READ, body, tag, room=64) for tag in range(20)]
    client.transport.kick(0)
    assert client.p9._out  # more than the socket takes
    for tag in range(20):
        got = bytearray()
        assert server.sock is not None
        while len(got) < 7 + len(body):
            with contextlib.suppress(BlockingIOError):
                got += server.sock.recv(7 + len(body) - len(got), socket.MSG_DONTWAIT)
            client.p9.poll()
        assert got[7:] == body
        server.say(READ + 1, tag)
    for head in heads:
        assert client.reply(head)[0] == READ + 1


def test_attach_goes_to_the_share_whatever_is_asked_for(client: P9Client, server: Server) -> None:
    for user in (None, 1000):
        server.user = user
        body = struct.pack("<II", 0, 0xFFFF_FFFF) + text("someone") + text("/etc") + U32.pack(7)
        head = client.send(ATTACH, body)
        client.transport.kick(0)
        kind, _, got = server.heard()
        assert kind == ATTACH
        name = b"someone" if user is None else b""
        assert got == body[:8] + text(name) + text("/there") + U32.pack(7 if user is None else 1000)
        server.say(ATTACH + 1, 1, bytes(13))
        client.reply(head)


@pytest.mark.parametrize("body", [b"", bytes(9), bytes(8) + b"\xff\xff", bytes(10), bytes(9000)])
def test_an_attach_that_is_none_does_not_reach_the_server(client: P9Client, body: bytes) -> None:
    if len(body) <= 10:
        assert pack_attach(1, body, b"x", None) is None
    if len(body) != 10:
        head = client.send(ATTACH, body)
        client.transport.kick(0)
        assert error_of(client, head) == errno.EINVAL


def test_a_flushed_request_comes_back_without_a_reply(client: P9Client, server: Server) -> None:
    first = client.send(READ, b"slow", 5)
    second = client.send(FLUSH, struct.pack("<H", 5), 6)
    client.transport.kick(0)
    server.heard()
    server.heard()
    server.say(FLUSH + 1, 6)
    assert client.reply(second)[0] == FLUSH + 1
    assert client.reply(first) == (0, 0, b"")
    server.say(READ + 1, 5, b"late")  # nobody's any more
    again = client.send(READ, b"next", 5)
    client.transport.kick(0)
    server.heard()
    client.poll()
    server.say(READ + 1, 5, b"right")
    assert client.reply(again)[2] in (b"late", b"right")


def test_a_new_session_has_a_new_server(client: P9Client, server: Server) -> None:
    old = client.send(READ, b"", 5)
    new = client.send(VERSION, b"", 0xFFFF)
    client.transport.kick(0)
    assert error_of(client, old) == errno.EIO
    assert server.starts == 2
    assert server.heard()[0] == VERSION
    server.say(VERSION + 1, 0xFFFF)
    assert client.reply(new)[0] == VERSION + 1


# -- trespasses of the driver ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "room"),
    [(b"short", 64), (struct.pack("<IBH", 6, 1, 1), 64), (struct.pack("<IBH", 9, 1, 1), 64),
     (struct.pack("<IBH", 7, 1, 1), 10), (struct.pack("<IBH", 0xFFFF_FFFF, 1, 1) + bytes(99), 64)],
    ids=["no head", "size under 7", "size over what is there", "no room", "4 GiB"],
)  # fmt: skip
def test_requests_that_are_none_break_the_device(
    client: P9Client, server: Server, raw: bytes, room: int
) -> None:
    client.send_raw(raw, room)
    client.transport.kick(0)
    assert client.transport.status() & NEEDS_RESET
    assert server.starts == 0


def test_messages_have_a_limit(client: P9Client) -> None:
    size = (1 << 20) + 1
    client.send_raw(struct.pack("<IBH", size, READ, 1) + bytes(size - 7), 64)
    client.transport.kick(0)
    assert client.transport.status() & NEEDS_RESET


def test_a_tag_in_use_is_refused(client: P9Client, server: Server) -> None:
    first, second = client.send(READ, b"", 3), client.send(READ, b"", 3)
    client.transport.kick(0)
    assert error_of(client, second) == errno.EINVAL
    server.heard()
    server.say(READ + 1, 3)
    assert client.reply(first)[0] == READ + 1


# -- a server that lies or dies --------------------------------------------------------------------


def test_a_reply_that_does_not_fit(client: P9Client, server: Server) -> None:
    head, other = client.send(READ, b"", 1, room=50), client.send(READ, b"", 2)
    client.transport.kick(0)
    server.say(READ + 1, 1, bytes(60_000))
    client.poll()
    server.say(READ + 1, 2, b"fits")
    assert error_of(client, head) == errno.EMSGSIZE
    assert client.reply(other)[2] == b"fits"


def test_replies_that_nobody_waits_for_are_dropped(client: P9Client, server: Server) -> None:
    head = client.send(READ)
    client.transport.kick(0)
    server.say(READ + 1, 77, b"what?" * 100)
    server.say(READ + 1, 1, b"yes")
    assert client.reply(head)[2] == b"yes"


@pytest.mark.parametrize("size", [0, 6, (1 << 20) + 1, 0xFFFF_FFFF])
def test_a_size_that_cannot_be_ends_the_session(
    client: P9Client, server: Server, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    head = client.send(READ)
    client.transport.kick(0)
    server.say(READ + 1, 1, size=size)
    assert error_of(client, head) == errno.EIO
    assert "the file server is gone" in caplog.text


def test_a_server_that_dies_is_started_by_the_next_mount(client: P9Client, server: Server) -> None:
    heads = [client.send(READ, b"", tag) for tag in (1, 2)]
    client.transport.kick(0)
    server.heard()
    server.stop()
    assert [error_of(client, head) for head in heads] == [errno.EIO, errno.EIO]
    with pytest.raises(P9Error, match="EIO"):
        client.call(READ)
    assert server.starts == 1
    head = client.send(VERSION, b"", 0xFFFF)
    client.transport.kick(0)
    assert server.starts == 2
    server.say(VERSION + 1, 0xFFFF)
    assert client.reply(head)[0] == VERSION + 1
    assert not client.transport.status() & NEEDS_RESET


def test_a_server_that_does_not_start(
    client: P9Client, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.broken = True
    with pytest.raises(P9Error, match="EIO"):
        client.call(VERSION, b"", 0xFFFF)
    assert "not start today" in caplog.text


# -- life ------------------------------------------------------------------------------------------


def test_a_reset_ends_the_session(client: P9Client, server: Server) -> None:
    client.send(VERSION, b"", 0xFFFF)
    client.transport.kick(0)
    server.heard()
    server.say(VERSION + 1, 0xFFFF)
    client.begin()
    assert client.p9._sock is None
    assert server.sock is not None
    assert server.sock.fileno() == -1


def test_a_save_waits_for_what_is_in_flight(client: P9Client, server: Server) -> None:
    head = client.send(READ)
    client.transport.kick(0)
    server.heard()
    server.say(READ + 1, 1, b"in time")
    saved = client.outer.save()
    assert client.queues[0].used() == [(head, 14)]
    client.outer.load(saved)
    assert client.p9._sock is None


def test_a_save_does_not_wait_for_ever(
    client: P9Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pykvm.devices.virtio.p9._PATIENCE_S", 0.01)
    head = client.send(READ)
    client.transport.kick(0)
    client.outer.save()
    assert error_of(client, head) == errno.EIO
