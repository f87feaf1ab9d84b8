"""`pykvm doctor`: tries out the host and prints what it found, with remedies."""

from __future__ import annotations

import sys

from pykvm.cli.common import HOST_ERROR, Parser, print_json
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine.doctor import Finding, Report

EXAMPLES = """examples:
  pykvm doctor             try everything, about a second
  pykvm doctor --brief     only what matters most
  pykvm doctor --json | jq '.sections[].findings[] | select(.mark == "no")'

Exit status: 0 if guests can run here, 125 if not."""

_MARKS = {"ok": ("✓", "32"), "no": ("✗", "31"), "note": ("·", "2")}
_PLAIN = {"ok": "+", "no": "x", "note": "-"}
_INDENT = 2


def main(arguments: list[str]) -> int:
    """Runs the verb."""
    parser = Parser(
        "doctor", "Tries out what this host's /dev/kvm can do, instead of believing it.", EXAMPLES
    )
    parser.add_argument("--brief", action="store_true", help="only what matters most")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    parser.add_argument(
        "--device", default="/dev/kvm", metavar="PATH", help="the KVM device (default /dev/kvm)"
    )
    options = parser.parse_args(arguments)
    from pykvm.machine.doctor import examine

    report = examine(options.device)
    if options.json:
        print_json(report.as_dict())
    else:
        print(_Printer().text(report, options.brief))
    if not report.usable:
        hint = f"; {report.remedy}" if report.remedy else ""
        print(f"pykvm: {report.device} is {report.summary}{hint}", file=sys.stderr)
    return 0 if report.usable else HOST_ERROR


class _Printer:
    """Lays the report out for the terminal, or for a pipe."""

    def __init__(self) -> None:
        import shutil

        from pykvm.cli.style import use_colour

        self.colour = use_colour(sys.stdout)
        encoding = (sys.stdout.encoding or "").lower()
        self.fancy = encoding.startswith("utf")
        self.width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))

    def text(self, report: Report, brief: bool) -> str:
        host = report.host
        lines = [
            f"pykvm doctor: {host['cpu']}, {host['cpus']} CPUs, Linux {host['kernel']}, "
            f"Python {host['python']}"
        ]
        for section in report.sections:
            findings = [f for f in section.findings if f.brief or not brief]
            if not findings:
                continue
            if not brief:
                lines += ["", self._paint(section.title, "1")]
            column = max(len(f.title) for f in (section.findings if not brief else findings))
            column = max(column, 12 if not brief else 26)
            for finding in findings:
                lines += self._finding(finding, column)
        if not brief:
            lines.append("")
        mark = self._mark("ok" if report.usable else "no")
        lines.append(f"{mark} {self._paint(report.summary, '1')}")
        if not brief:
            lines.append(f"  (tried in {report.seconds:.1f} s)")
        return "\n".join(lines)

    def _finding(self, finding: Finding, column: int) -> list[str]:
        import textwrap

        head = " " * _INDENT + self._mark(str(finding.mark)) + " " + finding.title.ljust(column)
        hang = _INDENT + 2 + column + 2
        wrapped = textwrap.wrap(finding.text, self.width - hang, break_on_hyphens=False) or [""]
        lines = [f"{head}  {wrapped[0]}"]
        lines += [" " * hang + line for line in wrapped[1:]]
        if finding.remedy:
            arrow = "→ " if self.fancy else "-> "
            # A command line that is broken over two lines cannot be copied.
            whole = "sudo " in finding.remedy or "mknod " in finding.remedy
            width = 10_000 if whole else self.width - hang - 2
            for i, line in enumerate(textwrap.wrap(finding.remedy, width)):
                lines.append(" " * hang + (arrow if i == 0 else " " * len(arrow)) + line)
        return lines

    def _mark(self, mark: str) -> str:
        sign, colour = _MARKS[mark]
        return self._paint(sign if self.fancy else _PLAIN[mark], colour)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text
