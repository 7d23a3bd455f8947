"""Rules of the best hyper-parameter along the batch, and the region around it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, linregress, t

from largebatch.studies.curves.rules import RESOLUTION, TriedSetting, good_region, rule_of, surge

BATCHES = tuple(2**power for power in range(4, 13))
TRUTH = {
    "none": lambda batch: 0.1,
    "linear": lambda batch: 1e-3 * batch,
    "square root": lambda batch: 0.01 * batch**0.5,
    "surge": lambda batch: 0.3 / (0.5 * ((500 / batch) ** 0.5 + (batch / 500) ** 0.5)),
}


@pytest.mark.parametrize("name", TRUTH)
def test_each_rule_is_found_where_it_holds(name):
    draws = np.random.default_rng(5)
    values = [TRUTH[name](batch) * math.exp(0.05 * draws.standard_normal()) for batch in BATCHES]
    rule = rule_of(BATCHES, values)
    assert rule.decided is not None
    assert rule.decided.name == name
    for batch in BATCHES:
        assert rule.decided.value(batch) == pytest.approx(TRUTH[name](batch), rel=0.1)
    if name == "surge":
        assert rule.decided.constants["noise_batch"] == pytest.approx(500, rel=0.15)
        assert rule.decided.constants["peak"] == pytest.approx(0.3, rel=0.05)


def test_surge_has_its_peak_at_the_noise_batch_and_falls_like_a_root():
    assert surge(500, 0.3, 500) == pytest.approx(0.3)
    assert surge(5e6, 0.3, 500) == pytest.approx(surge(0.05, 0.3, 500))
    assert surge(4e-6, 1, 1) / surge(1e-6, 1, 1) == pytest.approx(2, rel=1e-4)


def test_the_free_power_and_its_interval_are_those_of_a_regression_of_logarithms():
    draws = np.random.default_rng(0)
    values = [0.1 * batch**0.3 * math.exp(0.2 * draws.standard_normal()) for batch in BATCHES]
    rule, line = rule_of(BATCHES, values), linregress(np.log(BATCHES), np.log(values))
    power = next(one for one in rule.rules if one.name == "power")
    assert power.constants["power"] == pytest.approx(line.slope)
    half = t.ppf(0.975, len(BATCHES) - 2) * line.stderr
    assert (rule.power.low, rule.power.high) == pytest.approx((line.slope - half, line.slope + half))
    rest = np.log(values) - line.intercept - line.slope * np.log(BATCHES)
    number, k = len(BATCHES), 3
    wanted = number * math.log((rest**2).mean()) + 2 * k + 2 * k * (k + 1) / (number - k - 1)
    assert power.aicc == pytest.approx(wanted)
    assert power.deviation == pytest.approx(math.sqrt((rest**2).mean()))


def test_few_points_decide_nothing():
    assert rule_of([64], [0.1]) is None
    two = rule_of([64, 128], [0.1, 0.2])
    assert (two.decided, two.power) == (None, None)
    assert all(rule.aicc is None for rule in two.rules)
    four = rule_of([32, 64, 128, 256], [0.1, 0.1, 0.1, 0.1])
    assert [rule.aicc is None for rule in four.rules] == [False, False, False, True, True]
    assert four.decided.name == "none"
    between = rule_of([32, 64, 128, 256, 512], [0.1, 0.2, 0.12, 0.3, 0.2])
    assert between.decided is None, "no rule and a square root are as good"


def test_values_on_a_rule_prove_it_within_their_resolution():
    rule = rule_of(BATCHES, [1e-3 * batch for batch in BATCHES])
    assert rule.decided.name == "linear"
    assert rule.decided.aicc == pytest.approx(9 * math.log(RESOLUTION**2) + 4 + 12 / 6)


@pytest.mark.worlds
def test_the_interval_of_the_power_holds_it_as_often_as_it_says():
    draws, held = np.random.default_rng(8), 0
    for _ in range(400):
        rule = rule_of(BATCHES[:5], [batch**0.5 * math.exp(0.3 * draws.standard_normal()) for batch in BATCHES[:5]])
        held += rule.power.low <= 0.5 <= rule.power.high
    assert binomtest(held, 400, 0.95).pvalue > 0.001


def test_the_good_region_and_where_it_is_open():
    trials = [
        TriedSetting({"lr.base": lr, "momentum": momentum}, worth)
        for lr, momentum, worth in (
            (0.01, 0.9, 80.0), (0.1, 0.8, 90.6), (0.2, 0.95, 91.0), (0.4, 0.9, 90.5), (1.0, 0.7, 85.0),
            (9.0, 0.9, None),
        )
    ]  # fmt: skip
    lr, momentum = good_region(trials, 0.5)
    assert (lr.key, lr.low, lr.high, lr.open_below, lr.open_above) == ("lr.base", 0.1, 0.4, False, False)
    assert (momentum.low, momentum.high, momentum.open_below, momentum.open_above) == (0.8, 0.95, False, True)
    assert [(r.low, r.high) for r in good_region(trials, 0.0)] == [(0.2, 0.2), (0.95, 0.95)]
    assert good_region([TriedSetting({"lr.base": 1.0}, None)], 1) == []
