"""A device on every kind of ring: the disk, driven by requests, on both transports."""

from __future__ import annotations

import pytest
from pci_probe import Board
from virtio_driver import (
    EVENT_IDX,
    IN_ORDER,
    RING_PACKED,
    VERSION_1,
    BlkDriver,
    MmioTransport,
    PciTransport,
    Transport,
)

from pykvm.devices.block import MemoryDisk
from pykvm.devices.pci import Window, assign_bars
from pykvm.devices.virtio import VirtioBlk, VirtioMmio, VirtioPci
from pykvm.memory import GuestMemory

BASE, RINGS = 0xFEB0_0000, 0x10000


@pytest.mark.parametrize("kind", ["mmio", "pci"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("off", [0, IN_ORDER, EVENT_IDX, IN_ORDER | EVENT_IDX])
def test_requests(kind: str, packed: bool, off: int) -> None:
    memory = GuestMemory.anonymous([(0, 0x40000)])
    board = Board(memory)
    disk = MemoryDisk(bytes(range(256)) * 128)
    device = VirtioBlk(disk, queue_size=16)
    transport: Transport
    if kind == "mmio":
        board.mmio.add_device(VirtioMmio(device, memory), BASE, VirtioMmio.LENGTH)
        transport = MmioTransport(board.mmio, BASE)
    else:
        board.bus.add(3, 0, VirtioPci(device, memory))
        assign_bars(board.bus, Window(0xC000, 256), [Window(0xC000_0000, 1 << 20)])
        transport = PciTransport(board.ports, 3, board.mmio)
    features = transport.features() & ~off
    driver = BlkDriver(transport, memory, RINGS, features=features, packed=packed)
    assert driver.features & VERSION_1
    assert bool(driver.features & RING_PACKED) == packed == device.queues[0].packed
    for turn in range(20):  # several laps
        data = bytes([turn]) * 1024
        assert driver.request(1, turn, data, pieces=turn % 4 + 1, indirect=turn % 3 == 0)[0] == 0
        assert driver.request(0, turn, room=1024, pieces=turn % 3 + 1)[:2] == (0, data)
    state = device.state()
    assert state["virtio_queues"] == device.queues[0].state()
