"""Devices, disks and back ends of snapshots, each through its own `save`/`load`."""

from __future__ import annotations

from pykvm.devices.block.backend import BlockBackend, BlockError
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.typed import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykvm.machine.machine import Machine

Disks = Literal["refuse", "ignore"]


def device_names(machine: Machine) -> list[tuple[str, Any]]:
    """The devices that have a state, in the order they were added, with names of their own."""
    found: list[tuple[str, Any]] = []
    used: dict[str, int] = {}
    for device in machine.devices:
        if not hasattr(device, "save") or not hasattr(device, "load"):
            continue
        name = str(getattr(device, "name", type(device).__name__))
        used[name] = used.get(name, 0) + 1
        found.append((name if used[name] == 1 else f"{name} #{used[name]}", device))
    return found


def save_devices(machine: Machine) -> dict[str, dict[str, object]]:
    """The states of all devices, by name."""
    _refuse_foreign(machine)
    return {name: device.save() for name, device in device_names(machine)}


def check_devices(machine: Machine, states: dict[str, dict[str, object]]) -> None:
    """Raises `SnapshotError` where the snapshot is of other devices."""
    names = {name for name, _ in device_names(machine)}
    if names != states.keys():
        missing = ", ".join(sorted(states.keys() - names))[:200] or "none"
        more = ", ".join(sorted(names - states.keys())) or "none"
        raise SnapshotError(
            f"the machine has other devices than the snapshot; missing here: {missing}; "
            f"missing there: {more}"
        )


def load_devices(machine: Machine, states: dict[str, dict[str, object]]) -> None:
    """All devices that are not in their saved state go there. Raises `SnapshotError`."""
    devices = device_names(machine)
    # Twice: an interrupt line that moves when its device is loaded moves the controller, too.
    for _ in range(2):
        for name, device in devices:
            if device.save() != states[name]:
                device.load(states[name])


def _refuse_foreign(machine: Machine) -> None:
    from pykvm.devices.virtio.device import DRIVER_OK

    for device in machine.virtio:
        if type(device).__name__ in ("VhostUserDevice", "VirtioFs") and device.status & DRIVER_OK:
            raise SnapshotError(
                f"{device.name} is run by another process, whose state and writes to guest memory "
                "pykvm does not see; take the snapshot before the guest's driver starts it"
            )


def backends(machine: Machine) -> Iterator[tuple[str, BlockBackend]]:
    """The disks on a machine, each with a name of its own."""
    owned = [getattr(device, "backend", None) for device in machine.virtio]
    ide = vars(machine.board).get("_ide")  # asking for `ide` would make one
    for channel in getattr(ide, "channels", ()):
        owned += [getattr(drive, "medium", None) for drive in channel.drives]
    number = 0
    for backend in owned:
        if isinstance(backend, BlockBackend):
            yield f"disk {number}", backend
            number += 1


def checkpoint_disks(machine: Machine, disks: Disks) -> list[tuple[str, BlockBackend, object]]:
    """What each disk needs to go back to its contents now. Raises `SnapshotError`."""
    found: list[tuple[str, BlockBackend, object]] = []
    for name, backend in backends(machine):
        try:
            found.append((name, backend, backend.checkpoint()))
        except BlockError as error:
            if disks != "ignore":
                raise SnapshotError(f'{error}, or take the snapshot with disks="ignore"') from None
    return found


def roll_back_disks(saved: list[tuple[str, BlockBackend, object]]) -> None:
    """The disks have their contents of then."""
    for _, backend, mark in saved:
        backend.rollback(mark)


def serial_input(machine: Machine) -> bytes | None:
    """Input that waits for COM1 to take it."""
    pump = _pump(machine)
    return None if pump is None else pump.waiting


def put_serial_input(machine: Machine, waiting: bytes | None) -> None:
    """The same input waits again."""
    pump = _pump(machine)
    if pump is not None and waiting is not None and machine.standard is not None:
        pump.replace(waiting)
        machine.standard.uart.input_waits(bool(waiting))


def _pump(machine: Machine) -> Any:
    backend = None if machine.standard is None else machine.standard.backend
    return getattr(backend, "_input", None)


def armed_traps(machine: Machine) -> dict[int, dict[int, int]]:
    """The breakpoints that the assist has on the guest's exception handlers."""
    assist = machine.assist
    return {} if assist is None else assist.traps.state()


def rearm_traps(machine: Machine, armed: dict[int, dict[int, int]]) -> None:
    """The assist has those breakpoints again, and forgets what it knew of page tables."""
    if machine.assist is not None:
        machine.assist.restored(armed)
    elif armed:
        from pykvm.machine.assist import Assist

        machine.assist = Assist(machine)
        machine.assist.restored(armed)
