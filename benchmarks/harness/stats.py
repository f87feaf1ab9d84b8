"""Medians and spreads: what is left of a measurement on a machine that others use too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .model import CaseResult, Comparison


@dataclass(frozen=True)
class Spread:
    """The middle of some values: median, and the quartiles around it. `n` values."""

    median: float
    low: float
    high: float
    n: int

    @property
    def iqr(self) -> float:
        """Distance between the quartiles: half of all values lie within it."""
        return self.high - self.low


def quantile(values: Sequence[float], fraction: float) -> float:
    """The `fraction` quantile, interpolated linearly between the two nearest values (the usual
    "type 7").
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("quantile of no values")
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    return Spread(
        quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75), len(values)
    )


def relate(comparison: Comparison, ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Relates values pair by pair: round n of ours with round n of the peer, taken right after one
    another.

    A slow moment of the host hits both halves of a pair, so this varies less than the ratio of two
    medians.
    """
    if comparison.relation == "value":
        return list(ours)
    pairs = list(zip(ours, peer, strict=True))
    if comparison.relation == "added":
        return [a - b for a, b in pairs]
    return [a / b for a, b in pairs]


@dataclass(frozen=True)
class Row:
    """A comparison with its numbers.

    `problem` instead of them where a side could not be measured.
    """

    comparison: Comparison
    ours: Spread | None = None
    peer: Spread | None = None
    related: Spread | None = None
    problem: str = ""

    @property
    def verdict(self) -> bool | None:
        """Whether the median meets all goals; None where there is no goal or no number."""
        if self.related is None or not self.comparison.goals:
            return None
        return all(goal.met(self.related.median) for goal in self.comparison.goals)

    @property
    def within_spread(self) -> bool:
        """Whether a goal lies between the quartiles: another run may well judge otherwise."""
        related = self.related
        if related is None:
            return False
        return any(related.low < goal.limit < related.high for goal in self.comparison.goals)


def evaluate(result: CaseResult, comparison: Comparison) -> Row:
    """The table row of one comparison of a measured case.

    Where one side failed, the other's numbers stay in the row.
    """
    names = [comparison.ours] + ([comparison.peer] if comparison.peer else [])
    problems = [result.failures[name] for name in names if name in result.failures]
    values = [
        [sample[comparison.metric] for sample in result.samples.get(name, [])] for name in names
    ]
    spreads = [spread(of_side) if of_side else None for of_side in values]
    ours, peer = spreads[0], spreads[1] if comparison.peer else None
    if problems:
        return Row(comparison, ours, peer, problem=problems[0])
    related = relate(comparison, values[0], values[1] if comparison.peer else [])
    return Row(comparison, ours, peer, spread(related))
