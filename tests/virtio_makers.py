"""How each of the smaller virtio devices is made for a test."""

from __future__ import annotations

from collections.abc import Callable

from hostile_chains import EXTRA

from pykvm.devices import Clock
from pykvm.devices.chardev import BufferChardev
from pykvm.devices.virtio import VirtioDevice
from pykvm.devices.virtio.balloon import VirtioBalloon
from pykvm.devices.virtio.console import VirtioConsole
from pykvm.devices.virtio.gpu import VirtioGpu
from pykvm.devices.virtio.input import VirtioKeyboard, VirtioMouse, VirtioTablet
from pykvm.devices.virtio.mem import VirtioMem
from pykvm.devices.virtio.pmem import VirtioPmem
from pykvm.devices.virtio.rng import VirtioRng
from pykvm.memory import MemoryRegion

BLOCK = 64 << 10


class NumberedRng(VirtioRng):
    """Random numbers that two copies have in common."""

    def _read(self, length: int) -> bytes:
        return bytes(n & 0xFF for n in range(length))


def console(clock: Clock) -> VirtioConsole:
    device = VirtioConsole(BufferChardev(1 << 16), ports=3, size=(80, 24), clock=clock)
    device.add_port("one", BufferChardev(1 << 16))
    return device


def memory_device(clock: Clock) -> VirtioMem:
    return VirtioMem(MemoryRegion(EXTRA, 16 * BLOCK, kind="device"), "256K", block_size=BLOCK)


MAKERS: dict[str, Callable[[Clock], VirtioDevice]] = {
    "rng": lambda clock: NumberedRng(clock=clock),
    "balloon": lambda clock: VirtioBalloon("64K", period=1, clock=clock),
    "console": console,
    "mem": memory_device,
    "pmem": lambda clock: VirtioPmem(EXTRA, 1 << 20),
    "keyboard": lambda clock: VirtioKeyboard(),
    "mouse": lambda clock: VirtioMouse(),
    "tablet": lambda clock: VirtioTablet(),
    "gpu": lambda clock: VirtioGpu(32, 24, limit="64K"),
}
