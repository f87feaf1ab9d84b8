"""Running the machine for the lab: until a breakpoint, an exit that is waited for, or the end."""

from __future__ import annotations

import threading

from pykvm.errors import PykvmError
from pykvm.kvm import exits
from pykvm.kvm.constants import exit_name, exit_reasons
from pykvm.kvm.vcpu_debug import HardwareBreakpoint
from pykvm.lab import cpu, halting
from pykvm.lab.events import Change, Event, EventKind, LabError
from pykvm.lab.points import REGISTERS, Breakpoint, Watchpoint, hardware
from pykvm.machine.result import Outcome, RunResult, StopReason
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.lab.session import Lab

_OURS = "the lab"
_BP, _DB = 3, 1
_EMULATION = 1  # KVM_INTERNAL_ERROR_EMULATION


class Filter:
    """Which exits are waited for."""

    def __init__(
        self,
        reason: str | None = None,
        port: int | None = None,
        gpa: int | None = None,
        write: bool | None = None,
        vcpu: int | None = None,
    ) -> None:
        self.reason = None
        if reason is not None:
            wanted = reason.lower().removeprefix("kvm_exit_")
            names = {name.removeprefix("KVM_EXIT_").lower() for name in exit_reasons()}
            if wanted not in names:
                raise LabError(f"no exit is called {reason!r}; try io, mmio, hlt or debug")
            self.reason = wanted
        self.port, self.gpa, self.write, self.vcpu = port, gpa, write, vcpu

    def fits(self, exit_: exits.Exit) -> bool:
        """Whether it is one of them."""
        if self.vcpu is not None and exit_.vcpu.id != self.vcpu:
            return False
        name = exit_name(exit_.reason).removeprefix("KVM_EXIT_").lower()
        if self.reason is not None and name != self.reason:
            return False
        if self.port is not None:
            return isinstance(exit_, exits.IoExit) and exit_.port == self.port and self._way(exit_)
        if self.gpa is not None:
            return (
                isinstance(exit_, exits.MmioExit)
                and exit_.gpa <= self.gpa < exit_.gpa + exit_.size
                and self._way(exit_)
            )
        return self.write is None or self._way(exit_)

    def _way(self, exit_: Any) -> bool:
        return self.write is None or getattr(exit_, "is_write", None) == self.write


