"""The largest batch that loses nothing: on a noisy quadratic whose expected losses are known, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from largebatch.diagnostics.critical import compared, smoothed, verdict

GRID = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CURVATURES = np.array([1.0, 0.3, 0.1, 0.02])
STEPS, NOISE, START = 64, 0.6, 2.0  # of the branch at k = 1; the noise is the std of its gradient
REPETITIONS, ORDERS = 200, 12
RATE = 0.05 * REPETITIONS + 3 * math.sqrt(0.05 * 0.95 * REPETITIONS)  # what 5 % may come to
INF = math.inf


def expected(k: float, lr: float) -> float:
    """The mean loss ½Σ h·E[θ²] after the window, by the closed form of θ ← θ − k·lr·(hθ + noise/√k)."""
    rate, steps, h = k * lr, STEPS / k, CURVATURES
    keep = (1 - rate * h) ** 2
    return float((0.5 * h * (keep**steps * START**2 + rate**2 * NOISE**2 / k * (1 - keep**steps) / (1 - keep))).sum())


def branches(lr: float, rng: np.random.Generator) -> dict[float, np.ndarray]:
    """Losses (repetition, order) at the end, step by step; all k of an order meet the same noise, in other sums."""
    smallest = 2 * STEPS  # steps at k = 0.5
    draws = rng.normal(size=(REPETITIONS, ORDERS, smallest, len(CURVATURES))) * NOISE * math.sqrt(2)
    losses = {}
    for k in GRID:
        together = round(2 * k)
        theta = np.full((REPETITIONS, ORDERS, len(CURVATURES)), START)
        for first in range(0, smallest, together):
            theta = theta - k * lr * (CURVATURES * theta + draws[:, :, first : first + together].mean(2))
        losses[k] = (0.5 * CURVATURES * theta**2).sum(2)
    return losses


@pytest.mark.parametrize(
    ("lr", "tolerance", "right", "decided"), [(0.12, 0.05, 8.0, 0.9), (0.2, 0.2, 8.0, 0.7), (0.2, 0.05, 4.0, 0.0)]
)
def test_the_critical_batch_of_a_noisy_quadratic_is_found_at_the_rate_that_is_claimed(lr, tolerance, right, decided):
    """At most 5 % of the repetitions name a wrong one, and as many as the noise allows name one."""
    of_closed_form = [
        k for k in GRID if all(expected(k, lr) <= expected(j, lr) + tolerance for j in GRID if j < k)
    ]  # fmt: skip
    assert max(of_closed_form) == right
    losses = branches(lr, np.random.default_rng(1))
    for k in GRID[:-1]:
        assert losses[k].mean() == pytest.approx(expected(k, lr), abs=4.5 * losses[k].std() / math.sqrt(losses[k].size))
    verdicts = [verdict({k: losses[k][n].tolist() for k in GRID}, tolerance) for n in range(REPETITIONS)]
    named = [one for one in verdicts if one.factor is not None]
    assert sum(one.factor != right for one in named) <= RATE
    assert sum(not one.low <= right <= one.high for one in verdicts) <= 2 * RATE  # either kind of statement
    assert len(named) >= decided * REPETITIONS
    assert {one.word for one in named if one.factor == right} <= {"critical"}


def test_branches_that_lose_nothing_are_said_to_lose_in_at_most_five_of_a_hundred():
    rng = np.random.default_rng(2)
    losses = rng.normal(size=(REPETITIONS, len(GRID), 5))
    words = [verdict(dict(zip(GRID, one.tolist(), strict=True))).word for one in losses]
    assert len(words) - words.count("at least") <= RATE
    assert 0 < RATE < 30


def test_pairs_are_those_of_scipy_corrected_by_holm():
    losses = {1.0: [1.0, 2.0, 3.0, 2.5], 2.0: [1.1, 2.3, 3.1, 2.8], 4.0: [1.5, 2.4, 3.9, 2.6]}
    pairs = compared(losses, tolerance=0.05)
    single = [
        stats.ttest_rel(losses[b], [x + 0.05 for x in losses[a]], alternative="greater").pvalue
        for a, b in ((1.0, 2.0), (1.0, 4.0), (2.0, 4.0))
    ]
    order = sorted(range(3), key=single.__getitem__)
    holm, running = [0.0] * 3, 0.0
    for place, number in enumerate(order):
        running = max(running, min(1.0, (3 - place) * single[number]))
        holm[number] = running
    assert [pair.p for pair in pairs] == pytest.approx(holm)
    interval = stats.ttest_rel(losses[2.0], losses[1.0], alternative="less").confidence_interval(0.95)
    assert pairs[0].high(0.05) == pytest.approx(interval.high)


A = [1.0, 1.1, 0.9, 1.05]
LITTLE, LOSES = [x + d for x, d in zip(A, (0.01, -0.01, 0.005, -0.004), strict=True)], [x + 1 + x / 9 for x in A]


@pytest.mark.parametrize(
    ("losses", "tolerance", "gained", "wanted"),
    [
        ({1: A, 2: LITTLE, 4: LOSES}, 0.0, None, ("critical", 2, 2, 2, 4)),
        ({1: A, 2: LITTLE, 4: LOSES}, 0.1, None, ("critical", 2, 2, 2, 4)),
        ({1: A, 2: LITTLE, 4: LOSES}, 0.001, None, ("not decided", None, 1, 2, 4)),  # 2 may lose a hundredth
        ({1: A, 2: LOSES, 4: LOSES}, 0.0, None, ("at most", 1, 1, 1, 2)),
        ({1: A, 2: LITTLE}, 0.0, None, ("at least", 2, 2, 2, None)),
        ({1: A, 2: LITTLE}, 0.0, 1.0, ("at least", 2, 2, 2, None)),
        ({1: A, 2: LITTLE}, 0.0, 0.01, ("not decided", None, 1, 2, None)),  # it may lose all that was gained
        ({1: A, 2: LITTLE}, 0.0, -1.0, ("not decided", None, 1, 2, None)),
        ({1: A, 2: [0.0, 3.0, -1.0, 2.0], 4: LOSES}, 0.0, None, ("not decided", None, 1, 2, 4)),  # 4 may be 2's equal
        ({1: A, 2: A, 4: A}, 0.0, None, ("at least", 4, 4, 4, None)),
        ({1: A, 2: LITTLE, 4: [3.0, 1e3, 7.0, 1e9]}, 0.0, None, ("critical", 2, 2, 2, 4)),  # exploded, by any amounts
        ({1: A, 2: LITTLE, 4: [3.0, 1e3, 7.0, 1e9]}, 0.1, None, ("critical", 2, 2, 2, 4)),
        ({1: A, 2: LITTLE, 4: [1.0, INF, 1.0, 1.0]}, 0.0, None, ("critical", 2, 2, 2, 4)),
        ({1: A, 2: [INF] * 4, 4: LITTLE}, 0.0, None, ("at most", 1, 1, 1, 2)),
        ({1: [INF] * 4, 2: A}, 0.0, None, ("not decided", None, 1, 1, None)),
    ],
)
def test_what_is_said_of_branches(losses, tolerance, gained, wanted):
    said = verdict(losses, tolerance, gained)
    assert (said.word, said.factor, said.low, said.high, said.above) == wanted


def test_what_is_drawn_lies_between_the_two_of_the_grid():
    assert verdict({1: A, 2: LITTLE, 4: LOSES}).drawn == pytest.approx(math.sqrt(8))
    assert verdict({1: A, 2: LITTLE}).drawn == 2
    assert verdict({1: A, 2: LITTLE}, gained=0.0).drawn is None


def test_smoothing_is_the_papers():
    assert smoothed([4.0, 2.0, 1.0]) == 0.5 * 1 + 0.25 * 2 + 0.25 * 4
    assert math.isnan(smoothed([]))
