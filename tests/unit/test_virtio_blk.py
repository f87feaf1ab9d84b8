"""The block device by a driver without a guest, on both transports."""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable, Sequence

import pytest
from pci_probe import Board
from virtio_driver import (
    DONE,
    EVENT_IDX,
    NEEDS_RESET,
    RING_INDIRECT,
    VERSION_1,
    BlkDriver,
    DriverQueue,
    MmioTransport,
    PciTransport,
    Transport,
    start,
)

from pykvm.devices import DeviceStateError, RecordingIrqLine
from pykvm.devices.block import BlockError, MemoryDisk
from pykvm.devices.pci import Window, assign_bars
from pykvm.devices.virtio import VirtioBlk, VirtioDevice, VirtioMmio, VirtioPci

IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
F_RO, F_FLUSH = 1 << 5, 1 << 9
MMIO_BASE = 0xFEB0_0000
RINGS = 0x10000


def contents(sectors: int) -> bytes:
    return b"".join(struct.pack("<I", n) * 128 for n in range(sectors))


class Bench:
    """A device on a board, by either transport."""

    def __init__(self, kind: str, device: VirtioDevice) -> None:
        self.kind, self.device = kind, device
        self.board = Board()
        self.memory = self.board.memory
        self.irq = RecordingIrqLine()
        self.outer: VirtioMmio | VirtioPci
        if kind == "mmio":
            self.outer = VirtioMmio(device, self.memory, self.irq)
            self.board.mmio.add_device(self.outer, MMIO_BASE, VirtioMmio.LENGTH)
        else:
            self.outer = VirtioPci(device, self.memory)
            self.board.bus.add(3, 0, self.outer)
            self.irq = self.board.gsi[3]
            assign_bars(self.board.bus, Window(0xC000, 0x1000), [Window(0xC000_0000, 1 << 24)])

    def transport(self) -> Transport:
        if self.kind == "mmio":
            return MmioTransport(self.board.mmio, MMIO_BASE)
        return PciTransport(self.board.ports, 3, self.board.mmio)


@pytest.fixture(params=["mmio", "pci"])
def bench(request: pytest.FixtureRequest) -> Callable[..., Bench]:
    def make(disk: MemoryDisk | None = None, **options: object) -> Bench:
        disk = disk or MemoryDisk(contents(64))
        return Bench(request.param, VirtioBlk(disk, **options))  # type: ignore[arg-type]

    return make


def driver(bench: Bench, **options: int) -> BlkDriver:
    return BlkDriver(bench.transport(), bench.memory, RINGS, **options)


def disk_of(bench: Bench) -> MemoryDisk:
    assert isinstance(bench.device, VirtioBlk)
    assert isinstance(bench.device.backend, MemoryDisk)
    return bench.device.backend


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("pieces", [1, 3, 8])
def test_reading_and_writing(bench: Callable[..., Bench], pieces: int, indirect: bool) -> None:
    one = bench()
    blk = driver(one)
    assert blk.request(IN, 3, room=1024, pieces=pieces, indirect=indirect) == (
        OK, contents(64)[3 * 512 : 5 * 512], 1025,
    )  # fmt: skip
    data = bytes(range(256)) * 6
    assert blk.request(OUT, 61, data, pieces=pieces, indirect=indirect) == (OK, b"", 1)
    assert disk_of(one).data == contents(64)[: 61 * 512] + data
    assert blk.request(FLUSH)[0] == OK
    assert disk_of(one).flushes == 1


def test_configuration(bench: Callable[..., Bench]) -> None:
    one = bench(block_size=4096)
    assert one.transport().queue_max(0) == 256
    assert one.transport().queue_max(1) == 0
    blk = driver(one)
    assert blk.transport.config(0, 4) == 64
    assert blk.transport.config(4, 4) == 0
    assert blk.transport.config(20, 4) == 4096
    assert blk.transport.config(34, 2) == 1
    assert blk.transport.config(60, 4) == 0, "zeros behind the structure"
    assert blk.features & (VERSION_1 | EVENT_IDX | RING_INDIRECT)


