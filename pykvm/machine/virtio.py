"""Virtio devices on a machine: virtio-mmio on the microvm board, virtio-pci on the pc board.

Also who runs them: the machine's I/O thread, and that it stands still while the machine does.
"""

from __future__ import annotations

from pykvm.datapath.loop import IoThread
from pykvm.machine.boards import layout
from pykvm.machine.msi import MappedRam
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pykvm.devices.virtio import VirtioDevice, VirtioMmio, VirtioPci
    from pykvm.machine.boards.pc import PcBoard
    from pykvm.machine.machine import Machine

TransportKind = Literal["auto", "mmio", "pci"]
MAX_MMIO = 16  # devices that the microvm board has GSIs for
SHM_WINDOW = 1 << 37  # guest-physical: shared memory of virtio-mmio devices, 1 GiB borders
_SETTLE_S = 1.0


def add_virtio(
    machine: Machine,
    device: VirtioDevice,
    *,
    io_thread: IoThread | bool | None,
    vectors: int | None,
    legacy: bool,
    transport: TransportKind,
    direct: bool,
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
    if kind == "mmio" and (legacy or vectors is not None):
        raise MachineError('legacy and vectors are for virtio-pci; use board="pc"')
    if kind == "mmio" and len(machine.virtio_mmio) >= MAX_MMIO:
        raise MachineError(
            f'the microvm board has room for {MAX_MMIO} virtio devices; use board="pc" for more'
        )
    device.io = _thread_for(machine, device, io_thread)
    placed: VirtioMmio | VirtioPci
    if kind == "pci":
        placed = _pci(machine, device, vectors, legacy, direct)
    else:
        placed = _mmio(machine, device, direct)
    machine.virtio.append(device)
    return placed


def _thread_for(
    machine: Machine, device: VirtioDevice, wanted: IoThread | bool | None
) -> IoThread | None:
    if wanted is None:
        return machine.io_thread
    if wanted is False:
        return None
    if wanted is True:
        own = IoThread(f"pykvm-io-{device.name}")
        machine.io_threads.append(own)
        return own
    if wanted not in machine.io_threads:
        machine.io_threads.append(wanted)  # it is the machine's now: paused and stopped with it
    return wanted


def _doorbells(machine: Machine, direct: bool) -> Any:
    if not direct:
        return None
    from pykvm.machine.doorbells import IoEventFds

    return IoEventFds(machine.vm)


def _pci(
    machine: Machine, device: VirtioDevice, vectors: int | None, legacy: bool, direct: bool
) -> VirtioPci:
    from pykvm.devices.virtio import VirtioPci

    irqfds = None
    if direct and machine.irqchip != "none":
        from pykvm.machine.irqfds import MessageVectors

        irqfds = MessageVectors(machine.vm, machine.routes)
    board: PcBoard = machine.board  # type: ignore[assignment]
    placed = VirtioPci(
        device, machine.memory, legacy=legacy, vectors=vectors,
        doorbells=_doorbells(machine, direct), irqfds=irqfds,
    )  # fmt: skip
    board.add_pci(placed)
    return placed


def _mmio(machine: Machine, device: VirtioDevice, direct: bool) -> VirtioMmio:
    from pykvm.devices.virtio import VirtioMmio

    n = len(machine.virtio_mmio)
    gpa, gsi = layout.VIRTIO_MMIO + n * layout.VIRTIO_MMIO_SIZE, layout.virtio_mmio_gsi(n)
    irqfd = None
    if direct and machine.irqchip == "kernel":
        from pykvm.machine.irqfds import LineEdges

        irqfd = LineEdges(machine.vm, gsi)
    placed = VirtioMmio(
        device, machine.memory, machine.wiring.line(gsi), address=gpa,
        doorbells=_doorbells(machine, direct), irqfd=irqfd, shm=_map_shared(machine, device),
    )  # fmt: skip
    machine.add_device(placed, mmio=gpa, length=layout.VIRTIO_MMIO_SIZE)
    machine.virtio_mmio.append((gpa, gsi))
    return placed


class _Shared:
    """Shared memory of a virtio-mmio device in the guest's address space; closed with the rest."""

    def __init__(self, mapped: MappedRam, end: int) -> None:
        self._mapped: MappedRam | None = mapped
        self.end = end

    def close(self) -> None:
        """Takes it away from the guest."""
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            mapped.remove()


def _map_shared(machine: Machine, device: VirtioDevice) -> int | None:
    regions = device.shm_regions()
    if not regions:
        return None
    block = regions[0].block
    ends = [d.end for d in machine.devices if isinstance(d, _Shared)]
    address = max([SHM_WINDOW, *ends]) + layout.GIB - 1 & ~(layout.GIB - 1)
    mapped = MappedRam(machine.vm, address, block, readonly=False)
    machine.devices.append(_Shared(mapped, address + block.size))
    return address


def stand_still(machine: Machine) -> None:
    """Nothing is in flight in any device, and no I/O thread runs, until `go_on`."""
    for device in machine.virtio:
        device.freeze()
    for thread in machine.io_threads:
        thread.pause()


def go_on(machine: Machine) -> None:
    """Undoes `stand_still`."""
    for thread in machine.io_threads:
        thread.resume()
    for device in machine.virtio:
        device.thaw()


def settle(machine: Machine) -> None:
    """The guest has stopped: what it kicked before is done, unless that takes longer than 1 s."""
    for thread in machine.io_threads:
        if thread.running and not thread.current:
            try:
                thread.call(_nothing, _SETTLE_S)
            except TimeoutError:
                continue


def _nothing() -> None:
    pass
