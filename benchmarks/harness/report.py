"""The table: on the terminal, as Markdown, and as JSON with every sample."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .model import CaseResult, Comparison, Goal, Unit
from .stats import Row, Spread, evaluate

COLUMNS = ("what", "pykvm", "peer", "peer is", "pair by pair", "goal", "met")


def amount(value: float, unit: Unit) -> str:
    """A value with a unit a reader can take in: `1.23 µs`, `98.1 k/s`, `31.4 MiB`."""
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB" if abs(value) >= 2**20 else f"{value / 2**10:.0f} KiB"
    if unit == "ns":
        for size, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
            if abs(value) >= size:
                return (
                    f"{value / size:.3g} {name}"
                    if value < 1e3 * size
                    else f"{value / size:.0f} {name}"
                )
        return f"{value:.3g} ns"
    if unit == "count":
        return f"{value:,.0f}"
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}/s"
    return f"{value:.3g} /s"


def with_spread(spread: Spread | None, unit: Unit) -> str:
    """Median, and the distance between the quartiles."""
    if spread is None:
        return ""
    return f"{amount(spread.median, unit)} ± {amount(spread.iqr, unit)}"


def related(comparison: Comparison, spread: Spread | None) -> str:
    """The pair-by-pair column: a ratio, a difference, or nothing for a value that stands alone."""
    if spread is None or comparison.relation == "value":
        return ""
    if comparison.relation == "ratio":
        return f"{spread.median:.3g}× ± {spread.iqr:.2g}"
    sign = "+" if spread.median >= 0 else ""
    return f"{sign}{with_spread(spread, comparison.unit)}"


def goal_text(comparison: Comparison, goals: Sequence[Goal]) -> str:
    """The goals in the units of the column they are compared with."""
    signs = {"<=": "≤", ">=": "≥", "<": "<"}
    texts = []
    for goal in goals:
        ratio = comparison.relation == "ratio"
        limit = f"{goal.limit:g}×" if ratio else amount(goal.limit, comparison.unit)
        plus = "+" if comparison.relation == "added" else ""
        texts.append(f"{signs[goal.operator]} {plus}{limit}")
    return ", ".join(texts)


def cells(row: Row) -> tuple[str, ...]:
    """One table row as texts, in the order of COLUMNS."""
    comparison = row.comparison
    goal = goal_text(comparison, comparison.goals)
    verdict = {True: "yes", False: "no", None: ""}[row.verdict]
    if verdict and row.within_spread:
        verdict += ", within the spread"
    return (
        comparison.label,
        with_spread(row.ours, comparison.unit),
        with_spread(row.peer, comparison.unit),
        comparison.peer or "",
        row.problem or related(comparison, row.related),
        goal,
        verdict,
    )


def rows(result: CaseResult) -> list[Row]:
    """The table rows of a case."""
    return [evaluate(result, comparison) for comparison in result.case.comparisons]


def print_case(result: CaseResult) -> None:
    """Prints a case's table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=result.case.title, title_justify="left", caption=result.case.about)
    table.caption_justify = "left"
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows(result):
        style = {True: "green", False: "yellow", None: ""}[row.verdict]
        table.add_row(*cells(row), style=style)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    console.print()


def is_busy(facts: dict[str, str]) -> bool:
    """Whether more than half a CPU was taken by others in the minute before the run."""
    return float(facts.get("load", "0").split()[0]) > 0.5


def markdown(facts: dict[str, str], results: Sequence[CaseResult]) -> str:
    """The whole run as a Markdown page."""
    lines = ["# pykvm benchmarks", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "Each cell is the median ± the distance between the quartiles. The sides of a case run in"
        " turn, round by",
        "round; `pair by pair` relates each round of pykvm to the peer's round beside it. Goals "
        "are shown, not enforced.",
    ]
    if is_busy(facts):
        lines += ["", "**The host was busy with other work when this run began: see `load`.**"]
    short = []
    for result in results:
        count = max((len(samples) for samples in result.samples.values()), default=0)
        lines += ["", f"## {result.case.title}", "", f"{result.case.about} Rounds: {count}.", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
        for row in rows(result):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |")
            if row.verdict is False:
                against = f" against {row.comparison.peer}" if row.comparison.peer else ""
                short.append(f"- {result.case.title}: {row.comparison.label}{against}")
    lines += ["", "## Goals not met in this run", ""] + (short or ["None."])
    return "\n".join(lines) + "\n"


def as_json(facts: dict[str, str], results: Sequence[CaseResult]) -> dict[str, Any]:
    """The whole run with every sample, in order, for later analysis.

    Times in ns, sizes in bytes.
    """
    cases = []
    for result in results:
        table = [
            {
                **asdict(row.comparison),
                "ours": asdict(row.ours) if row.ours else None,
                "peer_spread": asdict(row.peer) if row.peer else None,
                "related": asdict(row.related) if row.related else None,
                "goal_met": row.verdict,
                "problem": row.problem or None,
                "ours_name": row.comparison.ours,
            }
            for row in rows(result)
        ]
        cases.append(
            {
                "case": result.case.name,
                "title": result.case.title,
                "about": result.case.about,
                "samples": result.samples,
                "failures": result.failures,
                "comparisons": table,
            }
        )
    return {"facts": facts, "cases": cases}


def write(directory: Path, facts: dict[str, str], results: Sequence[CaseResult]) -> list[Path]:
    """Writes <date>-<host>.json and .md into `directory`, and returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{facts['date'][:10]}-{facts['host']}"
    data, page = directory / f"{stem}.json", directory / f"{stem}.md"
    data.write_text(json.dumps(as_json(facts, results), indent=1) + "\n", encoding="utf-8")
    page.write_text(markdown(facts, results), encoding="utf-8")
    return [data, page]
