"""`explain_silence`: why a guest says nothing, from samples, exits and what nobody answered."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass, field

from pykvm.lab.explain.explanation import clean
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.lab.silence import SilenceReport
    from pykvm.machine import Machine

_TOP = 8
_ADVICE = (
    ("halted with interrupts off", "Look at what led to the HLT: mostly a panic or an end of work. "
     "Step back from there, or trace the last exits."),
    ("waits for an interrupt", "Which interrupt? Look at the interrupt controllers: is the line "
     "unmasked, is the timer programmed, is the device's own enable bit set? A console that is "
     "not the serial port also looks like this."),
    ("polls a device", "It waits for a bit of that device to change. See which register it reads "
     "and what the answer is; the device may be missing something that it was not told."),
    ("spins on one instruction", "An endless loop on purpose (jmp .), or a lock that nobody "
     "gives back. Look at the instruction and at its symbol."),
    ("computes without", "No exits mean no devices: it may decompress, clear memory or run "
     "through an endless loop. Take a second look and see whether the places change."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SilenceExplanation:
    """Why a machine says nothing. `report` has the raw observations.

    `exits`: counts by exit name since the machine was made; `msrs`: MSRs that were refused or made
    up, with counts, most frequent first; `advice`: what to look at next.
    """

    likely: str
    advice: str
    report: SilenceReport
    exits: dict[str, int] = field(default_factory=dict)
    msrs: list[tuple[str, int]] = field(default_factory=list)

    def sections(self) -> list[tuple[str, list[str]]]:
        """Headings with their lines; empty ones are left out."""
        report = self.report
        parts = [
            ("Likely reason", [f"{self.likely[:1].upper()}{self.likely[1:]}."]),
            ("What to look at", [self.advice] if self.advice else []),
            ("vCPUs", [str(view) for view in report.vcpus]),
            ("Exits while looked at", [_counts(report.exits)] if report.exits else []),
            ("Exits since the start", [_counts(self.exits)] if self.exits else []),
            ("Last exits, oldest first", report.last_exits),
            ("Accesses that nobody answers", [f"{w} × {n}" for w, n in report.unanswered[:_TOP]]),
            ("MSRs that were refused or made up", [f"{w} × {n}" for w, n in self.msrs[:_TOP]]),
        ]
        return [(head, lines) for head, lines in parts if lines]

    def text(self, width: int = 80) -> str:
        """For a terminal."""
        out = []
        for head, lines in self.sections():
            out.append(f"{head}:")
            for line in lines:
                out += textwrap.wrap(
                    clean(line), max(20, width), initial_indent="  ", subsequent_indent="    "
                )
        return "\n".join(out)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"likely": self.likely, "advice": self.advice, "exits": self.exits,
                "msrs": [list(pair) for pair in self.msrs],
                "unanswered": [list(pair) for pair in self.report.unanswered],
                "last_exits": self.report.last_exits,
                "vcpus": [str(view) for view in self.report.vcpus]}  # fmt: skip

    def _repr_html_(self) -> str:
        """For notebooks."""
        parts = []
        for head, lines in self.sections():
            items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
            parts.append(f"<p><b>{head}</b></p><ul>{items}</ul>")
        return "".join(parts)

    def __str__(self) -> str:
        return self.text()


def explain_silence(machine: Machine, report: SilenceReport | None = None) -> SilenceExplanation:
    """Looks at a machine that says nothing (running, in another thread; or paused) and explains it.

    `report` is an earlier `look_at(machine)`; without one the machine is sampled now, which takes
    a fifth of a second and pauses it for microseconds at a time.
    """
    from pykvm.lab.silence import look_at

    if machine.status not in ("running", "paused") and report is None:
        reason = f"the machine does not run (its status is {machine.status})"
        report = look_at(machine, samples=0)
        return SilenceExplanation(reason, _ended(machine), report, machine.exit_counts())
    report = report or look_at(machine)
    advice = next((text for key, text in _ADVICE if key in report.likely), "")
    exits = {n: c for n, c in machine.exit_counts().items() if n != "KVM_EXIT_INTR"}
    return SilenceExplanation(report.likely, advice, report, exits, _msrs(machine))


def _ended(machine: Machine) -> str:
    if str(machine.status) == "crashed":
        return "It has crashed: see the run's report. reset() or restore() makes it usable again."
    return "Run it first, in a thread of its own, and look at it meanwhile."


def _msrs(machine: Machine) -> list[tuple[str, int]]:
    from pykvm.kvm.exit_names import msr

    if machine.cpus is None:
        return []
    named = [
        (f"{'wrmsr' if write else 'rdmsr'} {msr(number)}", count)
        for (number, write), count in list(machine.cpus.accesses.items())
    ]
    return sorted(named, key=lambda item: -item[1])


def _counts(counts: dict[str, int]) -> str:
    top = sorted(counts.items(), key=lambda item: -item[1])[:_TOP]
    return ", ".join(f"{name.removeprefix('KVM_EXIT_').lower()} {n}" for name, n in top)
