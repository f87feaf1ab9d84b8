"""Single steps and breakpoints: what really arrives when guest code is debugged from outside."""

from __future__ import annotations

import time

from pykvm.kvm import HardwareBreakpoint, Kvm
from pykvm.kvm.errors import KvmError
from pykvm.machine.doctor.probe import CODE, DONE, STUBS, End, Mode, Probe, Watch, judge
from pykvm.machine.doctor.result import Section

_STEPS = 30
_NOPS = b"\x90" * _STEPS
_TITLES: tuple[tuple[Mode, str], ...] = (
    ("real", "real mode"),
    ("protected", "32-bit protected mode"),
    ("long", "64-bit ring 0"),
    ("ring3", "64-bit ring 3"),
)


def examine(kvm: Kvm, section: Section) -> None:
    """Single-step, hardware and software breakpoints in each mode."""
    with Probe(kvm) as probe:
        for mode, title in _TITLES:
            _single_step(probe, mode, title, section)
        for mode, title in _TITLES:
            if mode in ("long", "ring3"):
                _hardware(probe, mode, title, section)
        for mode, title in _TITLES:
            if mode in ("long", "ring3"):
                _software(probe, mode, title, section)


def _single_step(probe: Probe, mode: Mode, title: str, section: Section) -> None:
    key, what = f"singlestep_{mode}", f"single-step, {title}"
    probe.prepare(mode, _NOPS + DONE)
    try:
        probe.vcpu.set_guest_debug(singlestep=True)
        started = time.perf_counter_ns()
        addresses, end = _step(probe)
        us = (time.perf_counter_ns() - started) / _STEPS / 1000
    except KvmError as error:
        section.add(key, what, False, str(error), value=False)
        return
    finally:
        probe.vcpu.clear_guest_debug()
    if addresses == list(range(CODE + 1, CODE + 1 + _STEPS)):
        section.add(
            key, what, True, f"each instruction is an exit, {us:.0f} µs a step",
            value={"us_per_step": round(us, 1)},
        )  # fmt: skip
    else:
        text = _miss(end) if not addresses else f"stopped at {', '.join(map(hex, addresses[:4]))}"
        if addresses and addresses[0] // 4 == (STUBS + 4) // 4:
            text = "goes to the guest's own IDT (#DB)"
        section.add(key, what, False, text, value=False)


def _step(probe: Probe) -> tuple[list[int], End | None]:
    """The addresses where steps ended, and what came instead of a step."""
    addresses: list[int] = []
    with Watch(probe.vcpu, 1.0) as watch:
        while len(addresses) < _STEPS and not watch.expired:
            end = judge(probe.vcpu.run())
            if end is None:
                continue
            if end.kind != "debug":
                return addresses, end
            addresses.append(probe.vcpu.regs.rip)
            del end  # an exit that is kept is copied before the next one
    return addresses, None


def _hardware(probe: Probe, mode: Mode, title: str, section: Section) -> None:
    key, what = f"hardware_breakpoint_{mode}", f"hardware breakpoint, {title}"
    probe.prepare(mode, _NOPS + DONE)
    try:
        probe.vcpu.set_guest_debug(hardware_breakpoints=[HardwareBreakpoint(CODE + 2)])
        end = probe.go()
    except KvmError as error:
        section.add(key, what, False, str(error), value=False)
        return
    finally:
        probe.vcpu.clear_guest_debug()
    good = end.kind == "debug" and probe.vcpu.regs.rip == CODE + 2
    section.add(key, what, good, "stops before the instruction" if good else _miss(end), value=good)


def _software(probe: Probe, mode: Mode, title: str, section: Section) -> None:
    key, what = f"software_breakpoint_{mode}", f"software breakpoint, {title}"
    probe.prepare(mode, b"\x90\xcc\x90" + DONE)
    try:
        probe.vcpu.set_guest_debug(software_breakpoints=True)
        end = probe.go()
    except KvmError as error:
        section.add(key, what, False, str(error), value="refused")
        return
    finally:
        probe.vcpu.clear_guest_debug()
    at = probe.vcpu.regs.rip
    if end.kind == "debug" and at == CODE + 1:
        section.add(key, what, True, "INT3 is an exit, RIP is on it", value="debug-exit")
    elif end.kind == "refused" and at == CODE + 1:
        section.add(
            key, what, None,
            "INT3 arrives as KVM_EXIT_INTERNAL_ERROR with RIP on it: usable, but not by its name",
            value="internal-error",
        )  # fmt: skip
    else:
        section.add(key, what, False, _miss(end), value=end.kind)


def _miss(end: End | None) -> str:
    if end is None:
        return "does not arrive"
    if end.kind == "vector" and end.vector in (1, 3):
        return f"goes to the guest's own IDT ({end.text})"
    if end.kind == "done":
        return "is not noticed: the guest runs on"
    return f"does not arrive: {end.text}"
