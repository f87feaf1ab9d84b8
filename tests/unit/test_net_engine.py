"""The native net engine and its twin in Python do the same, over the same ports."""

from __future__ import annotations

import os
import pathlib
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from net_driver import BROADCAST, HEADER, MAC_A, MAC_B, NetDriver, ethernet
from pci_probe import Board
from virtio_driver import MmioTransport

from pykvm.datapath.limits import RateLimit
from pykvm.datapath.loop import IoThread
from pykvm.devices import RecordingIrqLine
from pykvm.devices.net import MemoryNet, NetBackend, PcapWriter, StreamNet
from pykvm.devices.virtio import VirtioMmio
from pykvm.devices.virtio import net_features as f
from pykvm.devices.virtio.net import VirtioNet
from pykvm.memory import GuestMemory

BASE = 0xFEB0_0000
OFFLOADS = f.CSUM | f.GUEST_CSUM | f.HOST_TSO4 | f.GUEST_TSO4


def until(true: Callable[[], object], what: str) -> None:
    """Waits for what another thread does."""
    limit = time.monotonic() + 5
    while not true():
        assert time.monotonic() < limit, what
        time.sleep(0.001)


class Bench:
    """A card with an I/O thread."""

    def __init__(self, net: NetBackend, native: bool, **options: object) -> None:
        self.net = net
        self.memory = GuestMemory.anonymous([(0, 1 << 20)])
        self.device = VirtioNet(net, MAC_A, native=native, **options)  # type: ignore[arg-type]
        self.device.io = IoThread()
        self.irq = RecordingIrqLine()
        self.outer = VirtioMmio(self.device, self.memory, self.irq)
        assert bool(self.device.native_queues) == native
        self.mmio = Board(self.memory).mmio
        self.mmio.add_device(self.outer, BASE, VirtioMmio.LENGTH)

    def driver(self, **options: object) -> NetDriver:
        driver = NetDriver(MmioTransport(self.mmio, BASE), self.memory, **options)  # type: ignore[arg-type]
        driver.wait = lambda done: until(done, "a command")  # type: ignore[method-assign]
        return driver

    def settle(self) -> None:
        """Until nothing moves any more."""
        last: object = None
        quiet = 0
        while quiet < 3:
            time.sleep(0.01)
            now = (self.device.statistics.as_dict(), self.device.drops.as_dict())
            quiet = quiet + 1 if now == last else 0
            last = now

    def close(self) -> None:
        self.outer.close()
        assert self.device.io is not None
        self.device.io.stop()
        self.memory.close()


