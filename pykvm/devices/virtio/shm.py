"""Shared memory regions (VIRTIO 1.2, section 2.10): memory of the device that its driver maps."""

from __future__ import annotations

from pykvm.devices.pci.bar import RamBlock
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class ShmRegion(NamedTuple):
    """Region `id` (0 to 255): `length` bytes at `offset` of `block`, which shows to the guest."""

    id: int
    block: RamBlock
    offset: int
    length: int


def one_block(name: str, regions: Sequence[ShmRegion]) -> RamBlock | None:
    """The memory of all regions of a device; they share one block. None without regions.

    Raises `PykvmError` for regions that cannot be.
    """
    if not regions:
        return None
    block = regions[0].block
    for region in regions:
        if region.block is not block or region.offset + region.length > block.size:
            raise PykvmError(f"{name}: shared memory region {region.id} is not within one block")
    if len({region.id for region in regions}) < len(regions):
        raise PykvmError(f"{name}: two shared memory regions have one id")
    return block
