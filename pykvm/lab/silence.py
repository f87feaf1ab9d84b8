"""What a silent guest is doing: sampled instruction pointers, last exits, what nobody answered.

A kernel that prints nothing is the common failure of a first boot. `look_at` takes a few samples of
a running machine and says what they show; `SilenceWatcher` does so once for each quiet period.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pykvm.machine import MachineError
from pykvm.typed import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pykvm.boot.symbols import SymbolTable
    from pykvm.kvm import Vcpu
    from pykvm.machine import Machine

SAMPLES = 16
INTERVAL_S = 0.01
PAUSE_LIMIT_S = 1.0
"""How long the vCPUs get to leave the guest for one sample."""
_SHOWN = 5
_STARTING = ("not started", "waiting for SIPI")
# KVM API 4.38 KVM_GET_MP_STATE
_MP_STATES = {0: "running", 1: _STARTING[0], 2: _STARTING[1], 3: "halted", 4: "running"}


@dataclass(frozen=True, slots=True)
class VcpuView:
    """What the samples of one vCPU show.

    `places`: linear address and symbol of the sampled RIPs, most frequent first, with how often;
    `states`: how often it was "running", "halted", "not started"; `interrupts`: in how many
    samples RFLAGS.IF was set; `mode`: of the last sample.
    """

    vcpu: int
    samples: int
    places: list[tuple[str, int]]
    states: dict[str, int]
    interrupts: int
    mode: str

    @property
    def is_idle(self) -> bool:
        """Whether no sample found it executing."""
        return not self.states.get("running", 0)

    def __str__(self) -> str:
        state = ", ".join(f"{name} {n}/{self.samples}" for name, n in self.states.items())
        masked = "" if self.interrupts else ", interrupts off"
        where = "; ".join(f"{place} ({n})" for place, n in self.places[:_SHOWN])
        return f"vCPU {self.vcpu}: {state}{masked}, {self.mode}, at {where}"


@dataclass(frozen=True, slots=True)
class SilenceReport:
    """What a quiet machine was seen to do.

    `exits`: exits by name during the samples; `unanswered`: accesses since the machine was made
    that no device owns, and MSRs that were refused, most frequent first.
    """

    quiet_s: float
    vcpus: list[VcpuView]
    exits: dict[str, int] = field(default_factory=dict)
    last_exits: list[str] = field(default_factory=list)
    unanswered: list[tuple[str, int]] = field(default_factory=list)

    @property
    def is_idle(self) -> bool:
        """Whether every vCPU waits: for an interrupt, or to be started."""
        return all(view.is_idle for view in self.vcpus)

    @property
    def likely(self) -> str:
        """The likely reason, in one sentence."""
        if not self.vcpus:
            return "the vCPUs could not be stopped to look at them"
        if self.is_idle:
            masked = not any(view.interrupts for view in self.vcpus)
            if masked:
                return "all vCPUs are halted with interrupts off: nothing can wake them"
            return "the guest waits for an interrupt: input, a timer or a device"
        busy = [view for view in self.vcpus if not view.is_idle]
        polled = max(self.exits.items(), key=lambda item: item[1], default=("", 0))
        if polled[1] >= SAMPLES:
            return f"the guest polls a device ({polled[0]}, {polled[1]} exits while looked at)"
        if all(view.places and view.places[0][1] == view.samples for view in busy):
            return "the guest spins on one instruction"
        return "the guest computes without touching a device"

    def text(self) -> str:
        """Several lines for a terminal."""
        lines = [f"pykvm: no output for {self.quiet_s:.0f} s: {self.likely}"]
        waiting = [v for v in self.vcpus if all(state in _STARTING for state in v.states)]
        lines += [f"  {view}" for view in self.vcpus if view not in waiting]
        if waiting:
            ids = ", ".join(str(v.vcpu) for v in waiting)
            lines.append(f"  vCPU {ids}: not started, waiting for INIT and SIPI")
        if self.last_exits:
            lines += ["  last exits, oldest first:", *(f"    {e}" for e in self.last_exits)]
        if self.unanswered:
            shown = ", ".join(f"{what} × {n}" for what, n in self.unanswered[: 2 * _SHOWN])
            lines.append(f"  nobody answers: {shown}")
        return "\n".join(lines)


def look_at(
    machine: Machine,
    *,
    symbols: SymbolTable | None = None,
    samples: int = SAMPLES,
    interval: float = INTERVAL_S,
    quiet_s: float = 0.0,
) -> SilenceReport:
    """Samples a running machine and says what its vCPUs do.

    Call it from any thread but a vCPU's. The machine is paused for some microseconds a sample,
    every `interval` seconds. Without `symbols` those of the loaded image are used. A machine that
    somebody else has paused is looked at as it stands.
    """
    before = machine.exit_counts()
    seen: list[_Seen] = [_Seen(machine.irqchip != "none") for _ in machine.vcpus]
    taken = 0
    paused_by_others = machine.control.pausing
    for _ in range(samples):
        if machine.status not in ("running", "paused"):
            break
        if paused_by_others or machine.control.pause(PAUSE_LIMIT_S):
            for vcpu, sight in zip(machine.vcpus, seen, strict=True):
                sight.add(vcpu)
            taken += 1
        if paused_by_others:
            break
        machine.control.resume()
        time.sleep(interval)
    after = machine.exit_counts()
    kicks = "KVM_EXIT_INTR"
    return SilenceReport(
        quiet_s,
        [s.view(v.id, machine, symbols) for v, s in zip(machine.vcpus, seen, strict=True) if taken],
        {n: c - before.get(n, 0) for n, c in after.items() if c > before.get(n, 0) and n != kicks},
        _last_exits(machine, kicks),
        _unanswered(machine),
    )


class _Seen:
    """The samples of one vCPU."""

    def __init__(self, lapic: bool) -> None:
        self.lapic = lapic  # without one there is no MP state to ask for
        self.rips: Counter[tuple[int, int]] = Counter()
        self.states: Counter[str] = Counter()
        self.interrupts = 0
        self.mode = ""

    def add(self, vcpu: Vcpu) -> None:
        from pykvm.machine.report import code_bits

        state = int(vcpu.get_mp_state()) if self.lapic else 0
        self.states[_MP_STATES.get(state, f"MP state {state}")] += 1
        regs, sregs = vcpu.regs, vcpu.sregs
        self.rips[regs.rip, (sregs.cs.base + regs.rip) & (1 << 64) - 1] += 1
        self.interrupts += regs.rflags >> 9 & 1
        self.mode = f"{code_bits(vcpu)}-bit code, ring {sregs.ss.dpl}"

    def view(self, vcpu: int, machine: Machine, symbols: SymbolTable | None) -> VcpuView:
        def name(rip: int, linear: int) -> str:
            found = None
            if symbols is not None:
                found = symbols.at(rip)
            elif machine.image is not None:
                found = machine.image.symbol_at(rip)
            return f"{linear:#x} {found}" if found else f"{linear:#x}"

        places = [(name(*where), n) for where, n in self.rips.most_common()]
        states = dict(self.states)
        return VcpuView(vcpu, sum(states.values()), places, states, self.interrupts,
                        self.mode)  # fmt: skip


def _last_exits(machine: Machine, without: str) -> list[str]:
    from pykvm.machine.report import describe

    records = [r for v in machine.vcpus for r in v.last_exits(_SHOWN + SAMPLES)]
    records = [r for r in records if r.name != without]
    records.sort(key=lambda r: r.time_ns)
    return [describe(machine, r) for r in records[-_SHOWN:]]


def _unanswered(machine: Machine) -> list[tuple[str, int]]:
    counts = {
        f"{'port' if bus == 'pio' else 'address'} {address:#x}": n
        for (bus, address), n in machine.unclaimed_counts.items()
    }
    return sorted(counts.items(), key=lambda item: -item[1])


class SilenceWatcher:
    """Reports once for each quiet period of `after` seconds, as long as it is open.

    `report` gets the `SilenceReport` on the watcher's own thread. A guest that has printed
    something and now waits for an interrupt is most likely at a prompt: it is left alone unless
    `idle` is set.
    """

    def __init__(
        self,
        machine: Machine,
        report: Callable[[SilenceReport], object],
        *,
        after: float = 10.0,
        symbols: SymbolTable | None = None,
        idle: bool = False,
    ) -> None:
        if after <= 0:
            raise MachineError(f"a quiet period of {after} s is not one; use more than 0")
        self._machine = machine
        self._report = report
        self._after = after
        self._symbols = symbols
        self._idle = idle
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="pykvm-silence", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _output(self) -> int:
        standard = self._machine.standard
        if standard is None:
            return 0
        return standard.captured.total + standard.debugcon_captured.total

    def _watch(self) -> None:
        output, since, told = self._output(), time.monotonic(), False
        while not self._end.wait(min(self._after / 4, 0.5)):
            now, total = time.monotonic(), self._output()
            if total != output or self._machine.status != "running":
                output, since, told = total, now, False
            elif not told and now - since >= self._after:
                told = True
                seen = look_at(self._machine, symbols=self._symbols, quiet_s=now - since)
                if self._end.is_set() or (seen.is_idle and output and not self._idle):
                    continue
                self._report(seen)
