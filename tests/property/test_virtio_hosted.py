"""Devices with somebody on the host behind them: sockets and 9p, hostile on both sides.

Whatever is in packets, messages and rings, and whatever the host's programs do: no exception, no
write outside of what the driver gave, bounded buffers, and after a reset the device works again.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import pathlib
import random
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hostile_chains import scramble
from p9_server import Server
from virtio_makers import MAKERS
from virtio_small import RAM, Driver

import pykvm.devices.virtio as virtio
from pykvm.devices import ManualClock
from pykvm.devices.virtio import VirtioDevice, p9
from pykvm.devices.virtio.blk import VirtioBlk
from pykvm.devices.virtio.fs import VirtioFs
from pykvm.devices.virtio.net import VirtioNet
from pykvm.devices.virtio.p9 import VirtioP9
from pykvm.devices.virtio.vhost_user import VhostUserDevice
from pykvm.devices.virtio.vsock import EVENT, RX, TX, VirtioVsock
from pykvm.devices.virtio.vsock_packets import HEADER_SIZE, REQUEST, RESPONSE, Header, unpack
from pykvm.memory import GuestMemory, MemoryRegion

ROUNDS = 300
CID, PORTS = 3, [1, 2, 9]

#: Devices whose saved states the cases of `test_virtio_small_devices` do not fit, and why.
ELSEWHERE: dict[type[VirtioDevice], str] = {
    VirtioBlk: "unit/test_virtio_blk.py:test_a_device_in_use_is_saved_and_goes_on",
    VirtioNet: "unit/test_virtio_net.py:test_state_goes_over_to_another_device",
    VirtioP9: "unit/test_virtio_9p.py:test_a_save_waits_for_what_is_in_flight",
    VirtioFs: "unit/test_vhost_user.py:test_a_reset_gives_a_new_server_and_none_is_left",
    # Its copy tells the driver that the connections are gone, which the original does not.
    VirtioVsock: "unit/test_virtio_vsock_life.py:"
    "test_after_a_load_the_driver_hears_that_its_connections_are_gone",
    VhostUserDevice: "unit/test_vhost_user.py:test_the_whole_conversation",
}


def test_the_state_of_every_device_is_tested() -> None:
    found = set()
    for path in pathlib.Path(virtio.__file__).parent.glob("*.py"):
        module = __import__(f"pykvm.devices.virtio.{path.stem}", fromlist=["*"])
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, VirtioDevice):
                found.add(value)
    concrete = {cls for cls in found if not inspect.isabstract(cls)}
    small = {type(make(ManualClock())) for make in MAKERS.values()}
    covered = {base for cls in small for base in cls.__mro__} | set(ELSEWHERE)
    assert concrete - covered == set()
    tests = pathlib.Path(__file__).parents[1]
    for place in ELSEWHERE.values():
        file, _, name = place.partition(":")
        assert f"def {name}(" in (tests / file).read_text(), place


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Around:
    """A device, its driver, and memory next to the guest's that nobody may write."""

    def __init__(self, device: VirtioDevice) -> None:
        self.guard = MemoryRegion(RAM + 4096, 4096)
        self.guard.fill(0, 4096, 0xA5)
        self.memory = GuestMemory([MemoryRegion(0, RAM)])
        self.driver = Driver(device, memory=self.memory)
        self.allowed: list[tuple[int, int]] = []

    def scramble(self, dice: random.Random, blob: Callable[[random.Random], bytes]) -> None:
        self.allowed += scramble(self.driver, dice, blob)
        self.settle()

    def give(self, index: int, out: bytes = b"", room: int = 0) -> None:
        """A chain as a good driver makes it, whatever is in it; not after `scramble`."""
        driver = self.driver
        if len(driver.queues[index].free) < 2:
            driver.answers(index)
        if len(driver.queues[index].free) >= 2:
            head = driver.give(index, out, room, kick=False)
            if room:
                self.allowed.append((driver.places[index, head][0], room))

    def settle(self) -> None:
        """From here on `check` compares."""
        self.before = self.memory.read(0, RAM)

    def check(self) -> None:
        """Only rings and buffers that may be written have changed since `scramble`."""
        old, new = bytearray(self.before), bytearray(self.memory.read(0, RAM))
        rings = [(queue.device, queue.end) for queue in self.driver.queues.values()]
        spans = [(at, at + length) for at, length in self.allowed if at < RAM]
        for start, end in [*rings, *spans]:
            end = min(end, RAM)
            old[start:end] = new[start:end] = bytes(end - start)
        assert old == new
        assert bytes(self.guard.view) == b"\xa5" * 4096

    def recover(self) -> None:
        self.allowed.clear()
        self.driver.go()


