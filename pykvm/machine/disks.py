"""Disks and CD-ROMs on a machine: which device, where, and what opens the image."""

from __future__ import annotations

import os

from pykvm.devices.block import BlockBackend, open_image
from pykvm.devices.block.backend import CACHES, Cache
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pykvm.devices.ide import IdeController
    from pykvm.machine.boards.pc import PcBoard
    from pykvm.machine.machine import Machine

Interface = Literal["virtio", "ide", "cdrom"]
INTERFACES: tuple[Interface, ...] = ("virtio", "ide", "cdrom")
MAX_QUEUES = 64


def add_disk(
    machine: Machine,
    image: str | os.PathLike[str] | bytes | BlockBackend,
    *,
    readonly: bool,
    snapshot: bool,
    serial: str,
    interface: Interface,
    format: str,
    cache: Cache,
    overlay: str | os.PathLike[str] | None,
    queues: int,
    iops: int,
    bps: int,
) -> Any:
    """See `Machine.add_disk`."""
    if interface not in INTERFACES:
        raise MachineError(f"interface={interface!r} is not virtio, ide or cdrom")
    if interface != "virtio" and machine.board.name != "pc":
        raise MachineError(
            f'the {machine.board.name} board has no IDE; use interface="virtio" or board="pc"'
        )
    if machine.board.name == "bare":
        raise MachineError('a bare board has no place for disks; use board="microvm" or "pc"')
    if interface != "virtio" and (queues != 1 or iops or bps):
        raise MachineError('queues, iops and bps are for virtio disks; use interface="virtio"')
    if not 1 <= queues <= MAX_QUEUES:
        raise MachineError(f"queues={queues} is not a number from 1 to {MAX_QUEUES}")
    for name, rate in (("iops", iops), ("bps", bps)):
        if not 0 <= rate < 1 << 63:
            raise MachineError(f"{name}={rate} is no rate a second; 0 is no limit")
    if cache not in CACHES:
        raise MachineError(f"cache={cache!r} is no cache mode; use {', '.join(CACHES)}")
    readonly = readonly or interface == "cdrom"
    backend = _open(image, readonly, snapshot, format, cache, overlay)
    try:
        if interface == "virtio":
            return _add_virtio(machine, backend, serial, cache, queues, iops, bps)
        return _add_ide(machine, backend, serial, interface == "cdrom")
    except BaseException:
        backend.close()
        raise


def _open(
    image: Any, readonly: bool, snapshot: bool, format: str, cache: Cache,
    overlay: str | os.PathLike[str] | None,
) -> BlockBackend:  # fmt: skip
    from pykvm.devices.block import MemoryDisk, Overlay

    if not isinstance(image, (bytes, bytearray, BlockBackend)):
        return open_image(
            image, read_only=readonly, snapshot=snapshot, format=format, cache=cache,
            overlay=overlay,
        )  # fmt: skip
    if overlay is not None or format not in ("auto", "raw"):
        raise MachineError("format and overlay are for disks that are files")
    if isinstance(image, BlockBackend):
        return Overlay(image) if snapshot else image
    return MemoryDisk(bytes(image), read_only=readonly)


def _add_virtio(
    machine: Machine, backend: BlockBackend, serial: str, cache: Cache, queues: int, iops: int,
    bps: int,
) -> Any:  # fmt: skip
    from pykvm.datapath.limits import RateLimit
    from pykvm.devices.virtio import VirtioBlk, VirtioPci

    block = getattr(backend, "least_block", 512)
    if block > 4096:
        raise MachineError(
            f"{backend.name} wants blocks of {block} bytes; virtio disks have at most 4096"
        )
    limit = RateLimit(iops, bps) if iops or bps else None
    disk = VirtioBlk(
        backend, serial, block_size=max(512, block), queues=queues, cache=cache, limit=limit
    )
    placed = machine.add_virtio(disk)
    if isinstance(placed, VirtioPci):
        board: PcBoard = machine.board  # type: ignore[assignment]
        board.bootable.append(("virtio", placed.slot, 0))
    return disk


def _add_ide(machine: Machine, backend: BlockBackend, serial: str, cdrom: bool) -> Any:
    from pykvm.devices.ide import AtaDisk, AtapiCdrom

    board: PcBoard = machine.board  # type: ignore[assignment]
    controller = board.ide
    taken = [i for i in range(4) if controller.channels[i // 2].drives[i % 2] is not None]
    # CD-ROMs on the secondary channel first, as PCs have them.
    order = (2, 3, 1, 0) if cdrom else (0, 1, 3, 2)
    place = next((i for i in order if i not in taken), None)
    if place is None:
        raise MachineError('all four IDE drives are there already; use interface="virtio"')
    options = {"serial": serial} if serial else {}
    drive = AtapiCdrom(backend, **options) if cdrom else AtaDisk(backend, **options)
    controller.add_drive(place, drive)
    board.bootable.append(("ide", controller.slot, place))
    return drive


def add_controller(machine: Machine) -> IdeController:
    """The IDE function, with its channels at the ports that a PC has them at."""
    from pykvm.devices.ide import IdeController
    from pykvm.devices.ide.controller import LEGACY

    primary, secondary = (machine.wiring.line(irq) for _, _, irq in LEGACY)
    controller = IdeController(machine.memory, (primary, secondary))
    machine.claim(
        ("pio", port, length, device) for port, length, device in controller.legacy_ranges()
    )
    machine.devices += controller.channels
    return controller
