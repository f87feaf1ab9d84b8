"""A native blk engine and the Python model side by side: the same requests to both, no guest."""

from __future__ import annotations

import itertools
import os
import pathlib
import random
import select
import struct
from dataclasses import dataclass, field

from virtio_rings import DriverQueue, PackedDriverQueue

from pykvm.datapath.blk import BlkEngine, Bounds
from pykvm.datapath.limits import RateLimit
from pykvm.datapath.queue import NativeQueue
from pykvm.devices.block import RawFile
from pykvm.devices.block.backend import NativeFile
from pykvm.devices.virtio import VirtioBlk
from pykvm.devices.virtio.blk_request import (
    DISCARD_SECTORS,
    DISCARD_SEGMENTS,
    REQUEST_LIMIT,
    ZERO_SECTORS,
)
from pykvm.devices.virtio.queue import QueueError, make_queue
from pykvm.memory import GuestMemory

IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
BOUNDS = Bounds(DISCARD_SECTORS, DISCARD_SEGMENTS, ZERO_SECTORS, REQUEST_LIMIT)
MEMORY = 8 << 20
RINGS, RING_BYTES = 0x10000, 0x8000
DATA = 0x100000
SERIAL = b"serial-0123"

Buffers = list[tuple[int, int, bool]]


class EngineHost:
    """An engine with a driver for each of its queues."""

    def __init__(
        self, path: pathlib.Path, *, queues: int = 1, size: int = 64, packed: bool = False,
        in_order: bool = False, event_idx: bool = True, cache: str = "writeback",
        uring: bool = True, limit: RateLimit | None = None, read_only: bool = False,
        file: NativeFile | None = None, disk_size: int | None = None, requests: int = 256,
    ) -> None:  # fmt: skip
        self.disk = RawFile(path, read_only, cache=cache)  # type: ignore[arg-type]
        self.memory = GuestMemory.anonymous([(0, MEMORY)])
        self.queues: list[NativeQueue] = []
        self.drivers: list[DriverQueue | PackedDriverQueue] = []
        self.kicks: list[int] = []
        self.calls: list[int] = []
        self.broken: list[QueueError] = []
        self.failures: list[str] = []
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        native = file or self.disk.native_fd()
        assert native is not None
        self.engine = BlkEngine(
            native, self.disk.size if disk_size is None else disk_size,
            queues=queues, serial=SERIAL, bounds=BOUNDS, read_only=read_only, uring=uring,
            unsafe=cache == "unsafe", limit=limit, requests=requests,
            broken=self._broke, failed=self._failed,
        )  # fmt: skip
        for index in range(queues):
            queue = NativeQueue(index, size)
            queue.memory = self.memory
            base = RINGS + RING_BYTES * index
            kind = PackedDriverQueue if packed else DriverQueue
            driver = kind(self.memory, base, size, event_idx=event_idx, in_order=in_order)
            queue.desc, queue.driver, queue.device = driver.desc, driver.driver, driver.device
            queue.packed, queue.in_order, queue.indirect = packed, in_order, True
            queue.event_idx = event_idx
            queue.check()
            queue.ready = True
            self.queues.append(queue)
            self.drivers.append(driver)
            self.kicks.append(os.eventfd(0, os.EFD_NONBLOCK))
            self.calls.append(os.eventfd(0, os.EFD_NONBLOCK))
            self.engine.set_queue(index, queue, self.kicks[index], (self.calls[index], None, 0))

    def _broke(self, engine: BlkEngine, error: QueueError) -> None:
        self.broken.append(error)
        os.eventfd_write(self.event, 1)

    def _failed(self, message: str) -> None:
        self.failures.append(message)

    def start(self) -> EngineHost:
        self.engine.start()
        return self

    def kick(self, index: int = 0) -> None:
        """As a driver does: only when the device wants it."""
        if self.drivers[index].needs_kick():
            os.eventfd_write(self.kicks[index], 1)

    def collect(self, count: int, index: int = 0) -> list[tuple[int, int]]:
        """Waits for interrupts until `count` requests of a queue are back, or it broke."""
        driver, done = self.drivers[index], []
        while True:
            # used() asks for an interrupt behind what it saw: look until there is no more.
            while found := driver.used():
                done += found
            if len(done) >= count:
                return done
            ready = self._wait(self.calls[index])
            assert ready, f"{len(done)} of {count} requests came back; {self._stuck(index)}"
            if self.event in ready:
                return done + driver.used()
            os.eventfd_read(self.calls[index])

    def _wait(self, call: int) -> list[int]:
        """What is readable. A host whose disk is busy may take long; nothing in flight may not."""
        for _ in range(12):
            if ready := select.select([call, self.event], [], [], 20)[0]:
                return ready
            if not self.engine.in_flight:
                break
        return []

    def _stuck(self, index: int) -> str:
        """Where requests that did not come back may be."""
        driver, flight = self.drivers[index], self.engine.in_flight
        return (
            f"{flight} in flight, {len(driver.chains)} with the device, {len(driver.used())} used "
            f"without an interrupt, {self.queues[index].state()}"
        )

    def request(
        self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0, *, at: int = DATA,
        index: int = 0,
    ) -> tuple[int, bytes]:  # fmt: skip
        """One request, its status and what was read."""
        self.memory.write(at, struct.pack("<IIQ", kind, 0, sector))
        buffers: Buffers = [(at, 16, False)]
        if out:
            self.memory.write(at + 512, out)
            buffers.append((at + 512, len(out), False))
        if room:
            buffers.append((at + 512, room, True))
        buffers.append((at + 16, 1, True))
        self.memory.write_u8(at + 16, 0xEE)
        self.drivers[index].add(buffers)
        self.kick(index)
        self.collect(1, index)
        return self.memory.read_u8(at + 16), self.memory.read(at + 512, room)

    def close(self) -> None:
        self.engine.stop()
        self.disk.close()
        for fd in (*self.kicks, *self.calls, self.event):
            os.close(fd)
        for queue in self.queues:
            queue.close()
        self.memory.close()


