"""Hostile virtio drivers: random rings, random registers. No exception, nothing outside memory.

Guest memory lies between two regions of the same size that belong to nobody: they must stay as
they were, and so must every byte that no writable buffer and no used ring covers.
"""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Iterator

import pytest
from pci_probe import Board
from virtio_driver import DONE, DriverQueue, MmioTransport, PciTransport, Transport, start

from pykvm.devices.block import MemoryDisk
from pykvm.devices.pci import Window, assign_bars
from pykvm.devices.virtio import VirtioBlk, VirtioMmio, VirtioPci
from pykvm.memory import GuestMemory

RAM = 1 << 16
RING, TABLE, DATA = 0x1000, 0x3000, 0x8000
MMIO_BASE = 0xFEB0_0000
CASES = 3000
ODD_ADDRESSES = [
    0, 1, RING, TABLE, DATA, RAM - 1, RAM - 16, RAM, RAM + 4096, 1 << 32, (1 << 64) - 1,
    (1 << 64) - 512, 1 << 63,
]  # fmt: skip
ODD_LENGTHS = [0, 1, 15, 16, 17, 511, 512, 513, 4096, RAM, 1 << 31, (1 << 32) - 1]


class Hostile:
    """A device with a driver that is out to break it."""

    def __init__(self, kind: str, dice: random.Random) -> None:
        self.dice = dice
        self.memory = GuestMemory.anonymous([(0, RAM)])
        self.board = Board(self.memory)
        self.disk = MemoryDisk(dice.randbytes(8192))
        self.device = VirtioBlk(self.disk, queue_size=16)
        if kind == "mmio":
            self.outer: VirtioMmio | VirtioPci = VirtioMmio(self.device, self.memory)
            self.board.mmio.add_device(self.outer, MMIO_BASE, VirtioMmio.LENGTH)
        else:
            self.outer = VirtioPci(self.device, self.memory)
            self.board.bus.add(3, 0, self.outer)
        self.power_on()
        self.transport: Transport = (
            MmioTransport(self.board.mmio, MMIO_BASE)
            if kind == "mmio"
            else PciTransport(self.board.ports, 3, self.board.mmio)
        )

    def power_on(self) -> None:
        self.outer.reset()
        assign_bars(self.board.bus, Window(0xC000, 256), [Window(0xC000_0000, 1 << 20)])

    def go(self) -> None:
        """Up to DRIVER_OK, correctly, with a random set of ring features."""
        offered = self.transport.features()
        start(self.transport, offered & ~(self.dice.choice([0, 1, 2, 3]) << 28))
        self.queue = DriverQueue(self.memory, RING, 16)
        queue = self.queue
        self.transport.set_queue(0, 16, queue.desc, queue.driver, queue.device)
        self.transport.set_status(DONE)
        assert self.transport.status() == DONE

    def descriptor(self) -> bytes:
        dice = self.dice
        if dice.random() < 0.75:
            address = DATA + 16 * dice.randrange(1024)
            length = dice.choice([1, 16, 16, 512, 512, 1024])
            flags = dice.choice([0, 1, 1, 1, 2, 3, 3])
        else:
            address = dice.choice(ODD_ADDRESSES)
            length = dice.choice(ODD_LENGTHS)
            flags = dice.randrange(8)
        following = dice.randrange(16) if dice.random() < 0.95 else dice.getrandbits(16)
        return struct.pack("<QIHH", address, length, flags, following)

    def scramble(self) -> None:
        """Random descriptors, an indirect table, headers, available entries."""
        dice, memory = self.dice, self.memory
        for index in range(16):
            memory.write(self.queue.desc + 16 * index, self.descriptor())
            memory.write(TABLE + 16 * index, self.descriptor())
        for _ in range(dice.choice([0, 0, 1, 2])):
            length = 16 * dice.randrange(1, 17) if dice.random() < 0.8 else dice.randrange(600)
            raw = struct.pack("<QIHH", TABLE, length, 4, 0)
            memory.write(self.queue.desc + 16 * dice.randrange(16), raw)
        for at in range(DATA, DATA + 0x4000, 64):
            kind = dice.choice([0, 0, 1, 4, 8, 11, 13, 99])
            sector = dice.choice([0, 1, 15, 16, 1 << 54, (1 << 64) - 1])
            memory.write(at, struct.pack("<IIQ", kind, 0, sector))
        for slot in range(16):
            entry = dice.randrange(16) if dice.random() < 0.97 else dice.getrandbits(16)
            memory.write_u16(self.queue.driver + 4 + 2 * slot, entry)
        ahead = dice.randrange(17) if dice.random() < 0.95 else dice.getrandbits(16)
        memory.write_u16(self.queue.driver + 2, self.device.queues[0].next_avail + ahead & 0xFFFF)
        memory.write_u16(self.queue.driver + 4 + 32, dice.getrandbits(16))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def writable_bytes(memory: bytes) -> set[int]:
    """Every byte that some descriptor lets the device write, reachable or not; the used ring."""
    allowed: set[int] = set()
    for base in (RING, TABLE):
        for index in range(40 if base == TABLE else 16):
            address, length, flags, _ = struct.unpack_from("<QIHH", memory, base + 16 * index)
            if flags & 2 and address < RAM:
                allowed.update(range(address, min(address + length, RAM)))
    queue = RING + 16 * 16 + 6 + 32 + 3 & ~3
    allowed.update(range(queue, queue + 6 + 8 * 16))
    return allowed


