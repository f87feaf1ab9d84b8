"""Packets of GDB's remote protocol: `$data#checksum` on a byte stream, taken apart and made.

Sources: the GDB manual, appendix E "Remote Protocol" ("Overview", "Packet Acknowledgment",
"Interrupts"). What arrives is hostile: a packet has at most `MAX_PACKET` bytes on the wire, and
whatever is not a packet is skipped without being kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from pykvm.enums import StrEnum
from pykvm.typed import NamedTuple

PACKET_SIZE = 0x8000
"""Bytes of data in a packet, as GDB is told (`PacketSize`): what both sides put in at most."""

MAX_PACKET = 2 * PACKET_SIZE + 4
"""Bytes on the wire: each of the data may be escaped, and there are `$`, `#` and the checksum."""

_START, _ESCAPE = ord("$"), ord("}")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_SPECIAL = frozenset(b"$#}*")


class Kind(StrEnum):
    """What can arrive."""

    PACKET = "packet"
    ACK = "ack"
    NACK = "nack"
    INTERRUPT = "interrupt"
    BAD = "bad"


class Message(NamedTuple):
    """One thing that arrived: `data` of a packet without escapes, or why it is `BAD`."""

    kind: Kind
    data: bytes = b""


_SINGLE = {
    ord("+"): Message(Kind.ACK),
    ord("-"): Message(Kind.NACK),
    0x03: Message(Kind.INTERRUPT),
}


def checksum(data: bytes) -> int:
    """The sum of the bytes modulo 256, as it stands behind `#`."""
    return sum(data) & 0xFF


def escape(data: bytes) -> bytes:
    """Binary data as it may stand in a packet: `}` and the byte XOR 0x20 for special ones."""
    if not _SPECIAL.intersection(data):
        return data
    out = bytearray()
    for byte in data:
        if byte in _SPECIAL:
            out += bytes((_ESCAPE, byte ^ 0x20))
        else:
            out.append(byte)
    return bytes(out)


def unescape(data: bytes) -> bytes:
    """The data that `escape` was given. An escape at the very end stands for nothing."""
    if _ESCAPE not in data:
        return data
    out = bytearray()
    start = 0
    while (at := data.find(b"}", start)) >= 0:
        out += data[start:at]
        if at + 1 < len(data):
            out.append(data[at + 1] ^ 0x20)
        start = at + 2
    return bytes(out + data[start:])


def encode(data: bytes) -> bytes:
    """The packet on the wire for data that is escaped already."""
    return b"$%b#%02x" % (data, checksum(data))


class Decoder:
    """Takes a byte stream apart: `feed()` it pieces of any size, and get messages.

    Keeps at most `MAX_PACKET` bytes. A packet that is longer is dropped up to its `#`, and
    reported as bad once.
    """

    def __init__(self) -> None:
        self._body: bytearray | None = None  # of the packet that has begun
        self._digits: bytes | None = None  # of its checksum, once "#" has come
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that these bytes complete."""
        at = 0
        while at < len(data):
            if self._body is None:
                message = self._outside(data[at])
                at += 1
                if message is not None:
                    yield message
            elif self._digits is None:
                at = self._take_body(self._body, data, at)
            else:
                self._digits += data[at : at + 1]
                at += 1
                if len(self._digits) == 2:
                    yield self._finish(bytes(self._body), self._digits)

    def _outside(self, byte: int) -> Message | None:
        if byte == _START:
            self._body, self._digits, self._too_long = bytearray(), None, False
        return _SINGLE.get(byte)

    def _take_body(self, body: bytearray, data: bytes, at: int) -> int:
        """Takes what belongs to the packet's data from `at` on; returns the place behind it."""
        end = data.find(b"#", at)
        piece = data[at:] if end < 0 else data[at:end]
        start = piece.rfind(b"$")
        if start >= 0:  # begins a new packet: the rest of the old one was lost
            body.clear()
            self._too_long = False
            piece = piece[start + 1 :]
        if len(body) + len(piece) > MAX_PACKET:
            self._too_long = True
            body.clear()
        elif not self._too_long:
            body += piece
        if end < 0:
            return len(data)
        self._digits = b""
        return end + 1

    def _finish(self, body: bytes, digits: bytes) -> Message:
        self._body = None
        if self._too_long:
            return Message(Kind.BAD, b"longer than %d bytes" % MAX_PACKET)
        if not _HEX.issuperset(digits):
            return Message(Kind.BAD, b"its checksum is no number")
        if int(digits, 16) != checksum(body):
            return Message(Kind.BAD, b"its checksum is wrong")
        return Message(Kind.PACKET, unescape(body))
