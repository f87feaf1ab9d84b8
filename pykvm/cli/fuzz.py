"""`pykvm fuzz`: campaigns on targets of ring 3, by AFL++; and what came of them."""

from __future__ import annotations

import sys

from pykvm.cli.common import (
    Interrupt,
    Parser,
    UsageError,
    end_on_signals,
    number,
    print_json,
    seconds,
)
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.fuzz import Ring3
    from pykvm.fuzz.afl.campaign import Status
    from pykvm.fuzz.triage import Group

EXAMPLES = """examples:
  pykvm fuzz parser.c -o out               build it, fuzz it until Ctrl-C; again: goes on
  pykvm fuzz parser.c -i seeds -o out -j 2 --time 600
  pykvm fuzz triage parser.c out           each bug once, with registers and code
  pykvm fuzz replay parser.c out/main/crashes/id*
  pykvm fuzz min parser.c CRASH -o small   a smaller input with the same crash
  afl-showmap -o map -- pykvm fuzz serve parser.elf < input
                                           afl-fuzz and its tools: AFL_SKIP_BIN_CHECK=1

The target is a C file or a static ELF file with LLVMFuzzerTestOneInput(data, size).
Exit status: 0, or of replay: 126 if an input crashes, 124 if one hangs."""

_CRASHED, _HUNG = 126, 124
_LIMIT = 10.0  # seconds for one input


def main(arguments: list[str]) -> int:
    """Runs the verb."""
    actions = {"serve": _serve, "replay": _replay, "triage": _triage, "min": _minimise}
    if arguments and arguments[0] in actions:
        return actions[arguments[0]](arguments[1:])
    return _campaign(arguments)


def _parser(verb: str, about: str) -> Parser:
    parser = Parser(verb, about, EXAMPLES)
    parser.add_argument("target", metavar="TARGET", help="a C file, or a static ELF file")
    return parser


def _open(options: Namespace, timeout: float = _LIMIT) -> Ring3:
    from pykvm.fuzz import Ring3
    from pykvm.fuzz.targets import find_target

    return Ring3(find_target(options.target), timeout=timeout)


# -- a campaign ----------------------------------------------------------------------------------


def _campaign(arguments: list[str]) -> int:
    parser = _parser("fuzz", "Fuzzes a function in ring 3 of a VM, with AFL++ on as many cores.")
    add = parser.add_argument
    add("-i", "--seeds", metavar="DIR", help="inputs to begin with (default: one, harmless)")
    add("-o", "--output", metavar="DIR", default="fuzz-out",
        help="where AFL++ keeps its work, to go on with (default fuzz-out)")  # fmt: skip
    add("-j", "--jobs", type=number, default=1, metavar="N", help="workers, a core each")
    add("-x", "--dict", metavar="FILE", help="a dictionary in AFL++'s form")
    add("--time", type=number, metavar="SECONDS", help="end after that long")
    add("--run-timeout", type=number, metavar="MS", help="for one input (default: measured)")
    add("--json", action="store_true", help="the numbers as JSON: a line a second, and the end")
    options = parser.parse_args(arguments)
    if not options.jobs:
        raise UsageError("--jobs 0 does nothing; write 1 or more")
    from pykvm.fuzz.afl.campaign import Campaign
    from pykvm.fuzz.targets import find_target

    target = find_target(options.target)
    with _open(options):
        pass  # what is wrong with it is said here, not in AFL++'s log
    campaign = Campaign(
        target, options.output, seeds=options.seeds, jobs=options.jobs, seconds=options.time,
        dictionary=options.dict, timeout_ms=options.run_timeout,
    )  # fmt: skip
    return _watch(campaign, options)


def _watch(campaign: Any, options: Namespace) -> int:
    import threading
    from dataclasses import asdict

    end_on_signals()
    ended = threading.Event()
    shown = _Line(options.json)
    with Interrupt(ended.set), campaign:
        campaign.start()
        status = campaign.poll()
        while status.alive and not ended.wait(1.0):
            status = campaign.poll()
            shown.show(status)
        campaign.stop()
        status = campaign.poll()
    crashes = [str(path) for path in campaign.crashes()]
    if options.json:
        print_json({**asdict(status), "files": crashes})
        return 0
    shown.show(status)
    shown.end()
    print(f"{status.executions:,} executions, {len(crashes)} crashing inputs in {options.output}")
    if crashes:
        print(f"look at them with: pykvm fuzz triage {options.target} {options.output}")
    return 0


