"""Runs the sides of a case in turn.

A B C, A B C, … so that a slow minute of the host slows every side.
"""

from __future__ import annotations

from collections.abc import Callable

from .model import BenchError, Case, CaseResult


def run_case(
    case: Case, rounds: int, *, progress: Callable[[str], None] = lambda _text: None
) -> CaseResult:
    """Measures `rounds` rounds after one warm-up round that is thrown away (caches, page-ins), if
    the case wants it.

    A side that fails is dropped with its reason, and the others go on: one missing program must not
    cost the rest.
    """
    result = CaseResult(case, samples={side.name: [] for side in case.sides})
    for number in range(0 if case.warm_up else 1, rounds + 1):
        for side in case.sides:
            if side.name in result.failures:
                continue
            progress(f"{case.name}: {side.name}, round {number}/{rounds}")
            try:
                sample = side.measure()
            except BenchError as error:
                result.failures[side.name] = str(error)
                continue
            if number > 0:
                result.samples[side.name].append(sample)
    return result
