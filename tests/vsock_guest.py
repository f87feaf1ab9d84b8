"""The guest's driver of a socket device, and programs of the host that talk to it."""

from __future__ import annotations

import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from share_driver import SharedBench, until

from pykvm.devices import ManualClock
from pykvm.devices.virtio.vsock import RX, TX, VirtioVsock
from pykvm.devices.virtio.vsock_packets import (
    CREDIT_UPDATE,
    HEADER_SIZE,
    HOST_CID,
    REQUEST,
    RESPONSE,
    RW,
    STREAM,
    Header,
    unpack,
)

CID = 3
BUFFER = 4096  # of data in a packet to the guest
PORT = 1024
ROOM = 64 << 10  # what the guest says it has room for


class Guest(SharedBench):
    """A driver that keeps receive buffers there, and counts what it says and hears."""

    def __init__(self, device: VirtioVsock, *, buffers: int = 32, begin: bool = True) -> None:
        self.vsock = device
        self.amount = buffers
        super().__init__(device, sizes=[64, 64, 8], begin=begin)

    def begin(self, features: int | None = None) -> int:
        features = super().begin(features)
        self.heap = 0x10_0000
        self.out = self.take(HEADER_SIZE + (70 << 10))
        self.events = self.take(64)
        self.buffers: dict[int, int] = {}
        for _ in range(self.amount):
            self.supply(self.take(HEADER_SIZE + BUFFER))
        self.transport.kick(RX)
        return features

    def supply(self, place: int) -> None:
        head = self.queues[RX].add([(place, HEADER_SIZE + BUFFER, True)])
        self.buffers[head] = place

    def send(
        self, op: int, guest_port: int, host_port: int, data: bytes = b"", *,
        flags: int = 0, room: int = ROOM, forwarded: int = 0, **other: int,
    ) -> None:  # fmt: skip
        header = Header(
            CID, HOST_CID, guest_port, host_port, len(data), STREAM, op, flags, room, forwarded
        )._replace(**other)
        self.raw(header.pack() + data)

    def raw(self, data: bytes) -> None:
        self.memory.write(self.out, data)
        self.queues[TX].add([(self.out, len(data), False)])
        self.transport.kick(TX)
        self.queues[TX].used()

    def heard(self) -> list[tuple[Header, bytes]]:
        """Packets that came since the last call; their buffers are given back."""
        self.poll()
        found = []
        for head, length in self.queues[RX].used():
            place = self.buffers.pop(head)
            raw = self.memory.read(place, length)
            header = unpack(raw[:HEADER_SIZE])
            assert header.src_cid == HOST_CID
            assert header.dst_cid == CID
            assert header.len == length - HEADER_SIZE
            found.append((header, raw[HEADER_SIZE:]))
            self.supply(place)
        if found:
            self.transport.kick(RX)
        return found

    def poll(self) -> None:
        if self.vsock.io is None:
            while self.vsock.poll():
                pass

    def expect(self, op: int) -> tuple[Header, bytes]:
        """The next packet, which is of this operation."""
        packets: list[tuple[Header, bytes]] = []

        def some() -> bool:
            packets.extend(self.heard())
            return bool(packets)

        until(some)
        assert [header.op for header, _ in packets] == [op]
        return packets[0]

    def silent(self) -> bool:
        return not self.heard()


def guests(folder: pathlib.Path) -> Iterator[Callable[..., Guest]]:
    """Makes guests, and closes them; for a fixture."""
    made: list[Guest] = []

    def build(*, buffers: int = 32, begin: bool = True, **options: object) -> Guest:
        options.setdefault("clock", ManualClock())
        device = VirtioVsock(CID, folder / "v", **options)  # type: ignore[arg-type]
        made.append(Guest(device, buffers=buffers, begin=begin))
        return made[-1]

    yield build
    for guest in made:
        guest.close()
    assert not (folder / "v").exists()


def service(guest: Guest, port: int) -> socket.socket:
    """A server of the host that the guest can reach."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{guest.vsock.host.path}_{port}")
    listener.listen(200)
    listener.settimeout(10)
    return listener


def from_guest(guest: Guest, port: int = PORT, own: int = 5000) -> socket.socket:
    """A connection that the guest made; the host's end of it."""
    with service(guest, port) as listener:
        guest.send(REQUEST, own, port)
        header, _ = guest.expect(RESPONSE)
        assert (header.src_port, header.dst_port) == (port, own)
        assert header.buf_alloc == guest.vsock.buffer
        peer, _ = listener.accept()
        peer.settimeout(10)
    os.unlink(f"{guest.vsock.host.path}_{port}")
    return peer


def client(guest: Guest, text: bytes = b"CONNECT 52\n") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(guest.vsock.host.path)
    sock.sendall(text)
    return sock


def to_guest(guest: Guest) -> tuple[socket.socket, int]:
    """A connection that the host made; its end of it, and its port."""
    sock = client(guest)
    header, _ = guest.expect(REQUEST)
    assert (header.dst_port, header.type) == (52, STREAM)
    port = header.src_port
    guest.send(RESPONSE, 52, port)
    assert sock.recv(100) == b"OK %d\n" % port
    return sock, port


def stuff(guest: Guest) -> int:
    """The guest sends until its credit is used up, to a host that reads nothing; how much."""
    sent, credit = 0, guest.vsock.buffer
    while credit:
        piece = min(credit, 32 << 10)
        guest.send(RW, 5000, PORT, b"s" * piece)
        sent += piece
        credit -= piece
        for header, _ in guest.heard():
            assert header.op == CREDIT_UPDATE
            credit = header.buf_alloc - (sent - header.fwd_cnt)
    return sent
