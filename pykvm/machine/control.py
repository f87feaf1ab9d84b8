"""The life of a run: which vCPUs are in their loops, pausing them, and the first reason to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pykvm.machine.result import Outcome, StopReason
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu

_LOOK = 0.5  # seconds


class Control:
    """A small state machine shared by the vCPU threads and whoever steers them.

    The first outcome that is posted ends the run: every other vCPU is kicked out of the guest and
    leaves its loop. Pausing parks vCPUs at a clean point: outside KVM_RUN, no exit half-handled.
    """

    def __init__(self, vcpus: list[Vcpu]) -> None:
        self.vcpus = vcpus
        self.changed = threading.Condition()
        self.outcome: Outcome | None = None
        self.pausing = False
        self.active: set[int] = set()
        self.parked: set[int] = set()
        self.idle: set[int] = set()
        self.threads: set[int] = set()
        self.alone = len(vcpus) == 1
        """Whether one vCPU runs, and nobody else can wake it."""

    def begin(self) -> None:
        """Ready for the next run: nothing decided yet."""
        with self.changed:
            self.outcome = None
            self.idle.clear()

    def enter(self, vcpu_id: int) -> None:
        """A vCPU thread starts its loop."""
        with self.changed:
            self.active.add(vcpu_id)
            self.threads.add(threading.get_ident())
            self.changed.notify_all()

    def leave(self, vcpu_id: int, outcome: Outcome | None) -> None:
        """A vCPU thread left its loop, with its reason."""
        with self.changed:
            self.active.discard(vcpu_id)
            self.threads.discard(threading.get_ident())
            if outcome is not None and self.outcome is None:
                self.outcome = outcome
            self.changed.notify_all()
        if outcome is not None:
            self.kick_all()

    def post(self, outcome: Outcome) -> None:
        """Ends the run from any thread, unless it has ended already."""
        with self.changed:
            if self.outcome is None or self._overrides(outcome):
                self.outcome = outcome
            self.changed.notify_all()
        self.kick_all()

    def _overrides(self, outcome: Outcome) -> bool:
        # A machine that is about to restart can still be stopped.
        assert self.outcome is not None
        return outcome.reason is StopReason.STOPPED and self.outcome.reason is StopReason.RESET

    def take_stop(self) -> Outcome | None:
        """Ready for the machine's restart; returns the stop that came instead, if one did."""
        with self.changed:
            outcome = self.outcome
            if outcome is not None and outcome.reason is StopReason.STOPPED:
                return outcome
            self.outcome = None
            self.idle.clear()
            return None

    def kick_all(self) -> None:
        """Gets every vCPU out of the guest."""
        for vcpu in self.vcpus:
            vcpu.kick()

    def at_kick(self, vcpu_id: int) -> Outcome | None:
        """A kicked vCPU asks what to do: leave with the run's outcome, or wait while paused."""
        with self.changed:
            while self.pausing and self.outcome is None:
                self.parked.add(vcpu_id)
                self.changed.notify_all()
                self.changed.wait()
            self.parked.discard(vcpu_id)
            self.changed.notify_all()
            return self.outcome

    def at_idle(self, vcpu_id: int) -> Outcome | None:
        """A vCPU sits in HLT with interrupts off, or waits for its SIPI."""
        if self.alone:
            return Outcome(StopReason.HALTED, vcpu_id)
        with self.changed:
            self.idle.add(vcpu_id)
            if len(self.idle) >= len(self.vcpus):
                self.changed.notify_all()
        return None

    def pause(self, timeout: float | None = None) -> bool:
        """Parks every vCPU that is in its loop; True when they all are.

        From a vCPU's own thread (a handler) it only asks: the pause begins after the handler.
        """
        with self.changed:
            self.pausing = True
        self.kick_all()
        with self.changed:
            if threading.get_ident() in self.threads:
                return False
            return self.changed.wait_for(
                lambda: self.parked >= self.active or self.outcome is not None, timeout
            )

    def resume(self) -> None:
        """Lets parked vCPUs go on."""
        with self.changed:
            self.pausing = False
            self.changed.notify_all()

    def supervise(self, deadline: float | None, all_idle: Callable[[], bool]) -> None:
        """Waits in the caller's thread until the vCPU threads have an outcome.

        `deadline` is on time.monotonic(). When every vCPU reported itself idle, they are paused
        and looked at together: only then is it sure that none can wake another.
        """
        while True:
            with self.changed:
                # Looks up now and then: a Ctrl-C between Python's check for signals and the sleep
                # does not end the sleep.
                left = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
                self.changed.wait_for(
                    lambda: self.outcome is not None or len(self.idle) >= len(self.vcpus),
                    max(0.0, left),
                )
                if self.outcome is not None:
                    return
                asleep = len(self.idle) >= len(self.vcpus) and not self.pausing
            if asleep:
                self.pause()
                halted = all_idle()
                self.idle.clear()
                if halted:
                    self.post(Outcome(StopReason.HALTED, 0))
                self.resume()
            elif deadline is not None and time.monotonic() >= deadline:
                self.post(Outcome(StopReason.TIMEOUT, 0))
            elif self.idle:
                time.sleep(0.001)  # paused by somebody else while all are asleep