class Steering:
    """The machine's debugger: it arms the vCPUs, runs them, and says why they stopped."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._met: list[tuple[int, exits.Exit]] = []  # in a run: who stopped, and at what
        self._pending: list[tuple[int, int]] = []  # stops not told yet: vCPU, linear address
        self._start: int | None = None  # in a step: where it began
        self._answered = False  # in a batch: the last step was an exit that was answered
        self._left = self._done = 0  # in a batch of steps: how many follow, how many were done
        self._filter: Filter | None = None
        self.completes = False

    # -- what the machine's loop asks (`pykvm.machine.debugging.Debugger`) -------------------------

    def wants(self, exit_: exits.Exit) -> bool:
        """In the vCPU's thread."""
        return self._filter is not None and self._filter.fits(exit_)

    def before(self, vcpu: Vcpu, exit_: exits.Exit) -> bool:
        """In the vCPU's thread: debug exits, and INT3s that KVM could not emulate, are ours."""
        if isinstance(exit_, exits.DebugExit):
            if self._start is not None or self._is_ours(vcpu, exit_):
                return True
            assist = self._lab.machine.assist
            if assist is not None and assist.traps.armed(vcpu):
                return False
            # The guest's own INT3 or trap flag: it gets what the host took from it.
            self.arm(vcpu, inject_bp=exit_.exception == _BP, inject_db=exit_.exception == _DB)
            return True
        return self._refused_int3(vcpu, exit_)

    def after(self, vcpu: Vcpu, exit_: exits.Exit) -> Outcome | None:
        """In the vCPU's thread."""
        if self._start is not None:  # one instruction
            if self._answered and isinstance(exit_, exits.DebugExit):
                # SVM and VMX tell of the step over an I/O instruction when it is completed, after
                # its exit, by which it was counted.
                self._answered = False
                if cpu.linear_rip(vcpu) == self._start:
                    return None
            self._answered = not isinstance(exit_, exits.DebugExit)
            over = isinstance(exit_, exits.DebugExit) or cpu.linear_rip(vcpu) != self._start
            return self._stop(vcpu, exit_) if over and not self._next_step(vcpu, exit_) else None
        if isinstance(exit_, exits.DebugExit):
            return self._stop(vcpu, exit_) if self._is_ours(vcpu, exit_) else None
        if self._refused_int3(vcpu, exit_) or self.wants(exit_):
            return self._stop(vcpu, exit_)
        return None

    def _next_step(self, vcpu: Vcpu, exit_: exits.Exit) -> bool:
        """In a batch: whether the next instruction can be stepped with nothing done between."""
        if not self._left or (isinstance(exit_, exits.DebugExit) and exit_.breakpoints):
            return False
        if self._lab.points.stepped() or cpu.stepping_fails(vcpu) or halting.is_next(self._lab):
            return False
        self._left -= 1
        self._done += 1
        self._start = cpu.linear_rip(vcpu)
        return True

    def _is_ours(self, vcpu: Vcpu, exit_: exits.DebugExit) -> bool:
        if exit_.exception == _BP:
            return self._software_at(exit_.pc)
        return self._point(exit_) is not None  # the others are the assist's

    def _software_at(self, address: int) -> bool:
        return any(point.address == address for point in self._lab.points.software())

    def _refused_int3(self, vcpu: Vcpu, exit_: exits.Exit) -> bool:
        # A KVM in software cannot emulate INT3: that is how ours is met there.
        return (
            isinstance(exit_, exits.InternalErrorExit)
            and exit_.suberror == _EMULATION
            and self._software_at(cpu.linear_rip(vcpu))
        )

    def _stop(self, vcpu: Vcpu, exit_: exits.Exit) -> Outcome:
        exit_._detach()
        with self._lock:
            self._met.append((vcpu.id, exit_))
        return Outcome(StopReason.STOPPED, vcpu.id, detail=_OURS, exit=exit_)

    # -- runs --------------------------------------------------------------------------------------

    def arm(self, vcpu: Vcpu, **more: bool) -> None:
        """Sets what makes a vCPU stop. In its own thread, or while it stands still."""
        points = self._lab.points
        stepping = self._start is not None
        placed = hardware(points.registers(watch_only=stepping))
        assist = self._lab.machine.assist
        if assist is not None and not stepping:  # ring 3, which it serves, cannot be stepped there
            placed += [HardwareBreakpoint(at) for at in assist.traps.addresses(vcpu)]
        vcpu.set_guest_debug(
            singlestep=stepping,
            software_breakpoints=bool(points.software()) and not stepping,
            hardware_breakpoints=placed[:REGISTERS],
            **more,
        )

    def step(self, interrupts: bool = True, at_most: int = 1) -> Event:
        """One instruction of the selected vCPU, or as many as can be stepped in one go."""
        vcpu = self._lab.vcpu
        why = cpu.stepping_fails(vcpu)
        if why:
            event = self.go(None, Filter(vcpu=vcpu.id), only=vcpu)
            return _with(event, f"{why}: it went on to the next exit")
        if halting.is_next(lab := self._lab):
            if lab.machine.irqchip != "none":
                halting.halt(vcpu)
                return self._made(EventKind.STEP, vcpu.id, steps=1, detail=halting.DETAIL)
            return self._go(None, None, [vcpu], vcpu)  # KVM_EXIT_HLT
        self._start, self.completes = cpu.linear_rip(vcpu), True
        self._left, self._done = at_most - 1, 0
        self._answered = False
        try:
            self.arm(vcpu, block_interrupts=not interrupts)
            result, failure = self._run([vcpu], None, only=vcpu)
        finally:
            self._start, self.completes = None, False
        event = self._event(result, failure, vcpu, EventKind.STEP)
        if self._done:
            event = _with(event, "", steps=event.steps + self._done)
        return self._watched(event) if event.kind is EventKind.STEP else event

    def go(
        self, timeout: float | None, wanted: Filter | None = None, only: Vcpu | None = None
    ) -> Event:
        """Until something happens; every vCPU unless `only`."""
        from pykvm.lab import stepping

        lab = self._lab
        if wanted is None and lab.points.stepped():
            return stepping.by_steps(lab, self, timeout)
        while True:
            if (told := self._left_over()) is not None:
                return told
            vcpus = lab.machine.vcpus if only is None else [only]
            if (event := self._step_off(vcpus)) is not None:
                return event
            event = self._go(timeout, wanted, vcpus, only)
            if event.breakpoint is None or self._meets(event):
                return event

    def _go(
        self, timeout: float | None, wanted: Filter | None, vcpus: list[Vcpu], only: Vcpu | None
    ) -> Event:
        lab = self._lab
        self._filter = wanted
        lab.points.insert()
        try:
            for vcpu in vcpus:
                self.arm(vcpu)
            result, failure = self._run(vcpus, timeout, only)
        finally:
            self._filter = None
            lab.points.take_out()
        return self._event(result, failure, lab.vcpu, EventKind.EXIT)

    def _run(
        self, vcpus: list[Vcpu], timeout: float | None, only: Vcpu | None
    ) -> tuple[RunResult | None, BaseException | None]:
        machine = self._lab.machine
        if machine.status == "crashed":
            raise LabError("the guest has crashed and cannot go on; reset() it or restore() it")
        self._met.clear()
        if self._start is not None or self._filter is not None or self._lab.points.enabled():
            machine.debugger = self  # else there is nothing to look for: the plain loop is faster
        try:
            return machine.run(timeout, only=only), None
        except KeyboardInterrupt:
            raise
        except Exception as error:
            if machine.status != "crashed":
                raise
            return None, error  # a handler's
        finally:
            machine.debugger = None
            for vcpu in vcpus:
                self._disarm(vcpu)

    def _step_off(self, vcpus: list[Vcpu]) -> Event | None:
        """A vCPU that stands on a breakpoint goes one instruction past it, alone."""
        lab = self._lab
        chosen = lab.vcpu.id
        for vcpu in vcpus:
            if lab.points.at(cpu.linear_rip(vcpu)) is None or _waits(vcpu):
                continue
            lab.select(vcpu.id)
            event = self.step()
            if event.kind is not EventKind.STEP:
                return event
        lab.select(chosen)
        return None

    def _meets(self, event: Event) -> bool:
        point = event.breakpoint
        assert point is not None
        self._lab.select(event.vcpu)  # a condition is about the vCPU that is there
        if isinstance(point, Watchpoint):
            point.last = point.look()
        return point.met()

    def _left_over(self) -> Event | None:
        """What other vCPUs met in the same moment as the one that was told."""
        lab = self._lab
        while self._pending:
            number, address = self._pending.pop(0)
            vcpu = lab.machine.vcpus[number]
            point = lab.points.at(address)
            if point is None or cpu.linear_rip(vcpu) != address:
                continue
            event = Event(
                EventKind.BREAKPOINT, number, int(vcpu.regs.rip), address, breakpoint=point
            )
            if self._meets(event):
                return event
            lab.select(number)
            step = self.step()
            if step.kind is not EventKind.STEP:
                return step
        return None

    # -- what came of it ---------------------------------------------------------------------------

    def _event(
        self, result: RunResult | None, failure: BaseException | None, vcpu: Vcpu, plain: EventKind
    ) -> Event:
        lab = self._lab
        if result is None:
            exit_ = getattr(failure, "exit", None)
            number = vcpu.id if exit_ is None else exit_.vcpu.id
            return self._made(
                EventKind.EXCEPTION,
                number,
                exit=exit_,
                detail=f"{type(failure).__name__}: {failure}",
            )
        if result.reason is StopReason.STOPPED and result.detail == _OURS:
            first = next((m for m in self._met if m[0] == result.vcpu), None)
            for number, exit_ in self._met:
                if first is not None and exit_ is not first[1] and self._point(exit_) is not None:
                    self._pending.append((number, cpu.linear_rip(lab.machine.vcpus[number])))
            exit_ = result.exit
            if plain is EventKind.STEP:
                shown = None if isinstance(exit_, exits.DebugExit) else exit_
                return self._made(EventKind.STEP, result.vcpu, exit=shown, steps=1, met=exit_)
            point = self._point(exit_)
            if isinstance(point, Watchpoint):
                change = Change(point.last, point.look())
                return self._made(EventKind.WATCHPOINT, result.vcpu, breakpoint=point, watch=change)
            if point is not None:
                return self._made(EventKind.BREAKPOINT, result.vcpu, breakpoint=point)
            return self._made(EventKind.EXIT, result.vcpu, exit=exit_)
        if result.reason is StopReason.STOPPED:
            return self._made(EventKind.INTERRUPTED, vcpu.id)
        if result.reason is StopReason.TIMEOUT:
            return self._made(EventKind.TIMEOUT, vcpu.id)
        kind = EventKind.CRASHED if result.reason.is_crash else EventKind.ENDED
        return self._made(kind, result.vcpu, exit=result.exit, result=result)

    def _made(self, kind: EventKind, number: int, met: Any = None, **more: Any) -> Event:
        vcpu = self._lab.machine.vcpus[number]
        if met is not None:
            self._debug_exit = met
        return Event(kind, number, int(vcpu.regs.rip), cpu.linear_rip(vcpu), **more)

    def _point(self, exit_: exits.Exit) -> Breakpoint | Watchpoint | None:
        points = self._lab.points
        if isinstance(exit_, exits.DebugExit):
            if exit_.exception == _BP:
                return points.at(exit_.pc)
            placed = points.registers()
            met = [placed[n] for n in exit_.breakpoints if n < len(placed)]
            return met[0] if met else None
        if isinstance(exit_, exits.InternalErrorExit):
            return points.at(cpu.linear_rip(exit_.vcpu))
        return None

    _debug_exit: Any = None

    def _watched(self, event: Event) -> Event:
        """A step may have touched what is watched."""
        lab = self._lab
        exit_, self._debug_exit = self._debug_exit, None
        hit: list[Watchpoint] = []
        placed = lab.points.registers(watch_only=True)
        if isinstance(exit_, exits.DebugExit):
            hit += [p for n in exit_.breakpoints if n < len(placed)
                    if isinstance(p := placed[n], Watchpoint)]  # fmt: skip
        for point in lab.points.stepped():
            if isinstance(point, Watchpoint) and point.look() != point.last:
                hit.append(point)
        for point in hit:
            change = Change(point.last, point.look())
            point.last = change.new
            if point.met():
                return _with(event, "", kind=EventKind.WATCHPOINT, breakpoint=point, watch=change)
        return event

    # -- life --------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The machine was reset: nothing is left to be told."""
        self._pending.clear()
        self._met.clear()

    def close(self) -> None:
        """No vCPU is armed any more."""
        self.forget()
        for vcpu in self._lab.machine.vcpus:
            self._disarm(vcpu)

    def _disarm(self, vcpu: Vcpu) -> None:
        if not vcpu.guest_debug.control:
            return
        try:
            vcpu.clear_guest_debug()
            if (assist := self._lab.machine.assist) is not None:
                assist.traps.visit(vcpu)  # it wants its own back
        except PykvmError:
            pass  # a closed machine, or a vCPU that KVM has given up


def _waits(vcpu: Vcpu) -> bool:
    """Whether a vCPU was not started yet."""
    try:
        return int(vcpu.get_mp_state()) in (1, 2)  # KVM API 4.38: uninitialized, INIT received
    except PykvmError:
        return False  # no interrupt controller, no such state


def _with(event: Event, detail: str, **changes: Any) -> Event:
    from dataclasses import replace

    return replace(event, detail=detail or event.detail, **changes)
