"""The VGA and the IDE devices, for the tests of save and load."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from device_contract import Bench, Case, Step

from pykvm.devices import Device
from pykvm.devices.block import MemoryDisk
from pykvm.devices.display import PciVga, Vga
from pykvm.devices.ide import AtaDisk, AtapiCdrom, IdeChannel, IdeController
from pykvm.memory import GuestMemory

_recent: deque[Vga | GuestMemory] = deque()


def _keep(thing: Any) -> Any:
    """Video memory has a file descriptor: that of machines long gone is given back."""
    _recent.append(thing)
    if len(_recent) > 8:
        _recent.popleft().close()
    return thing


def vga(bench: Bench) -> Vga:
    """With little memory: the tests fill and compare it."""
    return _keep(Vga(vram_size=1 << 20))


def controller(bench: Bench) -> IdeController:
    """With nothing on its channels."""
    return IdeController(_keep(GuestMemory.anonymous([(0, 4096)])), (bench.irq, bench.irq))


class Forgetful(MemoryDisk):
    """What is on a disk is no part of a device's state: a copy has another disk with the same."""

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Keeps nothing."""


def disk(bench: Bench) -> AtaDisk:
    """64 sectors that differ from each other."""
    drive = AtaDisk(Forgetful(b"".join(bytes([n]) * 512 for n in range(64))))
    drive.interrupt = lambda: bench.output.append("interrupt")
    return drive


def cdrom(bench: Bench) -> AtapiCdrom:
    """Eight sectors."""
    drive = AtapiCdrom(MemoryDisk(b"".join(bytes([n]) * 2048 for n in range(8))))
    drive.interrupt = lambda: bench.output.append("interrupt")
    return drive


def packet(*values: int) -> list[Step]:
    """A packet command, as writes to the registers."""
    full = [*values, *[0] * (12 - len(values))]
    limit: list[Step] = [("write", 4, 0), ("write", 5, 1), ("write", 7, 0xA0)]
    return [*limit, *(("write", 0, value) for value in full)]


DISK_STARTS: list[list[Step]] = [
    [],
    [("write", 7, 0xEC), ("read", 0, 0), ("read", 0, 0)],
    [("write", 2, 3), ("write", 6, 0x40), ("write", 7, 0x20), *[("read", 0, 0)] * 600],
    [("write", 2, 2), ("write", 6, 0x40), ("write", 7, 0x30), *[("write", 0, 7)] * 515],
    [("write", 2, 2), ("write", 6, 0x40), ("write", 7, 0xC8)],
    [("write", 1, 0x82), ("write", 7, 0xEF), ("write", 2, 8), ("write", 7, 0xC6)],
    [("write", 1, 3), ("write", 2, 0x22), ("write", 7, 0xEF), ("write", 7, 0xEC)],
]
CDROM_STARTS: list[list[Step]] = [
    [],
    [*packet(0x12, 0, 0, 0, 36), ("read", 0, 0)],
    [*packet(0x28, 0, 0, 0, 0, 2, 0, 0, 3), *[("read", 0, 0)] * 300],
    [*packet(0x28, 0, 0, 0, 9, 9), *packet(0x03, 0, 0, 0, 18)],
    [("write", 7, 0xA0), ("write", 0, 0x1E)],
    [("write", 1, 1), *packet(0x28, 0, 0, 0, 0, 1, 0, 0, 1)],
    [*packet(0x1E, 0, 0, 0, 1), *packet(0x1B, 0, 0, 0, 2)],
]


def eject(drive: AtapiCdrom, value: int) -> None:
    """The user changes the disc."""
    medium = drive.eject() or MemoryDisk(bytes(4096))
    if value & 1:
        drive.insert(medium)


CASES: dict[type[Device], Case] = {
    Vga: Case(
        vga,
        0x30,
        {
            "memory": lambda device, value: device.window.write(0x18000 + 2 * value, 2, value),
            "graphics": lambda device, value: device.window.write(value, 1, value ^ 0xA5),
            "latch": lambda device, value: device.window.read(value, 1),
            "vbe": lambda device, value: device.dispi_ports.write(value & 1, 2, value >> 1),
        },
        lambda device: (device.window.read(0x18000, 8), device.dispi_ports.read(1, 2)),
    ),
    PciVga: Case(
        lambda bench: PciVga(vga(bench), rom=b"\x55\xaa"),
        64,
        look=lambda device: [bar.address for bar in device.all_bars()],
        width=4,
    ),
    IdeController: Case(
        controller,
        64,
        {
            "master": lambda device, value: device.bars[4].device.write(value & 15, 1, value),
            "interrupt": lambda device, value: device.channels[value & 1].on_interrupt(),
        },
        lambda device: [device.bars[4].device.read(at, 4) for at in range(0, 16, 4)],
        width=4,
    ),
    IdeChannel: Case(
        lambda bench: IdeChannel("ide0", bench.irq),
        8,
        {
            "interrupt": lambda channel, value: channel._interrupt(),
            "control": lambda channel, value: channel.control.write(0, 1, value),
        },
    ),
    AtaDisk: Case(disk, 8, starts=DISK_STARTS, look=lambda drive: drive.phase),
    AtapiCdrom: Case(cdrom, 8, {"eject": eject}, lambda drive: drive.phase, starts=CDROM_STARTS),
}
