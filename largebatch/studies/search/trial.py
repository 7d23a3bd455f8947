"""A trial, and which of several is the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from largebatch.studies.search.space import Values


class Trial(NamedTuple):
    values: Values
    worth: tuple[float, ...] | None  # more is better, the first first; None where the run failed


def best(trials: Sequence[Trial]) -> Trial | None:
    """The earliest of the best; None if every one failed."""
    finished = [trial for trial in trials if trial.worth is not None]
    return max(finished, key=lambda trial: trial.worth or (), default=None)
