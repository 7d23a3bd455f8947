"""How the best value of a hyper-parameter follows the batch B, and how wide the good region around it is.

    none    c             linear    c·B          square root    c·B^½
    power   c·B^p         surge     ε_max / (½·(√(B_n/B) + √(B/B_n)))

(surge: Li et al. 2024, arXiv:2405.14578, for sign-like optimizers; it falls beyond B_n) are fitted to ln of the value
by least squares and compared by AICc = n·ln(RSS/n) + 2k + 2k(k + 1)/(n − k − 1) (Hurvich & Tsai 1989), k parameters
with σ among them, which needs n > k + 1 points. Rules within 2 of the best are as good as the best (Burnham &
Anderson 2002): nothing is decided then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import stdtrit

from largebatch.studies.curves.law import Bounds
from largebatch.studies.curves.measured import LEVEL

RESOLUTION = 0.01
"""Values that differ by less are not told apart: what lies on a rule would else prove it without end."""
AS_GOOD = 2.0
"""Of AICc."""
POWERS = {"none": 0.0, "square root": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class FittedRule:
    """ln value ± ``deviation`` over the points; ``aicc`` is None where there are too few of them to compare it."""

    name: str
    constants: Mapping[str, float]
    deviation: float
    aicc: float | None
    value: Callable[[float], float]


@dataclass(frozen=True)
class RuleOfBatch:
    """All rules, the best first. ``power`` is the interval of the free p, None with fewer than three batches."""

    rules: tuple[FittedRule, ...]
    power: Bounds | None

    @property
    def decided(self) -> FittedRule | None:
        """The best, where no other is within 2 of it and there are points enough to compare at least two."""
        compared = [rule.aicc for rule in self.rules if rule.aicc is not None]
        return self.rules[0] if len(compared) > 1 and compared[1] - compared[0] > AS_GOOD else None


def rule_of(batches: Sequence[float], values: Sequence[float]) -> RuleOfBatch | None:
    """The rules through the best values at these batches; None with fewer than two batches."""
    if len(set(batches)) < 2:
        return None
    x, y = np.log(np.array(batches, float)), np.log(np.array(values, float))
    power, bounds = _slope(x, y)
    fitted = [_scaled(name, p, x, y, 1) for name, p in POWERS.items()]
    fitted += [_scaled("power", power, x, y, 2), _surge(x, y)]
    return RuleOfBatch(tuple(sorted(fitted, key=lambda rule: math.inf if rule.aicc is None else rule.aicc)), bounds)


def surge(batch: float, peak: float, noise_batch: float) -> float:
    """ε_max / (½·(√(B_n/B) + √(B/B_n)))"""
    return peak / (0.5 * (math.sqrt(noise_batch / batch) + math.sqrt(batch / noise_batch)))


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, Bounds | None]:
    """Of y over x by least squares, with Student's interval."""
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    freedom = len(x) - 2
    if freedom < 1 or len(set(x)) < 3:
        return slope, None
    rest = y - y.mean() - slope * away
    error = math.sqrt(max(rest @ rest / freedom, RESOLUTION**2) / (away @ away))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return slope, Bounds(slope - half, slope + half)


def _scaled(name: str, power: float, x: np.ndarray, y: np.ndarray, parameters: int) -> FittedRule:
    level = float((y - power * x).mean())
    deviation, aicc = _judged(y - power * x - level, parameters)
    return FittedRule(
        name, {"factor": math.exp(level), "power": power}, deviation, aicc,
        lambda batch: math.exp(level + power * math.log(batch)),
    )  # fmt: skip


def _surge(x: np.ndarray, y: np.ndarray) -> FittedRule:
    """The level is the mean at any B_n, which is looked for from a thousandth to a thousand times the batches."""

    def shape(place: float) -> np.ndarray:
        return -np.log(np.cosh((x - place) / 2))  # of the rule, without ln ε_max

    def lost(place: float) -> float:
        rest = y - shape(place)
        return float(((rest - rest.mean()) ** 2).sum())

    starts = np.linspace(x.min() - math.log(1000), x.max() + math.log(1000), 101)
    near, step = min(starts, key=lost), starts[1] - starts[0]
    refined: Any = minimize_scalar(lost, bounds=(near - step, near + step), method="bounded")
    place = float(refined.x)
    level = float((y - shape(place)).mean())
    deviation, aicc = _judged(y - shape(place) - level, 2)
    peak, noise_batch = math.exp(level), math.exp(place)
    return FittedRule(
        "surge", {"peak": peak, "noise_batch": noise_batch}, deviation, aicc,
        lambda batch: surge(batch, peak, noise_batch),
    )  # fmt: skip


def _judged(rest: np.ndarray, parameters: int) -> tuple[float, float | None]:
    """Root mean square, and AICc with σ as one more parameter."""
    number, k = len(rest), parameters + 1
    variance = float(rest @ rest / number)
    if number <= k + 1:
        return math.sqrt(variance), None
    correction = 2 * k * (k + 1) / (number - k - 1)
    return math.sqrt(variance), number * math.log(max(variance, RESOLUTION**2)) + 2 * k + correction


@dataclass(frozen=True)
class TriedSetting:
    """A trial: values by key, and its worth (more is better), None where it failed."""

    values: Mapping[str, float]
    worth: float | None


@dataclass(frozen=True)
class GoodRange:
    """From ``low`` to ``high`` trials were good; it is open on a side where no trial beyond was worse."""

    key: str
    low: float
    high: float
    open_below: bool
    open_above: bool


def good_region(trials: Sequence[TriedSetting], tolerance: float) -> list[GoodRange]:
    """Each key's range over the trials whose worth is within ``tolerance`` of the best; empty if every trial failed."""
    known = [trial.worth for trial in trials if trial.worth is not None]
    if not known:
        return []
    good = [trial for trial in trials if trial.worth is not None and trial.worth >= max(known) - tolerance]
    ranges = []
    for key in sorted(good[0].values):
        tried, kept = ([trial.values[key] for trial in some] for some in (trials, good))
        low, high = min(kept), max(kept)
        ranges.append(GoodRange(key, low, high, min(tried) == low, max(tried) == high))
    return ranges
