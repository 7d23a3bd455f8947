"""Examples and steps to a target against the batch B: the law, its fit and what the points say of its parameters.

    E(B) = E_min·(1 + B/B_crit),    S(B) = E(B)/B = S_min·(1 + B_crit/B),    B_crit = E_min/S_min

(McCandlish et al. 2018, arXiv:1812.06162: (S/S_min − 1)·(E/E_min − 1) = 1). E is linear in B, E_min +
S_min·B, so that all is finite where B_crit is not.

The residual of a point is its relative error 1 − E(B)/E, normal with one σ for all points. A point that is only a
lower bound c adds the probability of more, Φ((E(B)/c − 1)/σ) (Tobin 1958). In a = E_min/σ, b = S_min/σ and h = 1/σ
(Olsen 1978) the likelihood is concave: there is one maximum, and without bounds it is least squares with the weights
1/E.

Intervals are those of the profile likelihood, with the F distribution in the place of χ² (Bates & Watts 1988):
of n points that reached the target, 2·(ℓ_max − ℓ(θ)) ≤ n·ln(1 + F(1, n − 2)/(n − 2)), which with normal residuals
holds for few points, too. Since ℓ is concave, they are intervals. Each batch counts once, however many seeds stand
behind it: that a batch was tuned better or worse than its neighbours is the larger part of what is not known, and
seeds do not show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize, nnls
from scipy.special import fdtri, log_ndtr

from largebatch.studies.curves.measured import LEVEL, MiddleOfRuns

SMALLEST_ERROR = 1e-4
"""σ below it is not looked for: points that lie on the law leave it without a scale."""
FARTHEST = 1e-9
"""Shares of one of the two terms, at the middle of the batches, below which it is taken for absent."""

Directions = Sequence[Sequence[float]]
"""Three rows, for a, b and h: a column for each number that is free."""


@dataclass(frozen=True)
class ScalingLaw:
    """Both may be 0, not both at once: then examples are proportional to the batch, or do not depend on it."""

    least_examples: float
    least_steps: float

    @property
    def critical(self) -> float:
        """B_crit, infinite where no batch costs examples."""
        return self.least_examples / self.least_steps if self.least_steps else math.inf

    def examples(self, batch: float) -> float:
        return self.least_examples + self.least_steps * batch

    def steps(self, batch: float) -> float:
        return self.examples(batch) / batch


@dataclass(frozen=True)
class Bounds:
    """A 95 % interval; None on a side where the points do not bound it."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class LawFit:
    """The law of a row. Intervals are None where fewer than three batches reached the target; ``unknown`` says so."""

    law: ScalingLaw
    critical: Bounds | None
    least_examples: Bounds | None
    least_steps: Bounds | None
    rms_error: float
    """Of E(B)/E − 1, over the points that reached the target."""
    largest_error: float
    points: int
    lower_bounds: int
    unknown: str | None


def fit(points: Sequence[MiddleOfRuns]) -> LawFit | None:
    """The law of these points; None with fewer than two batches that reached the target."""
    reached = [point for point in points if point.exact]
    if len(reached) < 2:
        return None
    likelihood = _Likelihood(points)
    law = likelihood.law
    errors = [law.examples(point.batch) / point.examples - 1 for point in reached]
    enough = len(reached) > 2
    return LawFit(
        law=law,
        critical=likelihood.critical() if enough else None,
        least_examples=likelihood.of_examples() if enough else None,
        least_steps=likelihood.of_steps() if enough else None,
        rms_error=math.sqrt(math.fsum(error**2 for error in errors) / len(errors)),
        largest_error=max(map(abs, errors)),
        points=len(reached),
        lower_bounds=len(points) - len(reached),
        unknown=None
        if enough
        else "two batches lie on a law of two parameters whatever they are: there is no interval",
    )


