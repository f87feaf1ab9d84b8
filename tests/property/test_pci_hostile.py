"""Random traffic to configuration space and BARs: no exception, no BAR where one may not be."""

from __future__ import annotations

import logging
import random
from itertools import pairwise

import pytest
from pci_probe import Board, probe

from pykvm.devices.block import MemoryDisk
from pykvm.devices.pci import (
    Bar,
    Ich9Lpc,
    MsiCapability,
    PciDevice,
    PciTestDev,
    Q35HostBridge,
    RamBlock,
    Registers,
)
from pykvm.devices.virtio import VirtioBlk, VirtioPci

ROUNDS, STEPS = 200, 400
#: Offsets in configuration space where something happens, more often than the rest.
BUSY = [0x04, 0x06, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x30, 0x3C, *range(0x40, 0xB0, 2)]
ADDRESSES = [
    0, 0x600, 0xC000, 0xCF8, 0x8_0000, 0xF_F000, 0xB000_0000, 0xC000_0000, 0xC000_1000,
    0xE000_0000, 0xEFFF_F000, 0xFEE0_0000, 0xFFFF_F000, 0xFFFF_FFFF,
]  # fmt: skip


def build(block: RamBlock) -> Board:
    board = Board()
    nothing = Registers("nothing", lambda at, size: at, lambda at, size, value: None)
    mixed = PciDevice(
        0x1234, 1, 0x030000, interrupt_pin=2, rom=b"\x55\xaa",
        bars=[Bar("mem32", 0x2000, ram=block), Bar("io", 64, nothing), Bar("mem64", 4096, nothing)],
    )  # fmt: skip
    MsiCapability(mixed, 32)
    board.bus.add(0, 0, Q35HostBridge(board.host))
    board.bus.add(0x1F, 0, Ich9Lpc(board.router, lambda port: None))
    board.bus.add(1, 0, mixed)
    board.bus.add(2, 0, PciTestDev(membar=1 << 32))
    board.bus.add(3, 0, VirtioPci(VirtioBlk(MemoryDisk(bytes(4096))), board.memory))
    return board


def check(board: Board) -> None:
    """Nothing decodes over RAM or over another."""
    for bus in (board.mmio, board.pio):
        ranges = sorted((r.start, r.end) for r in bus.ranges)
        for (_, end), (start, _) in pairwise(ranges):
            assert end <= start
    mapped = [(at, at + block.size) for at, block, _ in board.ram_maps]
    for start, end in [*mapped, *((r.start, r.end) for r in board.mmio.ranges)]:
        assert start >= Board.RAM
        assert not (start < 0xFEE0_1000 and end > 0xFEE0_0000)
    for start, end in mapped:
        assert not any(r.start < end and start < r.end for r in board.mmio.ranges)


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic(seed: int) -> None:
    logging.disable(logging.WARNING)
    block = RamBlock(0x2000)
    dice = random.Random(seed)
    try:
        for _ in range(ROUNDS // 4):
            board = build(block)
            traffic(board, dice)
            for device in board.bus:
                device.reset()
            assert [f.bars for f in probe(board.ports)] == [
                f.bars for f in probe(build(block).ports)
            ]
            for device in board.bus:
                device.bus.decode(device)  # type: ignore[union-attr]
    finally:
        block.close()
        logging.disable(logging.NOTSET)


def traffic(board: Board, dice: random.Random) -> None:
    for _ in range(STEPS):
        slot = dice.choice([0, 1, 1, 2, 2, 3, 3, 3, 0x1F, 7])
        size = dice.choice([1, 2, 4, 4, 4])
        offset = dice.choice(BUSY) if dice.random() < 0.9 else dice.randrange(256)
        value = dice.choice(ADDRESSES) | dice.choice([0, 0, 1, 3, 7])
        if dice.random() < 0.3:
            value = dice.getrandbits(32)
        kind = dice.random()
        if kind < 0.5:
            board.ports.write(slot, 0, offset, size, value & (1 << 8 * size) - 1)
        elif kind < 0.6:
            board.ports.read(slot, 0, offset, size)
        elif kind < 0.7:
            board.ports.write(slot, 0, 4, 2, dice.choice([0, 2, 3, 6, 7, 0x407]))
        elif kind < 0.75:
            board.pio.write(dice.randrange(0xCF8, 0xD00), size, value & (1 << 8 * size) - 1)
        else:
            touch(board, dice, size, value)
        if dice.random() < 0.05:
            check(board)
    check(board)


def touch(board: Board, dice: random.Random, size: int, value: int) -> None:
    """An access to whatever is decoded now."""
    bus = dice.choice([board.mmio, board.pio])
    if not bus.ranges:
        return
    found = dice.choice(bus.ranges)
    at = found.start + min(dice.getrandbits(dice.randrange(1, 28)), found.length - 1)
    if dice.random() < 0.5:
        bus.read(at, size)
    else:
        bus.write(at, size, value & (1 << 8 * size) - 1)
