"""The driver side of virtio, without a guest: rings in guest memory, both transports, a disk.

`MmioTransport` and `PciTransport` do what a driver does by registers; the rings are those of
`virtio_rings`; `BlkDriver` makes block requests.
"""

from __future__ import annotations

import struct
from typing import Protocol

from pci_probe import Access
from virtio_rings import (
    INDIRECT,
    NEXT,
    WRITE,
    AnyQueue,
    DriverQueue,
    PackedDriverQueue,
    driver_queue,
)

from pykvm.bus import MmioBus
from pykvm.memory import GuestMemory

__all__ = [
    "INDIRECT",
    "NEXT",
    "WRITE",
    "AnyQueue",
    "BlkDriver",
    "DriverQueue",
    "MmioTransport",
    "PackedDriverQueue",
    "PciTransport",
    "driver_queue",
    "start",
]

VERSION_1, EVENT_IDX, RING_INDIRECT = 1 << 32, 1 << 29, 1 << 28
RING_PACKED, IN_ORDER = 1 << 34, 1 << 35
DONE = 0x0F  # ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK
NEEDS_RESET = 0x40


class Transport(Protocol):
    """Registers of one device, whatever the transport."""

    def status(self) -> int: ...
    def set_status(self, value: int) -> None: ...
    def features(self) -> int: ...
    def accept(self, features: int) -> None: ...
    def queue_max(self, index: int) -> int: ...
    def set_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None: ...
    def kick(self, index: int) -> None: ...
    def config(self, offset: int, size: int) -> int: ...
    def acknowledge(self) -> int: ...


class MmioTransport:
    """VIRTIO 1.2, 4.2: registers at guest-physical `base`."""

    def __init__(self, mmio: MmioBus, base: int) -> None:
        self.mmio, self.base = mmio, base
        assert self.get(0) == 0x74726976
        assert self.get(4) == 2

    def get(self, offset: int) -> int:
        return self.mmio.read(self.base + offset, 4)

    def put(self, offset: int, value: int) -> None:
        self.mmio.write(self.base + offset, 4, value)

    def status(self) -> int:
        return self.get(0x70)

    def set_status(self, value: int) -> None:
        self.put(0x70, value)

    def features(self) -> int:
        value = 0
        for index in (0, 1):
            self.put(0x14, index)
            value |= self.get(0x10) << 32 * index
        return value

    def accept(self, features: int) -> None:
        for index in (0, 1):
            self.put(0x24, index)
            self.put(0x20, features >> 32 * index & 0xFFFF_FFFF)

    def queue_max(self, index: int) -> int:
        self.put(0x30, index)
        return self.get(0x34)

    def set_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        self.put(0x30, index)
        self.put(0x38, size)
        for offset, address in ((0x80, desc), (0x90, driver), (0xA0, device)):
            self.put(offset, address & 0xFFFF_FFFF)
            self.put(offset + 4, address >> 32)
        self.put(0x44, 1)

    def kick(self, index: int) -> None:
        self.put(0x50, index)

    def config(self, offset: int, size: int) -> int:
        return self.mmio.read(self.base + 0x100 + offset, size)

    def acknowledge(self) -> int:
        pending = self.get(0x60)
        self.put(0x64, pending)
        return pending


