"""The NBD client, against a server of our own that is also able to misbehave."""

from __future__ import annotations

import errno
import struct
import threading
import time

import pytest
from nbd_fake import (
    ALL,
    CAN_FLUSH,
    DISCONNECT,
    ERROR,
    FLUSH,
    HAS_FLAGS,
    INFO,
    META,
    READ,
    READ_ONLY,
    STATUS,
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


# -- servers that misbehave ----------------------------------------------------------------------


def say(*parts: bytes, then: bool = False) -> object:
    def greet(peer: Peer) -> bool:
        peer.send(*parts)
        if not then:
            time.sleep(5)
        raise Gone

    return greet


GREETINGS = {
    "garbage": (say(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "is no NBD server"),
    "old": (say(b"NBDMAGIC", bytes.fromhex("00420281861253"), bytes(200)), "old NBD protocol"),
    "unfixed": (say(b"NBDMAGIC", b"IHAVEOPT", b"\0\0"), "fixed newstyle"),
    "silence": (say(b""), "did not finish the negotiation within 0.3 seconds"),
    "half": (say(b"NBDMAG"), "did not finish the negotiation"),
    "closed": (say(b"NBDM", then=True), "closed the connection during the negotiation"),
}


@pytest.mark.parametrize("kind", GREETINGS)
def test_bad_greetings(kind: str) -> None:
    greet, words = GREETINGS[kind]
    with FakeServer(greet=greet) as server:  # type: ignore[arg-type]
        with pytest.raises(BlockError, match=words):
            disk_of(server, connect_timeout=0.3)
        with pytest.raises(BlockError, match=words):
            list_exports(server.uri, timeout=0.3)


def at_option(number: int, *replies: tuple[int, bytes]) -> object:
    def option(peer: Peer, asked: int, data: bytes) -> bool | None:
        if asked != number:
            return None
        for kind, body in replies:
            peer.reply(asked, kind, body)
        return True

    return option


def flood(peer: Peer, asked: int, data: bytes) -> bool:
    while True:
        peer.reply(asked, INFO, b"\0\7" + bytes(1000))


def dripping(peer: Peer, asked: int, data: bytes) -> bool:
    for _ in range(50):
        peer.send(b"\0")
        time.sleep(0.1)
    raise Gone


EXPORT = (INFO, struct.pack(">HQH", 0, 1 << 20, ALL))
OPTIONS = {
    "unknown export": (at_option(7, (ERROR | 6, b"")), "no such export"),
    "tls": (at_option(7, (ERROR | 5, b"")), "wants TLS"),
    "other error": (at_option(7, (ERROR | 77, b"go\naway")), "refuses: go away"),
    "no size": (at_option(7, (1, b"")), "how large"),
    "short size": (at_option(7, (INFO, b"\0\0"), (1, b"")), "how large"),
    "absurd size": (
        at_option(7, (INFO, struct.pack(">HQH", 0, 1 << 63, 1)), (1, b"")), "absurd",
    ),
    "blocks": (at_option(7, EXPORT, (INFO, struct.pack(">HIII", 3, 3, 4, 5)), (1, b"")), "sense"),
    "no blocks": (
        at_option(7, EXPORT, (INFO, struct.pack(">HIII", 3, 0, 0, 0)), (1, b"")), "makes no sense",
    ),
    "few bytes": (
        at_option(7, EXPORT, (INFO, struct.pack(">HIII", 3, 1, 1, 1)), (1, b"")), "makes no sense",
    ),
    "meta": (at_option(10, (META, b"\0"), (ERROR | 7, b"")), "shutting down"),
    "flood": (flood, "negotiation|come to an end|nonsense"),
    "dripping": (dripping, "did not finish the negotiation"),
    "too long": (at_option(7, (INFO, bytes(70000))), "nonsense"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
def test_bad_negotiations(kind: str) -> None:
    option, words = OPTIONS[kind]
    with (
        FakeServer(option=option) as server,  # type: ignore[arg-type]
        pytest.raises(BlockError, match=words),
    ):
        disk_of(server, connect_timeout=0.5)


def test_a_server_without_go() -> None:
    with FakeServer(pattern(SIZE), option=at_option(7, (ERROR | 1, b""))) as server:  # type: ignore[arg-type]
        disk = disk_of(server)
        assert disk.read(0, 4096) == pattern(4096)
        disk.close()


def raw(text: str) -> object:
    return lambda peer, request: peer.send(bytes.fromhex(text)) or True


def chunk(kind: int, body: bytes, last: bool = True) -> object:
    return lambda peer, request: peer.chunk(request, kind, body, last) or True


def stray(peer: Peer, request: Request) -> bool:
    request.cookie += 5
    peer.simple(request, bytes(request.length))
    return True


def half(peer: Peer, request: Request) -> bool:
    peer.send(struct.pack(">IHHQI", 0x668E33EF, 1, 1, request.cookie, 8 + request.length))
    peer.send(struct.pack(">Q", request.offset), b"h" * 100)
    raise Gone


def stuck(peer: Peer, request: Request) -> bool:
    peer.send(struct.pack(">IHHQI", 0x668E33EF, 1, 1, request.cookie, 8 + request.length))
    peer.send(struct.pack(">Q", request.offset), b"h" * 100)
    return True


def slow(peer: Peer, request: Request) -> bool:
    for at in range(100):
        peer.data_chunk(request, request.offset + at, b"s")
        time.sleep(0.05)
    raise Gone


def leave(peer: Peer, request: Request) -> bool:
    raise Gone


Q, D = struct.Struct(">Q"), b"d" * 512
ANSWERS = {
    "nonsense": (raw("00" * 20), "nonsense"),
    "stray": (stray, "not made"),
    "stray chunk": (raw("668e33ef0001000100000000000000ff00000009" + "00" * 9), "not made"),
    "plain read": (lambda peer, r: peer.simple(r, bytes(r.length)) or True, "without structure"),
    "before": (chunk(1, Q.pack(0) + D), "not asked for"),
    "beyond": (chunk(1, Q.pack(512 + 1) + D), "not asked for"),
    "too much": (chunk(1, Q.pack(512) + D + D), "not asked for"),
    "too little": (chunk(1, Q.pack(512) + D[:-1]), "read of 512 bytes with 511"),
    "nothing": (chunk(0, b""), "read of 512 bytes with 0"),
    "empty": (chunk(1, Q.pack(512)), "data of 8 bytes"),
    "hole beyond": (chunk(2, struct.pack(">QI", 512, 1 << 31)), "not asked for"),
    "hole short": (chunk(2, b"12345"), "hole of 5 bytes"),
    "hole empty": (chunk(2, struct.pack(">QI", 512, 0)), "not asked for"),
    "none goes on": (chunk(0, b"", False), "empty answer"),
    "status": (chunk(5, bytes(12)), "type 5"),
    "unknown chunk": (chunk(99, b""), "type 99"),
    "bad error": (chunk(0x8001, struct.pack(">IH", 5, 99)), "another length"),
    "long error": (chunk(0x8001, bytes(5000)), "error of 5000"),
    "half": (half, "closed the connection"),
    "closed": (leave, "closed the connection"),
    "silence": (lambda peer, request: True, "did not answer for 0.4 seconds"),
    "stuck": (stuck, "did not answer for 0.4 seconds"),
    "slow": (slow, "did not finish an answer for 0.4 seconds"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_bad_answers(kind: str) -> None:
    """One sentence, for this request and all later ones; the buffer is left alone afterwards."""
    answer, words = ANSWERS[kind]
    with FakeServer(answer=answer) as server:  # type: ignore[arg-type]
        disk = disk_of(server, timeout=0.4)
        buffer = bytearray(512)
        with pytest.raises(BlockError, match=words):
            disk.readinto(512, buffer)
        seen = bytes(buffer)
        buffer[:] = b"n" * 512
        for attempt in (lambda: disk.read(0, 512), disk.flush, lambda: disk.write(0, bytes(512))):
            with pytest.raises(BlockError, match=words):
                attempt()
        assert bytes(buffer) == b"n" * 512
        assert seen.strip(b"hds\0") == b""
        disk.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (struct.pack(">III", 7, 0, 0), "senseless"),
        (struct.pack(">II", 7, 0), "8 bytes"),
        (struct.pack(">III", 8, 512, 0), "without a block status"),
        (struct.pack(">IIIII", 7, 512, 0, 512, 0), "senseless"),
    ],
)
def test_bad_block_status(body: bytes, words: str) -> None:
    def answer(peer: Peer, request: Request) -> bool | None:
        if request.command != STATUS:
            return None
        peer.chunk(request, 5, body, last=True)
        return True

    with FakeServer(answer=answer) as server:
        disk = disk_of(server)
        with pytest.raises(BlockError, match=words):
            disk.block_status(0, 512)
        disk.close()


def test_a_server_that_takes_nothing() -> None:
    """Its buffers fill, the client does not wait for ever."""
    release = threading.Event()

    def answer(peer: Peer, request: Request) -> bool:
        release.wait(30)
        raise Gone

    with FakeServer(bytes(64 << 20), answer=answer) as server:
        disk = disk_of(server, timeout=0.4)
        ends: list[BlockError | None] = []
        ready = threading.Semaphore(0)
        data = memoryview(bytes(8 << 20))
        for n in range(4):
            disk.begin(
                block.BlockRequest(block.WRITE, n << 23, len(data), [data]),
                lambda error: (ends.append(error), ready.release()),
            )
        for _ in range(4):
            assert ready.acquire(timeout=60)
        assert all("for 0.4 seconds" in str(end) for end in ends)
        release.set()
        disk.close()


def test_who_submits_never_waits_for_the_server() -> None:
    """A callback may need a lock that who submits holds, while the server waits to be read."""
    device = threading.Lock()
    finished = threading.Semaphore(0)
    failed: list[BlockError] = []

    def done(error: BlockError | None) -> None:
        with device:
            failed.extend([error] if error else [])
        finished.release()

    with FakeServer(pattern(8 << 20)) as server:
        disk = disk_of(server, timeout=60)
        buffers = [bytearray(1 << 20) for _ in range(8)]
        with device:
            for n, buffer in enumerate(buffers):
                read = block.BlockRequest(block.READ, n << 20, 1 << 20, [memoryview(buffer)])
                disk.begin(read, done)
            for n in range(8):
                data = memoryview(bytes([n]) * (1 << 20))
                disk.begin(block.BlockRequest(block.WRITE, n << 20, 1 << 20, [data]), done)
        for _ in range(16):
            assert finished.acquire(timeout=60)
        assert not failed
        assert b"".join(buffers) == pattern(8 << 20)
        assert disk.read(0, 8 << 20) == b"".join(bytes([n]) * (1 << 20) for n in range(8))
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
