"""What the runs of a row needed to the target at each batch size, or the bound up to which they did not reach it.

A run that did not reach the target is censored: what it needed is more than what it saw. The middle of a point is the
median (or mean) over its runs, and is exact where it is the same whatever the censored runs would have needed; else
all that is known is a lower bound. Intervals are percentile bootstraps over the runs (Efron 1979), from a seed of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

RESAMPLES, SEED = 2000, 0
LEVEL = 0.95

Middle = Literal["median", "mean"]


@dataclass(frozen=True)
class TargetRun:
    """One seed: what it saw until it reached the target, or, where it did not, without reaching it."""

    seed: int
    examples: float
    reached: bool = True
    seconds: float | None = None
    steps: float | None = None  # where the batch did not stay; else examples / batch


@dataclass(frozen=True)
class TargetPoint:
    """A batch size, the settings that it was trained with, and a run for each seed."""

    batch: int
    runs: tuple[TargetRun, ...]
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CurveParts:
    """What was trained: a recipe's section ``model``, the names of its data and its optimizer; None: not said."""

    model: Mapping[str, object] | None = None
    data: str | None = None
    optimizer: str | None = None


@dataclass(frozen=True)
class TargetCurve:
    """A row of a study: its points by ascending batch. ``unit`` is the plural of an example."""

    label: str
    points: tuple[TargetPoint, ...]
    unit: str = "examples"
    middle: Middle = "median"

    def middles(self) -> list[MiddleOfRuns]:
        """In the order of the points."""
        return [middle_of(point, self.middle) for point in self.points]

    def at(self, batch: int) -> TargetPoint | None:
        return next((point for point in self.points if point.batch == batch), None)


@dataclass(frozen=True)
class MiddleValue:
    """Of some quantity over the runs of a point; a lower bound unless ``exact``.

    ``low`` and ``high`` are None for one run, ``high`` also where the runs do not bound it.
    """

    value: float
    exact: bool
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MiddleOfRuns:
    """Examples and seconds to the target over the runs of a point.

    ``seconds`` is None where a run has none. ``level`` is what the intervals can hold: 95 %, or with fewer than six
    runs less; None for one run.
    """

    batch: int
    needed: MiddleValue
    seconds: MiddleValue | None
    level: float | None
    runs: int
    reached: int
    steps_taken: float | None = None  # where the batch did not stay

    @property
    def steps(self) -> float:
        return self.examples / self.batch if self.steps_taken is None else self.steps_taken

    @property
    def examples(self) -> float:
        return self.needed.value

    @property
    def exact(self) -> bool:
        return self.needed.exact


def middle_of(point: TargetPoint, how: Middle = "median") -> MiddleOfRuns:
    """Median or mean of what the runs of a point needed, with its interval."""
    assert point.runs
    reached, number = [run.reached for run in point.runs], len(point.runs)
    seconds = [run.seconds for run in point.runs if run.seconds is not None]
    steps = [run.steps for run in point.runs if run.steps is not None]
    return MiddleOfRuns(
        batch=point.batch,
        needed=middle_value([run.examples for run in point.runs], reached, how),
        seconds=middle_value(seconds, reached, how) if len(seconds) == number else None,
        level=min(LEVEL, highest_level(number)) if number > 1 else None,
        runs=number,
        reached=sum(reached),
        steps_taken=middle_value(steps, reached, how).value if len(steps) == number else None,
    )


def middle_value(values: Sequence[float], reached: Sequence[bool], how: Middle = "median") -> MiddleValue:
    """Of what was needed, or seen where the target was not ``reached``."""
    least = np.array(values, float)
    most = np.where(reached, least, math.inf)
    calculate, number = np.median if how == "median" else np.mean, len(values)
    middle = float(calculate(least))
    low = high = None
    if number > 1:
        drawn = np.random.default_rng(SEED).integers(number, size=(RESAMPLES, number))
        low = _percentile(calculate(least[drawn], axis=1), (1 - LEVEL) / 2)
        highest = _percentile(calculate(most[drawn], axis=1), (1 + LEVEL) / 2)
        high = highest if math.isfinite(highest) else None
    return MiddleValue(middle, middle == float(calculate(most)), low, high)


def highest_level(runs: int) -> float:
    """1 − 2^(1−n): how often the median lies between the smallest and the largest of n runs."""
    return 1 - 2.0 ** (1 - runs)


def _percentile(values: np.ndarray, share: float) -> float:
    """A value that is there: between a number and infinity nothing can be interpolated."""
    return float(np.quantile(values, share, method="inverted_cdf"))
