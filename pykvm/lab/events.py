"""What the lab's verbs return: why the guest stands still now."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.lab.points import Breakpoint, Watchpoint
    from pykvm.machine import RunResult


class LabError(PykvmError):
    """Something asked of the lab that it cannot do, in one sentence with the remedy."""


class EventKind(StrEnum):
    """Why the guest stopped."""

    STEP = "step"
    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"
    EXIT = "exit"  # an exit that was waited for, answered and completed
    INTERRUPTED = "interrupted"
    TIMEOUT = "timeout"
    ENDED = "ended"  # the guest ended by itself; see `result`
    CRASHED = "crashed"
    EXCEPTION = "exception"  # a handler of the machine raised


@dataclass(frozen=True, slots=True)
class Change:
    """What a watched place held before and holds now."""

    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """One stop of the guest.

    - `vcpu`: whose stop it is; `rip`: its instruction pointer; `address`: the same, linear.
    - `exit`: the typed exit, a copy; `breakpoint`: the breakpoint or watchpoint that was met.
    - `watch`: the watched bytes before and after.
    - `result`: the run's result, once the guest has ended or crashed.
    - `detail`: what else is to be known, such as how a limit of this host was met.
    - `steps`: instructions that were stepped.
    """

    kind: EventKind
    vcpu: int
    rip: int
    address: int
    exit: Any = None
    breakpoint: Breakpoint | Watchpoint | None = None
    watch: Change | None = None
    result: RunResult | None = None
    detail: str = ""
    steps: int = 0

    @property
    def ended(self) -> bool:
        """Whether the guest cannot go on from here."""
        return self.kind in (EventKind.ENDED, EventKind.CRASHED, EventKind.EXCEPTION)

    def __str__(self) -> str:
        what = str(self.kind)
        if self.breakpoint is not None:
            what = f"{what} {self.breakpoint.number}"
        if self.watch is not None:
            what += f": {self.watch.old.hex()} -> {self.watch.new.hex()}"
        if self.exit is not None:
            what += f": {self.exit}"
        if self.result is not None:
            what += f": {self.result}"
        more = f" ({self.detail})" if self.detail else ""
        return f"vCPU {self.vcpu} at {self.address:#x}: {what}{more}"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "kind": str(self.kind),
            "vcpu": self.vcpu,
            "rip": self.rip,
            "address": self.address,
            "exit": None if self.exit is None else str(self.exit),
            "breakpoint": None if self.breakpoint is None else self.breakpoint.number,
            "watch": None if self.watch is None else [self.watch.old.hex(), self.watch.new.hex()],
            "result": None if self.result is None else str(self.result),
            "detail": self.detail,
            "steps": self.steps,
        }
