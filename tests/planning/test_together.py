"""What phases' intervals come to together, and what two limits at once choose."""

from __future__ import annotations

import dataclasses
import math

import pytest
from planning.clusters import point

from largebatch.errors import UserError
from largebatch.studies.planning.choice import choice_of
from largebatch.studies.planning.points import hours_between
from largebatch.studies.planning.target import ExamplesNeeded


def phase(steps: int, seconds: float, low: float | None, high: float | None, borrowed: bool = False):
    (made,) = point(8, 100, 1.0).phases
    return dataclasses.replace(
        made, steps=steps, step_seconds=seconds, step_seconds_low=low, step_seconds_high=high, borrowed=borrowed
    )


def needed(low: float | None = None, high: float | None = None) -> ExamplesNeeded:
    return ExamplesNeeded(1000.0, low, high, "measured")


def test_a_run_cut_into_phases_is_as_sure_as_the_whole():
    """Nothing is gained by cutting: both halves are long together."""
    whole = [(phase(3600, 1.0, 0.8, 1.3), needed(900, 1200))]
    halves = [(phase(1800, 1.0, 0.8, 1.3), needed(900, 1200))] * 2
    assert hours_between(whole, 1.0) == pytest.approx((1 - math.hypot(0.2, 0.1), 1 + math.hypot(0.3, 0.2)))
    assert hours_between(halves, 1.0) == pytest.approx(hours_between(whole, 1.0))


def test_phases_add_up_and_kinds_in_squares():
    """Drawn: one normal number for the steps of all phases, one for the examples of all."""
    planned = [(phase(3600, 1.0, 0.9, 1.1), needed(950, 1050)), (phase(1800, 2.0, 1.6, 2.4), needed())]
    low, high = hours_between(planned, 2.0)
    steps, examples = 1.0 * 0.1 + 1.0 * 0.2, 1.0 * 0.05
    assert (low, high) == pytest.approx((2 - math.hypot(steps, examples), 2 + math.hypot(steps, examples)))


def test_what_nobody_knows_has_no_interval():
    assert hours_between([(phase(3600, 1.0, None, None), needed())], 1.0) == (None, None)
    assert hours_between([(phase(3600, 1.0, None, None, borrowed=True), needed(900, 1100))], 1.0) == (None, None)


POINTS = [point(8, 64, 10.0, cost=80.0), point(16, 64, 6.0, cost=96.0), point(32, 64, 4.0, cost=128.0)]


def test_both_limits_together_are_the_fastest_of_those_that_hold_both():
    assert POINTS[choice_of(POINTS, within=7.0, budget=130.0).chosen].devices == 32
    assert POINTS[choice_of(POINTS, within=7.0, budget=100.0).chosen].devices == 16
    assert POINTS[choice_of(POINTS, within=7.0).chosen].devices == 16, "alone: the cheapest"


@pytest.mark.parametrize(
    ("within", "budget", "said"),
    [
        (3.0, None, "--within 3 h: the fastest takes 4 h (1 h more), batch 64 on 32 devices"),
        (3.0, 1000.0, "--within 3 h: the fastest takes 4 h (1 h more), batch 64 on 32 devices"),
        (None, 70.0, "--budget 70: the cheapest costs 80 (10 more), batch 64 on 8 devices"),
        (7.0, 70.0, "--budget 70: the cheapest costs 80 (10 more), batch 64 on 8 devices"),
        (
            5.0, 100.0,
            "--within 5 h: the fastest for 100 takes 6 h (1 h more), batch 64 on 16 devices; "
            "--budget 100: the cheapest in that time costs 128 (28 more), batch 64 on 32 devices",
        ),
        (
            1.0, 1.0,
            "--within 60 min: the fastest takes 240 min (180 min more), batch 64 on 32 devices; "
            "--budget 1: the cheapest costs 80 (79 more), batch 64 on 8 devices",
        ),
    ],
)  # fmt: skip
def test_which_limit_fails_and_by_how_much(within, budget, said):
    with pytest.raises(UserError) as refused:
        choice_of(POINTS, within=within, budget=budget)
    assert str(refused.value) == said
