"""The vhost-user front end: with a back end that is the test, and with virtiofsd."""

from __future__ import annotations

import errno
import mmap
import os
import pathlib
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

import pytest
from debian_tools import need, need_file
from share_driver import SharedBench, until
from virtio_driver import NEEDS_RESET

from pykvm.devices.vhost import messages as m
from pykvm.devices.vhost.backend import Backend, BackendError
from pykvm.devices.virtio.fs import VirtioFs
from pykvm.devices.virtio.vhost_user import VhostUserDevice

FEATURES = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 34
PROTOCOL = m.PROTOCOL_MQ | m.PROTOCOL_REPLY_ACK | m.PROTOCOL_CONFIG | 1 << 5


class FakeBackend:
    """A back end in a thread: keeps what it was told, answers as its fields say."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.told: list[tuple[int, bytes]] = []
        self.fds: dict[int, list[int]] = {}
        self.features, self.protocol, self.queues = FEATURES, PROTOCOL, 4
        self.config = bytes(range(60))
        self.base = 5
        self.mute: set[int] = set()
        self.answers: dict[int, bytes] = {}  # raw messages instead of the right ones
        self.refuse: set[int] = set()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                head, fds, _, _ = socket.recv_fds(self.theirs, 12, 8)
            except OSError:
                return
            if len(head) < 12:
                return
            request, flags, size = m.HEADER.unpack(head)
            payload = self.theirs.recv(size, socket.MSG_WAITALL) if size else b""
            if fds:
                self.fds.setdefault(request, []).extend(fds)
            self.told.append((request, payload))
            if request in self.mute:
                continue
            answer = self.answers.get(request, self.answer(request, flags, payload))
            try:
                self.theirs.sendall(answer)
            except OSError:
                return

    def answer(self, request: int, flags: int, payload: bytes) -> bytes:
        u64 = m.U64.pack
        replies = {
            m.GET_FEATURES: u64(self.features),
            m.GET_PROTOCOL_FEATURES: u64(self.protocol),
            m.GET_QUEUE_NUM: u64(self.queues),
            m.GET_CONFIG: payload[:12] + self.config,
            m.GET_VRING_BASE: payload[:4] + struct.pack("<I", self.base),
        }
        body = replies.get(request)
        if body is None:
            if not flags & m.NEED_REPLY:
                return b""
            body = u64(1 if request in self.refuse else 0)
        return m.HEADER.pack(request, m.VERSION | m.REPLY, len(body)) + body

    def connect(self) -> socket.socket:
        return self.ours

    def all(self, request: int) -> list[bytes]:
        return [payload for number, payload in self.told if number == request]

    def close(self) -> None:
        self.theirs.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.theirs.close()
        self.ours.close()
        for fds in self.fds.values():
            for fd in fds:
                os.close(fd)


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    backend = FakeBackend()
    yield backend
    backend.close()


def device_of(fake: FakeBackend, **options: object) -> VhostUserDevice:
    return VhostUserDevice(fake.connect, "blk", timeout=2, **options)  # type: ignore[arg-type]


def test_the_whole_conversation(fake: FakeBackend) -> None:
    bench = SharedBench(device_of(fake))
    assert bench.transport.config(0, 4) == 0x03020100
    assert not bench.device.features & (1 << 34 | 1 << 30)
    order = [request for request, _ in fake.told]
    assert order == [
        m.GET_FEATURES, m.GET_PROTOCOL_FEATURES, m.SET_PROTOCOL_FEATURES, m.GET_QUEUE_NUM,
        m.SET_OWNER, m.GET_CONFIG, m.SET_FEATURES, m.SET_MEM_TABLE, m.SET_VRING_NUM,
        m.SET_VRING_BASE, m.SET_VRING_ADDR, m.SET_VRING_CALL, m.SET_VRING_KICK,
        m.SET_VRING_ENABLE,
    ]  # fmt: skip
    assert fake.all(m.SET_PROTOCOL_FEATURES) == [m.U64.pack(PROTOCOL & ~(1 << 5))]
    ring = bench.queues[0]
    address = m.VRING_ADDRESS.unpack(fake.all(m.SET_VRING_ADDR)[0])
    assert address == (0, 0, ring.desc, ring.device, ring.driver, 0)

    # Its file is the guest's memory, the eventfds are the kick and the interrupt.
    table = struct.unpack("<II4Q", fake.all(m.SET_MEM_TABLE)[0])
    assert table == (1, 0, 0, bench.memory.size, 0, 0)
    bench.memory.write(0x12345, b"seen from there")
    with mmap.mmap(fake.fds[m.SET_MEM_TABLE][0], bench.memory.size) as seen:
        assert seen[0x12345 : 0x12345 + 15] == b"seen from there"
    bench.transport.kick(0)
    assert os.eventfd_read(fake.fds[m.SET_VRING_KICK][0]) == 1
    os.eventfd_write(fake.fds[m.SET_VRING_CALL][0], 1)
    until(lambda: bench.irq.level)
    assert bench.transport.acknowledge() == 1

    # A save stops the ring, keeps its place, and starts it again from there.
    bench.memory.write_u16(ring.device + 2, 4)
    saved = bench.outer.save()
    queue = bench.device.queues[0]
    assert (queue.next_avail, queue.next_used) == (5, 4)
    assert fake.all(m.SET_VRING_BASE) == [struct.pack("<II", 0, n) for n in (0, 5)]
    bench.outer.load(saved)
    assert fake.all(m.SET_VRING_BASE)[-1] == struct.pack("<II", 0, 5)
    bench.transport.set_status(0)
    assert [number for number, _ in fake.told][-1] == m.GET_VRING_BASE
    bench.close()


def test_a_back_end_that_dies(fake: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    bench = SharedBench(device_of(fake))
    fake.theirs.shutdown(socket.SHUT_RDWR)
    until(lambda: bench.transport.status() & NEEDS_RESET)
    until(lambda: "closed the connection" in caplog.text)
    until(lambda: bench.irq.level)  # the driver is told
    bench.outer.save()
    bench.close()


def test_a_new_back_end_after_the_drivers_reset(fake: FakeBackend) -> None:
    backends = [fake, FakeBackend()]
    device = VhostUserDevice(lambda: backends.pop(0).connect(), "blk", timeout=2)
    second = backends[-1]
    bench = SharedBench(device)
    fake.theirs.shutdown(socket.SHUT_RDWR)
    until(lambda: bench.transport.status() & NEEDS_RESET)
    bench.begin()
    assert not bench.transport.status() & NEEDS_RESET
    assert second.all(m.SET_VRING_ENABLE) == [struct.pack("<II", 0, 1)]
    bench.close()
    second.close()


@pytest.mark.parametrize(
    "request_", [m.GET_FEATURES, m.GET_PROTOCOL_FEATURES, m.GET_QUEUE_NUM, m.GET_CONFIG]
)
@pytest.mark.parametrize(
    "answer",
    [b"", m.HEADER.pack(1, 1, 8) + bytes(8), m.HEADER.pack(99, 5, 8) + bytes(8),
     m.HEADER.pack(0, 5, 0xFFFF_FFFF), m.HEADER.pack(0, 6, 8) + bytes(8)],
    ids=["silence", "no reply flag", "other message", "4 GiB", "version 2"],
)  # fmt: skip
def test_wrong_answers_are_said_and_end_it(fake: FakeBackend, request_: int, answer: bytes) -> None:
    if answer:
        number = 99 if answer[0] == 99 else request_
        fake.answers[request_] = struct.pack("<I", number) + answer[4:]
    else:
        fake.mute.add(request_)
    with pytest.raises(BackendError, match=m.NAMES[request_]):
        VhostUserDevice(fake.connect, "blk", timeout=0.1)


@pytest.mark.parametrize(
    "request_", [m.SET_FEATURES, m.SET_MEM_TABLE, m.SET_VRING_ADDR, m.SET_VRING_ENABLE]
)
@pytest.mark.parametrize("how", ["refuse", "mute"])
def test_trouble_at_the_start_needs_a_reset(
    fake: FakeBackend, request_: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    getattr(fake, how).add(request_)
    bench = SharedBench(VhostUserDevice(fake.connect, "blk", timeout=0.1))
    assert bench.transport.status() & NEEDS_RESET
    assert m.NAMES[request_] in caplog.text
    bench.close()


def test_a_ring_that_does_not_stop(fake: FakeBackend) -> None:
    bench = SharedBench(VhostUserDevice(fake.connect, "blk", timeout=0.1))
    fake.mute.add(m.GET_VRING_BASE)
    bench.outer.save()
    assert bench.transport.status() & NEEDS_RESET
    bench.close()


def test_back_ends_that_do_not_do(fake: FakeBackend, tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match="start it first"):
        VhostUserDevice(str(tmp_path / "nobody"), "blk")
    with pytest.raises(ValueError, match="no device"):
        VhostUserDevice(fake.connect, "toaster")
    with pytest.raises(BackendError, match="4 queues, not 5"):
        device_of(fake, queues=5)
    other = FakeBackend()
    other.features = 1 << 30
    with pytest.raises(BackendError, match="not virtio 1"):
        device_of(other)
    other.close()


def test_too_many_pieces_of_memory(fake: FakeBackend) -> None:
    backend = Backend(fake.connect(), "it", 1.0)
    with pytest.raises(BackendError, match="9 shared pieces"):
        backend.set_memory([m.Region(n << 20, 4096, 0, 0) for n in range(9)])


def test_a_disk_that_qemu_storage_daemon_runs(tmp_path: pathlib.Path) -> None:
    program = need("qemu-storage-daemon", package="qemu-system-common")
    image, path = tmp_path / "disk", tmp_path / "sock"
    contents = os.urandom(1 << 20)
    image.write_bytes(contents)
    export = f"vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path={path}"
    daemon = subprocess.Popen(
        [program, "--blockdev", f"file,node-name=f,filename={image}", "--export", export]
    )
    try:
        until(path.exists)
        bench = SharedBench(VhostUserDevice(str(path), "blk"))
        head, data, status = bench.take(16), bench.take(512), bench.take(1)

        def request(kind: int, sector: int) -> bytes:
            bench.memory.write(head, struct.pack("<IIQ", kind, 0, sector))
            ring = bench.queues[0]
            ring.add([(head, 16, False), (data, 512, kind == 0), (status, 1, True)])
            bench.transport.kick(0)
            until(lambda: ring.used() or bench.transport.status() & NEEDS_RESET)
            assert bench.memory.read_u8(status) == 0
            return bench.memory.read(data, 512)

        assert bench.transport.config(0, 4) == len(contents) // 512
        assert request(0, 3) == contents[3 * 512 : 4 * 512]
        bench.memory.write(data, b"W" * 512)
        request(1, 5)
        assert image.read_bytes()[5 * 512 : 6 * 512] == b"W" * 512
        bench.outer.load(bench.outer.save())
        assert request(0, 5) == b"W" * 512
        bench.begin()
        assert request(0, 4) == contents[4 * 512 : 5 * 512]
        bench.close()
    finally:
        daemon.terminate()
        daemon.wait(10)


# -- virtiofsd -------------------------------------------------------------------------------------

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, WRITE, RELEASE, INIT, CREATE = (
    1, 2, 3, 5, 14, 15, 16, 18, 26, 35,
)  # fmt: skip
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")


class FuseError(OSError):
    pass


class Fuse(SharedBench):
    """FUSE requests over the request queue."""

    def __init__(self, device: VirtioFs) -> None:
        super().__init__(device)
        self.unique = 0

    def call(self, op: int, node: int, body: bytes = b"", room: int = 4096) -> bytes:
        self.unique += 2
        message = _IN.pack(_IN.size + len(body), op, self.unique, node, 0, 0, 1, 0, 0) + body
        at, place = self.take(len(message)), self.take(room + _OUT.size)
        self.memory.write(at, message)
        self.queues[1].add([(at, len(message), False), (place, room + _OUT.size, True)])
        self.transport.kick(1)
        done: list[tuple[int, int]] = []

        def came() -> bool:
            done.extend(self.queues[1].used())
            return bool(done) or bool(self.transport.status() & NEEDS_RESET)

        until(came)
        assert not self.transport.status() & NEEDS_RESET
        size, error, unique = _OUT.unpack(self.memory.read(place, _OUT.size))
        assert (unique, size) == (self.unique, done[0][1])
        if error:
            raise FuseError(-error, errno.errorcode.get(-error, "?"))
        return self.memory.read(place + _OUT.size, size - _OUT.size)

    def init(self) -> None:
        answer = self.call(INIT, 0, struct.pack("<IIII", 7, 31, 1 << 17, 0))
        assert struct.unpack_from("<I", answer)[0] == 7

    def lookup(self, name: str, parent: int = 1) -> int:
        return int(struct.unpack_from("<Q", self.call(LOOKUP, parent, name.encode() + b"\0"))[0])

    def open(self, node: int, flags: int = 0) -> int:
        return int(struct.unpack_from("<Q", self.call(OPEN, node, struct.pack("<II", flags, 0)))[0])

    def read(self, node: int, handle: int) -> bytes:
        return self.call(READ, node, struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0), 4096)

    def create(self, name: str) -> tuple[int, int]:
        body = struct.pack("<IIII", os.O_RDWR | os.O_CREAT, 0o644, 0, 0) + name.encode() + b"\0"
        answer = self.call(CREATE, 1, body)
        return struct.unpack_from("<Q", answer)[0], struct.unpack_from("<Q", answer, 128)[0]

    def write(self, node: int, handle: int, data: bytes) -> int:
        body = struct.pack("<QQIIQII", handle, 0, len(data), 0, 0, 0, 0) + data
        return int(struct.unpack_from("<I", self.call(WRITE, node, body))[0])


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    need_file("/usr/lib/qemu/virtiofsd", package="qemu-system-common")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "file").write_bytes(b"from the host")
    (tmp_path / "secret").write_bytes(b"not for guests")
    (folder / "out").symlink_to(tmp_path)
    return folder


@pytest.fixture
def fuse(folder: pathlib.Path) -> Iterator[Fuse]:
    fuse = Fuse(VirtioFs(folder, "tag"))
    fuse.init()
    yield fuse
    fuse.close()


def test_files_both_ways_through_virtiofsd(fuse: Fuse, folder: pathlib.Path) -> None:
    assert bytes(fuse.transport.config(at, 1) for at in range(4)) == b"tag\0"
    assert fuse.transport.config(36, 4) == 1
    node = fuse.lookup("file")
    assert fuse.read(node, fuse.open(node)) == b"from the host"
    node, handle = fuse.create("new")
    assert fuse.write(node, handle, b"from the guest") == 14
    assert (folder / "new").read_bytes() == b"from the guest"
    with pytest.raises(FuseError, match="ENOENT"):
        fuse.lookup("nothing")


@pytest.mark.parametrize("name", ["..", ".", "../secret", "out/secret", "/etc/passwd", "sub/.."])
def test_no_name_leads_out_of_the_folder(fuse: Fuse, name: str) -> None:
    try:
        node = fuse.lookup(name)
    except FuseError:
        return
    assert name in (".", "..")  # the folder itself, both
    fuse.lookup("file", node)
    for above in ("secret", "shared"):
        with pytest.raises(FuseError, match="ENOENT"):
            fuse.lookup(above, node)


def test_a_link_is_not_followed(fuse: Fuse) -> None:
    node = fuse.lookup("out")
    with pytest.raises(FuseError):
        fuse.lookup("secret", node)
    with pytest.raises(FuseError):
        fuse.open(node)


def test_a_readonly_folder(folder: pathlib.Path) -> None:
    fuse = Fuse(VirtioFs(folder, readonly=True))
    fuse.init()
    node = fuse.lookup("file")
    assert fuse.read(node, fuse.open(node)) == b"from the host"
    with pytest.raises(FuseError, match="EROFS"):
        fuse.create("new")
    with pytest.raises(FuseError, match="EROFS"):
        fuse.open(node, os.O_RDWR)
    (folder / "still-ours").touch()
    fuse.close()


def test_a_reset_gives_a_new_server_and_none_is_left(fuse: Fuse) -> None:
    device = fuse.device
    assert isinstance(device, VirtioFs)
    first = device.server._child
    assert first is not None
    fuse.begin()
    second = device.server._child
    assert second is not None
    assert not first.running
    assert second.running
    fuse.init()
    fuse.lookup("file")
    fuse.outer.save()
    fuse.lookup("file")  # a save only stops the rings for a moment
    fuse.outer.load(fuse.outer.save())
    with pytest.raises(FuseError):  # what the server knew was not part of the state
        fuse.lookup("file")
    fuse.init()
    fuse.lookup("file")
    fuse.outer.close()
    assert not second.running
    assert device.server._child is None


def test_a_server_that_is_killed(fuse: Fuse, caplog: pytest.LogCaptureFixture) -> None:
    device = fuse.device
    assert isinstance(device, VirtioFs)
    assert device.server._child is not None
    device.server._child.process.kill()
    until(lambda: fuse.transport.status() & NEEDS_RESET)
    assert "needs a reset" in caplog.text
    fuse.begin()
    fuse.init()
    fuse.lookup("file")


@pytest.mark.parametrize("tag", ["", "x" * 37, "a\0b"])
def test_tags_that_cannot_be(folder: pathlib.Path, tag: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        VirtioFs(folder, tag)
