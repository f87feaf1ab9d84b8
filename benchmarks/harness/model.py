"""What a benchmark is made of.

Cases, their sides, and the comparisons drawn from them. Data only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Sample = dict[str, float]
"""What one run of one side measured: metric name → value (ns, bytes, exits per second, …)."""

Relation = Literal["ratio", "added", "value"]
"""How a comparison relates our side to its peer: ours / peer, ours - peer, or ours alone."""

Unit = Literal["per_second", "ns", "bytes", "count"]


class BenchError(Exception):
    """A side could not be measured.

    `str()` is one sentence: what is missing or went wrong, and the remedy.
    """


@dataclass(frozen=True)
class Side:
    """One of the programs a case compares.

    Each call of `measure` is one run of it. Raises BenchError.
    """

    name: str
    measure: Callable[[], Sample]


@dataclass(frozen=True)
class Goal:
    """A target for the median of a comparison.

    Shown beside it, never enforced: times on a shared host are no test.
    """

    operator: Literal["<=", ">=", "<"]
    limit: float

    def met(self, value: float) -> bool:
        """Whether a median reaches the goal."""
        if self.operator == ">=":
            return value >= self.limit
        return value < self.limit if self.operator == "<" else value <= self.limit


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    `metric` of the side `ours`, related to the same metric of the side `peer`.
    """

    label: str
    metric: str
    unit: Unit
    ours: str
    peer: str | None = None
    relation: Relation = "value"
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Case:
    """Sides that are run in turn, round by round, and what is compared. `about` says exactly what
    was compared.

    `most_rounds` bounds what the user asks for where a round is long, or always counts the same.
    """

    name: str
    title: str
    about: str
    sides: tuple[Side, ...]
    comparisons: tuple[Comparison, ...]
    rounds: int = 11
    most_rounds: int = 1000
    warm_up: bool = True


@dataclass
class CaseResult:
    """All samples of a case, by side, in the order of the rounds.

    `failures` names the sides that could not run.
    """

    case: Case
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
