"""Saves against failures in closed form: Daly's own numbers, a dumber minimum, integrals, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from largebatch.errors import UserError
from largebatch.studies.cluster.failures import (
    CheckpointTimes,
    best_interval,
    best_saves,
    best_steps,
    between_failures,
    cut,
    daly_interval,
    expected_seconds,
    piece_seconds,
    time_lost,
    young_interval,
)

seconds = st.floats(1e-2, 1e4)
HARMLESS = CheckpointTimes(0, 0, 0)


@pytest.mark.parametrize(("mean", "published"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_dalys_own_intervals(mean, published):
    """Minutes: the captions of his figures 3, 4 and 5, with dumps of five."""
    assert daly_interval(5, mean) == pytest.approx(published, rel=6e-3)
    assert daly_interval(5, mean) == pytest.approx(best_interval(5, mean), rel=3e-3)


def test_young_is_dalys_first_order():
    for standing in (1e-2, 1e-4):
        series = young_interval(standing, 1.0) * (1 + math.sqrt(standing / 2) / 3) - standing
        assert daly_interval(standing, 1.0) == pytest.approx(series, rel=standing)
    assert daly_interval(2, 1) == daly_interval(9, 1) == 1


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-7, 3), seconds)
def test_the_best_interval_is_where_the_cost_is_least(ratio, mean):
    """T/τ as it stands, searched: and neither the restart nor the lag moves it."""
    standing = ratio * mean
    ended = minimize_scalar(
        lambda log: math.log(math.expm1((math.exp(log) + standing) / mean)) - log,
        bounds=(math.log(young_interval(standing, mean)) - 5, math.log(2 * mean)), options={"xatol": 1e-10},
    )  # fmt: skip
    best = best_interval(standing, mean)
    assert best == pytest.approx(math.exp(ended.x), rel=1e-3)
    for restart, lag in ((0.0, 0.0), (mean / 3, mean / 7)):
        times = CheckpointTimes(standing, min(lag, best + standing), restart)
        least = piece_seconds(times, mean, best) / best
        for factor in (0.9, 1.1):
            assert piece_seconds(times, mean, factor * best) / (factor * best) > least


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-9, 1e-3), seconds)
def test_the_two_forms_of_the_best_interval_meet(ratio, mean):
    """(1 − x)·e^x = e^(−δ/M) in x = τ/M: below the change of form and above it."""
    x = best_interval(ratio * mean, mean) / mean
    assert -math.log1p(-x) - x == pytest.approx(ratio, rel=1e-4)


def test_a_piece_by_its_integral():
    """Without a lag: what is lost to a failure at s, weighted by when the first one comes, over and over."""
    mean, interval, times = 700.0, 240.0, CheckpointTimes(30.0, 0.0, 90.0)

    def until_done(length: float, after_failure: float) -> float:
        """E = ∫₀ᴸ (s + after + E)·e^{−s/M}/M ds + L·e^{−L/M}, solved for E."""
        lost = quad(lambda s: (s + after_failure) * math.exp(-s / mean) / mean, 0, length)[0]
        reached = math.exp(-length / mean)
        return (lost + length * reached) / reached

    restart = until_done(times.restart, 0.0)
    assert piece_seconds(times, mean, interval) == pytest.approx(until_done(interval + times.standing, restart))


def test_a_lag_in_a_chain_of_states():
    """A piece right behind a save has to last τ + δ, one after a failure until it can be read: ℓ more."""
    mean, interval, times, pieces = 500.0, 200.0, CheckpointTimes(10.0, 120.0, 60.0), 7
    length, mended = interval + times.standing, mean * math.expm1(times.restart / mean)

    def attempt(lasting: float) -> tuple[float, float]:
        """The chance to fail, and the mean seconds until either."""
        return -math.expm1(-lasting / mean), -mean * math.expm1(-lasting / mean)

    fails, spent = attempt(length + times.lag)
    after_failure = (spent + fails * mended) / (1 - fails)
    fails, spent = attempt(length)
    steady = spent + fails * (mended + after_failure)
    assert expected_seconds(times, mean, interval, pieces) == pytest.approx(after_failure + (pieces - 1) * steady)
    assert piece_seconds(times, mean, interval) == pytest.approx(steady)


@settings(max_examples=80, deadline=None)
@given(seconds, seconds, st.floats(0, 3), st.floats(0, 1), st.floats(0, 3), st.floats(1e-6, 1e6))
def test_seconds_scale_with_their_unit_and_shares_do_not(mean, interval, standing, lag, restart, unit):
    standing, restart = standing * interval, restart * mean
    lag *= interval + standing
    times = CheckpointTimes(standing, lag, restart)
    scaled = CheckpointTimes(standing * unit, lag * unit, restart * unit)
    lost, other = time_lost(times, mean, interval), time_lost(scaled, mean * unit, interval * unit)
    shares = [(one.working, one.saving, one.repeating, one.restarting) for one in (lost, other)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-6, abs=1e-12)
    assert sum(shares[0]) == pytest.approx(1, abs=1e-9)
    assert min(shares[0]) >= 0
    assert piece_seconds(scaled, mean * unit, interval * unit) == pytest.approx(
        unit * piece_seconds(times, mean, interval), rel=1e-6
    )


def test_without_failures_saves_alone_cost():
    times = CheckpointTimes(3, 1, 100)
    lost = time_lost(times, math.inf, 27)
    assert (lost.working, lost.saving, lost.repeating, lost.restarting) == pytest.approx((0.9, 0.1, 0, 0))
    assert expected_seconds(times, math.inf, 27, 10) == 301
    assert best_interval(3, math.inf) == math.inf
    assert expected_seconds(times, 1e15, 27, 10) == pytest.approx(301)


def test_few_failures_are_youngs_two_terms():
    """δ/τ for saves and τ/2M for what is repeated."""
    times, mean, interval = CheckpointTimes(1.0, 0.0, 5.0), 1e6, 1000.0
    lost = time_lost(times, mean, interval)
    assert lost.saving == pytest.approx(times.standing / interval, rel=2e-3)
    assert lost.repeating == pytest.approx(interval / (2 * mean), rel=4e-3)
    assert lost.restarting == pytest.approx(times.restart / mean, rel=1e-4)


def test_a_run_that_comes_to_no_end():
    lost = time_lost(CheckpointTimes(1.0, 0.0, 0.0), 1e-3, 10.0)
    assert (lost.working, lost.slowdown) == (0, math.inf)
    assert expected_seconds(CheckpointTimes(0, 0, 1e6), 1.0, 10.0, 3) == math.inf


@pytest.mark.parametrize("step", [0.1, 40.0, 1e4])
@pytest.mark.parametrize("lag", [0.0, 500.0])
def test_whole_steps_are_the_best_of_all_whole_numbers(step, lag):
    times, mean = CheckpointTimes(5.0, lag, 60.0), 3600.0
    steps = best_steps(times, mean, step)
    allowed = [count for count in range(1, 6000) if count * step + times.standing >= lag - 1e-9]
    costs = {count: np.log(np.expm1(min(700, (count * step + 5.0) / mean)) / (count * step)) for count in allowed}
    assert steps == min(costs, key=lambda count: costs[count])


def test_failures_of_devices():
    assert between_failures(50_000 * 3600, 16_384) == pytest.approx(10_986, rel=1e-4)
    assert between_failures(math.inf, 8) == math.inf


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: CheckpointTimes(-1, 0, 0), "standing is -1 s; valid: 0 or more seconds"),
        (lambda: CheckpointTimes(0, 0, math.inf), "restart is inf s; valid: 0 or more seconds"),
        (lambda: between_failures(0, 8), "a device fails once in 0 seconds; valid: more than 0"),
        (lambda: between_failures(math.nan, 8), "a device fails once in nan seconds; valid: more than 0"),
        (lambda: time_lost(HARMLESS, 10, 0), "a save after every 0 seconds of work; valid: more than 0, and a number"),
        (lambda: time_lost(CheckpointTimes(2, 60, 0), 99, 30), "before the last one can be read; valid: 58 or more"),
        (lambda: best_steps(HARMLESS, math.inf, 1), "never fail need no saves"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(call, sentence):
    with pytest.raises(UserError) as told:
        call()
    assert sentence in str(told.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.floats(0, 3), st.floats(0, 8), st.floats(0, 50), st.floats(5, 1e4))
def test_the_saves_of_a_run_are_the_best_of_all_numbers_of_pieces(steps, standing, lag, restart, mean):
    times = CheckpointTimes(standing, lag, restart)
    chosen = best_saves(times, mean, 1.0, steps)
    every = [cut(times, 1.0, steps, pieces).seconds(times, mean, 1.0) for pieces in range(1, steps + 1)]
    assert chosen.seconds(times, mean, 1.0) <= min(every) * 1.002  # whole steps make the way there uneven
    assert chosen.saves * chosen.every < steps
    assert chosen.every >= math.ceil(lag - standing)
    assert not chosen.saves or steps - chosen.saves * chosen.every >= lag


def test_a_run_that_is_over_before_a_save_would_pay_saves_nothing():
    """And loses what one failure too many undoes: M·e^(R/M)·(e^(W/M) − 1), to first order W/2 + R a failure."""
    times, mean, work = CheckpointTimes(10, 0, 300), 50_000.0 * 3600 / 64, 136.0
    chosen = best_saves(times, mean, 0.02, 6800)
    assert chosen.saves == 0
    seconds = chosen.seconds(times, mean, 0.02)
    assert seconds == pytest.approx(mean * math.exp(300 / mean) * math.expm1(work / mean))
    assert seconds - work == pytest.approx(work / mean * (work / 2 + 300), rel=1e-3)
