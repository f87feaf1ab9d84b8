"""The run loop while a debugger watches: every exit is a typed one, and it is asked after each.

`Machine.debugger` switches to it; without one the loop in `loop.py` runs and nothing is paid.
"""

from __future__ import annotations

from pykvm._native import lib
from pykvm.kvm import exits
from pykvm.machine.loop import _COALESCED, _event, handle
from pykvm.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine.machine import Machine
    from pykvm.machine.result import Outcome

_LAST_EXIT = lib.PYKVM_MMIO_READ


class Debugger(Protocol):
    """Is told in the vCPU's own thread; an `Outcome` ends the run there."""

    completes: bool
    """Whether what is answered is completed at once, so that registers show what it did."""

    def wants(self, exit_: exits.Exit) -> bool:
        """Whether `after` will look closely at this exit."""

    def arm(self, vcpu: Vcpu) -> None:
        """Sets guest debug anew: what the debugger and the assist want."""

    def before(self, vcpu: Vcpu, exit_: exits.Exit) -> bool:
        """An exit, not answered yet. True: it is the debugger's, and the guest goes on."""

    def after(self, vcpu: Vcpu, exit_: exits.Exit) -> Outcome | None:
        """It was answered, by a device or by `before`."""


def drive_debugged(machine: Machine, vcpu: Vcpu, debugger: Debugger) -> Outcome:
    """Runs a vCPU until the machine stops or the debugger wants it to."""
    native = vcpu._native
    while True:
        code = lib.pykvm_resume(native)
        kind = code & 0x7F
        if code & _COALESCED:
            machine.drain_coalesced()
        if kind <= _LAST_EXIT:
            outcome = _typed(machine, vcpu, debugger, code >> 32 if kind == 0 else 0)
        else:
            outcome = _event(machine, vcpu, kind, code >> 32)
        if outcome is not None:
            return outcome


def _typed(machine: Machine, vcpu: Vcpu, debugger: Debugger, error: int) -> Outcome | None:
    exit_: exits.Exit | None = exits.make_exit(vcpu, error)
    wanted: Outcome | None = None
    while exit_ is not None:
        if not debugger.before(vcpu, exit_):
            outcome = handle(machine, vcpu, exit_)
            if outcome is not None:
                return outcome
        further = None
        if (debugger.completes or debugger.wants(exit_)) and vcpu.pending:
            exit_._detach()
            further = vcpu.complete()
        wanted = wanted or debugger.after(vcpu, exit_)
        exit_ = further  # the rest of an instruction that one exit was not enough for
    return wanted