class _Quiet:
    """A transport that interrupts nobody."""

    def queue_interrupt(self, index: int) -> None: ...
    def config_interrupt(self) -> None: ...
    def kick(self, index: int) -> None: ...


class ModelHost:
    """The Python model over the same kind of file."""

    def __init__(
        self, path: pathlib.Path, *, size: int = 64, packed: bool = False, in_order: bool = False,
        read_only: bool = False, native_queue: bool = False,
    ) -> None:  # fmt: skip
        self.memory = GuestMemory.anonymous([(0, MEMORY)])
        self.device = VirtioBlk(
            RawFile(path, read_only), SERIAL.decode(), queue_size=size, engine="python"
        )
        self.device.queues = [make_queue(0, size, native_queue)]
        self.device.attach(_Quiet(), self.memory)  # type: ignore[arg-type]
        self.device.driver_features = self.device.features
        queue = self.device.queues[0]
        kind = PackedDriverQueue if packed else DriverQueue
        self.driver = kind(self.memory, RINGS, size, event_idx=True, in_order=in_order)
        queue.desc, queue.driver, queue.device = (
            self.driver.desc, self.driver.driver, self.driver.device,
        )  # fmt: skip
        queue.packed, queue.in_order = packed, in_order
        queue.indirect = queue.event_idx = True
        queue.check()
        queue.ready = True
        self.device.status = 0x0F

    def run(self) -> list[tuple[int, int]]:
        """Handles what is there."""
        self.device.kick(0)
        return self.driver.used()

    def close(self) -> None:
        self.device.close()
        for queue in self.device.queues:
            queue.close()
        self.memory.close()


@dataclass
class Plan:
    """What to put in memory, and the chains: (buffers, indirect table or 0)."""

    memory: list[tuple[int, bytes]] = field(default_factory=list)
    chains: list[tuple[Buffers, int]] = field(default_factory=list)


def pieces(random_: random.Random, at: int, length: int, writable: bool) -> Buffers:
    """`length` bytes at `at`, cut anywhere or nowhere."""
    cuts = sorted(random_.sample(range(1, length), min(random_.choice([0, 0, 1, 3]), length - 1)))
    edges = [0, *cuts, length]
    return [(at + low, high - low, writable) for low, high in itertools.pairwise(edges)]


def plan_batch(random_: random.Random, sectors: int, count: int, hostile: bool) -> Plan:
    """`count` requests that do not touch each other's sectors, so that order does not matter."""
    plan = Plan()
    share = sectors // count
    for n in range(count):
        base = DATA + n * 0x20000 + random_.choice([0, 0, 0, 1, 3, 512])
        low = n * share
        kind = random_.choice([IN, IN, IN, OUT, OUT, OUT, FLUSH, GET_ID, DISCARD, ZEROES])
        length = 512 * random_.randint(1, max(1, share // 2))
        sector = low + random_.randint(0, share - length // 512)
        body, room = b"", 0
        if kind == IN:
            room = length
        elif kind == OUT:
            body = random_.randbytes(length)
        elif kind == GET_ID:
            room = random_.choice([20, 20, 1, 64])
        elif kind in (DISCARD, ZEROES):
            flags = random_.choice([0, 1]) if kind == ZEROES else 0
            body = struct.pack("<QII", sector, length // 512, flags)
        if hostile and random_.random() < 0.5:
            which = random_.randrange(9)
            if which == 0:
                kind = random_.randrange(32)
            elif which == 1:
                sector = random_.choice([sectors, sectors - 1, 1 << 55, (1 << 64) - 1, sectors + 9])
            elif which == 2 and room > 1:
                room -= random_.randint(1, min(room - 1, 511))
            elif which == 3 and body:
                body = body[: random_.randint(0, len(body))]
            elif which == 4:
                body, room = b"", 0
            elif which == 5:
                room += random_.choice([0, 1, 512])
            elif which == 6 and kind in (DISCARD, ZEROES):
                # Only what nobody else's sectors can see.
                body = struct.pack("<QII", low, 1, random_.choice([0, 1, 2, 1 << 31])) * (
                    random_.choice([1, 2, 16, 17])
                )
            elif which == 7 and kind in (DISCARD, ZEROES):
                body = struct.pack("<QII", sectors - 1, random_.choice([2, 1 << 31]), 0)
        header = struct.pack("<IIQ", kind & 0xFFFF_FFFF, random_.getrandbits(32), sector)
        if hostile and random_.random() < 0.05:
            header, body = header[: random_.randint(1, 15)], b""
        # OUT outside its own share would race with others: only whole refusals go there.
        out = header + body
        plan.memory.append((base, out))
        if room:
            plan.memory.append((base + 0x10000, b"\xcc" * room))
        plan.memory.append((base + 0x1E000, b"\xee"))
        buffers = pieces(random_, base, len(out), False)
        if room:
            buffers += pieces(random_, base + 0x10000, room, True)
        if not (hostile and room and random_.random() < 0.05):  # else: the status is its last byte
            buffers.append((base + 0x1E000, 1, True))
        table = base + 0x1E800 & ~15 if random_.random() < 0.5 else 0
        plan.chains.append((buffers, table))
    return plan
