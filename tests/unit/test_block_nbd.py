"""The NBD client, against a server of our own that is also able to misbehave."""

from __future__ import annotations

import errno
import struct
import threading

import pytest
from nbd_fake import (
    CAN_FLUSH,
    DISCONNECT,
    FLUSH,
    HAS_FLAGS,
    READ,
    READ_ONLY,
    WRITE,
    ZEROES,
    FakeServer,
    Gone,
    Peer,
    Request,
    disk_of,
    pattern,
)

from pykvm.devices.block import BlockError, NbdDisk
from pykvm.devices.block import request as block
from pykvm.devices.block.nbd import Extent, list_exports
from pykvm.devices.block.nbd_uri import NbdAddress, is_uri, parse_uri

SIZE = 1 << 20


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@pytest.mark.parametrize("connections", [1, 3])
def test_reading_and_writing(structured: bool, connections: int) -> None:
    data = bytearray(pattern(SIZE))
    with FakeServer(data, structured=structured) as server:
        disk = disk_of(server, connections=connections)
        assert (disk.size, disk.read_only, disk.block_size) == (SIZE, False, 512)
        assert disk.read(5, 1000) == data[5:1005]
        parts = [bytearray(1000), bytearray(0), bytearray(70000), bytearray(3)]
        disk.readv(512, [memoryview(part) for part in parts])
        assert b"".join(parts) == data[512 : 512 + 71003]
        many = [bytearray(3) for _ in range(3000)]  # more than one system call takes
        disk.readv(0, [memoryview(part) for part in many])
        assert b"".join(many) == data[:9000]
        disk.writev(4096, [memoryview(bytes([n % 256]) * 2) for n in range(3000)])
        data[4096:10096] = b"".join(bytes([n % 256]) * 2 for n in range(3000))
        disk.write_zeroes(20000, 5000)
        disk.discard(30000, 5000)
        data[20000:25000] = data[30000:35000] = bytes(5000)
        disk.flush()
        assert disk.read(0, SIZE) == data == server.data
        assert disk.read(SIZE, 0) == b""
        for offset, length in ((SIZE, 1), (-1, 2), (SIZE - 1, 2)):
            with pytest.raises(BlockError, match="past its end"):
                disk.read(offset, length)
        disk.close()
        disk.close()
        with pytest.raises(BlockError, match="closed"):
            disk.read(0, 512)
        assert server.connections == connections
        commands = [entry[0] for entry in server.log]
        assert FLUSH in commands
        assert ZEROES in commands


def test_requests_are_in_flight_together_and_come_back_in_any_order() -> None:
    held: list[tuple[Peer, Request]] = []

    def hold(peer: Peer, request: Request) -> bool | None:
        if request.command != READ:
            return None
        held.append((peer, request))
        if len(held) == 30:
            for late, one in reversed(held):
                late.serve(one)
        return True

    data = pattern(SIZE)
    with FakeServer(data, answer=hold) as server:
        disk = disk_of(server)
        buffers = [bytearray(4096) for _ in range(30)]
        order: list[int] = []
        finished = threading.Semaphore(0)

        def done(error: BlockError | None, n: int) -> None:
            assert error is None
            order.append(n)
            finished.release()

        for n, buffer in enumerate(buffers):
            disk.begin(
                block.BlockRequest(block.READ, n * 8192, 4096, [memoryview(buffer)]),
                lambda error, n=n: done(error, n),
            )
        for _ in buffers:
            assert finished.acquire(timeout=30)
        assert order == list(range(30))[::-1]
        for n, buffer in enumerate(buffers):
            assert buffer == data[n * 8192 : n * 8192 + 4096]
        disk.close()


def test_chunks_and_holes_are_put_together() -> None:
    def pieces(peer: Peer, request: Request) -> bool | None:
        if request.command != READ:
            return None
        at, data = request.offset, peer.server.data
        peer.data_chunk(request, at + 3000, bytes(data[at + 3000 : at + 4096]))
        peer.chunk(request, 2, struct.pack(">QI", at + 100, 2900))
        peer.data_chunk(request, at, bytes(data[at : at + 100]))
        peer.chunk(request, 0, last=True)
        return True

    with FakeServer(pattern(SIZE), answer=pieces) as server:
        disk = disk_of(server)
        expected = bytearray(server.data[512:4608])
        expected[100:3000] = bytes(2900)
        assert disk.read(512, 4096) == expected
        disk.close()


