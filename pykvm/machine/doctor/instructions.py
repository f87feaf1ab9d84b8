"""Which instructions KVM refuses to run in 64-bit ring 0, tried one by one.

On hosts where software decodes kernel code (and on old VMX hosts without unrestricted guest) an
instruction that KVM's emulator lacks ends in KVM_EXIT_INTERNAL_ERROR. With hardware
virtualization all of these run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from pykvm.arch.bits import CR4
from pykvm.arch.state import CpuState
from pykvm.kvm import CpuidEntry, Kvm
from pykvm.kvm.errors import KvmError
from pykvm.machine.doctor.probe import DONE, End, Probe, vector_name
from pykvm.machine.doctor.result import Section
from pykvm.machine.doctor.trials import FEATURES, TRIALS, Trial

_REFUSED, _FAULTED, _ABSENT, _WORKS = "refused", "faulted", "absent", "works"
_WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one trial.

    `kind`: "works"; "refused" (KVM gave up); "wrong" (it completed with a wrong result); "faulted"
    (the guest got another exception than a CPU raises); "absent" (the same, and the guest's CPUID
    does not announce it).
    """

    trial: Trial
    kind: str
    text: str


def examine(kvm: Kvm, section: Section) -> None:
    """All trials; refused ones in one finding, those that raise an exception in another."""
    outcomes = try_all(kvm)
    by_kind = {
        kind: [o for o in outcomes if o.kind == kind]
        for kind in (_WORKS, _REFUSED, _WRONG, _FAULTED, _ABSENT)
    }
    works, refused = by_kind[_WORKS], by_kind[_REFUSED]
    section.add(
        "instructions_working", "work", True, f"{len(works)} of {len(outcomes)}: {_names(works)}",
        value=[o.trial.name for o in works],
    )  # fmt: skip
    remedy = ""
    if refused or by_kind[_WRONG]:
        remedy = (
            'a Machine completes what is refused itself (its `assist`, on unless it is "off"), '
            "more slowly; to avoid them, run such code in ring 3, mask their CPUID bits, or use a "
            "host with VT-x or AMD-V"
        )
    section.add(
        "instructions_refused", "refused", not refused,
        f"{len(refused)}: {_names(refused)}" if refused else "none", remedy,
        value=[o.trial.name for o in refused],
    )  # fmt: skip
    wrong = by_kind[_WRONG]
    if wrong:
        section.add(
            "instructions_wrong", "wrong result", False, _names(wrong), remedy,
            value=[o.trial.name for o in wrong],
        )  # fmt: skip
    faulted = by_kind[_FAULTED]
    if faulted:
        text = ", ".join(f"{o.trial.name} ({o.text})" for o in faulted)
        section.add(
            "instructions_faulting", "raise an exception", False, text,
            value={o.trial.name: o.text for o in faulted},
        )  # fmt: skip
    absent = by_kind[_ABSENT]
    if absent:
        section.add(
            "instructions_absent", "not in the guest's CPUID", None, _names(absent),
            value=[o.trial.name for o in absent],
        )  # fmt: skip


def _names(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(outcome.trial.name for outcome in outcomes)


def try_all(kvm: Kvm) -> list[Outcome]:
    """Runs every trial and says what became of it."""
    features = guest_features(kvm.supported_cpuid())
    outcomes = []
    probe = _new_probe(kvm, features)
    try:
        for trial in TRIALS:
            probe.prepare("long", trial.code + DONE, change=lambda s: _enable(s, features))
            end = probe.go()
            outcomes.append(_judge(trial, end, probe.vcpu.regs.rax, features))
            if end.kind in ("shutdown", "timeout", "failed", "other"):
                probe.close()
                probe = _new_probe(kvm, features)
    finally:
        probe.close()
    return outcomes


def _new_probe(kvm: Kvm, features: set[str]) -> Probe:
    probe = Probe(kvm)
    if "xsave" in features:
        with contextlib.suppress(KvmError):
            probe.vcpu.set_xcrs({0: 7 if "avx" in features else 3})
    return probe


def _enable(state: CpuState, features: set[str]) -> None:
    """The CR4 bits without which instructions are #UD by definition (SDM vol. 3A, 2.5)."""
    for feature, bit in (("xsave", CR4.OSXSAVE), ("fsgsbase", CR4.FSGSBASE), ("pku", CR4.PKE)):
        if feature in features:
            state.cr4 |= int(bit)


def guest_features(table: Iterable[CpuidEntry]) -> set[str]:
    """The features of `FEATURES` that a guest with this CPUID table has."""
    leaves = {(entry.function, entry.index): entry for entry in table}
    found = set()
    for name, (function, index, register, bit) in FEATURES.items():
        entry = leaves.get((function, index))
        if entry is not None and getattr(entry, register) >> bit & 1:
            found.add(name)
    return found


def _judge(trial: Trial, end: End, rax: int, features: set[str]) -> Outcome:
    announced = not trial.feature or trial.feature in features
    if end.kind == "done" and trial.expect is None:
        if trial.rax is not None and rax != trial.rax:
            if not announced:  # TZCNT is BSF to a CPU that does not know it
                return Outcome(trial, _ABSENT, "does something else")
            return Outcome(trial, _WRONG, f"rax is {rax:#x} instead of {trial.rax:#x}")
        return Outcome(trial, _WORKS, "")
    if end.vector is not None and end.vector == trial.expect:
        return Outcome(trial, _WORKS, f"raises {vector_name(end.vector)}")
    if end.kind == "refused":
        return Outcome(trial, _REFUSED, end.text)
    kind = _FAULTED if announced else _ABSENT
    if end.kind == "vector" and end.vector is not None:
        return Outcome(trial, kind, vector_name(end.vector))
    return Outcome(trial, kind, end.text)
