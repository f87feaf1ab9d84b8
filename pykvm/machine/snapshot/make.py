"""`Machine.from_snapshot()`: a machine made after what a file says of the one before."""

from __future__ import annotations

import os
from collections.abc import Callable

from pykvm.machine.result import MachineError
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.machine.snapshot.snapshot import Snapshot
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

_SAME = ("board", "irqchip", "cpus", "memory", "devices", "acpi", "triple_fault", "assist")


def make_machine(
    kind: type[Machine], path: str | os.PathLike[str],
    prepare: Callable[[Machine], object] | None, lazy: bool, options: dict[str, Any],
) -> Machine:  # fmt: skip
    """See `Machine.from_snapshot`."""
    snapshot = Snapshot.load(path, lazy=lazy)
    config = snapshot.config
    arguments = {name: config.get(name) for name in _SAME}
    model = config.get("cpu")
    if not isinstance(model, list) or len(model) != 3 or not isinstance(model[1], str):
        raise SnapshotError(f"{path} is not usable as a snapshot: its CPU model is none")
    try:
        machine = kind(**{**arguments, "cpu": model[0], "topology": model[1], **options})
    except (MachineError, TypeError, ValueError, AttributeError) as error:
        raise SnapshotError(f"no machine can be made as {path} says: {error}") from None
    try:
        if model[2]:
            machine.use_cpu_model()
        if prepare is not None:
            prepare(machine)
        machine.restore(snapshot)
    except BaseException:
        machine.close()
        raise
    return machine
