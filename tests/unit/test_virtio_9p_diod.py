"""A shared folder over 9p: diod behind the device, locked in."""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
from collections.abc import Iterator

import pytest
from debian_tools import need
from p9_client import (
    CLUNK,
    LCREATE,
    LOPEN,
    MKNOD,
    READ,
    RENAME,
    SYMLINK,
    U32,
    P9Client,
    P9Error,
    text,
)
from share_driver import until

from pykvm.datapath.loop import IoThread
from pykvm.devices.vhost.diod import Diod, ShareError
from pykvm.devices.virtio.p9 import VirtioP9

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
