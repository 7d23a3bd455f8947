"""Fastest, cheapest, knee, and what fits a time or a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning.clusters import machine, point

from largebatch.errors import UserError
from largebatch.studies.planning.choice import choice_of, hours_in
from largebatch.studies.planning.devices import devices_of, nearest, parse

HOURS = st.lists(
    st.tuples(st.sampled_from([8, 16, 32, 64]), st.integers(1, 5), st.floats(0.01, 100)),
    min_size=1, max_size=20, unique_by=lambda row: row[:2],
)  # fmt: skip


@given(HOURS)
def test_the_knee_is_the_most_devices_whose_best_batch_costs_at_most_a_quarter_more(rows):
    points = [point(devices, batch, hours) for devices, batch, hours in rows]
    chosen = choice_of(points)
    best = {devices: min(h for d, _, h in rows if d == devices) for devices, _, _ in rows}
    first = min(best)
    worth = [devices for devices, hours in best.items() if first * best[first] / (devices * hours) >= 0.8]
    assert points[chosen.knee].devices == max(worth)
    assert points[chosen.knee].hours == best[max(worth)]
    assert points[chosen.fastest].hours == min(best.values())
    assert points[chosen.cheapest].device_hours == min(one.device_hours for one in points)


@given(HOURS, st.floats(0.01, 200), st.floats(0.1, 1e4))
def test_within_a_time_the_cheapest_and_within_a_budget_the_fastest(rows, within, budget):
    points = [point(devices, batch, hours, cost=2.0 * devices * hours) for devices, batch, hours in rows]
    fitting = [one for one in points if one.hours <= within]
    paid = [one for one in points if (one.cost or 0) <= budget]
    if fitting:
        chosen = points[choice_of(points, within=within).chosen]
        assert chosen.device_hours == min(one.device_hours for one in fitting)
    else:
        with pytest.raises(UserError, match="--within .*: the fastest takes"):
            choice_of(points, within=within)
    if paid:
        assert points[choice_of(points, budget=budget).chosen].hours == min(one.hours for one in paid)
    else:
        with pytest.raises(UserError, match="--budget .*: the cheapest costs"):
            choice_of(points, budget=budget)


@pytest.mark.parametrize(
    ("text", "hours"), [("90min", 1.5), ("1h", 1), ("36s", 0.01), ("2d", 48), ("1.5 h", 1.5)]
)  # fmt: skip
def test_times_have_units(text, hours):
    assert hours_in(text) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["1", "h", "-1h", "0h", "1 week"])
def test_a_time_without_a_unit_is_refused(text):
    with pytest.raises(UserError, match="is no time; write it with a unit"):
        hours_in(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("8..64", [8, 16, 32, 64]), ("8..352", [8, 16, 32, 64, 128, 256, 352]), ("64", [64]), ("64,8", [8, 64])],
)
def test_devices_by_doublings_or_one_by_one(text, numbers):
    assert parse("devices", text) == numbers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("64..8", "should ascend"), ("0..8", "should ascend"), ("8-64", "is no range"), ("", "is no range"),
        ("8,,9", "is no range"), ("6", "nearest: 4 or 8"), ("10,16", "nearest: 8 or 12"),
        ("2000000", "at most 1,000,000"),
    ],
)  # fmt: skip
def test_devices_that_cannot_be(text, said):
    with pytest.raises(UserError, match=said):
        devices_of(text, machine())


@given(st.integers(1, 5000), st.integers(1, 4096))
def test_the_nearest_devices_divide_the_batch_and_fill_nodes(devices, batch):
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and (n <= 4 or n % 4 == 0)]
    near = [
        max((n for n in fitting if n < devices), default=None),
        min((n for n in fitting if n > devices), default=None),
    ]
    assert nearest(devices, [batch], machine()) == [n for n in near if n is not None]