@pytest.fixture(params=["native", "python"])
def bench(request: pytest.FixtureRequest) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(net: NetBackend | None = None, **options: object) -> Bench:
        made.append(Bench(net or MemoryNet(), request.param == "native", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def far(one: Bench) -> MemoryNet:
    assert isinstance(one.net, MemoryNet)
    return one.net


def collect(take: Callable[[], list[bytes]], count: int) -> list[bytes]:
    found: list[bytes] = []

    def enough() -> bool:
        found.extend(take())
        return len(found) >= count

    until(enough, f"{count} frames; {len(found)} came")
    return found


def test_many_frames_both_ways(bench: Callable[..., Bench]) -> None:
    one = bench()
    driver = one.driver(size=64, fill=False)
    for slot in range(16):
        driver.give(0, driver.place(0, slot))
    driver.refill()
    frames = [ethernet(bytes([n % 256]) * (n * 37 % 1400)) for n in range(300)]
    for frame in frames:
        driver.send(frame, pieces=1 + len(frame) % 3)
        until(driver.sent, "it was sent")
    assert collect(far(one).take, 300) == frames
    got: list[bytes] = []
    for frame in frames:
        until(lambda frame=frame: far(one).inject(frame), "room")
        got += [found for _, found in driver.receive()]
        driver.refill()

    def more() -> bool:
        got.extend([found for _, found in driver.receive()])
        driver.refill()
        return len(got) == 300

    until(more, "all arrived")
    assert got == frames
    assert one.device.statistics["receive"].bytes == sum(map(len, frames))
    assert one.device.statistics["transmit"].requests == 300
    assert not any(one.device.drops.as_dict().values())


def stream_pair() -> tuple[StreamNet, socket.socket]:
    near, end = socket.socketpair()
    end.settimeout(20)
    return StreamNet.of(near), end


def test_streams(bench: Callable[..., Bench]) -> None:
    net, end = stream_pair()
    one = bench(net)
    driver = one.driver()
    frames = [ethernet(bytes([n]) * (n * 31)) for n in range(12)]
    for frame in frames:
        driver.send(frame, pieces=5)
        until(driver.sent, "sent")
    wanted = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    data = b""
    while len(data) < len(wanted):
        data += end.recv(1 << 16)
    assert data == wanted
    for at in range(0, len(wanted), 701):  # frames arrive in pieces
        end.sendall(wanted[at : at + 701])
    got: list[bytes] = []
    until(lambda: got.extend(x for _, x in driver.receive()) or len(got) == 12, "all arrived")
    assert got == frames
    end.close()
    until(lambda: not one.device.link, "the link goes down")
    assert driver.transport.config(6, 2) == 0


@pytest.mark.parametrize("length", [0, 1 << 31, 65559])
def test_a_stream_with_an_impossible_length_is_left(
    bench: Callable[..., Bench], length: int
) -> None:
    net, end = stream_pair()
    one = bench(net)
    one.driver()
    end.sendall(struct.pack(">I", length) + bytes(100))
    until(lambda: not one.device.link, "the link goes down")
    assert end.recv(100) == b""


def test_long_frames_go_into_mergeable_buffers(bench: Callable[..., Bench]) -> None:
    one = bench(MemoryNet(header=True, offloads=OFFLOADS))
    driver = one.driver(size=64, fill=False)
    for slot in range(40):
        driver.give(0, driver.data + 1700 * slot, 1700)
    driver.refill()
    head = HEADER.pack(1, 1, 54, 1448, 34, 16, 0)
    for size in (100, 9000, 60000, 1500, 60000):
        frame = ethernet(random.Random(size).randbytes(size))
        far(one).inject(head + frame)
        got: list[tuple[tuple[int, ...], bytes]] = []
        until(lambda got=got: got.extend(driver.receive()) or got, "it came")
        driver.refill()
        ((found, data),) = got
        assert data == frame
        assert found[:6] == (1, 1, 54, 1448, 34, 16)
        assert found[6] == -(-(len(frame) + 12) // 1700)


def test_a_frame_that_never_fits(bench: Callable[..., Bench]) -> None:
    one = bench()
    driver = one.driver(fill=False)
    for slot in range(3):
        driver.give(0, driver.place(0, slot), 100)
    driver.refill()
    far(one).inject(ethernet(bytes(1000)))
    far(one).inject(ethernet(b"small"))
    one.settle()
    assert driver.receive(again=False) == []
    driver.give(0, driver.place(0, 3), 100)
    driver.refill()
    got: list[bytes] = []
    until(lambda: got.extend(x for _, x in driver.receive()) or got, "the small one")
    assert got == [ethernet(b"small")]
    assert one.device.drops.no_room == 1


def test_filters(bench: Callable[..., Bench]) -> None:
    one = bench()
    driver = one.driver()
    group = b"\x01\x00\x5e\x00\x00\x01"
    assert driver.command(0, 0, b"\0") == 0
    assert driver.command(2, 0, b"\5\0") == 0
    table = struct.pack("<I", 1) + MAC_B + struct.pack("<I", 1) + group
    assert driver.command(1, 0, table) == 0
    tagged = ethernet(struct.pack(">HH", 5, 0x88B5), MAC_A, MAC_B, 0x8100)
    wrong = ethernet(struct.pack(">HH", 6, 0x88B5), MAC_A, MAC_B, 0x8100)
    other = ethernet(b"", b"\x02\x00\x00\x00\x00\x77")
    wanted = [ethernet(b"", MAC_A), ethernet(b"", MAC_B), ethernet(b"", group), tagged]
    for frame in [wrong, *wanted[:2], other, *wanted[2:], b"runt", ethernet(b"", BROADCAST)]:
        far(one).inject(frame)
    got: list[bytes] = []
    until(lambda: got.extend(x for _, x in driver.receive()) or len(got) == 5, "five frames")
    assert got == [*wanted, ethernet(b"", BROADCAST)]
    assert one.device.drops.as_dict() == {
        "filtered": 2, "no_room": 0, "bad": 1, "refused": 0, "no_link": 0, "stalled": 0,
    }  # fmt: skip


def test_bad_frames_from_the_driver(bench: Callable[..., Bench]) -> None:
    one = bench()
    driver = one.driver()
    for frame, head in (
        (ethernet(), HEADER.pack(1, 0, 0, 0, 34, 16, 0)), (ethernet(), b"\0\1" + bytes(10)),
        (b"runt", bytes(12)), (bytes(65559), bytes(12)), (ethernet(b"good"), bytes(12)),
    ):  # fmt: skip
        driver.send(frame, head)
        until(driver.sent, "taken")
    assert collect(far(one).take, 1) == [ethernet(b"good")]
    assert one.device.drops.bad == 4
    assert one.device.statistics["transmit"].errors == 4


def test_a_peer_that_does_not_read_loses_frames(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pykvm.devices.virtio import net_path

    monkeypatch.setattr(net_path, "STALL", 0.2)
    net, end = stream_pair()
    one = bench(net)
    driver = one.driver()
    frame = ethernet(bytes(1400))
    for _ in range(20000):
        driver.send(frame)
        until(driver.sent, "taken or dropped")
        if one.device.drops.stalled > 3:
            break
    assert one.device.drops.stalled > 3
    kept = one.device.statistics["transmit"].requests - one.device.drops.stalled
    data = b""
    while len(data) < kept * (len(frame) + 4):
        data += end.recv(1 << 20)
    assert data == (struct.pack(">I", len(frame)) + frame) * kept, "the stream stays in step"

    def again() -> bool:
        driver.send(ethernet(b"again"))
        until(driver.sent, "taken")
        end.setblocking(False)
        try:
            return end.recv(1 << 16).endswith(ethernet(b"again"))
        except BlockingIOError:
            return False

    until(again, "the peer reads again")
    end.close()


def test_limits_hold_frames_back(bench: Callable[..., Bench]) -> None:
    one = bench(
        limit_in=RateLimit(ops_per_s=50, burst_ops=1),
        limit_out=RateLimit(ops_per_s=50, burst_ops=1),
    )
    driver = one.driver()
    begun = time.monotonic()
    for n in range(6):
        driver.send(ethernet(bytes([n])))
        far(one).inject(ethernet(bytes([n])))
        until(driver.sent, "it goes in the end")
    assert time.monotonic() - begun > 0.05, "five frames at 50 a second take a tenth of one"
    got: list[bytes] = []
    until(lambda: got.extend(x for _, x in driver.receive()) or len(got) == 6, "all came")
    assert one.device.limit_out.held > 0
    assert one.device.limit_in.held > 0


def test_saved_in_the_middle_nothing_stays_with_the_device(bench: Callable[..., Bench]) -> None:
    one = bench()
    driver = one.driver()
    for n in range(40):
        far(one).inject(ethernet(bytes([n])))
        one.outer.save()
    got: list[bytes] = []

    def more() -> bool:
        got.extend(x for _, x in driver.receive())
        driver.refill()
        one.outer.save()
        return len(got) == 40

    until(more, "all came")
    assert got == [ethernet(bytes([n])) for n in range(40)]
    queue = one.device.queues[0]
    one.device.freeze()
    assert queue.next_avail == queue.next_used, "no buffer is kept"
    one.device.thaw()


def test_a_driver_that_breaks_the_rules(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    one = bench()
    driver = one.driver()
    driver.tx[0].add([(1 << 40, 100, False)])
    driver.transport.kick(1)
    until(lambda: driver.transport.status() & 0x40, "the device needs a reset")
    driver = one.driver()
    driver.send(ethernet())
    assert collect(far(one).take, 1) == [ethernet()]
    driver = one.driver(fill=False)
    driver.rx[0].add([(driver.data, 100, False)])
    driver.refill()
    far(one).inject(ethernet())
    until(lambda: driver.transport.status() & 0x40, "the device needs a reset")
    assert "without room for a header" in caplog.text


def test_the_cable_and_a_peer_that_comes_back(bench: Callable[..., Bench]) -> None:
    one = bench()
    driver = one.driver()
    far(one).unplug()
    until(lambda: not one.device.link, "the link goes down")
    driver.send(ethernet())
    until(driver.sent, "dropped")
    assert one.device.drops.no_link == 1
    far(one).plug()
    until(lambda: one.device.link, "the link comes up by itself")
    driver.send(ethernet(b"again"))
    assert collect(far(one).take, 1) == [ethernet(b"again")]
    assert driver.transport.config(6, 2) == f.S_LINK_UP | f.S_ANNOUNCE


def test_queue_pairs(bench: Callable[..., Bench]) -> None:
    one = bench(MemoryNet(queues=2), queues=2)
    driver = one.driver(pairs=2)
    assert driver.command(4, 0, b"\2\0") == 0
    for pair in range(2):
        driver.send(ethernet(bytes([pair])), pair=pair)
        assert collect(lambda pair=pair: far(one).take(pair), 1) == [ethernet(bytes([pair]))]
        far(one).inject(ethernet(b"in"), pair)
        until(lambda pair=pair: driver.receive(pair), "it came")


def test_without_multi_queue_the_third_queue_is_for_commands(bench: Callable[..., Bench]) -> None:
    one = bench(MemoryNet(queues=2), queues=2)
    driver = one.driver(features=1 << 32 | f.CTRL_VQ | f.CTRL_RX | f.MRG_RXBUF)
    assert driver.control_index == 2
    assert driver.command(0, 0, b"\0") == 0


def blocks(path: str) -> list[tuple[int, int, bytes]]:
    """(direction, ns, frame) of a pcapng file."""
    data = pathlib.Path(path).read_bytes()
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert struct.unpack_from("<I", data, at + length - 4)[0] == length
        if kind == 6:
            _, high, low, size, whole = struct.unpack_from("<IIIII", data, at + 8)
            assert size == whole
            options = at + 28 + size + (-size % 4)
            code, width, direction = struct.unpack_from("<HHI", data, options)
            assert (code, width) == (2, 4)
            found.append((direction, high << 32 | low, data[at + 28 : at + 28 + size]))
        at += length
    assert at == len(data)
    return found


def test_capture(bench: Callable[..., Bench], tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "capture.pcapng")
    one = bench(pcap=PcapWriter(path))
    driver = one.driver()
    frames = [ethernet(bytes([n]) * (n + 47)) for n in range(5)]
    before = time.time_ns()
    for frame in frames:
        driver.send(frame, pieces=3)
        until(driver.sent, "sent")
    far(one).inject(ethernet(b"in"))
    until(driver.receive, "it came")
    found = blocks(path)
    assert [(way, frame) for way, _, frame in found] == [
        *[(2, frame) for frame in frames], (1, ethernet(b"in")),
    ]  # fmt: skip
    assert all(before <= ns <= time.time_ns() for _, ns, _ in found)
