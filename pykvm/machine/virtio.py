"""Virtio devices on a machine: virtio-mmio on the microvm board, virtio-pci on the pc board."""

from __future__ import annotations

from pykvm.machine.boards import layout
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pykvm.devices.virtio import VirtioDevice, VirtioMmio, VirtioPci
    from pykvm.machine.boards.pc import PcBoard
    from pykvm.machine.machine import Machine

TransportKind = Literal["auto", "mmio", "pci"]
MAX_MMIO = 12  # devices that the microvm board has GSIs for


def add_virtio(
    machine: Machine,
    device: VirtioDevice,
    *,
    transport: TransportKind = "auto",
) -> VirtioMmio | VirtioPci:
    """See `Machine.add_virtio`."""
    name = machine.board.name
    if name == "bare":
        raise MachineError(
            f'a bare board has no place for {device.name}; use board="microvm" or "pc"'
        )
    kind = transport if transport != "auto" else "pci" if name == "pc" else "mmio"
    if kind not in ("mmio", "pci"):
        raise MachineError(f"transport={transport!r} is not auto, mmio or pci")
    if kind == "pci" and name != "pc":
        raise MachineError(f'the {name} board has no PCI; use transport="auto" or board="pc"')
    if kind == "mmio" and name == "pc":
        raise MachineError('the pc board has no virtio-mmio; use transport="auto"')
    return _pci(machine, device) if kind == "pci" else _mmio(machine, device)


def _pci(machine: Machine, device: VirtioDevice) -> VirtioPci:
    from pykvm.devices.virtio import VirtioPci

    board: PcBoard = machine.board  # type: ignore[assignment]
    placed = VirtioPci(device, machine.memory)
    board.add_pci(placed)
    return placed


def _mmio(machine: Machine, device: VirtioDevice) -> VirtioMmio:
    from pykvm.devices.virtio import VirtioMmio

    n = len(machine.virtio_mmio)
    if n >= MAX_MMIO:
        raise MachineError(
            f'the microvm board has room for {MAX_MMIO} virtio devices; use board="pc" for more'
        )
    gpa, gsi = layout.VIRTIO_MMIO + n * layout.VIRTIO_MMIO_SIZE, layout.virtio_mmio_gsi(n)
    placed = VirtioMmio(device, machine.memory, machine.wiring.line(gsi))
    machine.add_device(placed, mmio=gpa, length=layout.VIRTIO_MMIO_SIZE)
    machine.virtio_mmio.append((gpa, gsi))
    return placed
