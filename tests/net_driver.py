"""A driver of a network device, without a guest: rings in guest memory, frames in and out."""

from __future__ import annotations

import struct
from collections.abc import Callable

from virtio_driver import DONE, DriverQueue, Transport, start

from pykvm.memory import GuestMemory

HEADER = struct.Struct("<BBHHHHH")
BUFFER = 2048
MAC_A, MAC_B = b"\x02\x00\x00\x00\x00\x0a", b"\x02\x00\x00\x00\x00\x0b"
BROADCAST = b"\xff" * 6
MRG_RXBUF, MQ = 1 << 15, 1 << 22


def ethernet(
    payload: bytes = b"", target: bytes = BROADCAST, source: bytes = MAC_A, kind: int = 0x88B5
) -> bytes:
    """A frame; kind 0x88b5 is for experiments."""
    return (target + source + kind.to_bytes(2, "big") + payload).ljust(60, b"\0")


class NetDriver:
    """Started with `features` (all that are offered, if None). Takes 0x30000 bytes a pair."""

    def __init__(
        self, transport: Transport, memory: GuestMemory, base: int = 0x10000, *,
        features: int | None = None, pairs: int = 1, size: int = 16, fill: bool = True,
    ) -> None:  # fmt: skip
        self.transport, self.memory, self.size = transport, memory, size
        self.features = start(transport, features)
        self.header = 12
        self.base, self.pairs = base, pairs
        self.max_pairs = transport.config(8, 2)
        self.rx: list[DriverQueue] = []
        self.tx: list[DriverQueue] = []
        for pair in range(pairs):
            for queues, index in ((self.rx, 2 * pair), (self.tx, 2 * pair + 1)):
                queues.append(self._queue(index, base + 0x1000 * index, size))
        self.control_index = 2 * self.max_pairs if self.features & MQ else 2
        self.control = self._queue(self.control_index, base + 0x1000 * 2 * pairs, 16)
        self.data = base + 0x1000 * (2 * pairs + 1)
        transport.set_status(DONE)
        assert transport.status() == DONE
        self.at: list[dict[int, tuple[int, int]]] = [{} for _ in range(pairs)]
        if fill:
            for pair in range(pairs):
                for slot in range(size):
                    self.give(pair, self.place(pair, slot))
                self.refill(pair)

    def wait(self, done: Callable[[], object]) -> None:
        """For what the device does in a thread of its own; here it has none."""
        assert done()

    def _queue(self, index: int, place: int, size: int) -> DriverQueue:
        queue = DriverQueue(self.memory, place, size)
        self.transport.set_queue(index, size, queue.desc, queue.driver, queue.device)
        return queue

    def place(self, pair: int, slot: int) -> int:
        """Guest-physical address of a receive buffer."""
        return self.data + 0x20000 * pair + slot * BUFFER

    def give(self, pair: int = 0, address: int | None = None, length: int = BUFFER) -> None:
        """One receive buffer for the device."""
        address = self.place(pair, 0) if address is None else address
        head = self.rx[pair].add([(address, length, True)])
        self.at[pair][head] = address, length

    def refill(self, pair: int = 0) -> None:
        self.transport.kick(2 * pair)

    def receive(self, pair: int = 0, *, again: bool = True) -> list[tuple[tuple[int, ...], bytes]]:
        """(header, frame) of what arrived; the buffers go back."""
        found, pieces, left = [], b"", 0
        head: tuple[int, ...] = ()
        done = [(self.at[pair].pop(index), written) for index, written in self.rx[pair].used()]
        for (address, length), written in done:
            if written:
                data = self.memory.read(address, written)
                if not left:
                    head = HEADER.unpack_from(data)
                    left = head[6]
                    data = data[self.header :]
                pieces += data
                left -= 1
                if not left:
                    found.append((head, pieces))
                    pieces = b""
            if again:
                self.give(pair, address, length)
        assert not left, "a part of a frame is missing"
        return found

    def send(
        self, frame: bytes, header: bytes = bytes(12), pair: int = 0, *, pieces: int = 1,
        kick: bool = True,
    ) -> None:  # fmt: skip
        """Frames of up to 64 KiB, one after another from one place."""
        data = header + frame
        place = self.data + 0x20000 * pair + 0xC000
        self.memory.write(place, data)
        step = -(-len(data) // pieces)
        self.tx[pair].add(
            [(place + at, min(step, len(data) - at), False) for at in range(0, len(data), step)]
        )
        if kick:
            self.transport.kick(2 * pair + 1)

    def sent(self, pair: int = 0) -> int:
        """How many frames the device has taken since the last call."""
        return len(self.tx[pair].used())

    def command(self, kind: int, command: int, body: bytes = b"", *, pieces: int = 1) -> int:
        """A command; the status."""
        place = self.data - 0x400
        data = bytes([kind, command]) + body
        self.memory.write(place, data[:0x3F0])
        self.memory.write_u8(place + 0x3FF, 0xAA)
        step = -(-len(data) // pieces)
        buffers = [(place + n, min(step, len(data) - n), False) for n in range(0, len(data), step)]
        self.control.add([*buffers, (place + 0x3FF, 1, True)])
        self.transport.kick(self.control_index)
        done: list[tuple[int, int]] = []
        self.wait(lambda: done.extend(self.control.used()) or done)
        assert len(done) == 1
        return self.memory.read_u8(place + 0x3FF)