def test_the_servers_block_sizes_are_kept_to() -> None:
    data = bytearray(pattern(SIZE))
    with FakeServer(data, blocks=(4096, 4096, 65536)) as server:
        disk = disk_of(server)
        assert disk.block_size == 4096
        disk.write(5000, b"x" * 100)
        data[5000:5100] = b"x" * 100
        disk.write(0, data[:200000])
        assert disk.read(5000, 150000) == data[5000:155000]
        disk.write_zeroes(6000, 10000)
        data[6000:16000] = bytes(10000)
        disk.discard(100, 9000)
        data[4096:8192] = bytes(4096)
        disk.flush()
        assert server.data == data
        for command, _, offset, length in server.log:
            assert offset % 4096 == length % 4096 == 0
            assert command not in (READ, WRITE) or length <= 65536
        failed: list[BlockError | None] = []
        disk.begin(
            block.BlockRequest(block.WRITE, 512, 512, [memoryview(bytes(512))]), failed.append
        )
        assert "whole blocks of 4096" in str(failed[0])
        disk.close()


def test_an_odd_size_is_padded() -> None:
    with FakeServer(pattern(1000)) as server:
        disk = disk_of(server)
        assert disk.size == 1024
        assert disk.read(0, 1024) == pattern(1000) + bytes(24)
        buffer = bytearray(b"x" * 512)
        ends: list[object] = []
        ready = threading.Event()
        disk.begin(
            block.BlockRequest(block.READ, 512, 512, [memoryview(buffer)]),
            lambda error: (ends.append(error), ready.set()),
        )
        assert ready.wait(30)
        assert ends == [None]
        assert buffer == pattern(1000)[512:] + bytes(24)
        with pytest.raises(BlockError, match="incomplete"):
            disk.write(512, bytes(512))
        disk.close()


def test_write_through_and_what_a_server_cannot_do() -> None:
    with FakeServer() as server:
        disk = disk_of(server, write_through=True)
        disk.write(0, bytes(512))
        disk.write_zeroes(0, 512)
        assert [entry[:2] for entry in server.log] == [(WRITE, 1), (ZEROES, 1)]
        disk.close()
    with FakeServer(pattern(SIZE), flags=HAS_FLAGS | CAN_FLUSH) as server:
        disk = disk_of(server, write_through=True, connections=4)
        assert server.connections == 1  # the server does not promise that they agree
        disk.write(0, bytes(512))
        disk.write_zeroes(512, 512)
        disk.discard(4096, 512)
        assert server.data[:4608] == bytes(1024) + pattern(SIZE)[1024:4608]
        assert [entry[0] for entry in server.log] == [WRITE, FLUSH, WRITE, FLUSH]
        disk.close()
    with FakeServer(flags=HAS_FLAGS | READ_ONLY) as server:
        disk = disk_of(server)
        assert disk.read_only
        with pytest.raises(BlockError, match="read-only"):
            disk.write(0, bytes(512))
        disk.flush()
        disk.close()
        assert all(entry[0] == DISCONNECT for entry in server.log)


def test_block_status_and_the_list_of_exports() -> None:
    with FakeServer() as server:
        assert list_exports(server.uri) == ["", "other"]
        disk = disk_of(server)
        assert disk.block_status(512, 1024) == [Extent(512, 1024, False, True)]
        disk.close()
    with FakeServer(structured=False) as server:
        disk = disk_of(server)
        assert disk.block_status(0, 512) == [Extent(0, 512, True, False)]
        disk.close()


def test_errors_of_the_server_fail_one_request() -> None:
    def refuse(peer: Peer, request: Request) -> bool | None:
        if request.command == READ:
            text = b"the disk is\non fire"
            peer.chunk(request, 0x8001, struct.pack(">IH", 28, len(text)) + text, last=True)
            return True
        if request.command == WRITE:
            peer.simple(request, error=1)
            return True
        return None

    with FakeServer(answer=refuse) as server:
        disk = disk_of(server)
        with pytest.raises(BlockError, match=r"a read at 0x200: the disk is on fire$") as caught:
            disk.read(512, 512)
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(BlockError, match="a write at 0x0: it is not permitted"):
            disk.write(0, bytes(512))
        disk.flush()
        disk.close()