def test_the_serial_number(bench: Callable[..., Bench]) -> None:
    blk = driver(bench(serial="disk-0123"))
    assert blk.request(GET_ID, room=20) == (OK, b"disk-0123".ljust(20, b"\0"), 21)
    assert blk.request(GET_ID, room=20, pieces=3)[1] == b"disk-0123".ljust(20, b"\0")
    assert blk.request(GET_ID, room=4) == (OK, b"disk", 5)
    assert blk.request(GET_ID, room=30) == (OK, b"disk-0123".ljust(20, b"\0") + b"\xcc" * 10, 21)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"kind": IN, "sector": 64, "room": 512}, IOERR),
        ({"kind": IN, "sector": 63, "room": 1024}, IOERR),
        ({"kind": IN, "sector": (1 << 64) - 1, "room": 512}, IOERR),
        ({"kind": IN, "sector": 1 << 55, "room": 512}, IOERR),
        ({"kind": IN, "room": 511}, IOERR),
        ({"kind": IN}, IOERR),
        ({"kind": OUT, "out": b"x"}, IOERR),
        ({"kind": OUT, "sector": 64, "out": bytes(512)}, IOERR),
        ({"kind": OUT}, IOERR),
        ({"kind": 99}, UNSUPP),
        ({"kind": 10, "room": 24}, UNSUPP),
        ({"kind": DISCARD}, IOERR),
        ({"kind": DISCARD, "out": struct.pack("<QII", 0, 8, 1)}, UNSUPP),
        ({"kind": DISCARD, "out": struct.pack("<QII", 60, 8, 0)}, IOERR),
        ({"kind": DISCARD, "out": struct.pack("<QII", 0, 1, 0) * 17}, IOERR),
        ({"kind": DISCARD, "out": bytes(15)}, IOERR),
        ({"kind": ZEROES, "out": struct.pack("<QII", 0, 8, 2)}, UNSUPP),
        ({"kind": ZEROES, "out": struct.pack("<QII", 0, 1 << 31, 0)}, IOERR),
        ({"kind": ZEROES, "out": struct.pack("<QII", 0, 1, 0) * 2}, IOERR),
    ],
)
def test_requests_that_make_no_sense(
    bench: Callable[..., Bench], request_: dict[str, object], status: int
) -> None:
    one = bench()
    blk = driver(one)
    result = blk.request(**request_)  # type: ignore[arg-type]
    assert (result[0], result[2]) == (status, 1)
    assert disk_of(one).data == contents(64)
    assert blk.request(IN, room=512)[0] == OK, "the device goes on"


def test_discard_and_zeroes(bench: Callable[..., Bench]) -> None:
    one = bench()
    blk = driver(one)
    assert blk.request(ZEROES, out=struct.pack("<QII", 4, 8, 1))[0] == OK
    assert disk_of(one).data[4 * 512 : 12 * 512] == bytes(8 * 512)
    assert disk_of(one).data[12 * 512 :] == contents(64)[12 * 512 :]
    two_ranges = struct.pack("<QIIQII", 4, 8, 0, 20, 1, 0)
    assert blk.request(DISCARD, out=two_ranges, pieces=5)[0] == OK


def test_a_read_only_disk(bench: Callable[..., Bench]) -> None:
    one = bench(MemoryDisk(contents(8), read_only=True))
    blk = driver(one)
    assert blk.features & F_RO
    assert blk.request(IN, 1, room=512)[:2] == (OK, contents(8)[512:1024])
    assert blk.request(OUT, 1, bytes(512))[0] == IOERR
    assert blk.request(DISCARD, out=struct.pack("<QII", 0, 1, 0))[0] == IOERR


def test_without_the_flush_feature_each_write_is_flushed(bench: Callable[..., Bench]) -> None:
    one = bench()
    blk = driver(one, features=VERSION_1)
    assert blk.request(OUT, 0, bytes(512))[0] == OK
    assert disk_of(one).flushes == 1
    two = bench()
    blk = driver(two, features=VERSION_1 | F_FLUSH)
    assert blk.request(OUT, 0, bytes(512))[0] == OK
    assert disk_of(two).flushes == 0


def test_host_errors_become_a_status(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryDisk):
        def readv(self, offset: int, views: Sequence[memoryview]) -> None:
            raise BlockError("the disk broke", errno.EIO)

    blk = driver(bench(Broken(contents(8))))
    for _ in range(30):
        assert blk.request(IN, room=512)[0] == IOERR
    assert "the disk broke" in caplog.text
    assert len(caplog.records) == 10, "a guest cannot fill the log"


