"""`Machine.snapshot()` and `Machine.restore()`: what is done in which order, at rest.

Order of putting back: disks and devices first (their interrupt lines move KVM's chips), then
memory, then KVM's chips, then vCPUs (whose page-directory pointers are read from memory, and whose
local APICs the IOAPIC talks to).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns

from pykvm.errors import PykvmError
from pykvm.kvm import exits
from pykvm.machine.result import Status
from pykvm.machine.snapshot import parts
from pykvm.machine.snapshot.chips import ChipImage
from pykvm.machine.snapshot.describe import describe
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.machine.snapshot.ram import RamTracker
from pykvm.machine.snapshot.snapshot import Restored, Snapshot
from pykvm.machine.snapshot.vcpu import VcpuImage, VcpuKind, abandon
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine.machine import Machine

_FRAGMENTS = 4096  # exits of one instruction that are seen through before a snapshot


class Keeper:
    """What a machine needs for its snapshots, from the first one on."""

    def __init__(self, machine: Machine) -> None:
        self.ram = RamTracker(machine)
        self.kind = VcpuKind(machine)
        self._machine = machine
        self._config: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What the machine is made of, once its vCPUs can change no more."""
        if self._config is None or not self._machine.vcpus_have_run:
            self._config = describe(self._machine, self.kind)
        return self._config


def keeper_of(machine: Machine) -> Keeper:
    """The machine's, made when it is first needed."""
    if machine.keeper is None:
        machine.keeper = Keeper(machine)
    return machine.keeper


@contextmanager
def at_rest(machine: Machine) -> Iterator[None]:
    """No vCPU runs, no request is in flight, no I/O thread works; a run that is on goes on after.

    Raises `SnapshotError` in a handler: its exit is not complete.
    """
    if machine.handling is not None:
        raise SnapshotError(
            "a handler is inside an exit that is not complete; stop() the run, and take or restore "
            "the snapshot after it"
        )
    if machine._running.acquire(blocking=False):
        try:
            with _devices_at_rest(machine):
                yield
        finally:
            machine._running.release()
        return
    control = machine.control
    paused = control.pausing
    machine.pause()
    try:
        if control.outcome is None and control.pausing:
            with _devices_at_rest(machine):
                yield
            with control.changed:
                control.idle.clear()
            return
    finally:
        if not paused:
            machine.resume()
    with machine._running, _devices_at_rest(machine):  # the run has just ended
        yield


@contextmanager
def _devices_at_rest(machine: Machine) -> Iterator[None]:
    clock = machine._clock
    if clock is None:
        with _virtio_at_rest(machine):
            yield
        return
    clock.hold()
    try:
        with _virtio_at_rest(machine):
            yield
    finally:
        clock.release()


@contextmanager
def _virtio_at_rest(machine: Machine) -> Iterator[None]:
    if not machine.virtio or machine._still:
        yield
        return
    from pykvm.machine.virtio import go_on, stand_still

    stand_still(machine)
    try:
        yield
    finally:
        go_on(machine)


def take(machine: Machine, disks: parts.Disks = "refuse") -> Snapshot:
    """See `Machine.snapshot`."""
    machine._check_open()
    with at_rest(machine):
        for vcpu in machine.vcpus:
            finish_exit(machine, vcpu)
        keeper = keeper_of(machine)
        snapshot = Snapshot(machine, machine._status, machine.crash_reason)
        snapshot.config = keeper.config
        snapshot.devices = parts.save_devices(machine)
        snapshot.disks = parts.checkpoint_disks(machine, disks)
        snapshot.serial_input = parts.serial_input(machine)
        snapshot.traps = parts.armed_traps(machine)
        snapshot.vcpus = [VcpuImage.take(vcpu, keeper.kind) for vcpu in machine.vcpus]
        snapshot.chips = ChipImage.take(machine)
        snapshot.ram = keeper.ram.take()
        return snapshot


