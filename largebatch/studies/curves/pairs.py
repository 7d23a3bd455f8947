"""Statements between rows: pairs of the same seed and batch, an exact test, corrected for how many are made.

d = ln(examples of one / examples of the other), per pair. Two rows that are alike could as well be exchanged in any
pair: under that hypothesis each of the 2^n assignments of signs to |d| is as likely (Fisher 1935), and p is the share
whose mean is as far from zero as what was seen, or farther. So n pairs have no p below 2^(1 − n): with three seeds
nothing can be decided at 5 %, with six 0.031 is the least. The interval of the mean is that of the subsets' means
(Hartigan 1969), which is the same test turned around. p of all statements that are made together are Holm's (1979):
the chance that any of them is wrong is held.

A pair in which one run was censored at c is compared up to c, min(E, c), both where both were: what is beyond is not
used. The test is exact where both rows had the same budget of examples. Seeds are paired, other than in a report
(report/summary.py), where another batch makes the same seed another sequence of gradients: rows of a study are
compared at the same batch. Over whole curves each seed at each batch is a pair of its own: what a seed brings to both
rows cancels in the difference, and what is left is taken to be independent from batch to batch. Either way the
statement is about the rows as they were tuned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from largebatch.studies.curves.law import Bounds
from largebatch.studies.curves.measured import LEVEL, SEED, TargetCurve, TargetPoint, TargetRun

MOST_EXACT = 16
"""Pairs up to which all signs are tried; beyond, as many are drawn."""


@dataclass(frozen=True)
class PairedStatement:
    """``first`` needs ``ratio`` times the examples of ``second``; at a ``batch``, or (None) over those that both have.

    ``p`` is None without pairs, ``interval`` is of the ratio and None where n pairs have none at 95 %.
    """

    first: str
    second: str
    batch: int | None
    pairs: int
    ratio: float | None
    interval: Bounds | None
    p: float | None
    corrected: float | None = None

    @property
    def smallest(self) -> float:
        """The least p that so many pairs can have."""
        return smallest_p(self.pairs)

    @property
    def decided(self) -> bool:
        return self.corrected is not None and self.corrected <= 1 - LEVEL


def statements(
    rows: Sequence[TargetCurve], batches: Sequence[int] | None = None, whole: bool = False
) -> list[PairedStatement]:
    """Each two rows at each batch that they have in common (or ``batches``), with p corrected for all of these.

    ``whole``: over the whole curves instead, one statement for each two rows, whose pairs are all seeds at all batches.
    """
    made = []
    for first, second in itertools.combinations(rows, 2):
        shared = [point.batch for point in first.points if second.at(point.batch) is not None]
        wanted = [batch for batch in shared if batches is None or batch in batches]
        logs = {batch: log_ratios(first, second, batch) for batch in wanted}
        if whole:
            every = [difference for pairs in logs.values() for difference in pairs]
            made.append(_statement(first.label, second.label, None, every))
        else:
            made += [_statement(first.label, second.label, batch, pairs) for batch, pairs in logs.items()]
    return corrected(made)


def can_be_decided(pairs: int, statements_made: int) -> bool:
    """Whether so many pairs have a p that stands after Holm's correction."""
    return smallest_p(pairs) * statements_made <= 1 - LEVEL


def log_ratios(first: TargetCurve, second: TargetCurve, batch: int) -> list[float]:
    """ln(examples of first / examples of second) of each seed that both ran at this batch, in their order."""
    ours, theirs = _by_seed(first.at(batch)), _by_seed(second.at(batch))
    return [math.log(_up_to(ours[seed], theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())]


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided, of the mean; with more than sixteen pairs of as many random signs, where p is never 0."""
    values = np.array(differences, float)
    seen = abs(values.sum())
    edge = seen * (1 - 1e-12)  # sums in another order are the same sum
    beyond = abs(_signs(len(values)) @ values) >= edge
    return float(beyond.mean()) if len(values) <= MOST_EXACT else float((1 + beyond.sum()) / (1 + len(beyond)))


def smallest_p(pairs: int) -> float:
    """2^(1 − n)."""
    return 2.0 ** (1 - pairs) if pairs else 1.0


def interval_of_mean(differences: Sequence[float]) -> Bounds | None:
    """95 %, between two means of the 2^n − 1 subsets, or of as many random ones; None where there are too few."""
    values = np.array(differences, float)
    inside = (_signs(len(values)) > 0) * 1.0
    inside = inside[inside.any(axis=1)]  # without the empty subset
    beyond = math.floor((1 - LEVEL) / 2 * (len(inside) + 1))
    if beyond < 1:
        return None
    means = np.sort(inside @ values / inside.sum(axis=1))
    return Bounds(float(means[beyond - 1]), float(means[-beyond]))


def corrected(made: Sequence[PairedStatement]) -> list[PairedStatement]:
    """Holm's p: the i-th smallest of m times m − i + 1, never below one before it."""
    tested = sorted(
        (index for index, one in enumerate(made) if one.p is not None), key=lambda index: made[index].p or 0
    )
    result, least = list(made), 0.0
    for place, index in enumerate(tested):
        least = max(least, min(1.0, (made[index].p or 0) * (len(tested) - place)))
        result[index] = replace(made[index], corrected=least)
    return result


def _statement(first: str, second: str, batch: int | None, logs: Sequence[float]) -> PairedStatement:
    if not logs:
        return PairedStatement(first, second, batch, 0, None, None, None)
    bounds = interval_of_mean(logs)
    interval = bounds and Bounds(*(None if end is None else math.exp(end) for end in (bounds.low, bounds.high)))
    mean = math.exp(math.fsum(logs) / len(logs))
    return PairedStatement(first, second, batch, len(logs), mean, interval, sign_flip_p(logs))


def _by_seed(point: TargetPoint | None) -> dict[int, TargetRun]:
    return {run.seed: run for run in point.runs} if point else {}


def _up_to(first: TargetRun, second: TargetRun) -> float:
    """The ratio of what both needed, each counted up to where the other was given up."""
    bound = min([run.examples for run in (first, second) if not run.reached], default=math.inf)
    return min(first.examples, bound) / min(second.examples, bound)


def _signs(pairs: int) -> np.ndarray:
    """All 2^n, a row each, the first all −1; of more than sixteen pairs 2^16 that are drawn."""
    if pairs > MOST_EXACT:
        return np.random.default_rng(SEED).choice((-1.0, 1.0), size=(2**MOST_EXACT, pairs))
    return 2.0 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1) - 1
