"""Which CPU modes run on this host, and how fast: natively, or by KVM's instruction emulator."""

from __future__ import annotations

import time

from pykvm.arch import presets
from pykvm.arch.descriptors import code_segment, data_segment
from pykvm.arch.state import CpuState
from pykvm.kvm import Kvm
from pykvm.machine.doctor.probe import CODE, DONE, STUBS, SYSTEM_CALL, Mode, Probe
from pykvm.machine.doctor.result import Section

NATIVE_NS = 20.0  # an instruction of the loop takes less than 1 ns natively, ...
EMULATED_NS = 100.0  # ... and some hundreds where software decodes it

_MODES: tuple[tuple[Mode, str], ...] = (
    ("real", "16-bit real mode"),
    ("protected", "32-bit protected mode"),
    ("pae", "32-bit with paging (PAE)"),
    ("long", "64-bit ring 0"),
    ("ring3", "64-bit ring 3"),
)
# dec ecx; jnz back to it: two instructions a turn
_LOOPS: dict[Mode, bytes] = {"real": b"\x66\x49\x75\xfc", "protected": b"\x49\x75\xfd"}
_LOOPS["pae"] = _LOOPS["protected"]
_LOOPS["long"] = _LOOPS["ring3"] = b"\xff\xc9\x75\xfc"

# Turns: for the fixed cost of a run, to tell emulation from native code, to measure the latter.
_ONE, _SOME, _MANY = 1, 3000, 1_000_000


def examine(kvm: Kvm, section: Section) -> None:
    """Each mode with a measured speed, and the ways from ring 3 into ring 0."""
    for mode, title in _MODES:
        with Probe(kvm) as probe:
            ns, text = speed(probe, mode)
        key = f"mode_{mode}"
        if ns is None:
            section.add(
                key, title, False, f"does not run: {text}", value={"how": "none"}, brief=True
            )
            continue
        how = "native" if ns < NATIVE_NS else "emulated" if ns >= EMULATED_NS else "slow"
        shown = f"{ns:.2f} ns" if ns < 10 else f"{ns:.0f} ns"
        words = {"native": "native", "emulated": "emulated by KVM", "slow": "neither fast nor slow"}
        section.add(
            key, title, True, f"{words[how]}: {shown} an instruction",
            value={"how": how, "ns_per_instruction": round(ns, 2)}, brief=True,
        )  # fmt: skip
    _real_mode_interrupts(kvm, section)
    _ring_changes(kvm, section)


def speed(probe: Probe, mode: Mode) -> tuple[float | None, str]:
    """Nanoseconds an instruction in a mode; None and why, if the code does not run there."""
    base = ns = 0.0
    for turns, rounds in ((_ONE, 3), (_SOME, 2), (_MANY, 3)):
        best = float("inf")
        for _ in range(rounds):
            taken, text = _time(probe, mode, turns)
            if taken is None:
                return None, text
            best = min(best, taken)
        if turns == _ONE:
            base = best
            continue
        ns = max(0.0, (best - base) / (2 * turns))
        if ns >= EMULATED_NS:
            break
    return ns, ""


def _time(probe: Probe, mode: Mode, turns: int) -> tuple[float | None, str]:
    probe.prepare(mode, _LOOPS[mode] + DONE, rcx=turns)
    started = time.perf_counter_ns()
    end = probe.go(2.0)
    taken = time.perf_counter_ns() - started
    return (float(taken), "") if end.kind == "done" else (None, end.text)


def _real_mode_interrupts(kvm: Kvm, section: Section) -> None:
    """INT n as BIOS services use it, with a low and a high vector."""
    lost = []
    for vector in (0x10, 0x80):
        with Probe(kvm) as probe:
            probe.prepare("real", bytes((0xCD, vector)) + DONE)
            end = probe.go(0.05)
        if end.vector != vector:
            lost.append(f"INT {vector:#x} does not arrive: {end.text}")
    text = "; ".join(lost) or "arrives through the vector table"
    if len(lost) == 1 and "0x80" in text:
        text += "; INT 0x10 does"
    section.add("real_int", "INT n in real mode", not lost, text, value=not lost)


def _ring_changes(kvm: Kvm, section: Section) -> None:
    """INT n and SYSCALL from ring 3: user-mode programs of a guest kernel need one of them."""
    software_interrupt = b"\xcd" + bytes((SYSTEM_CALL,))

    def compatibility(state: CpuState) -> None:
        state.segments["cs"] = code_segment(32, dpl=3, selector=presets.USER_CODE32)
        data = data_segment(dpl=3, selector=presets.USER_DATA)
        state.segments |= dict.fromkeys(("ds", "es", "ss"), data)

    def fast(state: CpuState) -> None:
        entry = STUBS + 4 * SYSTEM_CALL  # supervisor-only: reached in ring 0 or not at all
        state.efer |= 1  # SCE
        state.msrs |= {
            0xC0000081: (presets.USER_CODE32 << 16 | presets.KERNEL_CODE) << 32,
            0xC0000082: entry,
            0xC0000084: 0x47700,
        }

    for key, title, code, change in (
        ("ring3_int", "INT n in 64-bit ring 3", software_interrupt, None),
        ("ring3_int32", "INT n in 32-bit ring 3", software_interrupt, compatibility),
        ("ring3_syscall", "SYSCALL in ring 3", b"\x0f\x05", fast),
    ):
        with Probe(kvm) as probe:
            probe.prepare("ring3", code, change=change)
            end = probe.go()
            if end.vector == SYSTEM_CALL:
                section.add(key, title, True, "enters ring 0", value=True)
                continue
            text = end.text if end.vector is None else f"the guest gets {end.text}"
            text = f"does not enter ring 0: {text}"
            if code is software_interrupt:
                probe.prepare("ring3", b"\xcd\x03", change=change)
                if probe.go().vector == 3:
                    text += "; INT 3 does"
        section.add(key, title, False, text, value=False)


assert CODE + len(_LOOPS["real"]) < STUBS
