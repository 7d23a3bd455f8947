"""A trial, and which of several is the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from largebatch.plan.score import Score
from largebatch.records.run import ResultRecord
from largebatch.studies.search.space import Values


class Trial(NamedTuple):
    values: Values
    worth: tuple[float, ...] | None  # more is better, the first first; None where the run failed


def worth_of(result: ResultRecord, score: Score) -> tuple[float, ...] | None:
    """Of a run without a target its score; with one (1, −examples to it), or (0, the best score short of it)."""
    if result.status != "finished":
        return None
    target = result.target
    if target is None:
        reached = result.number(f"test_{score.key}")
        return None if reached is None else (score.worth(reached),)
    if target.interpolated is not None:
        return 1.0, -target.interpolated.examples
    return None if target.best is None else (0.0, score.worth(target.best))


def best(trials: Sequence[Trial]) -> Trial | None:
    """The earliest of the best; None if every one failed."""
    finished = [trial for trial in trials if trial.worth is not None]
    return max(finished, key=lambda trial: trial.worth or (), default=None)
