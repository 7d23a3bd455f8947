"""The critical batch from branches of one training: the largest multiple of its batch that loses nothing.

    k* = max {k : L_k ≤ L_j + ε for all j < k}        Merrill et al. 2025 (2505.23971): L_k is the loss of a branch at k
    CBS = k*·B                                        times the batch B after a window, ε = 0.01; drawn is B·√(k*·k₊),
                                                      k₊ the next k of the grid above
    s ← α·l + (1 − α)·s                               how they smooth its losses l; α = 0.5

They compare one branch with one. Here every k has a branch for each of n orders of the data, and d = L_k − L_j has n
values, of the same order each: a one-sided paired t-test. k *loses* where mean d > ε is shown for some j < k, corrected
by Holm 1979 for all pairs. What lies beyond ε + |L_j| counts as that much: it is not above d, so what is shown of it
holds for d, and branches that explode, each by another amount, do not hide in their own spread. k *keeps* where mean
d < ε is shown for all j < k (each at the level itself, an intersection of tests, corrected for how many k there are).
Of each kind of statement at most 5 % of repetitions hold a wrong one. With ε = 0 nothing that is equal can be shown to
keep: then k* is the last k before the first that loses, and decided if that one loses against k* itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scipy.special import stdtr, stdtrit

LEVEL = 0.05
SMOOTHING = 0.5  # α of the paper

CRITICAL, AT_LEAST, AT_MOST, NOT_DECIDED = "critical", "at least", "at most", "not decided"


class Contrast(NamedTuple):
    """A branch beside one of a smaller batch; over the orders. Not finite where one of them diverged."""

    smaller: float
    larger: float
    excess: float  # mean of L_larger − L_smaller
    error: float  # its standard error
    orders: int
    p: float  # of an excess above the tolerance by chance, corrected for all pairs

    @property
    def loses(self) -> bool:
        return self.p <= LEVEL

    def high(self, level: float) -> float:
        """The upper end of its one-sided interval."""
        if not math.isfinite(self.excess) or not self.error:
            return self.excess
        return self.excess + self.error * float(stdtrit(self.orders - 1, 1 - level))


class CriticalFactor(NamedTuple):
    """``factor`` is k*; None where it is not decided, and then lies within ``low`` and ``high``."""

    word: str
    factor: float | None
    low: float
    high: float
    above: float | None  # the next k of the grid above k*, where there is one
    excluded: float | None  # what k*, or else ``high``, loses against a smaller k is below this, at 95 %
    pairs: tuple[Contrast, ...]

    @property
    def drawn(self) -> float | None:
        """The geometric mean of k* and the next k above."""
        if self.factor is None:
            return None
        return self.factor if self.above is None else math.sqrt(self.factor * self.above)


def smoothed(losses: Iterable[float], smoothing: float = SMOOTHING) -> float:
    """The moving average at the end, begun with the first."""
    mean = math.nan
    for loss in losses:
        mean = loss if math.isnan(mean) else smoothing * loss + (1 - smoothing) * mean
    return mean


def verdict(
    losses: Mapping[float, Sequence[float]], tolerance: float = 0.0, gained: float | None = None
) -> CriticalFactor:
    """``losses``: of each k, one of every order of the data; infinite for a branch that diverged.

    ``gained``: what the window gained at the run's batch; where no k loses, and as much could have been lost unseen,
    nothing is decided.
    """
    grid = sorted(losses)
    pairs = compared(losses, tolerance)
    losers = {k for k in grid if _diverged(losses[k])} | {pair.larger for pair in pairs if pair.loses}
    loser = min(losers, default=None)
    kept = [k for k in grid if loser is None or k < loser]
    if not kept:  # the smallest diverged
        return CriticalFactor(NOT_DECIDED, None, grid[0], grid[0], None, None, pairs)
    last = kept[-1]
    most = {k: _most(pairs, k, LEVEL / (len(grid) - 1)) for k in kept}  # that it may lose
    if tolerance > 0:
        low = max(k for k in kept if most[k] <= tolerance)
    elif loser is not None:
        worse = [pair.smaller for pair in pairs if pair.larger == loser and (pair.loses or pair.excess == math.inf)]
        low = max(k for k in kept if k in worse)
    else:
        low = grid[0] if gained is not None and most[last] >= max(gained, 0.0) else last
    excluded = most[last] if math.isfinite(most[last]) else None
    if low < last:
        return CriticalFactor(NOT_DECIDED, None, low, last, loser, excluded, pairs)
    word = AT_LEAST if loser is None else AT_MOST if last == grid[0] else CRITICAL
    return CriticalFactor(word, last, last, last, loser, excluded, pairs)


def compared(losses: Mapping[float, Sequence[float]], tolerance: float = 0.0) -> tuple[Contrast, ...]:
    """All pairs of the grid, with what a paired test says of each, corrected for their number."""
    pairs = [_contrast(losses, *both, tolerance) for both in itertools.combinations(sorted(losses), 2)]
    corrected, running = list(pairs), 0.0
    for place, number in enumerate(sorted(range(len(pairs)), key=lambda number: pairs[number].p)):
        running = max(running, min(1.0, (len(pairs) - place) * pairs[number].p))
        corrected[number] = pairs[number]._replace(p=running)
    return tuple(corrected)


def _contrast(losses: Mapping[float, Sequence[float]], smaller: float, larger: float, tolerance: float) -> Contrast:
    """Its p is that of the pair alone."""
    less, more, orders = losses[smaller], losses[larger], len(losses[larger])
    if _diverged(less) or _diverged(more):
        loses = not _diverged(less)
        return Contrast(smaller, larger, math.inf if loses else -math.inf, 0.0, orders, 0.0 if loses else 1.0)
    differences = [b - a for a, b in zip(less, more, strict=True)]
    capped = [min(d, tolerance + abs(a)) for a, d in zip(less, differences, strict=True)]
    (mean, error), (least, spread) = _mean(differences), _mean(capped)
    p = float(stdtr(orders - 1, (tolerance - least) / spread)) if spread else float(least <= tolerance)
    return Contrast(smaller, larger, mean, error, orders, p)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """And its standard error."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _most(pairs: Iterable[Contrast], k: float, level: float) -> float:
    """The most that k may lose against a smaller one; of the smallest, nothing is known and nothing counts."""
    return max((pair.high(level) for pair in pairs if pair.larger == k), default=-math.inf)


def _diverged(losses: Sequence[float]) -> bool:
    return not all(map(math.isfinite, losses))
