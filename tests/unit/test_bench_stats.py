"""The arithmetic behind the benchmark table."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.model import Case, CaseResult, Comparison, Goal, Side
from benchmarks.harness.stats import Spread, evaluate, quantile, relate, spread

VALUES = st.lists(st.floats(0.001, 1e12), min_size=1, max_size=40)


@given(VALUES)
def test_the_median_is_the_one_of_the_standard_library(values: list[float]) -> None:
    assert quantile(values, 0.5) == pytest.approx(statistics.median(values))


@given(st.lists(st.floats(0.001, 1e12), min_size=2, max_size=40))
def test_the_quartiles_are_those_of_the_standard_library(values: list[float]) -> None:
    low, _middle, high = statistics.quantiles(values, n=4, method="inclusive")
    assert quantile(values, 0.25) == pytest.approx(low)
    assert quantile(values, 0.75) == pytest.approx(high)


def test_a_spread_is_not_moved_by_one_wild_value() -> None:
    assert spread([10, 11, 12, 13, 1000]) == Spread(12, 11, 13, 5)
    assert spread([10, 11, 12, 13, 1000]).iqr == 2


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_pairs_are_related_round_by_round() -> None:
    ours, peer = [2.0, 40.0, 6.0], [1.0, 20.0, 3.0]
    ratio = Comparison("", "ns", "ns", "ours", "peer", "ratio")
    added = Comparison("", "ns", "ns", "ours", "peer", "added")
    assert relate(ratio, ours, peer) == [2, 2, 2]
    assert relate(added, ours, peer) == [1, 20, 3]
    assert relate(Comparison("", "ns", "ns", "ours"), ours, []) == ours


@pytest.mark.parametrize(
    ("operator", "limit", "value", "met"),
    [
        ("<=", 150, 150, True),
        ("<=", 150, 150.1, False),
        (">=", 0.97, 0.97, True),
        (">=", 0.97, 0.96, False),
        ("<", 1, 1, False),
        ("<", 1, 0.99, True),
    ],
)
def test_goals_are_inclusive_unless_they_say_otherwise(
    operator: str, limit: float, value: float, met: bool
) -> None:
    assert Goal(operator, limit).met(value) is met  # type: ignore[arg-type]


def _result(**samples: list[float]) -> CaseResult:
    sides = tuple(Side(name, dict) for name in samples)
    case = Case("case", "Case", "", sides, ())
    return CaseResult(case, {name: [{"ns": ns} for ns in all_] for name, all_ in samples.items()})


def test_a_row_has_both_medians_and_the_pairwise_one() -> None:
    result = _result(ours=[3, 30, 3], peer=[1, 10, 1])
    goal = (Goal("<=", 2.0),)
    row = evaluate(result, Comparison("x", "ns", "ns", "ours", "peer", "ratio", goal))
    assert row.ours is not None
    assert row.peer is not None
    assert row.related is not None
    assert (row.ours.median, row.peer.median, row.related.median) == (3, 1, 3)
    assert row.verdict is False


def test_a_side_that_failed_leaves_a_reason_and_no_verdict() -> None:
    result = _result(ours=[3.0], peer=[])
    result.failures["peer"] = "it is not installed"
    goal = (Goal("<=", 2.0),)
    row = evaluate(result, Comparison("x", "ns", "ns", "ours", "peer", "ratio", goal))
    assert row.problem == "it is not installed"
    assert row.ours == Spread(3, 3, 3, 1)
    assert (row.peer, row.related) == (None, None)
    assert row.verdict is None
