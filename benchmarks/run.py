"""Measures pykvm against raw C programs and QEMU in the same run.

`python benchmarks/run.py`, or `make bench`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import cases, host, qemu, report, rounds, toolchain
from benchmarks.harness.model import BenchError, CaseResult


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(125, f"benchmarks: {message}; see --help\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(
        prog="benchmarks/run.py",
        description=__doc__,
        epilog="Example: python benchmarks/run.py --case pio-out --rounds 5",
    )
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="only this case; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each case")
    parser.add_argument("--quick", action="store_true", help="3 rounds of shorter runs: a look")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample")
    parser.add_argument("--install", action="store_true", help="as root: install QEMU if missing")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the results go (a full run: benchmarks/results; with --case or --quick: "
        "nowhere)",
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1 is needed")
    return options


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _measure(options: argparse.Namespace) -> list[CaseResult]:
    results = []
    for case in cases.chosen(options.case, quick=options.quick):
        count = options.rounds or (3 if options.quick else case.rounds)
        result = rounds.run_case(case, min(count, case.most_rounds), progress=_progress)
        _progress("")
        if not options.json:
            report.print_case(result)
        results.append(result)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen cases.

    0 whatever was measured: times are shown, never asserted; 125 for a usage or host error.
    """
    options = parse(arguments)
    if options.list:
        for case in cases.chosen(None, quick=False):
            print(f"{case.name:14} {case.title}")
        return 0
    try:
        toolchain.build_all()
        problem = qemu.install() if options.install else qemu.missing()
        if problem:
            print(f"note: {problem}", file=sys.stderr)
        facts = host.facts()
        if report.is_busy(facts):
            print(f"note: this host is busy (load {facts['load']})", file=sys.stderr)
        results = _measure(options)
    except BenchError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 125
    if options.json:
        print(json.dumps(report.as_json(facts, results)))
    partial = options.case or options.quick or options.rounds
    directory = options.output or (None if partial else toolchain.SOURCES / "results")
    if directory:
        for path in report.write(directory, facts, results):
            print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
