"""Finding PCI functions as firmware does: by ports or ECAM, BAR sizes, capabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pykvm.bus import MmioBus, PioBus
from pykvm.devices.base import RecordingIrqLine
from pykvm.devices.pci import BusMapper, IntxRouter, PciBus, PciHost
from pykvm.devices.pci.bar import Mapping, RamBlock
from pykvm.memory import GuestMemory


class Access(Protocol):
    """A way to configuration space: (slot, function, offset, size)."""

    def read(self, slot: int, function: int, offset: int, size: int) -> int: ...
    def write(self, slot: int, function: int, offset: int, size: int, value: int) -> None: ...


class Mechanism1:
    """Ports 0xcf8 and 0xcfc."""

    def __init__(self, pio: PioBus) -> None:
        self.pio = pio

    def _select(self, slot: int, function: int, offset: int) -> int:
        self.pio.write(0xCF8, 4, 1 << 31 | slot << 11 | function << 8 | offset & 0xFC)
        return 0xCFC + (offset & 3)

    def read(self, slot: int, function: int, offset: int, size: int) -> int:
        return self.pio.read(self._select(slot, function, offset), size)

    def write(self, slot: int, function: int, offset: int, size: int, value: int) -> None:
        self.pio.write(self._select(slot, function, offset), size, value)


class Ecam:
    """The memory window at `base`."""

    def __init__(self, mmio: MmioBus, base: int) -> None:
        self.mmio, self.base = mmio, base

    def _place(self, slot: int, function: int, offset: int) -> int:
        return self.base + (slot << 15 | function << 12 | offset)

    def read(self, slot: int, function: int, offset: int, size: int) -> int:
        return self.mmio.read(self._place(slot, function, offset), size)

    def write(self, slot: int, function: int, offset: int, size: int, value: int) -> None:
        self.mmio.write(self._place(slot, function, offset), size, value)


@dataclass
class Found:
    """One function, as its registers describe it."""

    slot: int
    function: int
    vendor: int
    device: int
    class_code: int
    #: BAR index -> (kind, size, prefetch)
    bars: dict[int, tuple[str, int, bool]] = field(default_factory=dict)
    #: (capability ID, offset)
    capabilities: list[tuple[int, int]] = field(default_factory=list)


def probe(access: Access) -> list[Found]:
    """Every function of bus 0."""
    found = []
    for slot in range(32):
        if access.read(slot, 0, 0, 2) == 0xFFFF:
            continue
        many = access.read(slot, 0, 0x0E, 1) & 0x80
        for function in range(8 if many else 1):
            ids = access.read(slot, function, 0, 4)
            if ids != 0xFFFF_FFFF:
                found.append(_look(access, slot, function, ids))
    return found


def _look(access: Access, slot: int, function: int, ids: int) -> Found:
    one = Found(slot, function, ids & 0xFFFF, ids >> 16, access.read(slot, function, 8, 4) >> 8)
    index = 0
    while index < 6:
        bar = size_bar(access, slot, function, index)
        if bar is not None:
            one.bars[index] = bar
            index += bar[0] == "mem64"
        index += 1
    if access.read(slot, function, 6, 2) & 0x10:
        at = access.read(slot, function, 0x34, 1)
        while at and len(one.capabilities) < 48:
            one.capabilities.append((access.read(slot, function, at, 1), at))
            at = access.read(slot, function, at + 1, 1)
    return one


def size_bar(access: Access, slot: int, function: int, index: int) -> tuple[str, int, bool] | None:
    """(kind, size, prefetch) by writing all-ones, decoding off meanwhile; None: no BAR."""
    at = 0x10 + 4 * index
    command = access.read(slot, function, 4, 2)
    access.write(slot, function, 4, 2, command & ~3)
    old = access.read(slot, function, at, 4)
    access.write(slot, function, at, 4, 0xFFFF_FFFF)
    mask = access.read(slot, function, at, 4)
    access.write(slot, function, at, 4, old)
    result: tuple[str, int, bool] | None = None
    if mask & 1:
        result = "io", -(mask & ~3) & 0xFFFF_FFFF, False
    elif mask & 6 == 4:
        high = access.read(slot, function, at + 4, 4)
        access.write(slot, function, at + 4, 4, 0xFFFF_FFFF)
        wide = access.read(slot, function, at + 4, 4) << 32 | mask & ~15
        access.write(slot, function, at + 4, 4, high)
        result = "mem64", -wide & (1 << 64) - 1, bool(mask & 8)
    elif mask:
        result = "mem32", -(mask & ~15) & 0xFFFF_FFFF, bool(mask & 8)
    access.write(slot, function, 4, 2, command)
    return result


class RecordingMsi:
    """A `MsiSender` that keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def send(self, address: int, data: int) -> None:
        self.sent.append((address, data))


class Board:
    """Buses, RAM, interrupt lines and a PCI bus, without a CPU."""

    RAM = 1 << 20

    def __init__(self, memory: GuestMemory | None = None) -> None:
        self.pio = PioBus(_ones)
        self.mmio = MmioBus(_ones)
        self.memory = memory or GuestMemory.anonymous([(0, self.RAM)])
        self.gsi = [RecordingIrqLine() for _ in range(8)]
        self.isa = {n: RecordingIrqLine() for n in (5, 9, 10, 11)}
        self.msi = RecordingMsi()
        self.router = IntxRouter(self.gsi, dict(self.isa))
        #: (address, block) of host memory that the guest sees now.
        self.ram_maps: list[tuple[int, RamBlock, bool]] = []
        mapper = BusMapper(
            self.pio, self.mmio, self.memory, self._map_ram, reserved=[(0xFEE0_0000, 0x1000)]
        )
        self.bus = PciBus(mapper, self.router, self.msi)
        self.host = PciHost(self.bus)
        self.pio.add_device(self.host, 0xCF8, 8)
        self.ports = Mechanism1(self.pio)

    def _map_ram(self, address: int, block: RamBlock, readonly: bool) -> Mapping:
        entry = address, block, readonly
        self.ram_maps.append(entry)
        return _Remove(self.ram_maps, entry)

    def at(self, name: str) -> tuple[int, int] | None:
        """(address, length) of the range called `name` on either bus, None where it is not."""
        for found in (*self.pio.ranges, *self.mmio.ranges):
            if found.name == name:
                return found.start, found.length
        return None


class _Remove:
    def __init__(self, entries: list[tuple[int, RamBlock, bool]], entry: object) -> None:
        self.entries, self.entry = entries, entry

    def remove(self) -> None:
        self.entries.remove(self.entry)  # type: ignore[arg-type]


def _ones(kind: str, address: int, size: int, value: int | None) -> int:
    return (1 << 8 * size) - 1
