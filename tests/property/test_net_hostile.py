"""Hostile drivers and peers of a network device, on the engine in C and on its twin in Python.

Whatever is in rings, commands and frames: no exception, no thread that hangs, and a reset makes all
good again.
"""

from __future__ import annotations

import logging
import random
import struct
import time
from collections.abc import Iterator

import pytest
from net_driver import MAC_A, NetDriver, ethernet
from pci_probe import Board
from virtio_driver import MmioTransport

from pykvm.datapath.loop import IoThread
from pykvm.devices.net import MemoryNet
from pykvm.devices.virtio import VirtioMmio
from pykvm.devices.virtio import net_features as f
from pykvm.devices.virtio.net import VirtioNet
from pykvm.memory import GuestMemory

BASE = 0xFEB0_0000
RAM = 1 << 20
ODD = [0, 1, 12, 13, 60, 1500, 65536, 65580, RAM - 1, RAM, 1 << 31, (1 << 32) - 1]
OFFLOADS = f.CSUM | f.GUEST_CSUM | f.HOST_TSO4 | f.GUEST_TSO4


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Hostile:
    """A device whose driver and peer are out to break it."""

    def __init__(self, native: bool, header: bool, dice: random.Random) -> None:
        self.dice = dice
        self.net = MemoryNet(header=header, offloads=OFFLOADS if header else 0)
        self.memory = GuestMemory.anonymous([(0, RAM)])
        self.device = VirtioNet(self.net, MAC_A, native=native)
        self.device.io = IoThread()
        self.outer = VirtioMmio(self.device, self.memory)
        self.mmio = Board(self.memory).mmio
        self.mmio.add_device(self.outer, BASE, VirtioMmio.LENGTH)

    def go(self) -> NetDriver:
        drop = self.dice.choice([0, 0, f.MRG_RXBUF, 1 << 28, 1 << 29, 3 << 28])
        transport = MmioTransport(self.mmio, BASE)
        features = transport.features() & ~drop & ~(1 << 34)
        return NetDriver(transport, self.memory, features=features, fill=False)

    def descriptor(self) -> bytes:
        dice = self.dice
        address = dice.randrange(0x20000, RAM - 70000)
        length = dice.choice([12, 14, 26, 60, 72, 1500, 9000, 66000])
        flags = dice.choice([0, 0, 1, 2, 2, 3])
        if dice.random() < 0.1:
            address, length, flags = dice.choice(ODD), dice.choice(ODD), dice.randrange(8)
        return struct.pack("<QIHH", address, length, flags, dice.randrange(16))

    def scramble(self, driver: NetDriver) -> None:
        dice = self.dice
        for number, queue in enumerate((driver.rx[0], driver.tx[0], driver.control)):
            for index in range(16):
                self.memory.write(queue.desc + 16 * index, self.descriptor())
                self.memory.write_u16(queue.driver + 4 + 2 * index, dice.randrange(16))
            known = self.device.queues[number].next_avail if not self.device.native_queues else 0
            self.memory.write_u16(queue.driver + 2, known + dice.randrange(17) & 0xFFFF)
            driver.transport.kick(number)

    def settle(self) -> None:
        """What was kicked was looked at, by whichever thread."""
        assert self.device.io is not None
        if self.device.native_queues:
            time.sleep(0.002)
        self.device.io.call(lambda: None)

    def close(self) -> None:
        self.outer.close()
        assert self.device.io is not None
        self.device.io.stop()
        self.memory.close()


@pytest.mark.parametrize("header", [False, True], ids=["plain", "offloads"])
@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_random_rings_commands_and_frames(native: bool, header: bool) -> None:
    dice = random.Random(f"{native}{header}")
    hostile = Hostile(native, header, dice)
    broken = moved = 0
    for _ in range(150):
        driver = hostile.go()
        hostile.memory.write(0x20000, dice.randbytes(4096))
        for _ in range(4):
            hostile.scramble(driver)
            for _ in range(dice.randrange(6)):
                hostile.net.inject(dice.randbytes(dice.choice([1, 13, 14, 30, 60, 1500, 9000])))
            if dice.random() < 0.3:
                hostile.outer.save()
        hostile.settle()
        moved += len(hostile.net.take())
        broken += bool(hostile.device.broken)
    assert broken > 3
    assert moved > 3
    last = hostile.go()
    limit = time.monotonic() + 20
    while not hostile.net.take() or not last.transport.status() & 4:
        last.send(ethernet(b"still there"))
        assert time.monotonic() < limit, "the device is dead"
        time.sleep(0.001)
    hostile.close()


def test_random_commands() -> None:
    dice = random.Random(5)
    hostile = Hostile(False, True, dice)
    hostile.device.io, io = None, hostile.device.io
    driver = hostile.go()
    refused = 0
    for _ in range(3000):
        kind, command = dice.randrange(7), dice.randrange(7)
        body = dice.randbytes(dice.choice([0, 1, 2, 4, 6, 8, 14, 100]))
        if dice.random() < 0.5:
            body = bytes(len(body))
        refused += driver.command(kind, command, body)
    assert 1000 < refused < 3000
    assert not hostile.device.broken
    hostile.device.io = io
    hostile.close()
