"""The search for a peak learning rate: the same number of trials for every recipe.

Peaks are the recipe's own times powers of two. After the own peak, its half and its double, each trial goes
where the best so far points: one doubling further while the best lies at an end of what was tried, else the
untried half-doubling beside the best, on the side of its better neighbour. Diverged trials count as trials, and
as the worst. The trials see a held-out part of the training set, never the test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from largebatch.plan.score import Score


class Trial(NamedTuple):
    peak_lr: float
    reached: float | None  # the run's score on the held-out part; None if it failed
    status: str


def search(peak: float, budget: int, measure: Callable[[float], Trial], score: Score) -> list[Trial]:
    """``budget`` trials in the order they were made; the first is at ``peak`` itself."""
    tried: dict[float, Trial] = {}
    while len(tried) < budget:
        exponent = next_exponent({e: worth(t, score) for e, t in tried.items()})
        tried[exponent] = measure(peak * 2.0**exponent)
    return list(tried.values())


def best(trials: list[Trial], score: Score) -> Trial | None:
    """The trial with the best score, the lower lr among equals; None if every one failed."""
    finished = [trial for trial in trials if trial.reached is not None]
    return max(finished, key=lambda t: (worth(t, score), -t.peak_lr), default=None)


def worth(trial: Trial, score: Score) -> float:
    return -math.inf if trial.reached is None else score.worth(trial.reached)


def next_exponent(scores: dict[float, float]) -> float:
    """Where to try next, in doublings of the recipe's own peak; more is better."""
    for first in (0.0, -1.0, 1.0):
        if first not in scores:
            return first
    if all(value == -math.inf for value in scores.values()):
        return min(scores) - 2.0  # everything diverged: far too high
    top = max(scores, key=lambda e: (scores[e], -e))
    low, high = min(scores), max(scores)
    if top == low:
        return low - 1.0
    if top == high:
        return high + 1.0
    exponents = sorted(scores)
    place = exponents.index(top)
    below, above = exponents[place - 1], exponents[place + 1]
    halves = [(scores[below], (top + below) / 2), (scores[above], (top + above) / 2)]
    return max(halves)[1]
