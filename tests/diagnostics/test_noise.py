"""The noise scale of gradients whose mean and covariance are known, and Fieller's interval by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from largebatch.diagnostics.noise import (
    Averages,
    Squares,
    check_sizes,
    examples_needed,
    of_one_step,
    of_steps,
    ratio_interval,
    steps_needed,
)
from largebatch.errors import UserError

MEAN = np.linspace(-0.3, 0.4, 40)
DEVIATIONS = np.linspace(0.2, 1.8, 40)
SQUARE = float((MEAN**2).sum())
TRACE = float((DEVIATIONS**2).sum())


def drawn(rng: np.random.Generator, small: int, parts: int) -> Squares:
    """One step's squares from examples with gradients N(MEAN, DEVIATIONS²)."""
    examples = MEAN + DEVIATIONS * rng.standard_normal((parts, small, len(MEAN)))
    of_parts = examples.mean(axis=1)
    return Squares(small, small * parts, float((of_parts**2).sum(1).mean()), float((of_parts.mean(0) ** 2).sum()))


@pytest.mark.worlds
@pytest.mark.parametrize(("small", "parts"), [(1, 2), (4, 8), (16, 3)])
def test_both_estimates_are_unbiased(small, parts):
    rng = np.random.default_rng(small)
    found = np.array([of_one_step(drawn(rng, small, parts)) for _ in range(3000)])
    errors = found.std(axis=0, ddof=1) / math.sqrt(len(found))
    assert np.abs(found.mean(axis=0) - (SQUARE, TRACE)).max() < 4 * errors.max()
    assert abs(found[:, 0].mean() - SQUARE) < 4 * errors[0]
    assert abs(found[:, 1].mean() - TRACE) < 4 * errors[1]


@pytest.mark.worlds
def test_parts_weighed_by_units_that_vary():
    """Examples with u = 8, 9 or 10 units, each unit's gradient MEAN and noise of its own and of its example."""
    rng, found = np.random.default_rng(3), []
    for _ in range(4000):
        units = rng.integers(8, 11, (6, 16))
        shared = DEVIATIONS * rng.standard_normal((6, 16, len(MEAN)))
        own = rng.standard_normal((6, 16, len(MEAN))) * np.sqrt(units)[:, :, None]
        of_examples = units[:, :, None] * (MEAN + shared) + own
        of_parts, weights = of_examples.sum(1), units.sum(1)
        small = float((of_parts**2).sum(1) @ (1 / weights)) / weights.sum()
        whole = float(((of_parts.sum(0) / weights.sum()) ** 2).sum())
        found.append(of_one_step(Squares(16, 96, small, whole)))
    covariance = ((8**2 + 9**2 + 10**2) / 3 * TRACE + 9 * len(MEAN)) / 9**2  # of (Gₖ − uₖ·MEAN)/ū
    mean, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    assert abs(mean[0] - SQUARE) < 4 * errors[0]
    assert abs(mean[1] - covariance) < 4 * errors[1] + 0.01 * covariance  # the second order of the spread of u


@pytest.mark.worlds
def test_the_interval_holds_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(600):
        found = of_steps([drawn(rng, 4, 8) for _ in range(20)])
        inside += found.low <= TRACE / SQUARE <= (math.inf if found.high is None else found.high)
    low, high = stats.binom.interval(0.999, 600, 0.95)
    assert low <= inside <= high


@pytest.mark.worlds
def test_the_interval_of_decaying_averages_holds_the_truth_as_often():
    rng = np.random.default_rng(1)
    inside, repetitions = 0, 300
    for _ in range(repetitions):
        averages = Averages(smoothing=0.95)
        for _ in range(80):
            averages.add(drawn(rng, 4, 8))
        found = averages.estimate()
        inside += found.low <= TRACE / SQUARE <= (math.inf if found.high is None else found.high)
    assert 0.90 * repetitions <= inside <= 0.99 * repetitions