# -- sockets -------------------------------------------------------------------------------------


def packet(dice: random.Random) -> bytes:
    small = [0, 1, 44, 64, 1000, 1 << 16, 0xFFFF_FFFF, dice.getrandbits(32)]
    data = dice.randbytes(dice.choice([0, 0, 5, 60]))
    header = Header(
        dice.choice([CID] * 9 + [0, 2, dice.getrandbits(64)]),
        dice.choice([2] * 9 + [3, dice.getrandbits(64)]),
        dice.choice([*PORTS, 1 << 30, (1 << 30) + 1]),
        dice.choice([*PORTS, 1 << 30, (1 << 30) + 1]),
        dice.choice([len(data)] * 9 + small),
        dice.choice([1] * 9 + [2, 7]),
        dice.choice([1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 0xFFFF]),
        dice.choice([0, 1, 2, 3, 0xFFFF_FFFF]),
        dice.choice(small),
        dice.choice(small),
    )
    return header.pack() + data


class Programs:
    """Programs of the host: services that take what comes, clients that come and go."""

    def __init__(self, path: pathlib.Path, dice: random.Random) -> None:
        self.path, self.dice = path, dice
        self.listeners = []
        for port in PORTS[:2]:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{path}_{port}")
            listener.listen(64)
            listener.setblocking(False)
            self.listeners.append(listener)
        self.open: list[socket.socket] = []

    def act(self) -> None:
        dice = self.dice
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                self.open.append(listener.accept()[0])
        if dice.random() < 0.5 and len(self.open) < 40:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(str(self.path))
                sock.send(dice.choice([b"CONNECT 1\n", b"CONNECT 2\nmore", b"CON", b"\n", b"GET"]))
            self.open.append(sock)
        for sock in dice.sample(self.open, min(4, len(self.open))):
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                match dice.randrange(5):
                    case 0:
                        sock.send(dice.randbytes(dice.choice([1, 100, 70_000])))
                    case 1:
                        sock.recv(1 << 16)
                    case 2:
                        sock.shutdown(dice.choice([socket.SHUT_RD, socket.SHUT_WR]))
                    case 3:
                        sock.close()
                        self.open.remove(sock)

    def close(self) -> None:
        for sock in (*self.listeners, *self.open):
            sock.close()


