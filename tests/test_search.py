"""The search for a peak lr on made-up curves whose best lr is known."""

from __future__ import annotations

import math

import pytest

from largebatch.plan.score import ACCURACY
from largebatch.studies.search import Trial, best, search


def hill(top: float, diverges_above: float = math.inf):
    def measure(lr: float) -> Trial:
        if lr > diverges_above:
            return Trial(lr, None, "failed")
        return Trial(lr, 90 - math.log2(lr / top) ** 2, "finished")

    return measure


@pytest.mark.parametrize("top", [0.1, 0.05, 0.8, 0.012, 0.13])
def test_seven_trials_come_within_half_a_doubling(top):
    trials = search(0.1, 7, hill(top), ACCURACY)
    chosen = best(trials, ACCURACY)
    assert len(trials) == len({t.peak_lr for t in trials}) == 7
    assert trials[0].peak_lr == 0.1
    assert chosen is not None
    assert abs(math.log2(chosen.peak_lr / top)) <= 0.5


def test_a_cliff_of_divergence_is_counted_and_avoided():
    trials = search(0.1, 7, hill(top=0.3, diverges_above=0.25), ACCURACY)
    chosen = best(trials, ACCURACY)
    assert chosen is not None
    assert chosen.peak_lr == pytest.approx(0.2)
    assert sum(t.status == "failed" for t in trials) >= 1


def test_when_everything_diverges_it_goes_down_and_chooses_nothing():
    trials = search(0.1, 4, lambda lr: Trial(lr, None, "failed"), ACCURACY)
    assert [t.peak_lr for t in trials] == pytest.approx([0.1, 0.05, 0.2, 0.0125])
    assert best(trials, ACCURACY) is None


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 12])
def test_the_budget_is_the_number_of_trials(budget):
    assert len(search(1.0, budget, hill(3.0), ACCURACY)) == budget


def test_among_equals_the_lower_lr_is_chosen():
    assert best([Trial(0.4, 90.0, "finished"), Trial(0.1, 90.0, "finished")], ACCURACY) == Trial(0.1, 90.0, "finished")