class PciTransport:
    """VIRTIO 1.2, 4.1: finds the structures by the capabilities of an enumerated function."""

    def __init__(self, access: Access, slot: int, mmio: MmioBus) -> None:
        self.access, self.slot, self.mmio = access, slot, mmio
        self.places: dict[int, int] = {}
        self.multiplier = 0
        at = access.read(slot, 0, 0x34, 1)
        while at:
            if access.read(slot, 0, at, 1) == 9:
                self._structure(at)
            at = access.read(slot, 0, at + 1, 1)
        assert set(self.places) == {1, 2, 3, 4}

    def _structure(self, at: int) -> None:
        kind = self.access.read(self.slot, 0, at + 3, 1)
        if kind == 5:
            self.window = at
            return
        bar = 0x10 + 4 * self.access.read(self.slot, 0, at + 4, 1)
        base = self.access.read(self.slot, 0, bar, 4) & ~15
        base |= self.access.read(self.slot, 0, bar + 4, 4) << 32
        self.places[kind] = base + self.access.read(self.slot, 0, at + 8, 4)
        if kind == 2:
            self.multiplier = self.access.read(self.slot, 0, at + 16, 4)

    def get(self, offset: int, size: int) -> int:
        return self.mmio.read(self.places[1] + offset, size)

    def put(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(self.places[1] + offset, size, value)

    def status(self) -> int:
        return self.get(0x14, 1)

    def set_status(self, value: int) -> None:
        self.put(0x14, 1, value)

    def features(self) -> int:
        value = 0
        for index in (0, 1):
            self.put(0, 4, index)
            value |= self.get(4, 4) << 32 * index
        return value

    def accept(self, features: int) -> None:
        for index in (0, 1):
            self.put(8, 4, index)
            self.put(0x0C, 4, features >> 32 * index & 0xFFFF_FFFF)

    def queue_max(self, index: int) -> int:
        self.put(0x16, 2, index)
        return self.get(0x18, 2)

    def set_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        self.put(0x16, 2, index)
        self.put(0x18, 2, size)
        for offset, address in ((0x20, desc), (0x28, driver), (0x30, device)):
            self.put(offset, 4, address & 0xFFFF_FFFF)
            self.put(offset + 4, 4, address >> 32)
        self.put(0x1C, 2, 1)

    def kick(self, index: int) -> None:
        self.put(0x16, 2, index)
        place = self.places[2] + self.multiplier * self.get(0x1E, 2)
        self.mmio.write(place, 2, index)

    def config(self, offset: int, size: int) -> int:
        return self.mmio.read(self.places[4] + offset, size)

    def acknowledge(self) -> int:
        return self.mmio.read(self.places[3], 1)


def start(transport: Transport, features: int | None = None, *, packed: bool = False) -> int:
    """Reset, negotiate all that is offered (or `features`) up to FEATURES_OK. The features.

    Packed rings only where the caller says that it keeps such.
    """
    transport.set_status(0)
    assert transport.status() == 0
    transport.set_status(1)
    transport.set_status(3)
    wanted = transport.features() if features is None else features
    if not packed:
        wanted &= ~RING_PACKED
    transport.accept(wanted)
    transport.set_status(0x0B)
    assert transport.status() == 0x0B, "the device did not accept the features"
    return wanted


class BlkDriver:
    """A block device that was started, one request at a time. Data lies in 64 KiB at `base`."""

    def __init__(
        self, transport: Transport, memory: GuestMemory, base: int, *,
        features: int | None = None, size: int = 16, packed: bool = False,
    ) -> None:  # fmt: skip
        self.transport, self.memory = transport, memory
        self.features = start(transport, features, packed=packed)
        self.queue = driver_queue(
            memory, base, size, packed=bool(self.features & RING_PACKED),
            event_idx=bool(self.features & EVENT_IDX), in_order=bool(self.features & IN_ORDER),
        )  # fmt: skip
        self.header = base + 0x4000
        self.table = base + 0x4800
        self.data = base + 0x5000
        queue = self.queue
        transport.set_queue(0, size, queue.desc, queue.driver, queue.device)
        transport.set_status(DONE)
        assert transport.status() == DONE

    def request(
        self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0, *,
        pieces: int = 1, indirect: bool = False,
    ) -> tuple[int, bytes, int]:  # fmt: skip
        """(status, data read, bytes the device says it wrote). The data in `pieces` buffers."""
        memory = self.memory
        memory.write(self.header, struct.pack("<IIQ", kind, 0, sector))
        status = self.header + 32
        memory.write_u8(status, 0xAA)
        memory.write(self.data, out + b"\xcc" * room)
        length = len(out) + room
        buffers = [(self.header, 16, False)]
        step = -(-length // pieces) if length else 1
        for at in range(0, length, step):
            buffers.append((self.data + at, min(step, length - at), room > 0))
        buffers.append((status, 1, True))
        head = self.queue.add(buffers, self.table if indirect else 0)
        self.transport.kick(0)
        done = self.queue.used()
        assert len(done) == 1, "the request did not come back"
        assert done[0][0] == head
        return memory.read_u8(status), memory.read(self.data, room), done[0][1]