class _Line:
    """One line that is written anew on a terminal, and a line each ten seconds elsewhere."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._terminal = sys.stderr.isatty()
        self._count = 0

    def show(self, status: Status) -> None:
        from dataclasses import asdict

        self._count += 1
        if self._json:
            import json

            print(json.dumps(asdict(status)), file=sys.stderr, flush=True)
            return
        text = (
            f"{status.executions:,} executions, {status.per_second:,.0f}/s, corpus "
            f"{status.corpus:,}, {status.edges:,} edges, {status.crashes} crashes, "
            f"{status.hangs} hangs, {status.pages:.1f} pages in {status.reset_us:.1f} µs"
        )
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif self._count % 10 == 0:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal and not self._json:
            print(file=sys.stderr)


# -- for AFL++ -----------------------------------------------------------------------------------


def _serve(arguments: list[str]) -> int:
    parser = _parser("fuzz serve", "What afl-fuzz and its tools run: a target without forks.")
    parser.add_argument(
        "input", nargs="?", metavar="FILE", help="where inputs are (@@), if not on stdin"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=_LIMIT, metavar="SECONDS",
        help="for one input, if AFL++ has not ended it before (default 10)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    from pykvm.fuzz.afl import serve

    with _open(options, options.timeout) as target:
        serve(target, options.input)
    return 0


# -- what came of it -----------------------------------------------------------------------------


def _replay(arguments: list[str]) -> int:
    parser = _parser("fuzz replay", "Runs inputs again, and says how each ends.")
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="inputs")
    parser.add_argument("--times", type=number, default=1, metavar="N", help="runs of each")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    with _open(options) as target:
        for path in options.inputs:
            data = _read(path)
            for _ in range(max(options.times, 1)):
                result = target.execute(data)
                row: dict[str, Any] = {"input": path, "outcome": str(result.outcome)}
                if result.crash is not None:
                    row["crash"] = str(result.crash)
                found.append(row)
                if not options.json:
                    print(f"{path}: {row.get('crash', row['outcome'])}")
    if options.json:
        print_json(found)
    outcomes = {row["outcome"] for row in found}
    return _CRASHED if "crash" in outcomes else _HUNG if "hang" in outcomes else 0


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _triage(arguments: list[str]) -> int:
    parser = _parser("fuzz triage", "Sorts crashing inputs by the bug that they meet.")
    parser.add_argument(
        "places", nargs="+", metavar="PLACE", help="output directories of campaigns, or inputs"
    )
    parser.add_argument("--json", action="store_true", help="the groups as JSON")
    options = parser.parse_args(arguments)
    import os

    from pykvm.fuzz.afl.campaign import crash_files
    from pykvm.fuzz.triage import triage

    paths: list[Any] = []
    for place in options.places:
        paths += crash_files(place) if os.path.isdir(place) else [place]
    with _open(options) as target:
        groups, harmless = triage(target, paths)
    if options.json:
        print_json({"bugs": [_as_dict(group) for group in groups], "harmless": harmless})
        return 0
    for index, group in enumerate(groups, 1):
        print(f"{'' if index == 1 else chr(10)}{index}. {_report(group, options.target)}")
    if not groups:
        print("none of these inputs crashes" if paths else "there are no crashing inputs")
    for path in harmless:
        print(f"{path}: does not crash")
    return 0


def _report(group: Group, target: str) -> str:
    crash = group.crash
    lines = [f"{crash} ({len(group.inputs)} inputs)"]
    lines += [f"     {line}" for line in group.listing]
    lines += [f"     called from {name}" for name in group.stack]
    names = list(crash.registers)
    for at in range(0, len(names), 4):
        row = names[at : at + 4]
        lines.append("     " + "  ".join(f"{n:>6} {crash.registers[n]:016x}" for n in row))
    lines.append(f"     pykvm fuzz replay {target} {group.inputs[0]}")
    return "\n".join(lines)


def _as_dict(group: Group) -> dict[str, Any]:
    crash = group.crash
    return {
        "kind": crash.kind, "rip": crash.rip, "where": crash.where,
        "instruction": crash.instruction, "address": crash.address, "message": crash.message,
        "registers": crash.registers, "stack": group.stack, "listing": group.listing,
        "inputs": [str(path) for path in group.inputs],
    }  # fmt: skip


def _minimise(arguments: list[str]) -> int:
    parser = _parser("fuzz min", "Makes an input smaller that still meets the same bug.")
    parser.add_argument("input", metavar="FILE", help="an input that crashes or hangs")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the smaller one")
    options = parser.parse_args(arguments)
    from pykvm.fuzz.triage import minimise

    data = _read(options.input)
    with _open(options) as target:
        if target.execute(data).outcome == "ok":
            raise UsageError(f"{options.input} neither crashes nor hangs; name one that does")
        small = minimise(target, data)
        result = target.execute(small)
    with open(options.output, "wb") as file:
        file.write(small)
    print(f"{len(data)} -> {len(small)} bytes: {result.crash or result.outcome}")
    return 0
