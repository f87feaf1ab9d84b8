"""PCI functions, the PCI host and the virtio transports, for the tests of save and load."""

from __future__ import annotations

import struct

from device_contract import Bench, Case, Step
from pci_probe import Board
from virtio_driver import NEXT, WRITE, DriverQueue

from pykvm.bus import BusDevice
from pykvm.devices import Device
from pykvm.devices.block import MemoryDisk
from pykvm.devices.pci import (
    Bar,
    Ich9Lpc,
    MsiCapability,
    MsixCapability,
    PciDevice,
    PciHost,
    PciTestDev,
    Q35HostBridge,
    Registers,
)
from pykvm.devices.virtio import VirtioBlk, VirtioMmio, VirtioPci
from pykvm.memory import GuestMemory

COMMAND, BAR0 = 0x04, 0x10


class _Bench(Board):
    """A board whose PCI interrupts go to the bench."""

    def __init__(self, bench: Bench, memory: GuestMemory | None = None) -> None:
        super().__init__(memory)
        self.router = self.bus.router = type(self.router)([bench.irq] * 8, dict(self.isa))
        self.msi.send = lambda address, data: bench.output.append((address, data))  # type: ignore[method-assign]


def function(bench: Bench, device: PciDevice) -> PciDevice:
    """A function on a board of its own."""
    _Bench(bench).bus.add(3, 0, device)
    return device


def plain(bench: Bench) -> PciDevice:
    """A function with a bit of everything."""
    nothing = Registers("nothing", lambda at, size: 0, lambda at, size, value: None)
    device = PciDevice(
        0x1234, 0x5678, 0xFF0000, interrupt_pin=1, rom=bytes(4096),
        bars=[Bar("mem32", 4096, nothing), Bar("io", 16, nothing), Bar("mem64", 4096, nothing)],
    )  # fmt: skip
    MsiCapability(device, 2)
    device.msix = MsixCapability(device, 3, 0)  # type: ignore[attr-defined]
    return function(bench, device)


def places(device: PciDevice) -> object:
    """Where the BARs are decoded."""
    return [bar.address for bar in device.all_bars()]


def writes(offset: int, data: bytes) -> list[Step]:
    """Config bytes, one by one."""
    return [("write", offset + n, byte) for n, byte in enumerate(data)]


def bar_at(index: int, address: int) -> list[Step]:
    return writes(BAR0 + 4 * index, address.to_bytes(4, "little"))


MSI, MSIX = 0x40, 0x58
ON = writes(COMMAND, b"\x07")
PLACED = [*bar_at(0, 0xC0000000), *bar_at(1, 0xC000), *bar_at(2, 0xC0010000), *ON]
MESSAGE = [
    *writes(MSI + 4, struct.pack("<QHHI", 0xFEE01000, 0x40, 0, 2)),
    *writes(MSI + 2, b"\x11"),
]


def set_table(device: PciDevice, value: int) -> None:
    """Vector 1 gets a message, masked or not."""
    words = (0xFEE0_0000, 0, value, value & 1)
    for n, word in enumerate(words):
        device.msix.table_write(16 + 4 * n, 4, word)  # type: ignore[attr-defined]


def tests(device: PciTestDev, value: int) -> BusDevice:
    """The memory or the I/O BAR of the test device."""
    bar = device.bars[value & 1]
    assert bar is not None
    assert bar.device is not None
    return bar.device


def host(bench: Bench) -> PciHost:
    board = _Bench(bench)
    board.bus.add(0, 0, Q35HostBridge(board.host))
    return board.host


def bridge(bench: Bench) -> PciDevice:
    board = _Bench(bench)
    device = Q35HostBridge(board.host)
    board.bus.add(0, 0, device)
    return device


def lpc(bench: Bench) -> PciDevice:
    board = Board()  # the lines that it switches belong to others
    moved: list[int | None] = []
    device = Ich9Lpc(board.router, moved.append)
    board.bus.add(0x1F, 0, device)
    board.router.line(3, 1).set(True)
    device.seen = (board, moved)  # type: ignore[attr-defined]
    return device


def rings() -> GuestMemory:
    """Memory with a ring of four requests to read a sector each, three of them available."""
    memory = GuestMemory.anonymous([(0, 0x10000)])
    queue = DriverQueue(memory, 0, 4)
    assert queue.end <= 128
    memory.write(0x100, struct.pack("<IIQ", 0, 0, 1))
    queue.write_descriptor(0, 0x100, 16, NEXT, 1)
    queue.write_descriptor(1, 0x200, 512, NEXT | WRITE, 2)
    queue.write_descriptor(2, 0x110, 1, WRITE)
    for _ in range(3):
        queue.make_available(0)
    return memory