def restore(machine: Machine, snapshot: Snapshot, *, verify: bool = False) -> None:
    """See `Machine.restore`."""
    machine._check_open()
    started = perf_counter_ns()
    with at_rest(machine):
        snapshot.bind(machine)
        keeper = keeper_of(machine)
        keeper.ram.follow()
        keeper.ram.check(snapshot.ram)
        parts.check_devices(machine, snapshot.devices)
        stopped = perf_counter_ns() - started
        try:
            phases, pages = _put(machine, keeper, snapshot)
        except BaseException as error:
            machine._status = Status.CRASHED
            machine.crash_reason = f"a restore failed half-way: {error}"
            if machine.control.active:  # of a run that is paused: it must not go on
                machine.stop()
            if isinstance(error, SnapshotError) or not isinstance(error, Exception):
                raise
            # A file may say anything, and what takes it over may fail in any way.
            what = "" if isinstance(error, PykvmError) else f"{type(error).__name__}: "
            raise SnapshotError(
                f"the snapshot cannot be restored: {what}{error}; the machine is neither as before "
                "nor as then: restore() another or reset() it"
            ) from error
        _put_status(machine, snapshot)
        machine.last_restore = Restored({"stop": stopped, **phases}, pages)
        if verify:
            from pykvm.machine.snapshot.verify import compare

            found = compare(snapshot, machine)
            if found is not None:
                raise SnapshotError(f"after the restore the machine differs: {found}")


def _put(machine: Machine, keeper: Keeper, snapshot: Snapshot) -> tuple[dict[str, int], int]:
    """Everything, timed by phase; and the pages that were copied."""
    started = perf_counter_ns()
    for vcpu in machine.vcpus:
        abandon(vcpu)
    parts.roll_back_disks(snapshot.disks)
    parts.load_devices(machine, snapshot.devices)
    parts.put_serial_input(machine, snapshot.serial_input)
    devices = perf_counter_ns()
    pages = keeper.ram.put(snapshot.ram)
    memory = perf_counter_ns()
    snapshot.chips.put(machine)
    chips = perf_counter_ns()
    for vcpu, image in zip(machine.vcpus, snapshot.vcpus, strict=True):
        image.put(vcpu)
    parts.rearm_traps(machine, snapshot.traps)
    done = perf_counter_ns()
    log, copy = int(keeper.ram.c.log_ns), int(keeper.ram.c.copy_ns)
    phases = {
        "devices": devices - started, "dirty_log": log, "copy": copy,
        "memory_other": max(0, memory - devices - log - copy), "chips": chips - memory,
        "vcpus": done - chips,
    }  # fmt: skip
    return phases, pages


def _put_status(machine: Machine, snapshot: Snapshot) -> None:
    machine.image, machine.cmdline = snapshot.image, snapshot.cmdline
    if machine._status in (Status.RUNNING, Status.PAUSED):
        return
    machine._status = snapshot.status
    machine.crash_reason = snapshot.crash_reason


def finish_exit(machine: Machine, vcpu: Vcpu) -> None:
    """Completes a pending exit; what else the same instruction does goes to its devices."""
    for _ in range(_FRAGMENTS):
        if not vcpu.pending:
            return
        exit_ = vcpu.complete()
        if exit_ is None:
            return
        if isinstance(exit_, exits.IoExit):
            from pykvm.machine.loop import _repeat

            _repeat(machine, exit_)
        elif isinstance(exit_, exits.MmioExit):
            if exit_.is_write:
                machine.mmio.write(exit_.gpa, exit_.size, exit_.value)
            else:
                exit_.value = machine.mmio.read(exit_.gpa, exit_.size)
        else:
            raise SnapshotError(f"vCPU {vcpu.id} is inside an instruction: {exit_}; run it on")
    raise SnapshotError(
        f"vCPU {vcpu.id} is inside a string instruction at {vcpu.regs.rip:#x} that does not end; "
        "run it on before the snapshot"
    )
