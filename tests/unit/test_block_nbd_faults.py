"""The NBD client with servers that misbehave: it fails the request or the disk, and says why."""

from __future__ import annotations

import struct
import threading
import time

import pytest
from nbd_fake import (
    ALL,
    ERROR,
    INFO,
    META,
    STATUS,
    FakeServer,
    Gone,
    Peer,
    Request,
    disk_of,
    pattern,
)

from pykvm.devices.block import BlockError
from pykvm.devices.block import request as block
from pykvm.devices.block.nbd import list_exports

SIZE = 1 << 20

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
