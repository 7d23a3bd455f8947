"""What the runs of a row needed to the target at each batch size, or the bound up to which they did not reach it.

A run that did not reach the target is censored: what it needed is more than what it saw. The middle of a point is the
median (or mean) over its runs, and is exact where it is the same whatever the censored runs would have needed; else
all that is known is a lower bound. Intervals are percentile bootstraps over the runs (Efron 1979), from a seed of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

RESAMPLES, SEED = 2000, 0
LEVEL = 0.95
FEWEST = 6
"""Runs below which no interval between the smallest and the largest of them can hold a median with 95 %."""

Middle = Literal["median", "mean"]


@dataclass(frozen=True)
class TargetRun:
    """One seed: what it saw until it reached the target, or, where it did not, without reaching it."""

    seed: int
    examples: float
    reached: bool = True
    seconds: float | None = None


@dataclass(frozen=True)
class TargetPoint:
    """A batch size, the settings that it was trained with, and a run for each seed."""

    batch: int
    runs: tuple[TargetRun, ...]
    settings: Mapping[str, float] = field(default_factory=dict)


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
class MiddleOfRuns:
    """Examples to the target over the runs of a point.

    ``exact`` is false where ``examples`` is a lower bound. ``low`` and ``high`` are None for one run, ``high`` also
    where the runs do not bound it. ``level`` is what the interval can hold: 95 %, or with fewer than six runs less.
    """

    batch: int
    examples: float
    exact: bool
    low: float | None
    high: float | None
    level: float | None
    runs: int
    reached: int

    @property
    def steps(self) -> float:
        return self.examples / self.batch


def middle_of(point: TargetPoint, how: Middle = "median") -> MiddleOfRuns:
    """Median or mean of what the runs of a point needed, with its interval."""
    least = np.array([run.examples for run in point.runs])
    most = np.array([run.examples if run.reached else math.inf for run in point.runs])
    calculate = np.median if how == "median" else np.mean
    examples, at_most, runs = float(calculate(least)), float(calculate(most)), len(point.runs)
    low = high = level = None
    if runs > 1:
        drawn = np.random.default_rng(SEED).integers(runs, size=(RESAMPLES, runs))
        low = _percentile(calculate(least[drawn], axis=1), (1 - LEVEL) / 2)
        highest = _percentile(calculate(most[drawn], axis=1), (1 + LEVEL) / 2)
        high = highest if math.isfinite(highest) else None
        level = min(LEVEL, highest_level(runs))
    reached = sum(run.reached for run in point.runs)
    return MiddleOfRuns(point.batch, examples, examples == at_most, low, high, level, runs, reached)


def highest_level(runs: int) -> float:
    """1 − 2^(1−n): how often the median lies between the smallest and the largest of n runs."""
    return 1 - 2.0 ** (1 - runs)


def _percentile(values: np.ndarray, share: float) -> float:
    """A value that is there: between a number and infinity nothing can be interpolated."""
    return float(np.quantile(values, share, method="inverted_cdf"))
