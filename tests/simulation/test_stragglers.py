"""The slowest of n devices: closed forms, another integral, and draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import lognorm, norm

from largebatch.errors import UserError
from largebatch.studies.cluster import stragglers
from largebatch.studies.cluster.stragglers import Stragglers


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 2), st.floats(0, 1.4))
def test_two_devices_in_closed_form(of_steps, of_devices):
    sigma = math.hypot(of_steps, of_devices)
    assert Stragglers(of_steps, of_devices).expected(1) == 1
    assert Stragglers(of_steps, of_devices).expected(2) == pytest.approx(2 * norm.cdf(sigma / math.sqrt(2)), rel=1e-7)


@pytest.mark.parametrize("devices", [3, 64, 4096, 100_000])
@pytest.mark.parametrize("sigma", [0.01, 0.2, 1.5])
def test_the_mean_of_the_largest_is_the_integral_of_its_tail(devices, sigma):
    """∫ 1 − F(x)ⁿ dx over the lognormal of mean 1, in 1 + 40 pieces."""
    law = lognorm(sigma, scale=math.exp(-(sigma**2) / 2))
    ends = law.ppf(norm.cdf(np.linspace(-6, 8, 41)))
    tail = sum(
        quad(lambda x: -math.expm1(devices * law.logcdf(x)), low, high, epsabs=1e-13)[0]
        for low, high in zip(ends, [*ends[1:], law.isf(1e-25)], strict=True)
    )
    assert Stragglers(sigma).expected(devices) == pytest.approx(ends[0] + tail, rel=1e-6)


def test_it_grows_with_the_devices_as_the_square_root_of_their_logarithm():
    sigma, devices = 0.05, 10**9
    bound = math.exp(sigma * math.sqrt(2 * math.log(devices)) - sigma**2 / 2)
    grown = Stragglers(sigma).expected(devices)
    assert 0.97 * bound < grown < bound
    assert Stragglers(0).expected(devices) == 1


@pytest.mark.parametrize("devices", [1, 2, 32, 700])
@pytest.mark.parametrize("sigma", [0.03, 0.5])
def test_draws_have_the_mean_that_is_expected(devices, sigma):
    drawn = Stragglers(sigma).drawn(devices, 4000, np.random.default_rng(3))
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - Stragglers(sigma).expected(devices)) < 4 * error


def test_many_clusters_have_the_mean_of_both_deviations():
    law, random = Stragglers(0.1, 0.2), np.random.default_rng(5)
    of_clusters = np.array([law.drawn(48, 20, random).mean() for _ in range(1500)])
    assert abs(of_clusters.mean() - law.expected(48)) < 4 * of_clusters.std() / math.sqrt(len(of_clusters))


def test_a_slow_device_stays_slow():
    assert np.ptp(Stragglers(0, 0.3).drawn(50, 10, np.random.default_rng(0))) == 0
    assert np.ptp(Stragglers(0.3).drawn(50, 10, np.random.default_rng(0))) > 0
    assert (Stragglers().drawn(50, 10, np.random.default_rng(0)) == 1).all()


@pytest.mark.parametrize("measured_on", [1, 8, 64])
def test_what_was_measured_on_some_devices_is_the_mean_on_as_many(measured_on):
    law, plain = Stragglers(0.1, 0.05, measured_on), Stragglers(0.1, 0.05)
    assert law.expected(measured_on) == pytest.approx(1)
    assert law.expected(512) == pytest.approx(plain.expected(512) / plain.expected(measured_on))
    ours, theirs = (one.drawn(512, 9, np.random.default_rng(0)) for one in (law, plain))
    assert ours == pytest.approx(theirs / plain.expected(measured_on))


def test_pieces_of_draws_are_all_of_them(monkeypatch):
    """Whatever is held at once, and where a piece ends with the last step or before."""
    whole = Stragglers(0.2, 0.1).drawn(30, 11, np.random.default_rng(1))
    for held in (1, 30, 60, 95, 30 * 11):
        monkeypatch.setattr(stragglers, "DRAWS", held)
        assert (Stragglers(0.2, 0.1).drawn(30, 11, np.random.default_rng(1)) == whole).all()


def test_a_deviation_that_cannot_be():
    with pytest.raises(UserError, match="from step to step is -0.1; valid: 0 to 2"):
        Stragglers(-0.1)
    with pytest.raises(UserError, match="from device to device is 3;"):
        Stragglers(0.1, 3)