def disk() -> VirtioBlk:
    return VirtioBlk(MemoryDisk(bytes(8192)), "serial")


def inner(outer: VirtioMmio | VirtioPci) -> object:
    """What only the driver's memory shows."""
    device = outer.device
    return device.status, device.driver_features, [queue.state() for queue in device.queues]


def mmio(*pairs: tuple[int, int]) -> list[Step]:
    return [("write", offset // 4, value) for offset, value in pairs]


MMIO_START = mmio(
    (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0x0B), (0x30, 0), (0x38, 4), (0x80, 0), (0x90, 64),
    (0xA0, 80), (0x44, 1), (0x70, 0x0F),
)  # fmt: skip
WINDOW = 0x90  # the capability of VirtioPci that reaches into its BAR


def window(offset: int, size: int, value: int) -> list[Step]:
    """A write into BAR 4 through configuration space."""
    return [
        *writes(WINDOW + 8, offset.to_bytes(4, "little")),
        *writes(WINDOW + 12, bytes([size])),
        *writes(WINDOW + 16, bytes([value])),
    ]


PCI_START = [
    *writes(WINDOW + 4, b"\x04"), *window(0x14, 1, 3), *window(8, 4, 1), *window(0x0C, 4, 1),
    *window(0x14, 1, 0x0B), *window(0x18, 2, 4), *window(0x28, 4, 64), *window(0x30, 4, 80),
    *window(0x10, 2, 1), *window(0x1A, 2, 0), *window(0x1C, 2, 1), *window(0x14, 1, 0x0F),
]  # fmt: skip


def virtio_pci(bench: Bench) -> PciDevice:
    memory = rings()
    device = VirtioPci(disk(), memory)
    _Bench(bench, memory).bus.add(3, 0, device)
    return device


CASES: dict[type[Device], Case] = {
    PciDevice: Case(
        plain,
        256,
        {
            "pin": lambda device, value: device.set_intx(bool(value & 1)),
            "msi": lambda device, value: device.capabilities[0][2].send(value & 1),
            "msix": lambda device, value: device.msix.send(value & 1),
            "table": set_table,
        },
        lambda device: (places(device), device.msix.pba_read(0, 8)),
        starts=[[], PLACED, [*PLACED, *MESSAGE], [*ON, *writes(MSIX + 3, b"\x80")]],
    ),
    PciTestDev: Case(
        lambda bench: function(bench, PciTestDev(membar=1 << 20)),
        256,
        {
            "start": lambda device, value: device.bars[value & 1].device.write(
                0, 1, value >> 1 & 3
            ),
            "hit": lambda device, value: device.bars[value & 1].device.write(
                0x80 + (value >> 1 & 3), 1, 0xFA
            ),
            "count": lambda device, value: device.bars[value & 1].device.read(12, 4),
        },
        places,
        starts=[[], PLACED, [("start", 0, 0), ("hit", 0, 0), ("start", 0, 3), ("hit", 0, 3)]],
    ),
    Q35HostBridge: Case(
        bridge,
        256,
        {},
        lambda device: device._host.ecam_place,
        starts=[[], [("write", 0x63, 0xB0)], [("write", 0x60, 5), ("write", 0x63, 0xD0)]],
    ),
    Ich9Lpc: Case(
        lpc,
        256,
        {},
        lambda device: (
            device.pm_base,
            [line.level for line in device.seen[0].isa.values()],
            device.seen[1][-1],
        ),
        starts=[[], [("write", 0x63, 10)], [("write", 0x41, 0xB0), ("write", 0x63, 5)]],
    ),
    PciHost: Case(
        host,
        2,
        {},
        lambda device: device.ecam_place,
        width=4,
        starts=[[], [("write", 0, 0x80)]],
    ),
    VirtioMmio: Case(
        lambda bench: VirtioMmio(disk(), rings(), bench.irq),
        0x140 // 4,
        {"grow": lambda outer, value: outer.device.resized()},
        lambda outer: (inner(outer), outer._driver_sel),
        width=4,
        starts=[[], MMIO_START, [*MMIO_START, ("write", 0x50 // 4, 0)]],
    ),
    VirtioPci: Case(
        virtio_pci,
        256,
        {
            "kick": lambda outer, value: outer.device.kick(0),
            "grow": lambda outer, value: outer.device.resized(),
        },
        lambda outer: (
            inner(outer),
            places(outer),
            (outer._isr.value, outer.common.vectors[:], outer.common.selected[:]),
        ),
        starts=[[], PCI_START, [*PCI_START, *PLACED, ("kick", 0, 0)]],
    ),
}
