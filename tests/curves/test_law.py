"""E(B) = E_min·(1 + B/B_crit): the fit against dumber ones, and how often its intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from curves.points import BATCHES, middle, middles
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, f, norm

from largebatch.studies.curves.law import ScalingLaw, fit
from largebatch.studies.curves.measured import TargetPoint, TargetRun, middle_of


def noisy(seed: int, critical: float, spread: float, batches=BATCHES, least: float = 1e5) -> np.ndarray:
    draws = np.random.default_rng(seed).standard_normal(len(batches))
    return least * (1 + np.array(batches) / critical) * np.exp(spread * draws)


def test_the_papers_numbers():
    """PAPERS' arithmetic at B_crit 1,000: a quarter of it takes 5 times the steps and 1.25 times the examples."""
    law = ScalingLaw(least_examples=1e6, least_steps=1e3)
    assert law.critical == 1000
    for batch, steps, examples in ((250, 5, 1.25), (1000, 2, 2), (4000, 1.25, 5)):
        assert (law.steps(batch), law.examples(batch)) == (steps * 1e3, examples * 1e6)
        assert (law.steps(batch) / 1e3 - 1) * (law.examples(batch) / 1e6 - 1) == pytest.approx(1)
    assert ScalingLaw(1e6, 0).critical == math.inf


@pytest.mark.parametrize("seed", range(5))
def test_without_bounds_it_is_least_squares_with_the_weights_one_over_e(seed):
    examples = noisy(seed, 700, 0.1)
    slope, least = np.polyfit(BATCHES, examples, 1, w=1 / examples)
    fitted = fit(middles(BATCHES, examples))
    assert fitted.law.least_examples == pytest.approx(least, rel=1e-7)
    assert fitted.law.least_steps == pytest.approx(slope, rel=1e-7)
    errors = (least + slope * np.array(BATCHES)) / examples - 1
    assert fitted.rms_error == pytest.approx(np.sqrt((errors**2).mean()))
    assert fitted.largest_error == pytest.approx(abs(errors).max())
    assert (fitted.points, fitted.lower_bounds, fitted.unknown) == (5, 0, None)


@settings(max_examples=20, deadline=None)
@given(st.floats(10, 1e6), st.floats(1e2, 1e9), st.floats(0.5, 100), st.integers(3, 7))
def test_a_law_without_noise_is_found(critical, least, growth, number):
    batches = sorted({round(16 * (1 + growth) ** place) for place in range(number)})
    fitted = fit(middles(batches, [least * (1 + batch / critical) for batch in batches]))
    for batch in batches:
        assert fitted.law.examples(batch) == pytest.approx(least * (1 + batch / critical), rel=1e-4)
    low, high = fitted.critical.low or 0.0, fitted.critical.high or math.inf
    assert low <= critical * (1 + 1e-6)
    assert high >= critical * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_the_f_test_of_each_critical_batch(seed):
    """At its ends the best fit with B_crit stated is worse by just what F(1, n − 2) allows."""
    examples, batches = noisy(seed, 900, 0.08), np.array(BATCHES, float)
    fitted = fit(middles(BATCHES, examples))

    def squares(critical: float) -> float:
        shape = (1 + batches / critical) / examples
        return float(((1 - shape * (shape.sum() / (shape**2).sum())) ** 2).sum())

    allowed = squares(fitted.law.critical) * (1 + f.ppf(0.95, 1, 3) / 3)
    assert squares(fitted.critical.low) == pytest.approx(allowed, rel=1e-5)
    assert squares(fitted.critical.high) == pytest.approx(allowed, rel=1e-5)
    for bounds, column in (
        (fitted.least_examples, 0),
        (fitted.least_steps, 1),
    ):  # of a linear model these are Student's
        terms = np.stack([1 / examples, batches / examples], axis=1)
        solved, rest, *_ = np.linalg.lstsq(terms, np.ones(5), rcond=None)
        half = math.sqrt(f.ppf(0.95, 1, 3) * rest[0] / 3 * np.linalg.inv(terms.T @ terms)[column, column])
        assert (bounds.low, bounds.high) == pytest.approx((solved[column] - half, solved[column] + half), rel=1e-5)


def test_lower_bounds_count_as_tobit_has_them():
    """The likelihood, written down once more, is nowhere higher."""
    points = middles(BATCHES, [1e5, 1.4e5, 1.9e5, 5.5e5, 9e9], budget=6e5)
    points[1] = middle(128, 1.4e5, exact=False)
    fitted = fit(points)
    assert (fitted.points, fitted.lower_bounds) == (3, 2)

    def likelihood(least: float, steps: float, sigma: float) -> float:
        total = 0.0
        for point in points:
            relative = (least + steps * point.batch) / point.examples - 1
            total += norm.logpdf(relative, scale=sigma) if point.exact else norm.logcdf(relative / sigma)
        return total

    best = max(
        likelihood(fitted.law.least_examples, fitted.law.least_steps, sigma) for sigma in np.geomspace(0.003, 0.5, 100)
    )
    for least in np.linspace(0.8, 1.2, 7) * fitted.law.least_examples:
        for steps in np.linspace(0.8, 1.2, 7) * fitted.law.least_steps:
            assert max(likelihood(least, steps, sigma) for sigma in np.geomspace(0.01, 0.2, 8)) <= best + 1e-4
    without = fit([point for point in points if point.exact])
    assert fitted.law.examples(128) > without.law.examples(128), "the bound at 128 lies above what the others say"


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_that_says_nothing_changes_nothing(seed):
    """It is another way to the same maximum: with bounds it is searched for, without it is least squares."""
    points = middles(BATCHES, noisy(seed, 700, 0.1))
    plain, bounded = fit(points), fit([*points, middle(8192, 10, exact=False)])
    for name in ("critical", "least_examples", "least_steps"):
        one, other = getattr(plain, name), getattr(bounded, name)
        assert (other.low, other.high) == pytest.approx((one.low, one.high), rel=1e-4)
    assert bounded.law.critical == pytest.approx(plain.law.critical, rel=1e-5)


