"""Placing BARs as firmware does, for kernels that are loaded without any."""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.devices.pci import config as c
from pykvm.devices.pci.bar import Bar, warn
from pykvm.devices.pci.bus import PciBus
from pykvm.devices.pci.chipset import PIRQ_ROUTES, Ich9Lpc
from pykvm.devices.pci.device import PciDevice
from pykvm.typed import NamedTuple

_ISA_IRQS = (10, 10, 11, 11, 10, 10, 11, 11)  # by PIRQ
_LARGE = 256 << 20  # a 64-bit BAR from this size on goes above 4 GiB first


class Window(NamedTuple):
    """A range for BARs: ports or guest-physical addresses, `[base, base + size)`."""

    base: int
    size: int


class _Space:
    """First fit in a list of windows; the order of requests decides, nothing else."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._next = [window.base or 1 for window in windows]  # 0 means "not assigned"
        self._ends = [window.base + window.size for window in windows]

    def take(self, size: int, align: int) -> int | None:
        for n, end in enumerate(self._ends):
            at = self._next[n] + align - 1 & ~(align - 1)
            if at + size <= end:
                self._next[n] = at + size
                return at
        return None


def assign_bars(
    bus: PciBus, io: Window, mem32: Sequence[Window], mem64: Window | None = None,
    isa_irqs: Sequence[int] = _ISA_IRQS,
) -> list[tuple[PciDevice, int, int]]:  # fmt: skip
    """Gives every BAR an address, switches decoding and bus mastering on, sets interrupt lines.

    Largest first, then by slot and register, so that the same devices get the same addresses.
    Memory BARs of 64 bits go below 4 GiB while they fit, so that 32-bit kernels reach them. The
    PIRQ route registers get `isa_irqs`. What does not fit stays unassigned, with a line in the
    log. Expansion ROMs stay off. Returns (device, BAR index, address).
    """
    below, above = _Space(mem32), _Space([] if mem64 is None else [mem64])
    ports = _Space([io])
    wanted: list[tuple[int, int, int, PciDevice, Bar]] = []
    for device in bus:
        device.write(c.COMMAND, 2, 0)
        for index, bar in enumerate(device.bars):
            if bar is not None:
                order = device.slot << 3 | device.function
                wanted.append((-bar.size, order, index, device, bar))
    placed: list[tuple[PciDevice, int, int]] = []
    for _, _, index, device, bar in sorted(wanted, key=lambda w: w[:3]):
        align = bar.size if bar.kind == "io" else max(bar.size, 4096)
        spaces = [ports] if bar.kind == "io" else [below]
        if bar.kind == "mem64":
            spaces = [above, below] if bar.size >= _LARGE else [below, above]
        places = (space.take(bar.size, align) for space in spaces)
        address = next((at for at in places if at is not None), None)
        if address is None:
            warn(f"{device.name}: no room for BAR {index} of {bar.size:#x} bytes")
            continue
        device.write(c.BAR0 + 4 * index, 4, address & 0xFFFF_FFFF)
        if bar.kind == "mem64":
            device.write(c.BAR0 + 4 * index + 4, 4, address >> 32)
        placed.append((device, index, address))
    _enable(bus, isa_irqs)
    return placed


def _enable(bus: PciBus, isa_irqs: Sequence[int]) -> None:
    for device in bus:
        if isinstance(device, Ich9Lpc):
            for offset, irq in zip(PIRQ_ROUTES, isa_irqs, strict=True):
                device.write(offset, 1, irq)
    for device in bus:
        command = c.COMMAND_MASTER
        for bar in device.bars:
            if bar is not None:
                command |= c.COMMAND_IO if bar.kind == "io" else c.COMMAND_MEMORY
        pin = device.config.data[c.INTERRUPT_PIN]
        if pin and bus.router is not None:
            device.write(c.INTERRUPT_LINE, 1, isa_irqs[bus.router.pirq(device.slot, pin)])
        device.write(c.COMMAND, 2, command)
