"""`Snapshot`: everything of a machine at one moment."""

from __future__ import annotations

from pykvm.machine.result import Status
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import os

    from pykvm.devices.block.backend import BlockBackend
    from pykvm.machine.machine import Machine
    from pykvm.machine.snapshot.chips import ChipImage
    from pykvm.machine.snapshot.file import Loaded
    from pykvm.machine.snapshot.ram import RamImage
    from pykvm.machine.snapshot.vcpu import VcpuImage


class Restored(NamedTuple):
    """What the last `restore()` did: times in ns by phase, and pages of 4 KiB copied."""

    phases: dict[str, int]
    pages: int

    @property
    def total_ns(self) -> int:
        """All phases together."""
        return sum(self.phases.values())


class Snapshot:
    """The state of a machine at one moment: memory, vCPUs, interrupt controllers, devices, disks.

    Made by `Machine.snapshot()`; put back by `Machine.restore()`, any number of times and in any
    order with others. Snapshots of one machine share the memory pages that they have in common.
    """

    ram: RamImage
    vcpus: list[VcpuImage]
    chips: ChipImage
    devices: dict[str, dict[str, object]]
    disks: list[tuple[str, BlockBackend, object]]
    traps: dict[int, dict[int, int]]
    serial_input: bytes | None
    config: dict[str, Any]
    """What the machine is made of (`describe.py`)."""
    loaded: Loaded | None = None
    """The file, until a machine takes the snapshot over."""

    def __init__(self, machine: Machine | None, status: Status, crash_reason: str = "") -> None:
        self._owner = machine
        self.status = Status.READY if status in (Status.RUNNING, Status.PAUSED) else status
        self.crash_reason = crash_reason
        self.image: Any = None if machine is None else machine.image
        self.cmdline = "" if machine is None else machine.cmdline

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file: docs/snapshots.md. The file appears when it is complete.

        Pages of zeros are left out. Raises `SnapshotError`.
        """
        from pykvm.machine.snapshot.file import save

        if self.loaded is not None:
            raise SnapshotError(
                f"the snapshot lies in {self.loaded.path} already; copy that file, or restore it "
                "on a machine first"
            )
        save(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], machine: Machine | None = None, *, lazy: bool = False
    ) -> Snapshot:
        """A snapshot of a file, for `restore()` of a machine that is made the same way.

        With `machine`, says at once whether it is. `lazy`: memory is mapped from the file when it
        is needed, and its checksums are not looked at; the file must not change as long as the
        snapshot is used. Raises `SnapshotError` with the reason.
        """
        from pykvm.machine.snapshot.file import Loaded

        loaded = Loaded(path, lazy=lazy)
        loaded.check()
        snapshot = cls(None, loaded.status(), loaded.field("crash_reason", str))
        snapshot.cmdline = loaded.field("cmdline", str)
        snapshot.loaded, snapshot.config = loaded, loaded.config
        if machine is not None:
            snapshot.bind(machine)
        return snapshot

    def bind(self, machine: Machine) -> None:
        """Raises `SnapshotError` unless this can be restored on `machine`; a file's is its now."""
        if self.loaded is not None:
            from pykvm.machine.snapshot.file import bind
            from pykvm.machine.snapshot.operate import keeper_of

            machine._check_open()
            bind(self, machine, keeper_of(machine))
        self.check_owner(machine)

    @property
    def memory_size(self) -> int:
        """Guest memory in bytes, memory devices included; what the file says, until restored."""
        if self.loaded is not None:
            return int(self.config.get("memory", 0))
        return sum(size for _, size in self.ram.shape)

    def verify(self, machine: Machine) -> str | None:
        """The first difference between the machine and this snapshot, or None if there is none.

        Compares all of memory, every register, the interrupt controllers and each device's state;
        not what goes on with time (TSC, clocks, counters of timers). Slow: for tests.
        """
        from pykvm.machine.snapshot.verify import difference

        return difference(self, machine)

    def check_owner(self, machine: Machine) -> None:
        """Raises `SnapshotError` for another machine's."""
        if self._owner is not None and self._owner is not machine:
            raise SnapshotError(
                "the snapshot is of another machine; save() it to a file and load() it there"
            )

    def __repr__(self) -> str:
        if self.loaded is not None:
            return f"<Snapshot of {self.loaded.path}>"
        return f"<Snapshot {self.memory_size >> 20}M, {len(self.vcpus)} vCPU, {self.status}>"