@pytest.mark.parametrize("seed", range(3))
def test_hostile_socket_drivers(seed: int, tmp_path: pathlib.Path) -> None:
    dice = random.Random(seed)
    clock = ManualClock()
    device = VirtioVsock(CID, tmp_path / "v", connections=16, buffer=4096, clock=clock)
    around, programs = Around(device), Programs(tmp_path / "v", dice)
    driver = around.driver
    broken = most = scrambled = 0
    for _ in range(ROUNDS):
        if around.driver.free > RAM - 0x10000 or dice.random() < 0.1:
            around.scramble(dice, packet)
            scrambled += 1
        elif not scrambled:
            for _ in range(8):
                around.give(RX, b"", dice.choice([45, 100, 1000]))
                around.give(TX, packet(dice))
            around.settle()
        for index in dice.sample([RX, TX, EVENT], 3):
            driver.transport.kick(index)
        for _ in range(3):
            programs.act()
            device.poll()
        clock.advance(dice.choice([0, 1_000_000, 11_000_000_000]))
        around.check()
        most = max(most, len(device.connections))
        assert len(device.connections) <= 16
        assert len(device._answers) <= 256 + 16
        assert all(len(c.to_host) <= 4096 for c in device.connections.values())
        if driver.broken or scrambled > 5:
            broken += driver.broken
            assert not (driver.broken and device.connections)
            around.recover()
            scrambled = 0
        driver.interrupts()
    assert broken > 10
    assert most > 0
    assert device.packets_taken > 100
    for sock in programs.open:
        sock.close()
    programs.open.clear()
    around.recover()
    while programs.listeners[0] in select.select([programs.listeners[0]], [], [], 0)[0]:
        programs.listeners[0].accept()[0].close()
    driver.give(RX, b"", HEADER_SIZE + 64)
    driver.give(TX, Header(CID, 2, 77, PORTS[0], 0, 1, REQUEST, 0, 4096, 0).pack())
    (answer,) = driver.answers(RX)
    assert unpack(answer).op == RESPONSE
    programs.close()
    driver.outer.close()
    assert list(tmp_path.glob("v")) == []


# -- 9p ------------------------------------------------------------------------------------------

HEAD = struct.Struct("<IBH")


def message(dice: random.Random) -> bytes:
    body = dice.choice(
        [b"", dice.randbytes(2), struct.pack("<IIHH", 0, 1, 1, 1) + b"xy", bytes(40)]
    )
    size = dice.choice([7 + len(body)] * 9 + [0, 6, 8, 1 << 20, (1 << 20) + 1, 0xFFFF_FFFF])
    kind = dice.choice([100, 104, 104, 108, 108, 110, 116, 118, 120, 0, 6, 255])
    return HEAD.pack(size, kind, dice.choice([0, 1, 2, 3, 0xFFFF])) + body


def replies(server: Server, dice: random.Random) -> None:
    """A server that says anything, and now and then goes away."""
    sock = server.sock
    if sock is None or sock.fileno() < 0:
        return
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.recv(1 << 20)
        for _ in range(dice.randrange(4)):
            body = dice.randbytes(dice.choice([0, 1, 4, 57, 1000]))
            size = dice.choice([7 + len(body)] * 19 + [0, 3, 8, 1 << 21])
            kind = dice.choice([101, 105, 109, 109, 7, 117, 0])
            sock.send(HEAD.pack(size, kind, dice.choice([0, 1, 2, 3, 4])) + body)
        if dice.random() < 0.05:
            sock.close()


@pytest.mark.parametrize("seed", range(3))
def test_hostile_9p_drivers_and_servers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p9, "_PATIENCE_S", 0.01)  # for a server that never answers
    dice = random.Random(seed)
    server = Server()
    device = VirtioP9(server)
    around = Around(device)
    driver = around.driver
    broken = scrambled = 0
    for _ in range(ROUNDS):
        server.broken = dice.random() < 0.1
        if around.driver.free > RAM - 0x10000 or dice.random() < 0.1:
            around.scramble(dice, message)
            scrambled += 1
        elif not scrambled:
            for _ in range(4):
                around.give(0, message(dice), dice.choice([11, 100, 1100]))
            around.settle()
        driver.transport.kick(0)
        for _ in range(3):
            replies(server, dice)
            device.poll(0)
        around.check()
        assert len(device._flying) <= driver.size
        if driver.broken or scrambled > 5:
            broken += driver.broken
            around.recover()
            scrambled = 0
        driver.interrupts()
    assert broken > 10
    assert server.starts > 3
    assert device.refused > 10
    server.broken = False
    around.recover()
    body = struct.pack("<IH", 8192, 8) + b"9P2000.L"
    driver.give(0, HEAD.pack(7 + len(body), 100, 0xFFFF) + body, 64)
    assert server.heard() == (100, 0xFFFF, body)
    server.say(101, 0xFFFF, body)
    device.poll(5)
    assert driver.answers(0) == [HEAD.pack(7 + len(body), 101, 0xFFFF) + body]
    driver.outer.close()
