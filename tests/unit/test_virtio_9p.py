"""The 9p device: messages, flushes, a server that lies or dies; and diod behind it, locked in."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import struct
from collections.abc import Iterator

import pytest
from debian_tools import need
from p9_client import (
    ATTACH,
    CLUNK,
    FLUSH,
    LCREATE,
    LOPEN,
    MKNOD,
    READ,
    RENAME,
    SYMLINK,
    U32,
    VERSION,
    P9Client,
    P9Error,
    text,
)
from share_driver import until
from virtio_driver import NEEDS_RESET

from pykvm.datapath.loop import IoThread
from pykvm.devices.vhost.diod import Diod, ShareError
from pykvm.devices.virtio.p9 import VirtioP9
from pykvm.devices.virtio.p9_messages import pack_attach
from pykvm.errors import PykvmError


class Server:
    """A server that is the test itself."""

    aname = b"/there"
    user: int | None = None

    def __init__(self) -> None:
        self.starts = 0
        self.broken = False
        self.sock: socket.socket | None = None

    def start(self) -> socket.socket:
        if self.broken:
            raise PykvmError("it does not start today")
        self.starts += 1
        ours, self.sock = socket.socketpair()
        self.sock.settimeout(10)
        return ours

    def stop(self) -> None:
        if self.sock is not None:
            self.sock.close()

    def heard(self) -> tuple[int, int, bytes]:
        """(type, tag, body) of the next T message."""
        assert self.sock is not None
        size, kind, tag = struct.unpack("<IBH", self.sock.recv(7, socket.MSG_WAITALL))
        body = self.sock.recv(size - 7, socket.MSG_WAITALL) if size > 7 else b""
        return kind, tag, body

    def say(self, kind: int, tag: int, body: bytes = b"", size: int | None = None) -> None:
        assert self.sock is not None
        size = 7 + len(body) if size is None else size
        self.sock.sendall(struct.pack("<IBH", size, kind, tag) + body)


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


# -- diod ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    need("diod", package="diod")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "file").write_bytes(b"from the host")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep").write_bytes(b"below")
    (tmp_path / "secret").write_bytes(b"not for guests")
    (folder / "out").symlink_to(tmp_path)
    (folder / "file-out").symlink_to(tmp_path / "secret")
    return folder


@pytest.fixture
def share(folder: pathlib.Path) -> Iterator[P9Client]:
    client = P9Client(VirtioP9(Diod(folder)))
    client.mount()
    yield client
    client.close()


def test_files_both_ways(share: P9Client, folder: pathlib.Path) -> None:
    assert share.read(share.open("file")) == b"from the host"
    assert share.read(share.open("sub", "deep")) == b"below"
    fid = share.create("new")
    data = os.urandom(20_000)
    for at in range(0, len(data), 8000):
        assert share.write(fid, data[at : at + 8000], at) == len(data[at : at + 8000])
    share.call(CLUNK, U32.pack(fid))
    assert (folder / "new").read_bytes() == data
    (folder / "file").write_bytes(b"changed")
    assert share.read(share.open("file")) == b"changed"
    assert {"file", "new", "sub", "out"} <= set(share.names(share.open()))


def test_any_name_attaches_to_the_folder(folder: pathlib.Path) -> None:
    client = P9Client(VirtioP9(Diod(folder)))
    client.mount("/etc")
    assert client.read(client.open("file")) == b"from the host"
    client.close()


@pytest.mark.parametrize(
    "names",
    [("..", "secret"), ("../secret",), ("out", "secret"), ("out/secret",), ("file-out",),
     ("sub", "..", "..", "secret"), ("/etc/passwd",), ("..", "..", "etc", "passwd"),
     ("..", "usr"), ("..", "proc", "1")],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(share: P9Client, names: tuple[str, ...]) -> None:
    with pytest.raises(P9Error):
        share.read(share.open(*names))


def test_links_that_the_guest_makes_lead_nowhere(share: P9Client, folder: pathlib.Path) -> None:
    for number, target in enumerate(["/", "/proc/self/root", "../..", "/etc", "../secret"]):
        body = U32.pack(share.walk()) + text(f"link{number}") + text(target) + bytes(4)
        share.call(SYMLINK, body)
        assert os.readlink(folder / f"link{number}") == target
        for name in ("secret", "etc", "passwd", "usr", "proc"):
            with pytest.raises(P9Error):
                share.open(f"link{number}", name)
        with pytest.raises(P9Error):
            share.open(f"link{number}", flags=1)


def test_the_root_above_the_folder_holds_nothing(share: P9Client) -> None:
    for path in (("..",), ("..", "share", "..")):
        try:
            names = share.names(share.open(*path))
        except P9Error:
            continue
        assert set(names) <= {
            ".", "..", "share", "dev", "etc", "usr", "bin", "sbin", "lib", "lib32", "lib64", "nix",
            "gnu", "proc",
        }  # fmt: skip
    for empty in ("usr", "proc", "old"):
        with contextlib.suppress(P9Error):
            assert set(share.names(share.open("..", empty))) <= {".", ".."}


def test_nothing_is_moved_out(share: P9Client, folder: pathlib.Path) -> None:
    above = share.walk("..")
    with pytest.raises(P9Error):
        share.call(RENAME, U32.pack(share.walk("file")) + U32.pack(above) + text("stolen"))
    assert (folder / "file").exists()


def test_device_files_do_not_open(share: P9Client, folder: pathlib.Path) -> None:
    body = U32.pack(0) + text("null") + struct.pack("<IIII", 0o20666, 1, 3, 0)
    with contextlib.suppress(P9Error):
        share.call(MKNOD, body)
    if not (folder / "null").exists() and os.geteuid() == 0:
        os.mknod(folder / "null", 0o20666, os.makedev(1, 3))
    with pytest.raises(P9Error):
        share.open("null", flags=2)


def test_a_readonly_share(folder: pathlib.Path) -> None:
    client = P9Client(VirtioP9(Diod(folder, readonly=True)))
    client.mount()
    assert client.read(client.open("file")) == b"from the host"
    for attempt in (
        lambda: client.open("file", flags=1),
        lambda: client.create("new"),
        lambda: client.call(RENAME, U32.pack(client.walk("file")) + bytes(4) + text("other")),
    ):
        with pytest.raises(P9Error, match="EROFS"):
            attempt()
    assert sorted(os.listdir(folder)) == ["file", "file-out", "out", "sub"]
    client.close()


def test_many_reads_in_flight(share: P9Client) -> None:
    fid = share.open("file")
    heads = [
        share.send(READ, struct.pack("<IQI", fid, at % 13, 1), tag=at, room=64) for at in range(60)
    ]
    share.transport.kick(0)
    for at, head in enumerate(heads):
        assert share.reply(head)[2][4:] == b"from the host"[at % 13 : at % 13 + 1]


def test_rubbish_to_diod_harms_nobody_else(share: P9Client) -> None:
    for kind in (LOPEN, LCREATE, 0, 255, 7, 126):
        share.send(kind, b"\xff" * 40, tag=kind)
    share.transport.kick(0)
    share.poll()
    share.mount()  # diod did not answer all of that; now it comes back
    until(lambda: not share.places, share.poll)
    assert share.read(share.open("file")) == b"from the host"


def test_on_an_io_thread_and_nothing_is_left(folder: pathlib.Path) -> None:
    device = VirtioP9(Diod(folder))
    device.io = IoThread()
    client = P9Client(device)
    try:
        client.mount()
        assert client.read(client.open("file")) == b"from the host"
        server = device.server
        assert isinstance(server, Diod)
        child, root = server._child, server._root
        assert child is not None
        assert child.running
        client.outer.load(client.outer.save())
        assert not child.running
        with pytest.raises(P9Error):  # the session was not part of the state
            client.read(1)
        client.mount()
        assert client.read(client.open("file")) == b"from the host"
    finally:
        client.close()
        device.io.stop()
    assert server._child is None
    assert not os.path.exists(root)


def test_the_server_ends_when_its_owner_dies(folder: pathlib.Path) -> None:
    server = Diod(folder)
    sock = server.start()
    child = server._child
    assert child is not None
    assert child.process.stdin is not None
    child.process.stdin.close()  # what the kernel does when this process is killed
    assert child.wait(10)
    sock.close()
    server.stop()


def test_folders_that_cannot_be_shared(tmp_path: pathlib.Path) -> None:
    need("diod", package="diod")
    with pytest.raises(ShareError, match="does not exist"):
        Diod(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(ShareError, match="not a directory"):
        Diod(tmp_path / "file")
