"""`BusMapper`: a `BarMapper` over the machine's two buses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pykvm.bus import BusDevice, BusError, MmioBus, PioBus
from pykvm.devices.pci.bar import Mapping, RamBlock
from pykvm.memory import GuestMemory
from pykvm.typed import TypeAlias

MapRam: TypeAlias = Callable[[int, RamBlock, bool], Mapping]


class BusMapper:
    """Puts BARs on `pio` and `mmio`, never over RAM.

    - `memory`: what is RAM (and ROM) now; asked anew at each change.
    - `reserved`: (guest-physical address, length) of what answers without being on the bus: the
      interrupt controllers in the kernel, KVM's own pages.
    - `map_ram(address, block, readonly)`: gives the guest host memory; without it, BARs of RAM
      are not decoded. It need not check the place. The handle's `remove` takes it back.
    """

    def __init__(
        self, pio: PioBus, mmio: MmioBus, memory: GuestMemory | None = None,
        map_ram: MapRam | None = None, reserved: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        self._pio = pio
        self._mmio = mmio
        self._memory = memory
        self._map_ram = map_ram
        self._reserved = tuple(reserved)
        self._shown: list[_Shown] = []  # host memory that the guest sees now

    def map(self, kind: str, address: int, length: int, device: BusDevice) -> Mapping:
        """Puts `device` on a bus. Raises `BusError` where something is there already."""
        if kind == "pio":
            return self._pio.add_device(device, address, length)
        self._check(address, length)
        return self._mmio.add_device(device, address, length)

    def map_ram(self, address: int, block: RamBlock, readonly: bool) -> Mapping:
        """Gives the guest host memory at `address`. Raises as `map`."""
        if self._map_ram is None:
            raise BusError(f"{block.name}: this machine cannot show host memory at a BAR")
        self._check(address, block.size)
        for other in self._mmio.ranges:
            if address < other.end and other.start < address + block.size:
                raise BusError(f"{block.name} at {address:#x} would cover {other.name}")
        mapping = self._map_ram(address, block, readonly)
        shown = _Shown(self._shown, address, address + block.size, mapping)
        self._shown.append(shown)
        return shown

    def _check(self, address: int, length: int) -> None:
        end = address + length
        regions = [] if self._memory is None else self._memory.regions
        for region in regions:
            if address < region.end and region.gpa < end:
                raise BusError(
                    f"{address:#x}..{end - 1:#x} is memory ({region.gpa:#x}..{region.end - 1:#x})"
                )
        for shown in self._shown:
            if address < shown.end and shown.start < end:
                raise BusError(f"{address:#x}..{end - 1:#x} covers another BAR's memory")
        for start, size in self._reserved:
            if address < start + size and start < end:
                raise BusError(f"{address:#x}..{end - 1:#x} covers {start:#x}, which is reserved")


class _Shown:
    """Host memory at a BAR, while it is there."""

    def __init__(self, all_: list[_Shown], start: int, end: int, mapping: Mapping) -> None:
        self._all = all_
        self.start, self.end = start, end
        self._mapping = mapping

    def remove(self) -> None:
        """Takes it away from the guest."""
        self._all.remove(self)
        self._mapping.remove()