@pytest.mark.parametrize("buffers", [[(RINGS + 0x5000, 16, False)], [(1 << 40, 16, True)]])
def test_a_request_that_cannot_be_answered_breaks_the_device(
    bench: Callable[..., Bench], buffers: list[tuple[int, int, bool]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    one = bench()
    blk = driver(one)
    blk.transport.acknowledge()
    blk.queue.add(buffers)
    blk.transport.kick(0)
    assert blk.transport.status() == DONE | NEEDS_RESET
    assert one.irq.level
    assert blk.transport.acknowledge() & 2, "a configuration change"
    assert "virtio-blk needs a reset" in caplog.text
    blk.transport.kick(0)
    assert len(caplog.records) == 1
    blk.transport.set_status(DONE)
    assert blk.transport.status() == DONE | NEEDS_RESET, "only a reset helps"
    assert driver(one).request(IN, room=512)[0] == OK


def test_a_header_that_is_too_short(bench: Callable[..., Bench]) -> None:
    blk = driver(bench())
    blk.queue.add([(RINGS + 0x5000, 15, False), (RINGS + 0x6000, 1, True)])
    blk.transport.kick(0)
    assert blk.queue.used() == [(0, 1)]
    assert blk.memory.read_u8(RINGS + 0x6000) == IOERR


def test_a_request_over_the_limit_is_refused(bench: Callable[..., Bench]) -> None:
    one = bench(MemoryDisk(bytes(1 << 20)))
    blk = driver(one)
    blk.memory.write(blk.header, struct.pack("<IIQ", IN, 0, 0))
    table = [(blk.header, 16, False), *[(0x40000, 1 << 17, True)] * 260, (blk.data, 1, True)]
    blk.queue.add(table, indirect=0x80000)
    blk.transport.kick(0)
    assert blk.memory.read_u8(blk.data) == IOERR


def test_the_interrupt_is_held_until_acknowledged(bench: Callable[..., Bench]) -> None:
    one = bench()
    blk = driver(one)
    assert not one.irq.level
    blk.request(IN, room=512)
    assert one.irq.level
    assert blk.transport.acknowledge() == 1
    assert not one.irq.level
    blk.request(IN, room=512)
    assert one.irq.history == [True, False, True]
    blk.transport.set_status(0)
    assert not one.irq.level


def test_a_driver_that_wants_no_interrupt_gets_none(bench: Callable[..., Bench]) -> None:
    one = bench()
    blk = driver(one, features=VERSION_1)
    blk.memory.write_u16(blk.queue.driver, 1)
    blk.request(IN, room=512)
    assert one.irq.history == []


@pytest.mark.parametrize("features", [0, EVENT_IDX, VERSION_1 | 1 << 50])
def test_features_that_were_not_offered(bench: Callable[..., Bench], features: int) -> None:
    transport = bench().transport()
    transport.set_status(3)
    transport.accept(features)
    transport.set_status(0x0B)
    assert transport.status() == 3
    transport.set_status(0x0F)
    assert transport.status() & NEEDS_RESET


@pytest.mark.parametrize(
    ("size", "desc", "device"),
    [(3, RINGS, RINGS + 0x2000), (16, RINGS + 1, RINGS + 0x2000), (16, RINGS, 1 << 40),
     (512, RINGS, RINGS + 0x4000)],
)  # fmt: skip
def test_rings_that_cannot_be(
    bench: Callable[..., Bench], size: int, desc: int, device: int
) -> None:
    transport = bench().transport()
    start(transport)
    transport.set_queue(0, size, desc, RINGS + 0x1000, device)
    assert transport.status() & NEEDS_RESET


def test_a_kick_too_early_does_nothing(bench: Callable[..., Bench]) -> None:
    one = bench()
    transport = one.transport()
    transport.kick(0)
    start(transport)
    transport.kick(0)
    queue = DriverQueue(one.memory, RINGS, 16)
    transport.set_queue(0, 16, queue.desc, queue.driver, queue.device)
    queue.add([(RINGS + 0x5000, 16, False), (RINGS + 0x6000, 1, True)])
    transport.kick(0)
    assert queue.used() == []
    transport.set_status(DONE)
    transport.kick(77)
    transport.kick(0)
    assert len(queue.used()) == 1


def test_a_change_of_size_is_announced(bench: Callable[..., Bench]) -> None:
    one = bench()
    blk = driver(one)
    assert isinstance(one.device, VirtioBlk)
    one.device.resized(MemoryDisk(contents(128)))
    assert blk.transport.acknowledge() == 2
    assert blk.transport.config(0, 4) == 128
    assert one.device.config_generation == 1


def test_a_device_in_use_is_saved_and_goes_on(bench: Callable[..., Bench]) -> None:
    one = bench()
    blk = driver(one)
    blk.request(OUT, 0, b"\x77" * 512)
    saved = json.loads(json.dumps(one.outer.save()))
    two = bench(disk_of(one))
    two.outer.load(saved)
    assert two.outer.save() == saved
    assert two.irq.level == one.irq.level is True
    two.memory.write(RINGS, one.memory.read(RINGS, 0x8000))
    blk.memory = blk.queue.memory = two.memory
    blk.transport = two.transport()
    assert blk.transport.acknowledge() == 1
    assert blk.request(IN, 0, room=512) == (OK, b"\x77" * 512, 513)
    two.outer.reset()
    assert two.outer.save() == bench().outer.save() | (
        {} if two.kind == "mmio" else {"config": two.outer.save()["config"]}
    )


@pytest.mark.parametrize("change", [
    {"virtio_queues": [1] * 7}, {"virtio_queues": [3, 0, 0, 0, 0, 0, 0, 1]},
    {"virtio_status": 256}, {"virtio_features": -1}, {"extra": 0},
])  # fmt: skip
def test_a_state_that_cannot_be(bench: Callable[..., Bench], change: dict[str, object]) -> None:
    one = bench()
    before = one.outer.save()
    with pytest.raises(DeviceStateError):
        one.outer.load(before | change)
    assert one.outer.save() == before


# -- what only the PCI transport has ---------------------------------------------------------------


def pci() -> tuple[Bench, PciTransport]:
    one = Bench("pci", VirtioBlk(MemoryDisk(contents(64))))
    transport = one.transport()
    assert isinstance(transport, PciTransport)
    return one, transport


def test_msix_replaces_the_interrupt_pin() -> None:
    one, transport = pci()
    blk = BlkDriver(transport, one.memory, RINGS)
    assert isinstance(one.outer, VirtioPci)
    ports, msix = one.board.ports, one.outer.msix
    table = one.outer.bars[1].address  # type: ignore[union-attr]
    assert table is not None
    for vector in range(2):
        for offset, value in ((0, 0xFEE0_0000), (4, 0), (8, 0x40 + vector), (12, 0)):
            one.board.mmio.write(table + 16 * vector + offset, 4, value)
    ports.write(3, 0, msix.offset + 2, 2, 0x8000)
    blk.request(IN, room=512)
    assert one.board.msi.sent == [], "the queue has no vector yet"
    transport.put(0x16, 2, 0)
    transport.put(0x1A, 2, 1)
    transport.put(0x10, 2, 0)
    assert transport.get(0x1A, 2) == 1
    blk.request(IN, room=512)
    assert one.board.msi.sent == [(0xFEE0_0000, 0x41)]
    one.device.config_changed()
    assert one.board.msi.sent[1:] == [(0xFEE0_0000, 0x40)]
    assert one.irq.history == []
    assert transport.acknowledge() == 0
    transport.put(0x1A, 2, 2)  # one too many
    assert transport.get(0x1A, 2) == 0xFFFF
    transport.set_status(0)
    assert transport.get(0x10, 2) == 0xFFFF


def test_the_window_in_configuration_space() -> None:
    one, transport = pci()
    at, ports = transport.window, one.board.ports

    def aim(offset: int, length: int, bar: int = 4) -> None:
        ports.write(3, 0, at + 4, 1, bar)
        ports.write(3, 0, at + 8, 4, offset)
        ports.write(3, 0, at + 12, 4, length)

    aim(0x14, 1)
    ports.write(3, 0, at + 16, 1, 3)
    assert transport.status() == 3
    assert ports.read(3, 0, at + 16, 1) == 3
    aim(0x12, 2)
    assert ports.read(3, 0, at + 16, 2) == 1  # num_queues
    aim(0x2000, 4)
    assert ports.read(3, 0, at + 16, 4) == 64  # the capacity
    for offset, length, bar in ((0x14, 3, 4), (1 << 31, 4, 4), (0x4000, 4, 4), (0, 4, 1)):
        aim(offset, length, bar)
        ports.write(3, 0, at + 16, 4, 0)
        ports.read(3, 0, at + 16, 4)
    assert transport.status() == 3


def test_identity() -> None:
    one, _ = pci()
    assert one.board.ports.read(3, 0, 0, 4) == 0x1042_1AF4
    assert one.board.ports.read(3, 0, 8, 4) == 0x0100_0001
    assert one.board.ports.read(3, 0, 0x3D, 1) == 1


def test_the_common_structure_in_any_width() -> None:
    _, transport = pci()
    start(transport)
    transport.put(0x16, 2, 0)
    transport.put(0x20, 4, 0x1234_5678)
    transport.put(0x24, 4, 0x9A)
    raw = b"".join(transport.get(n, 4).to_bytes(4, "little") for n in range(0, 0x3C, 4))
    assert raw == bytes(transport.get(n, 1) for n in range(0x3C))
    assert raw[0x20:0x28] == bytes.fromhex("785634129a000000")
    transport.put(0x18, 4, 0xFFFF_FFFF)  # not the width of a register: nothing happens
    assert transport.get(0x18, 2) == 256


def test_a_driver_that_breaks_the_device_for_ever_cannot_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = Bench("mmio", VirtioBlk(MemoryDisk(contents(8))))
    for _ in range(50):
        blk = driver(one)
        blk.queue.add([(1 << 40, 16, True)])
        blk.transport.kick(0)
        assert blk.transport.status() == DONE | NEEDS_RESET
    assert len(caplog.records) == 10
