"""Examples to the target against the batch, from whatever is known of it, and how sure they are.

points     of a study or published: E is the line between the two neighbours, as MLPerf judges a batch between two of
           its points, and outside of them the law E(B) = E_min·(1 + B/B_crit) that is fitted (studies/curves/law.py)
law        stated as B_crit and E_min
a bound    of a run's critical batch or noise scale: with the n examples that the recipe takes at its batch B₀,
           n·(1 + B/B_crit)/(1 + B₀/B_crit) at most, and n at least; the other way round below B₀
budget     of the recipe, whatever the batch

Intervals are of 95 %. At a batch that was measured that of its runs; between two, what every point but the ends is
missed by when its neighbours are asked for it: exp(±t·σ), σ the root mean square of k such ln ratios, t Student's with
k degrees of freedom. Beyond the points the law's interval of prediction: E·(1 ± t·s·√(1 + xᵀ(XᵀX)⁻¹x)) with rows
X = (1, B)/E of the points, x of the batch, s² = Σ(1 − E(B)/E)²/(n − 2) and n − 2 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.special import stdtrit

from largebatch.errors import UserError
from largebatch.studies.curves.law import ScalingLaw, fit
from largebatch.studies.curves.measured import LEVEL, MiddleOfRuns
from largebatch.studies.curves.scaling import NOTHING_LOST, helps_until, scales_until

MEASURED, BETWEEN, BEYOND, BY_LAW, AT_MOST, BUDGET = "measured", "between", "beyond", "law", "at most", "budget"
"""What an expectation rests on."""


@dataclass(frozen=True)
class ExamplesNeeded:
    """To the target at a batch; ends of the interval are None where nothing is known of them."""

    examples: float
    low: float | None
    high: float | None
    basis: str


class ExamplesToTarget(Protocol):
    """One of the sources. ``critical`` is None where no law is known, ``sensible`` the batches worth a look."""

    @property
    def words(self) -> str: ...
    @property
    def critical(self) -> float | None: ...
    @property
    def sensible(self) -> tuple[float, float] | None: ...
    def needed(self, batch: int) -> ExamplesNeeded: ...


@dataclass(frozen=True)
class PointsTarget:
    """Points, at least two of which reached the target; lower bounds count in the law alone."""

    words: str
    points: tuple[MiddleOfRuns, ...]

    @cached_property
    def reached(self) -> list[MiddleOfRuns]:
        return sorted((point for point in self.points if point.exact), key=lambda point: point.batch)

    @cached_property
    def law(self) -> ScalingLaw:
        fitted = fit(self.points)
        assert fitted is not None
        return fitted.law

    @property
    def critical(self) -> float:
        return self.law.critical

    @property
    def sensible(self) -> tuple[float, float]:
        """Within what was measured, from where examples begin to cost to where a doubling saves nearly nothing."""
        first, last = self.reached[0].batch, self.reached[-1].batch
        low, high = max(first, scales_until(self.law, NOTHING_LOST)), min(last, helps_until(self.law))
        return (low, high) if low <= high else (first, last)

    def needed(self, batch: int) -> ExamplesNeeded:
        points = self.reached
        for point in points:
            if point.batch == batch:
                return self._at(point)
        if not points[0].batch < batch < points[-1].batch:
            return self._beyond(batch)
        examples = _line(points, batch)
        return _within(examples, self.missed, len(points) - 2, BETWEEN)

    @cached_property
    def missed(self) -> float | None:
        """σ of the line between neighbours; None with two points, where none has two others."""
        points = self.reached
        ratios = [
            math.log(_line(points[:place] + points[place + 1 :], point.batch) / point.examples)
            for place, point in enumerate(points[1:-1], start=1)
        ]
        return math.sqrt(math.fsum(ratio**2 for ratio in ratios) / len(ratios)) if ratios else None

    def _at(self, point: MiddleOfRuns) -> ExamplesNeeded:
        if point.runs == 1:
            return _within(point.examples, self.missed, len(self.reached) - 2, MEASURED)
        return ExamplesNeeded(point.examples, point.needed.low, point.needed.high, MEASURED)

    def _beyond(self, batch: int) -> ExamplesNeeded:
        law, points = self.law, self.reached
        examples, freedom = law.examples(batch), len(points) - 2
        if not freedom:
            return ExamplesNeeded(examples, None, None, BEYOND)
        rows = np.array([[1.0, point.batch] for point in points]) / [[point.examples] for point in points]
        errors = [1 - law.examples(point.batch) / point.examples for point in points]
        row = np.array([1.0, batch]) / examples
        leverage = float(row @ np.linalg.solve(rows.T @ rows, row))
        spread = math.sqrt(math.fsum(error**2 for error in errors) / freedom * (1 + leverage))
        share = float(stdtrit(freedom, (1 + LEVEL) / 2)) * spread
        return ExamplesNeeded(examples, max(0.0, examples * (1 - share)), examples * (1 + share), BEYOND)


def _line(points: Sequence[MiddleOfRuns], batch: int) -> float:
    """Linear in the batch between neighbours."""
    return float(np.interp(batch, [point.batch for point in points], [point.examples for point in points]))


def _within(examples: float, spread: float | None, freedom: int, basis: str) -> ExamplesNeeded:
    if spread is None:
        return ExamplesNeeded(examples, None, None, basis)
    factor = math.exp(float(stdtrit(freedom, (1 + LEVEL) / 2)) * spread)
    return ExamplesNeeded(examples, examples / factor, examples * factor, basis)


@dataclass(frozen=True)
class LawTarget:
    """B_crit and E_min as stated."""

    words: str
    law: ScalingLaw

    @property
    def critical(self) -> float:
        return self.law.critical

    @property
    def sensible(self) -> tuple[float, float]:
        return scales_until(self.law, NOTHING_LOST), helps_until(self.law)

    def needed(self, batch: int) -> ExamplesNeeded:
        return ExamplesNeeded(self.law.examples(batch), None, None, BY_LAW)


@dataclass(frozen=True)
class BoundTarget:
    """At ``batch`` the recipe takes ``examples``; the critical batch is ``critical`` or more."""

    words: str
    critical: float
    batch: int
    examples: float

    @property
    def sensible(self) -> tuple[float, float]:
        ends = sorted((float(self.batch), (NOTHING_LOST - 1) * self.critical))
        return ends[0], max(ends[1], 4 * self.critical)

    def needed(self, batch: int) -> ExamplesNeeded:
        bound = self.examples * (1 + batch / self.critical) / (1 + self.batch / self.critical)
        low, high = sorted((self.examples, bound))
        return ExamplesNeeded(high, low, high, AT_MOST)


@dataclass(frozen=True)
class BudgetTarget:
    """What the recipe takes, which the batch does not change; nothing says whether it reaches as much there."""

    words: str
    examples: float

    critical = None
    sensible = None

    def needed(self, batch: int) -> ExamplesNeeded:
        return ExamplesNeeded(self.examples, None, None, BUDGET)


def points_target(words: str, points: Sequence[MiddleOfRuns], where: str) -> PointsTarget:
    """UserError where fewer than two batches reached the target."""
    reached = sum(point.exact for point in points)
    if reached < 2:
        raise UserError(
            f"{where} has {reached} batch size{'s' * (reached != 1)} at which the target was reached; a plan needs 2 "
            "or more, or --critical-batch N --epochs N"
        )
    return PointsTarget(words, tuple(points))
