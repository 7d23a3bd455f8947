"""Medians of runs that may not have reached the target, and their intervals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from largebatch.studies.curves.measured import TargetPoint, TargetRun, highest_level, middle_of


def point(*examples: float, unreached: tuple[float, ...] = ()) -> TargetPoint:
    runs = [(e, True) for e in examples] + [(e, False) for e in unreached]
    return TargetPoint(64, tuple(TargetRun(seed, e, reached) for seed, (e, reached) in enumerate(runs)))


@pytest.mark.parametrize(
    ("runs", "how", "examples", "exact", "high"),
    [
        (point(3, 1, 2), "median", 2, True, 3),
        (point(3, 1, 2), "mean", 2, True, 3),
        (point(1, 2, unreached=(9,)), "median", 2, True, None),  # whatever it would have needed, the median is 2
        (point(1, 2, unreached=(9,)), "mean", 4, False, None),
        (point(1, unreached=(9, 9)), "median", 9, False, None),
        (point(1, 2, unreached=(9, 9)), "median", 5.5, False, None),  # half of them: the mean of 2 and at least 9
        (point(5, 6, unreached=(2,)), "median", 5, False, None),  # given up early: it might have needed 3, or 7
        (point(unreached=(4, 8, 8)), "median", 8, False, None),
    ],
)
def test_the_middle_is_exact_or_a_lower_bound(runs, how, examples, exact, high):
    middle = middle_of(runs, how)
    assert (middle.examples, middle.exact, middle.needed.high) == (examples, exact, high)
    assert middle.steps == examples / 64
    assert middle.needed.low <= middle.examples
    assert (middle.runs, middle.reached) == (len(runs.runs), sum(run.reached for run in runs.runs))


def test_one_run_has_no_interval_and_few_hold_less():
    alone = middle_of(point(7))
    assert (alone.needed.low, alone.needed.high, alone.level) == (None, None, None)
    levels = [middle_of(point(*range(1, 1 + runs))).level for runs in range(2, 9)]
    assert levels == [0.5, 0.75, 0.875, 0.9375, 0.95, 0.95, 0.95]


def test_seconds_are_told_where_all_runs_have_them():
    runs = (TargetRun(0, 100, True, 7.0), TargetRun(1, 110, True, 5.0), TargetRun(2, 400, False, 30.0))
    seconds = middle_of(TargetPoint(64, runs)).seconds
    assert (seconds.value, seconds.exact, seconds.low, seconds.high) == (7.0, True, 5.0, None)
    assert middle_of(TargetPoint(64, (*runs, TargetRun(3, 120)))).seconds is None


def test_the_bootstrap_is_that_of_all_resamples():
    """Of three runs all 27 can be written down: 7 of them have the smallest as their median."""
    values = (1.0, 5.0, 30.0)
    medians = sorted(float(np.median(drawn)) for drawn in itertools.product(values, repeat=3))
    assert medians.count(1.0) == medians.count(30.0) == 7
    middle = middle_of(point(*values))
    assert (middle.needed.low, middle.needed.high) == (medians[0], medians[-1])
    assert middle == middle_of(point(*values)), "the same runs, the same interval"


@pytest.mark.parametrize("runs", [2, 3, 4, 5])
def test_how_often_the_smallest_and_the_largest_enclose_the_median(runs):
    outside = 2 * binom.pmf(0, runs, 0.5)
    assert highest_level(runs) == pytest.approx(1 - outside)


@pytest.mark.worlds
@pytest.mark.parametrize(("runs", "least"), [(3, 0.75), (9, 0.90), (25, 0.90)])
def test_intervals_hold_the_median_about_as_often_as_they_say(runs, least):
    """Percentile bootstraps of a median are known to hold a little less than 95 %."""
    draws, held = np.random.default_rng(3), 0
    for _ in range(300):
        middle = middle_of(point(*np.exp(0.1 * draws.standard_normal(runs))))
        held += middle.needed.low <= 1 <= middle.needed.high
    assert held >= binom.ppf(0.001, 300, least)


def test_steps_where_the_batch_grows_are_those_that_were_taken():
    runs = tuple(TargetRun(seed, 6400.0, steps=steps) for seed, steps in enumerate((40.0, 60.0, 50.0)))
    assert middle_of(TargetPoint(64, runs)).steps == 50.0
    assert middle_of(TargetPoint(64, (TargetRun(0, 6400.0),))).steps == 100.0
