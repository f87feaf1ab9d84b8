"""`Snapshot`: everything of a machine at one moment."""

from __future__ import annotations

from pykvm.machine.result import Status
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.devices.block.backend import BlockBackend
    from pykvm.machine.machine import Machine
    from pykvm.machine.snapshot.chips import ChipImage
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
    disks: list[tuple[BlockBackend, object]]
    traps: dict[int, dict[int, int]]
    serial_input: bytes | None

    def __init__(self, machine: Machine | None, status: Status, crash_reason: str = "") -> None:
        self._owner = machine
        self.status = Status.READY if status in (Status.RUNNING, Status.PAUSED) else status
        self.crash_reason = crash_reason
        self.image: Any = None if machine is None else machine.image
        self.cmdline = "" if machine is None else machine.cmdline

    @property
    def memory_size(self) -> int:
        """Guest memory in bytes, memory devices included."""
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
        return f"<Snapshot {self.memory_size >> 20}M, {len(self.vcpus)} vCPU, {self.status}>"
