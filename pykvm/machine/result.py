"""Why a machine stopped, and what its status is: plain data."""

from __future__ import annotations

from pykvm.enums import StrEnum
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.kvm.accounting import TraceRecord


class MachineError(PykvmError):
    """Something asked of a `Machine` that it cannot do, in one sentence with the remedy."""


class StopReason(StrEnum):
    """Why `Machine.run()` returned."""

    HALTED = "halted"  # HLT with nothing left that could wake a vCPU
    DEBUG_EXIT = "debug-exit"  # a write to the debug-exit port
    POWER_OFF = "power-off"
    RESET = "reset"
    PANIC = "panic"  # the guest's kernel said that it panicked
    TIMEOUT = "timeout"
    STOPPED = "stopped"  # Machine.stop(), or the escape sequence on the terminal
    UNCLAIMED = "unclaimed"  # an access that nobody owns, with unclaimed="stop"
    SHUTDOWN = "shutdown"  # triple fault
    INTERNAL_ERROR = "internal-error"
    FAIL_ENTRY = "fail-entry"
    HOST_ERROR = "host-error"  # KVM_RUN itself failed
    HANDLER_ERROR = "handler-error"  # an exception in a device or handler
    UNHANDLED = "unhandled-exit"  # an exit that no part of this machine handles

    @property
    def is_crash(self) -> bool:
        """Whether the machine is broken until it is reset or restored."""
        return self in _CRASHES


_CRASHES = {
    StopReason.PANIC,
    StopReason.SHUTDOWN,
    StopReason.INTERNAL_ERROR,
    StopReason.FAIL_ENTRY,
    StopReason.HOST_ERROR,
    StopReason.HANDLER_ERROR,
    StopReason.UNHANDLED,
}


class Status(StrEnum):
    """What a machine is doing (`Machine.status`)."""

    EMPTY = "empty"  # nothing loaded; runs from the reset vector
    READY = "ready"  # loaded or reset, or stopped in a way that allows to go on
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"  # the guest ended by itself
    CRASHED = "crashed"  # refuses to run until reset() or restore(); see `crash_reason`
    CLOSED = "closed"


class Stop(Exception):
    """Raised inside a device or handler to end the run; not an error."""

    def __init__(self, reason: StopReason, value: int | None = None, detail: str = "") -> None:
        super().__init__(detail or str(reason))
        self.reason = reason
        self.value = value
        self.detail = detail


class Outcome(NamedTuple):
    """One vCPU's end of the run, before it becomes the machine's `RunResult`."""

    reason: StopReason
    vcpu: int
    value: int | None = None
    detail: str = ""
    exit: Any = None
    exception: BaseException | None = None


class RunResult:
    """What `Machine.run()` found out.

    - `reason`: why it stopped; `detail`: the same in words, for crashes. `resets`: how often the
      guest restarted itself during this run (`run(reboot=True)`).
    - `exit_code`: the shell exit status of the command line: 0, `(v << 1) | 1`, 124 or 126.
    - `value`: what the guest wrote to the debug-exit port; `vcpu`: whose exit ended the run;
      `exit`: that exit, if it was a typed one.
    - `serial`, `debugcon`: what the guest wrote to COM1 and port 0xe9 during this run (last MiB).
    - `exits`: exits by name over all vCPUs since the machine was made or reset.
    - `assisted`: instructions that KVM refused and the assist completed, by mnemonic.
    - `elapsed`: seconds. `last_exits`, `report`: for crashes, else empty.
    """

    __slots__ = (
        "assisted", "debugcon", "detail", "elapsed", "exit", "exit_code", "exits", "last_exits",
        "reason", "report", "resets", "serial", "value", "vcpu",
    )  # fmt: skip

    def __init__(self, outcome: Outcome, elapsed: float, exits: dict[str, int]) -> None:
        self.reason = outcome.reason
        self.detail = outcome.detail
        self.value = outcome.value
        self.vcpu = outcome.vcpu
        self.exit = outcome.exit
        self.exit_code = exit_code(outcome.reason, outcome.value)
        self.elapsed = elapsed
        self.exits = exits
        self.serial = b""
        self.debugcon = b""
        self.last_exits: list[TraceRecord] = []
        self.report = ""
        self.resets = 0
        self.assisted: dict[str, int] = {}

    @property
    def text(self) -> str:
        """The serial output as text; bytes that are not UTF-8 are replaced."""
        return self.serial.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """Whether the guest ended cleanly."""
        return self.exit_code == 0

    def __repr__(self) -> str:
        return f"<RunResult {self}>"

    def __str__(self) -> str:
        total = sum(self.exits.values())
        what = f"{self.reason}: {self.detail}" if self.detail else str(self.reason)
        assisted = sum(self.assisted.values())
        more = f", {assisted} instructions assisted" if assisted else ""
        return (
            f"{what} after {self.elapsed:.3f} s and {total} exits{more} "
            f"(exit status {self.exit_code})"
        )


def exit_code(reason: StopReason, value: int | None) -> int:
    """The shell exit status for a stop reason."""
    if reason is StopReason.DEBUG_EXIT:
        return ((value or 0) << 1 | 1) & 0xFF
    if reason is StopReason.TIMEOUT:
        return 124
    if reason.is_crash or reason is StopReason.UNCLAIMED:
        return 126
    return 0
