"""A 9P2000.L client over the rings of `VirtioP9`, as far as the tests need one."""

from __future__ import annotations

import errno
import struct

from share_driver import SharedBench, until

from pykvm.devices.virtio.p9 import VirtioP9

MSIZE = 8192
NOFID = 0xFFFF_FFFF
LERROR, LOPEN, LCREATE, SYMLINK, GETATTR, READDIR, MKNOD = 6, 12, 14, 16, 24, 40, 18
VERSION, ATTACH, FLUSH, WALK, READ, WRITE, CLUNK = 100, 104, 108, 110, 116, 118, 120
RENAME = 20
U32 = struct.Struct("<I")
NO_NUMBER = U32.pack(0xFFFF_FFFF)


class P9Error(OSError):
    """Rlerror."""


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<H", len(raw)) + raw


class P9Client(SharedBench):
    """Sends T messages; `call` waits for the reply."""

    def __init__(self, device: VirtioP9) -> None:
        self.p9 = device
        super().__init__(device, sizes=[128])
        self.replies: dict[int, bytes] = {}  # by head
        self.places: dict[int, int] = {}
        self.next_fid = 1

    def send(self, kind: int, body: bytes = b"", tag: int = 1, room: int = MSIZE) -> int:
        """The head of the request, not kicked."""
        return self.send_raw(struct.pack("<IBH", 7 + len(body), kind, tag) + body, room)

    def send_raw(self, message: bytes, room: int = MSIZE) -> int:
        at = self.take(len(message))
        self.memory.write(at, message)
        place = self.take(room)
        head = self.queues[0].add([(at, len(message), False), (place, room, True)])
        self.places[head] = place
        return head

    def poll(self) -> bool:
        if self.p9.io is None:
            self.p9.poll(0.2)
        for head, length in self.queues[0].used():
            self.replies[head] = self.memory.read(self.places.pop(head), length)
        return False

    def reply(self, head: int) -> tuple[int, int, bytes]:
        """(type, tag, body) of the reply."""
        until(lambda: head in self.replies, self.poll)
        raw = self.replies.pop(head)
        if not self.places:
            self.heap = 0x10_0000
        if not raw:
            return 0, 0, b""
        size, kind, tag = struct.unpack_from("<IBH", raw)
        assert size == len(raw)
        return kind, tag, raw[7:]

    def call(self, kind: int, body: bytes = b"", tag: int = 1, room: int = MSIZE) -> bytes:
        head = self.send(kind, body, tag, room)
        self.transport.kick(0)
        got, got_tag, answer = self.reply(head)
        assert got_tag == tag
        if got == LERROR + 1:
            number = U32.unpack(answer)[0]
            raise P9Error(number, errno.errorcode.get(number, "?"))
        assert got == kind + 1
        return answer

    def mount(self, aname: str = "") -> None:
        """Version and attach, as Linux does; fid 0 is the root."""
        answer = self.call(VERSION, U32.pack(MSIZE) + text("9P2000.L"), 0xFFFF)
        assert answer[4:] == text("9P2000.L")
        self.call(ATTACH, struct.pack("<II", 0, NOFID) + text("nobody") + text(aname) + NO_NUMBER)

    def walk(self, *names: str, fid: int = 0) -> int:
        new = self.next_fid
        self.next_fid += 1
        parts = b"".join(text(name) for name in names)
        answer = self.call(WALK, struct.pack("<IIH", fid, new, len(names)) + parts)
        if int.from_bytes(answer[:2], "little") < len(names):
            raise P9Error(errno.ENOENT, "walked a part")
        return new

    def open(self, *names: str, flags: int = 0) -> int:
        fid = self.walk(*names)
        self.call(LOPEN, struct.pack("<II", fid, flags))
        return fid

    def create(self, name: str) -> int:
        fid = self.walk()
        self.call(LCREATE, U32.pack(fid) + text(name) + struct.pack("<III", 0o102, 0o644, 0))
        return fid

    def read(self, fid: int, offset: int = 0, count: int = MSIZE - 24) -> bytes:
        answer = self.call(READ, struct.pack("<IQI", fid, offset, count))
        assert U32.unpack(answer[:4])[0] == len(answer) - 4
        return answer[4:]

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        answer = self.call(WRITE, struct.pack("<IQI", fid, offset, len(data)) + data)
        return int(U32.unpack(answer)[0])

    def names(self, fid: int) -> list[str]:
        """The entries of an open directory."""
        answer = self.call(READDIR, struct.pack("<IQI", fid, 0, 4000))
        data, at, found = answer[4:], 0, []
        while at < len(data):
            length = int.from_bytes(data[at + 22 : at + 24], "little")
            found.append(data[at + 24 : at + 24 + length].decode())
            at += 24 + length
        return found
