"""The network device by a driver without a guest, in Python alone."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator

import pytest
from net_driver import BROADCAST, HEADER, MAC_A, MAC_B, NetDriver, ethernet
from pci_probe import Board
from virtio_driver import MmioTransport

from pykvm.datapath.limits import RateLimit
from pykvm.devices import RecordingIrqLine
from pykvm.devices.net import Loopback, MemoryNet, NetError, NoNetwork
from pykvm.devices.virtio import VirtioMmio
from pykvm.devices.virtio import net_features as f
from pykvm.devices.virtio.net import VirtioNet
from pykvm.memory import GuestMemory

BASE = 0xFEB0_0000
TAP_OFFLOADS = f.CSUM | f.GUEST_CSUM | f.HOST_TSO4 | f.GUEST_TSO4 | f.HOST_UFO


class Bench:
    """A card at one end of a cable, a test at the other."""

    def __init__(self, net: object = None, mac: bytes = MAC_A, **options: object) -> None:
        self.net = net or MemoryNet()
        self.memory = GuestMemory.anonymous([(0, 1 << 20)])
        self.device = VirtioNet(self.net, mac, native=False, **options)  # type: ignore[arg-type]
        self.irq = RecordingIrqLine()
        self.outer = VirtioMmio(self.device, self.memory, self.irq)
        self.bus = Board(self.memory).mmio
        self.bus.add_device(self.outer, BASE, VirtioMmio.LENGTH)

    def driver(self, **options: object) -> NetDriver:
        return NetDriver(MmioTransport(self.bus, BASE), self.memory, **options)  # type: ignore[arg-type]


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.outer.close()
        bench.memory.close()


@pytest.fixture
def bench(benches: list[Bench]) -> object:
    def make(net: object = None, **options: object) -> Bench:
        benches.append(Bench(net, **options))
        return benches[-1]

    return make


def far(one: Bench) -> MemoryNet:
    assert isinstance(one.net, MemoryNet)
    return one.net


@pytest.mark.parametrize("pieces", [1, 2, 5, 40])
def test_frames_both_ways(bench, pieces: int) -> None:
    one = bench()
    driver = one.driver(size=64, fill=False)
    for slot in range(16):
        driver.give(0, driver.place(0, slot))
    driver.refill()
    frame = ethernet(bytes(range(200)), MAC_B)
    driver.send(frame, pieces=pieces)
    assert far(one).take() == [frame]
    assert driver.sent() == 1
    far(one).inject(frame)
    far(one).inject(ethernet(b"two"))
    one.device.poll()
    (head, first), (_, second) = driver.receive()
    assert (first, second) == (frame, ethernet(b"two"))
    assert head == (0, 0, 0, 0, 0, 0, 1)
    statistics = one.device.statistics
    assert statistics["receive"].requests == 2
    assert statistics["transmit"].bytes == len(frame)
    assert one.irq.level


def test_configuration_and_offered_features(bench) -> None:
    one = bench(mac=MAC_B, mtu=1400)
    driver = one.driver()
    transport = driver.transport
    mac = b"".join(transport.config(n, 1).to_bytes(1, "little") for n in range(6))
    assert mac == MAC_B
    assert transport.config(6, 2) == f.S_LINK_UP
    assert transport.config(8, 2) == 1
    assert transport.config(10, 2) == 1400
    assert driver.features & (f.MAC | f.MTU | f.CTRL_VQ | f.MRG_RXBUF)
    assert not driver.features & (f.HOST_OFFLOADS | f.GUEST_OFFLOADS | f.MQ), "nobody could do it"


def test_bad_options_are_refused() -> None:
    for options in ({"queues": 2}, {"queues": 0}, {"mtu": 67}, {"mtu": 1 << 16}):
        with pytest.raises(NetError):
            VirtioNet(MemoryNet(), MAC_A, **options)
    with pytest.raises(NetError):
        VirtioNet(MemoryNet(), b"12345")


def test_frames_wait_until_there_are_buffers(bench) -> None:
    one = bench()
    driver = one.driver(fill=False)
    far(one).inject(ethernet(b"early"))
    one.device.poll()
    assert driver.receive() == []
    driver.give()
    driver.refill()
    assert [frame for _, frame in driver.receive()] == [ethernet(b"early")]


def test_mergeable_buffers_share_a_frame(bench) -> None:
    one = bench()
    driver = one.driver(fill=False)
    for slot in range(4):
        driver.give(0, driver.place(0, slot), 100)
    driver.refill()
    frame = ethernet(bytes(range(256)))
    far(one).inject(frame)
    one.device.poll()
    ((head, found),) = driver.receive(again=False)
    assert found == frame
    assert head[6] == 3


def test_a_frame_for_more_buffers_than_there_are_waits_once(bench) -> None:
    one = bench()
    driver = one.driver(fill=False)
    frame = ethernet(bytes(400))
    for slot in range(2):
        driver.give(0, driver.place(0, slot), 100)
    driver.refill()
    far(one).inject(frame)
    one.device.poll()
    assert driver.receive(again=False) == []
    for slot in range(2, 8):
        driver.give(0, driver.place(0, slot), 100)
    driver.refill()
    assert [found for _, found in driver.receive(again=False)] == [frame]
    assert one.device.drops.no_room == 0
    far(one).inject(ethernet(bytes(1400)))
    far(one).inject(ethernet(b"small"))
    one.device.poll()
    driver.refill()
    assert one.device.drops.no_room == 0, "a kick without new buffers changes nothing"
    driver.give(0, driver.place(0, 8), 100)
    driver.refill()
    assert [found for _, found in driver.receive(again=False)] == [ethernet(b"small")]
    assert one.device.drops.no_room == 1


def test_without_mergeable_buffers_a_long_frame_is_dropped(bench) -> None:
    one = bench()
    driver = one.driver(features=1 << 32, fill=False)
    driver.give(0, driver.place(0, 0), 100)
    driver.refill()
    far(one).inject(ethernet(bytes(200)))
    far(one).inject(ethernet(b"fits"))
    one.device.poll()
    ((head, found),) = driver.receive()
    assert found == ethernet(b"fits")
    assert head[6] == 1
    assert one.device.drops.no_room == 1


def test_offload_headers_pass_where_the_back_end_takes_them(bench) -> None:
    one = bench(MemoryNet(header=True, offloads=TAP_OFFLOADS))
    driver = one.driver()
    assert driver.features & TAP_OFFLOADS == TAP_OFFLOADS
    assert far(one).accepted & TAP_OFFLOADS == TAP_OFFLOADS
    head = HEADER.pack(1, 1, 54, 1448, 34, 16, 0)
    frame = ethernet(bytes(9000))
    driver.send(frame, head)
    assert far(one).take() == [head + frame]
    far(one).inject(HEADER.pack(1, 1, 54, 1448, 34, 16, 0) + frame)
    one.device.poll()
    ((found, data),) = driver.receive()
    assert data == frame
    assert found == (1, 1, 54, 1448, 34, 16, 5)


@pytest.mark.parametrize("head", [HEADER.pack(1, 0, 0, 0, 34, 16, 0), b"\0\3" + bytes(10)])
def test_headers_that_were_not_negotiated_are_dropped(bench, head: bytes) -> None:
    one = bench()
    driver = one.driver()
    driver.send(ethernet(), head)
    driver.send(b"too short", bytes(12))
    driver.send(bytes(70000), bytes(12))
    assert far(one).take() == []
    assert driver.sent() == 3
    assert one.device.drops.bad == 3
    assert one.device.statistics["transmit"].errors == 3


def test_receive_modes_and_address_tables(bench) -> None:
    one = bench()
    driver = one.driver()
    group, other = b"\x01\x00\x5e\x00\x00\x01", b"\x02\x00\x00\x00\x00\x77"
    targets = [MAC_A, MAC_B, group, BROADCAST]

    def arriving() -> list[bytes]:
        for target in targets:
            far(one).inject(ethernet(b"x", target, other))
        one.device.poll()
        return [frame[:6] for _, frame in driver.receive()]

    assert arriving() == targets, "promiscuous at first"
    assert driver.command(0, 0, b"\0") == 0
    assert arriving() == [MAC_A, BROADCAST]
    assert driver.command(0, 1, b"\1") == 0
    assert arriving() == [MAC_A, group, BROADCAST]
    assert driver.command(0, 3, b"\1") == 0
    assert arriving() == [MAC_A, BROADCAST]
    assert driver.command(0, 5, b"\1") == 0
    assert arriving() == [MAC_A]
    for command, value in ((1, 0), (3, 0), (5, 0)):
        assert driver.command(0, command, bytes([value])) == 0
    table = struct.pack("<I", 1) + MAC_B + struct.pack("<I", 1) + group
    assert driver.command(1, 0, table, pieces=3) == 0
    assert arriving() == targets
    many = struct.pack("<I", 100) + MAC_B * 100 + struct.pack("<I", 0)
    assert driver.command(1, 0, many) == 0
    assert arriving() == [MAC_A, MAC_B, BROADCAST], "an overflow lets all of its kind through"
    assert driver.command(1, 0, bytes(8)) == 0
    assert driver.command(1, 1, MAC_B) == 0
    assert arriving() == [MAC_B, BROADCAST]
    assert driver.transport.config(5, 1) == 0x0B
    assert driver.command(0, 4, b"\1") == 0
    assert arriving() == [BROADCAST]
    assert one.device.drops.filtered > 5


def test_vlans(bench) -> None:
    one = bench()
    driver = one.driver()
    assert driver.command(0, 0, b"\0") == 0

    def tagged(number: int) -> bytes:
        return ethernet(struct.pack(">HH", 0x2000 | number, 0x88B5), MAC_A, MAC_B, 0x8100)

    def arriving() -> list[bytes]:
        for number in (1, 5, 4095):
            far(one).inject(tagged(number))
        far(one).inject(ethernet(b"plain", MAC_A))
        one.device.poll()
        return [frame for _, frame in driver.receive()]

    assert arriving() == [ethernet(b"plain", MAC_A)]
    assert driver.command(2, 0, struct.pack("<H", 5)) == 0
    assert driver.command(2, 0, struct.pack("<H", 4095)) == 0
    assert arriving() == [tagged(5), tagged(4095), ethernet(b"plain", MAC_A)]
    assert driver.command(2, 1, struct.pack("<H", 5)) == 0
    assert arriving() == [tagged(4095), ethernet(b"plain", MAC_A)]
    assert driver.command(2, 0, struct.pack("<H", 4096)) == 1


@pytest.mark.parametrize(
    ("kind", "command", "body"),
    [
        (0, 0, b""), (0, 0, b"\2"), (0, 6, b"\1"), (0, 0, b"\1\1"),
        (1, 0, b""), (1, 0, struct.pack("<I", 1) + bytes(5)),
        (1, 0, struct.pack("<I", 0xFFFF_FFFF) + bytes(12)), (1, 0, bytes(9)), (1, 1, bytes(5)),
        (1, 2, bytes(6)), (2, 2, b"\1\0"), (2, 0, b"\1"), (3, 1, b""), (4, 0, b"\1\0"),
        (4, 0, b"\2\0"), (5, 0, bytes(8)), (99, 0, b""), (255, 255, bytes(900)),
    ],
)  # fmt: skip
def test_commands_that_make_no_sense(bench, kind: int, command: int, body: bytes) -> None:
    one = bench()
    driver = one.driver()
    before = one.device.filter.state()
    assert driver.command(kind, command, body) == 1
    assert one.device.filter.state() == before
    assert driver.command(0, 0, b"\1") == 0, "the queue goes on"


def test_queue_pairs(bench) -> None:
    one = bench(MemoryNet(queues=3), queues=3)
    driver = one.driver(pairs=3)
    assert driver.features & f.MQ
    assert driver.transport.config(8, 2) == 3
    far(one).inject(ethernet(b"late"), 2)
    one.device.poll()
    assert driver.receive(2) == []
    for pairs, status in ((0, 1), (4, 1), (3, 0)):
        assert driver.command(4, 0, struct.pack("<H", pairs)) == status
    assert far(one).pairs == 3
    assert [frame for _, frame in driver.receive(2)] == [ethernet(b"late")]
    driver.send(ethernet(b"out"), pair=2)
    assert far(one).take(2) == [ethernet(b"out")]
    assert driver.command(4, 0, b"\1\0") == 0
    driver.send(ethernet(b"not used"), pair=2)
    assert far(one).take(2) == []


def test_without_multi_queue_the_control_queue_is_the_third(bench) -> None:
    one = bench(MemoryNet(queues=2), queues=2)
    driver = one.driver(features=1 << 32 | f.CTRL_VQ | f.CTRL_RX | f.MRG_RXBUF)
    assert driver.control_index == 2
    assert driver.command(0, 0, b"\0") == 0


def test_guest_offloads_by_command(bench) -> None:
    one = bench(MemoryNet(header=True, offloads=TAP_OFFLOADS))
    driver = one.driver()
    assert driver.command(5, 0, struct.pack("<Q", f.GUEST_CSUM)) == 0
    assert far(one).accepted & f.GUEST_OFFLOADS == f.GUEST_CSUM
    assert driver.command(5, 0, struct.pack("<Q", f.GUEST_TSO6)) == 1


def test_the_cable(bench) -> None:
    one = bench()
    driver = one.driver()
    one.device.set_link(False)
    assert driver.transport.config(6, 2) == 0
    assert driver.transport.acknowledge() & 2
    driver.send(ethernet())
    assert far(one).take() == []
    assert one.device.drops.no_link == 1
    one.device.set_link(True)
    assert driver.transport.acknowledge() & 2
    assert driver.transport.config(6, 2) == f.S_LINK_UP | f.S_ANNOUNCE
    assert driver.command(3, 0) == 0
    assert driver.transport.config(6, 2) == f.S_LINK_UP
    driver.send(ethernet())
    assert far(one).take() == [ethernet()]


def test_a_lost_peer_takes_the_link_down_until_it_is_back(bench) -> None:
    one = bench()
    driver = one.driver()
    far(one).unplug()
    one.device.poll()
    assert not one.device.link
    assert driver.transport.config(6, 2) == 0
    driver.send(ethernet())
    assert driver.sent() == 1
    assert not one.device.reconnect()
    far(one).plug()
    assert one.device.reconnect()
    assert one.device.link
    driver.send(ethernet(b"again"))
    assert far(one).take() == [ethernet(b"again")]


def test_a_peer_that_takes_nothing(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from pykvm.devices.virtio import net_path

    one = bench()
    driver = one.driver(size=256, fill=False)
    taken = 0
    for _ in range(20000):
        driver.send(ethernet(bytes(1400)))
        taken += driver.sent()
        if not driver.sent() and one.device._paths[0]._stalled_at:  # type: ignore[attr-defined]
            break
    assert one.device.drops.stalled == 0
    monkeypatch.setattr(net_path, "STALL", 0.0)
    driver.send(ethernet())
    one.device.poll()
    assert one.device.drops.stalled >= 1
    assert len(far(one).take()) >= 10
    driver.send(ethernet(b"again"))
    assert far(one).take()[-1] == ethernet(b"again")


def test_limits(bench) -> None:
    one = bench(limit_out=RateLimit(ops_per_s=1, burst_ops=2))
    driver = one.driver()
    for n in range(4):
        driver.send(ethernet(bytes([n])), kick=False)
        driver.transport.kick(1)
    assert len(far(one).take()) in (2, 3)
    assert one.device.limit_out.held >= 1


def test_state_goes_over_to_another_device(bench) -> None:
    one, two = bench(), bench()
    driver = one.driver()
    assert driver.command(0, 0, b"\0") == 0
    assert driver.command(1, 1, MAC_B) == 0
    assert driver.command(2, 0, b"\5\0") == 0
    one.device.set_link(False)
    saved = one.outer.save()
    two.memory.write(0, one.memory.read(0, 1 << 20))
    two.outer.load(saved)
    assert two.outer.save() == saved
    assert two.device.filter.mac == MAC_B
    assert not two.device.link
    two.device.set_link(True)
    driver.transport = MmioTransport(two.bus, BASE)
    driver.memory = two.memory
    for queue in (*driver.rx, *driver.tx):
        queue.memory = two.memory
    driver.send(ethernet(b"moved"))
    assert far(two).take() == [ethernet(b"moved")]


def test_reset_gives_back_address_and_filters(bench) -> None:
    one = bench()
    driver = one.driver()
    assert driver.command(0, 0, b"\0") == 0
    assert driver.command(1, 1, MAC_B) == 0
    driver = one.driver()
    assert driver.transport.config(5, 1) == MAC_A[5]
    assert one.device.filter.modes["promisc"]


def test_loopback_and_no_network(bench) -> None:
    one = bench(Loopback())
    driver = one.driver()
    driver.send(ethernet(b"echo"))
    one.device.poll()
    assert [frame for _, frame in driver.receive()] == [ethernet(b"echo")]
    two = bench(NoNetwork())
    driver = two.driver()
    assert driver.transport.config(6, 2) == 0
    driver.send(ethernet())
    assert driver.sent() == 1


@pytest.mark.parametrize("which", ["readable receive buffer", "short receive buffer", "no status"])
def test_rings_that_break_the_rules(bench, which: str, caplog: pytest.LogCaptureFixture) -> None:
    one = bench()
    driver = one.driver(fill=False)
    caplog.set_level(logging.WARNING)
    if which == "no status":
        driver.control.add([(driver.data, 16, False)])
        driver.transport.kick(driver.control_index)
    else:
        readable = which.startswith("readable")
        driver.rx[0].add([(driver.data, 2048 if readable else 8, not readable)])
        far(one).inject(ethernet())
        driver.refill()
    assert driver.transport.status() & 0x40
    assert "needs a reset" in caplog.text