@pytest.mark.parametrize("smoothing", [1.0, 0.9, 0.0])
def test_the_averages_are_weighted_means(smoothing):
    rng = np.random.default_rng(2)
    steps = [drawn(rng, 2, 4) for _ in range(12)]
    averages = Averages(smoothing)
    for step in steps:
        averages.add(step)
    weights = np.array([smoothing ** (len(steps) - 1 - i) for i in range(len(steps))])  # 0 to the 0 is 1
    each = np.array([of_one_step(step) for step in steps])
    mean = (weights[:, None] * each).sum(0) / weights.sum()
    assert averages.first == pytest.approx(mean, rel=1e-12)
    away = each - mean
    second = [(weights * x * y).sum() for x, y in ((away[:, 0],) * 2, (away[:, 1],) * 2, (away[:, 0], away[:, 1]))]
    assert averages.second == pytest.approx(second, rel=1e-9, abs=1e-12)
    assert averages.count == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_the_formula_of_the_paper_by_hand():
    """b = 2, B = 8: |G|² = (8·3 − 2·6)/6 = 2, tr Σ = (6 − 3)/(1/2 − 1/8) = 8; so 4 examples."""
    assert of_one_step(Squares(2, 8, 6.0, 3.0)) == (2.0, 8.0)
    found = of_steps([Squares(2, 8, 6.0, 3.0), Squares(2, 8, 6.0, 3.0)])
    assert found.noise_scale == 4.0
    assert (found.low, found.high) == pytest.approx((4.0, 4.0))


def by_brute_force(above, below, vy, vx, c, freedom):
    """Every R on a fine grid that a t test of above − R·below does not reject."""
    t = stats.t.ppf(0.975, freedom)
    grid = np.geomspace(1e-3, 1e5, 400_001)
    kept = grid[(above - grid * below) ** 2 <= t**2 * (vy - 2 * grid * c + grid**2 * vx)]
    return kept.min(), kept.max()


@pytest.mark.parametrize(
    "case",
    [(10.0, 2.0, 1.0, 0.04, 0.05, 19.0), (10.0, 2.0, 0.5, 0.3, -0.2, 9.0), (3.0, 1.0, 0.2, 0.01, 0.0, 99.0)],
)
def test_fiellers_interval_by_brute_force(case):
    low, high = ratio_interval(*case)
    assert (low, high) == pytest.approx(by_brute_force(*case), rel=1e-3)


def test_where_the_gradient_may_be_zero_the_interval_has_no_upper_end():
    low, high = ratio_interval(10.0, 0.1, 1.0, 0.04, 0.0, 19.0)
    assert high is None
    assert low == pytest.approx(by_brute_force(10.0, 0.1, 1.0, 0.04, 0.0, 19.0)[0], rel=1e-3)
    assert ratio_interval(0.1, 0.1, 1.0, 1.0, 0.0, 19.0) == (0.0, None)
    assert ratio_interval(10.0, -2.0, 1.0, 0.04, 0.0, 19.0) == (0.0, None)


def test_a_gradient_lost_in_noise_has_no_noise_scale():
    found = of_steps([Squares(2, 8, 6.0, 1.0), Squares(2, 8, 6.2, 1.1)])
    assert found.gradient_square < 0
    assert found.noise_scale is None
    assert found.high is None


def test_what_is_not_finite_teaches_nothing():
    averages = Averages()
    averages.add(Squares(2, 8, 6.0, 3.0))
    averages.add(Squares(2, 8, math.inf, math.nan))
    assert averages.first == (2.0, 8.0)
    assert averages.count == 1.0


def test_the_state_goes_on():
    rng = np.random.default_rng(3)
    steps = [drawn(rng, 2, 4) for _ in range(10)]
    whole, first, second = Averages(0.9), Averages(0.9), Averages(0.5)
    for number, step in enumerate(steps):
        whole.add(step)
        (first if number < 6 else second).add(step)
        if number == 5:
            second.load_state_dict(first.state_dict())
    assert second == whole


def test_the_trade_between_steps_and_examples():
    """McCandlish's example, B_crit 1,000: at 250 5× and 1.25×, at 1,000 2× and 2×, at 4,000 1.25× and 5×."""
    for size, steps, examples in ((250, 5.0, 1.25), (1000, 2.0, 2.0), (4000, 1.25, 5.0)):
        assert steps_needed(1000, size) == steps
        assert examples_needed(1000, size) == examples
        assert (steps_needed(1000, size) - 1) * (examples_needed(1000, size) - 1) == pytest.approx(1)


@pytest.mark.parametrize(("small", "big"), [(64, 64), (128, 64), (48, 64), (0, 8)])
def test_sizes_that_show_no_noise_are_refused(small, big):
    with pytest.raises(UserError, match=f"--small = {small} must be smaller than --big = {big}"):
        check_sizes(small, big, "--small", "--big")


def test_one_batch_is_too_few():
    with pytest.raises(UserError, match="at least 2 batches"):
        of_steps([Squares(2, 8, 6.0, 3.0)])