@pytest.mark.parametrize("kind", ["mmio", "pci"])
def test_random_rings(kind: str) -> None:
    dice = random.Random(kind)
    hostile = Hostile(kind, dice)
    hostile.go()
    answered = broken = 0
    for _ in range(CASES // 2):
        hostile.scramble()
        before = hostile.memory.read(0, RAM)
        hostile.transport.kick(0)
        after = hostile.memory.read(0, RAM)
        if after != before:
            changed = {n for n in range(RAM) if before[n] != after[n]}
            # A device write may change descriptors, which then allow more.
            assert changed <= writable_bytes(before) | writable_bytes(after)
        answered += hostile.device.queues[0].next_used != 0
        if hostile.device.broken:
            broken += 1
            assert hostile.transport.status() & 0x40
            hostile.go()
        hostile.transport.acknowledge()
    assert answered > CASES // 20, "most cases must get somewhere"
    assert broken > CASES // 20


@pytest.mark.parametrize("kind", ["mmio", "pci"])
def test_random_registers(kind: str) -> None:
    dice = random.Random(kind + "registers")
    hostile = Hostile(kind, dice)
    bus = hostile.board.mmio
    claimed = [r for r in bus.ranges if r.name.startswith("virtio")]
    for turn in range(4 * CASES):
        if turn % 50 == 0:
            hostile.power_on()
            claimed = [r for r in bus.ranges if r.name.startswith("virtio")]
            if dice.random() < 0.7:
                hostile.go()
                hostile.scramble()
        found = dice.choice(claimed)
        offset = dice.randrange(0, min(found.length, 0x140)) & ~dice.choice([0, 3, 3, 3])
        offset = min(offset + dice.choice([0, 0, 0x1000, 0x2000, 0x3000]), found.length - 4)
        size = dice.choice([1, 2, 4, 4])
        value = dice.choice([0, 1, 2, 3, 4, 0x0B, 0x0F, 16, 0x1000, dice.getrandbits(32)])
        if dice.random() < 0.7:
            bus.write(found.start + offset, size, value & (1 << 8 * size) - 1)
        else:
            bus.read(found.start + offset, size)
    hostile.power_on()
    hostile.go()


def test_a_saved_state_that_lies_about_the_rings() -> None:
    """A state file puts the rings anywhere: kicks then break the device, nothing else."""
    dice = random.Random(7)
    hostile = Hostile("mmio", dice)
    hostile.go()
    good = hostile.outer.save()
    words = good["virtio_queues"]
    assert isinstance(words, list)
    for _ in range(500):
        changed = list(words)
        for _ in range(dice.randrange(1, 4)):
            place = dice.choice([1, 2, 3, 4, 5, 6])
            changed[place] = dice.choice([*ODD_ADDRESSES, dice.getrandbits(64)])
        hostile.outer.load({**good, "virtio_queues": changed})
        hostile.transport.kick(0)