# -- reconnecting --------------------------------------------------------------------------------


def dying(after: int) -> object:
    """Goes away after so many requests, once; what was under way is not done."""

    def answer(peer: Peer, request: Request) -> bool | None:
        if peer.server.connections == 1 and peer.served > after:
            raise Gone
        return None

    return answer


def test_requests_are_sent_again_on_a_new_connection() -> None:
    with FakeServer(pattern(SIZE), answer=dying(2)) as server:  # type: ignore[arg-type]
        disk = disk_of(server, reconnect=20)
        for at in range(0, 8192, 512):
            assert disk.read(at, 512) == pattern(SIZE)[at : at + 512]
        assert server.connections == 2
        disk.flush()
        disk.close()


def test_a_flush_fails_where_the_server_may_have_lost_writes() -> None:
    with FakeServer(answer=dying(3)) as server:  # type: ignore[arg-type]
        disk = disk_of(server, reconnect=20)
        disk.write(0, b"a" * 512)
        disk.flush()
        disk.write(0, b"b" * 512)
        disk.write(512, b"c" * 512)  # sent twice
        with pytest.raises(BlockError, match="may have lost them"):
            disk.flush()
        disk.flush()
        assert server.connections == 2
        disk.close()


def test_a_flush_that_was_under_way_fails_too() -> None:
    with FakeServer(answer=dying(1)) as server:  # type: ignore[arg-type]
        disk = disk_of(server, reconnect=20)
        disk.write(0, b"a" * 512)
        with pytest.raises(BlockError, match="may have lost them"):
            disk.flush()
        disk.flush()
        disk.close()


def test_flushed_writes_are_not_lost() -> None:
    with FakeServer(answer=dying(2)) as server:  # type: ignore[arg-type]
        disk = disk_of(server, reconnect=20)
        disk.write(0, b"a" * 512)
        disk.flush()
        assert disk.read(0, 1) == b"a"
        disk.flush()
        assert server.connections == 2
        disk.close()


def test_another_disk_is_not_taken_for_the_one_that_was_lost() -> None:
    def answer(peer: Peer, request: Request) -> bool:
        peer.server.data += bytes(512)
        raise Gone

    with FakeServer(answer=answer) as server:
        disk = disk_of(server, reconnect=20)
        with pytest.raises(BlockError, match="came back with another disk"):
            disk.read(0, 512)
        disk.close()


def test_reconnecting_ends() -> None:
    server = FakeServer()
    disk = disk_of(server, reconnect=0.5)
    server.close()
    with pytest.raises(BlockError, match="cannot be reached"):
        disk.read(0, 512)
    disk.close()


# -- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://host", NbdAddress(host="host")),
        ("nbd://host:1234/a%20b/c", NbdAddress("a b/c", host="host", port=1234)),
        ("nbd://[::1]/x", NbdAddress("x", host="::1")),
        ("nbd+unix:///?socket=/run/s%2Cx", NbdAddress(socket="/run/s,x")),
        ("nbd+unix:///name?socket=s", NbdAddress("name", socket="s")),
    ],
)
def test_uris(uri: str, address: NbdAddress) -> None:
    assert is_uri(uri)
    assert parse_uri(uri) == address
    assert parse_uri(str(address)) == address


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nbds://host/", "nbds is not supported"),
        ("nbd:///x", "names no host"),
        ("nbd://host:99999/", "no NBD URI"),
        ("nbd://host:x/", "no NBD URI"),
        ("nbd+unix:///x", "has no socket"),
        ("nbd+unix://host/x?socket=/s", "has no socket"),
        ("nbd://host/?socket=/s", "names no host"),
        ("nbd://host/?tls=1", "tls is no parameter"),
        ("nbd://host/" + "x" * 5000, "longer than"),
        ("nbd://[::1", "no NBD URI"),
    ],
)
def test_bad_uris(uri: str, words: str) -> None:
    with pytest.raises(BlockError, match=words):
        NbdDisk(uri)


def test_nobody_there() -> None:
    for uri in ("nbd+unix:///?socket=/no/such", "nbd://127.0.0.1:1/", "nbd://no.such.invalid/"):
        with pytest.raises(BlockError, match=r"cannot be reached: .*; start the NBD server"):
            NbdDisk(uri)
    with pytest.raises(BlockError, match="connections"):
        NbdDisk("nbd://host/", connections=17)
