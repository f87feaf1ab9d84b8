"""What a machine shares with its host: folders (virtio-fs, 9p), sockets (vsock), vhost-user."""

from __future__ import annotations

import os

from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

ShareKind = Literal["auto", "fs", "9p"]
KINDS: tuple[ShareKind, ...] = ("auto", "fs", "9p")


def add_share(
    machine: Machine, path: str | os.PathLike[str], tag: str, kind: ShareKind, readonly: bool
) -> Any:
    """See `Machine.add_share`."""
    from pykvm.errors import PykvmError

    if kind not in KINDS:
        raise MachineError(f"kind={kind!r} is no kind of share; use auto, fs or 9p")
    problems: list[PykvmError] = []
    for make in (_fs, _9p):
        if kind not in ("auto", make.__name__[1:]):
            continue
        try:
            device = make(machine, path, tag, readonly)
        except ValueError as error:
            raise MachineError(str(error)) from error
        except PykvmError as error:
            problems.append(error)
        else:
            return _place(machine, device)
    if len(problems) > 1 and str(problems[0]) != str(problems[1]):
        both = " | ".join(map(str, problems))
        raise MachineError(f"{os.fspath(path)!r} cannot be shared: {both}") from problems[0]
    raise problems[0]


def _fs(machine: Machine, path: str | os.PathLike[str], tag: str, readonly: bool) -> Any:
    from pykvm.devices.virtio.fs import VirtioFs

    return VirtioFs(path, tag, readonly=readonly)


def _9p(machine: Machine, path: str | os.PathLike[str], tag: str, readonly: bool) -> Any:
    from pykvm.devices.vhost.diod import Diod
    from pykvm.devices.virtio.p9 import VirtioP9

    return VirtioP9(Diod(path, readonly=readonly), tag)


def _place(machine: Machine, device: Any) -> Any:
    try:
        machine.add_virtio(device)
    except BaseException:
        device.close()
        raise
    return device


def add_vsock(machine: Machine, cid: int, path: str | os.PathLike[str]) -> Any:
    """See `Machine.add_vsock`."""
    from pykvm.devices.virtio.vsock import VirtioVsock

    return _place(machine, VirtioVsock(cid, path, clock=machine.clock))


def add_vhost_user(
    machine: Machine, path: str | os.PathLike[str], device: str | int, options: dict[str, Any]
) -> Any:
    """See `Machine.add_vhost_user`."""
    from pykvm.devices.virtio.vhost_user import VhostUserDevice

    try:
        return _place(machine, VhostUserDevice(os.fspath(path), device, **options))
    except ValueError as error:
        raise MachineError(str(error)) from error
