"""Where perfect scaling ends and where the batch stops to help: closed forms, and points alone."""

from __future__ import annotations

import math

import pytest
from curves.points import middle, middles
from hypothesis import given
from hypothesis import strategies as st

from largebatch.studies.curves.law import ScalingLaw
from largebatch.studies.curves.scaling import (
    helps_until,
    helps_until_measured,
    saved_per_doubling,
    scales_until,
    scales_until_measured,
)


@given(st.floats(1, 1e6), st.floats(1e-3, 1e6), st.floats(1.01, 3), st.floats(0.01, 0.49))
def test_the_closed_forms_are_where_the_law_says(least, steps, most, share):
    law = ScalingLaw(least, steps)
    batch = scales_until(law, most)
    assert law.steps(batch) == pytest.approx(most * least / batch), "1.2 times the steps of linear scaling from E_min"
    batch = helps_until(law, share)
    assert 1 - law.steps(2 * batch) / law.steps(batch) == pytest.approx(share)


def test_a_fifth_of_the_critical_batch_and_four_times_it():
    law = ScalingLaw(1e6, 1e3)
    assert (scales_until(law), helps_until(law)) == (pytest.approx(200), pytest.approx(4000))
    assert scales_until(ScalingLaw(1e6, 0)) == helps_until(ScalingLaw(1e6, 0)) == math.inf


@pytest.mark.parametrize(
    ("examples", "budget", "low", "high", "batch"),
    [
        ((100, 110, 150, 300), math.inf, 20, 40, 20 * 2 ** (math.log(1.2 / 1.1) / math.log(1.5 / 1.1))),
        ((100, 90, 107, 300), math.inf, 40, 80, 40 * 2 ** (math.log(1.2 / (107 / 90)) / math.log(300 / 107))),
        ((100, 130, 110, 300), math.inf, 40, 80, 40 * 2 ** (math.log(1.2 / 1.1) / math.log(300 / 110))),  # the largest
        ((100, 101, 99, 103), math.inf, 80, None, None),
        ((100, 110, 400, 900), 150, 20, 40, None),  # beyond, but how far is not known
        ((100, 110, 400, 900), 115, 20, None, None),  # a bound within says nothing
        ((100, 120, 121, 122), math.inf, 20, 40, 20),  # just 1.2 is within
    ],
)
def test_where_the_points_leave_perfect_scaling(examples, budget, low, high, batch):
    found = scales_until_measured(middles((10, 20, 40, 80), examples, budget))
    assert (found.low, found.high) == (low, high)
    assert found.batch == (batch if batch is None else pytest.approx(batch))


def test_no_point_says_nothing():
    assert scales_until_measured([]) is None
    assert scales_until_measured([middle(10, 5, exact=False)]) is None
    assert helps_until_measured([middle(10, 5)]) is None


@pytest.mark.parametrize(
    ("examples", "budget", "low", "high"),
    [
        ((100, 100, 110, 220), math.inf, 40, 80),  # 2.75 steps at both ends of the last doubling
        ((100, 110, 130, 160), math.inf, 80, None),
        ((100, 210, 211, 212), math.inf, 80, None),  # one doubling that saved nothing is no end
        ((100, 200, 400, 800), math.inf, 10, 20),
        ((100, 110, 900), 219, 20, 40),  # at least 5.475 steps at 40, against 5.5 at 20
        ((100, 110, 900, 900), 219, 20, None),  # at least 2.7 steps at 80: who knows
    ],
)
def test_where_the_points_gain_nothing_more(examples, budget, low, high):
    found = helps_until_measured(middles((10, 20, 40, 80)[: len(examples)], examples, budget))
    assert (found.low, found.high, found.batch) == (low, high, None)


def test_what_a_doubling_saves():
    assert saved_per_doubling(middle(10, 100), middle(20, 100)) == pytest.approx(0.5)
    assert saved_per_doubling(middle(10, 100), middle(80, 800)) == pytest.approx(0)
    assert saved_per_doubling(middle(10, 100), middle(40, 100 * 4 * 0.81)) == pytest.approx(0.1)