def test_what_the_points_do_not_bound_is_none():
    linear = fit(middles(BATCHES, [1e5, 1.02e5, 0.99e5, 1.01e5, 1e5]))
    assert linear.critical.low > BATCHES[-1]
    assert linear.critical.high is None
    assert linear.least_steps.low is None
    beyond = fit(middles(BATCHES, [1e3 * b * e for b, e in zip(BATCHES, [1.02, 0.99, 1.01, 1, 0.98], strict=True)]))
    assert beyond.critical.low is None
    assert beyond.critical.high < BATCHES[0]
    falling = fit(middles(BATCHES, [5e5, 4e5, 3e5, 2e5, 1e5]))
    assert (falling.critical.low, falling.critical.high) == (None, None)
    assert falling.law.critical == math.inf


def test_few_batches():
    assert fit([]) is None
    assert fit([middle(32, 1e5)]) is None
    assert fit([middle(32, 1e5), middle(64, 1e5, exact=False), middle(128, 1e5, exact=False)]) is None
    two = fit([middle(100, 1.1e5), middle(1000, 2e5)])
    assert two.law.critical == pytest.approx(1000)
    assert (two.critical, two.least_examples, two.least_steps) == (None, None, None)
    assert "two batches" in two.unknown
    assert fit([middle(100, 1.1e5), middle(1000, 2e5), middle(4000, 5e5)]).unknown is None


REPEATED = 300


@pytest.mark.worlds
@pytest.mark.parametrize(
    ("critical", "spread", "batches"),
    [
        (700, 0.05, BATCHES),
        (700, 0.2, BATCHES),
        (5000, 0.1, (16, 64, 256, 1024, 4096, 16384, 65536)),
        (300, 0.1, (32, 256, 2048)),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(critical, spread, batches):
    held = np.zeros(3, int)
    for seed in range(REPEATED):
        fitted = fit(middles(batches, noisy(seed, critical, spread, batches)))
        for place, (bounds, truth) in enumerate(
            ((fitted.critical, critical), (fitted.least_examples, 1e5), (fitted.least_steps, 1e5 / critical))
        ):
            held[place] += (bounds.low or 0) <= truth <= (bounds.high or math.inf)
    for count in held:
        assert binomtest(int(count), REPEATED, 0.95).pvalue > 0.001, held


@pytest.mark.worlds
@pytest.mark.parametrize("budget", [4e5, 8e5])
def test_intervals_hold_the_truth_where_large_batches_end_at_the_budget(budget):
    batches, held = (32, 128, 256, 512, 1024, 2048, 4096, 8192), 0
    repeated = 100
    for seed in range(repeated):
        fitted = fit(middles(batches, noisy(seed, 700, 0.1, batches), budget))
        assert fitted.lower_bounds
        held += (fitted.critical.low or 0) <= 700 <= (fitted.critical.high or math.inf)
    assert held >= binom.ppf(0.001, repeated, 0.95)


def steps_of_descent(batch: int, critical: float, steps_least: float, draws: np.random.Generator) -> float:
    """Steps to a stated fall of the loss by SGD at the best lr on slopes that do not end, interpolated.

    Gradient G, curvature h, noise of trace B_noise·|G|² per example, in 20 dimensions: a step with the gradient g
    changes the loss by −ε·G·g + ½·ε²·h·|g|², on average by the most at ε = 1/(h·(1 + B_noise/B))
    (McCandlish et al. 2018).
    """
    dimensions, lr = 20, 1 / (1 + critical / batch)
    target = 0.5 * steps_least  # |G| = h = 1: no step of any batch falls by more than a half on average
    number = int(1.5 * steps_least * (1 + critical / batch)) + 50
    noise = draws.standard_normal((number, dimensions)) * math.sqrt(critical / batch / dimensions)
    gradients = noise + np.eye(dimensions)[0]
    fallen = np.cumsum(lr * gradients[:, 0] - 0.5 * lr**2 * (gradients**2).sum(axis=1))
    place = int(np.argmax(fallen >= target))
    assert fallen[place] >= target
    before = fallen[place - 1] if place else 0.0
    return place + (target - before) / (fallen[place] - before)


@pytest.mark.worlds
def test_the_critical_batch_of_a_noisy_quadratic_is_found_as_often_as_is_said():
    """Real steps, three seeds a batch, medians, the fit: B_crit is the noise scale that was put in."""
    critical, steps_least, batches, repeated = 256, 100, (16, 64, 256, 1024, 4096), 300
    draws, held = np.random.default_rng(11), 0
    for _ in range(repeated):
        points = []
        for batch in batches:
            steps = [steps_of_descent(batch, critical, steps_least, draws) for _ in range(3)]
            runs = tuple(TargetRun(seed, taken * batch) for seed, taken in enumerate(steps))
            points.append(middle_of(TargetPoint(batch, runs)))
        fitted = fit(points)
        held += (fitted.critical.low or 0) <= critical <= (fitted.critical.high or math.inf)
    assert binomtest(held, repeated, 0.95).pvalue > 0.001, held