class _Likelihood:
    """ℓ(a, b, h) of points whose batches and examples are divided by their geometric means."""

    def __init__(self, points: Sequence[MiddleOfRuns]) -> None:
        batches, examples = (
            np.array([float(value) for value in values])
            for values in zip(*((point.batch, point.examples) for point in points), strict=True)
        )
        self.batch, self.examples = (float(np.exp(np.log(values).mean())) for values in (batches, examples))
        self.terms = np.stack([1 / examples, batches / self.batch / examples], axis=1) * self.examples
        self.exact = np.array([point.exact for point in points])
        self.number = int(self.exact.sum())
        self.most, (a, b, h) = self.maximum([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
        self.law = ScalingLaw(float(a / h * self.examples), float(b / h * self.examples / self.batch))

    def maximum(self, directions: Directions) -> tuple[float, np.ndarray]:
        """The largest ℓ over (a, b, h) = ``directions`` · φ with φ ≥ 0, of which the last is h, and where it is."""
        design = np.column_stack([-self.terms, np.ones(len(self.terms))]) @ np.asarray(directions)
        reached, bounded = design[self.exact], design[~self.exact]
        start, distance = nnls(-reached[:, :-1], reached[:, -1])
        scale, first = 1 / max(distance / math.sqrt(self.number), SMALLEST_ERROR), np.append(start, 1.0)
        if not len(bounded):  # least squares is all
            value = self.number * math.log(scale) - 0.5 * (scale * distance) ** 2
            return value, np.asarray(directions) @ (scale * first)

        def lost(place: np.ndarray) -> tuple[float, np.ndarray]:
            inside, beyond = scale * (reached @ place), -scale * (bounded @ place)
            tail = log_ndtr(beyond)
            hazard = np.exp(-0.5 * beyond**2 - tail) / math.sqrt(2 * math.pi)
            slope = scale * (reached.T @ inside) + scale * (bounded.T @ hazard)
            slope[-1] -= self.number / place[-1]
            return 0.5 * inside @ inside - tail.sum() - self.number * math.log(place[-1]), slope

        last = (1e-6, 1 / (scale * SMALLEST_ERROR))
        ended = minimize(
            lost, first, jac=True, method="SLSQP", bounds=[(0, None)] * len(start) + [last],
            options={"ftol": 1e-12, "maxiter": 200},
        )  # fmt: skip
        value = -ended.fun + self.number * math.log(scale)
        return value, np.asarray(directions) @ (scale * np.maximum(ended.x, 0))

    def inside(self, directions: Directions) -> float:
        """How far ℓ lies above the edge of the interval."""
        freedom = self.number - 2
        edge = 0.5 * self.number * math.log1p(float(fdtri(1, freedom, LEVEL)) / freedom)
        return edge - (self.most - self.maximum(directions)[0])

    def critical(self) -> Bounds:
        """Over the share t of the examples at the middle batch G that S_min·G is: B_crit = G·(1 − t)/t."""

        def at(logit: float) -> float:
            share = 1 / (1 + math.exp(-logit))
            return self.inside([[1 - share, 0], [share, 0], [0, 1]])

        far = -math.log(FARTHEST)
        fixed, growing = self.law.least_examples, self.law.least_steps * self.batch
        best = math.log(growing / fixed) if fixed and growing else math.copysign(far, growing - fixed)
        best = max(-far, min(far, best))
        low, high = (_edge(at, best, end) for end in (-far, far))
        return Bounds(
            None if high is None else self.batch / math.exp(high),
            None if low is None else self.batch / math.exp(low),
        )

    def of_examples(self) -> Bounds:
        """Of E_min."""
        unit = self.examples
        return self.interval(lambda least: [[0, least / unit], [1, 0], [0, 1]], self.law.least_examples, unit)

    def of_steps(self) -> Bounds:
        """Of S_min."""
        unit = self.examples / self.batch
        return self.interval(lambda least: [[1, 0], [0, least / unit], [0, 1]], self.law.least_steps, unit)

    def interval(self, stated: Callable[[float], Directions], best: float, unit: float) -> Bounds:
        """Of E_min or S_min, which are bounded above, for the residuals then grow; below perhaps not."""

        def at(value: float) -> float:
            return self.inside(stated(value))

        far = 2 * max(best, unit)
        while at(far) > 0:
            far *= 2
        return Bounds(_edge(at, best, 0.0), _edge(at, best, far))


def _edge(inside: Callable[[float], float], best: float, end: float) -> float | None:
    """Where ``inside`` falls to 0 between ``best`` and ``end``; None where it does not."""
    if best == end or inside(end) >= 0:
        return None
    solved: Any = brentq(inside, best, end, xtol=1e-9 * max(1.0, abs(end)))
    return float(solved)
