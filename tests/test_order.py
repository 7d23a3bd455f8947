"""The order of an epoch: a permutation whether kept or computed, the same place by place, without a pattern."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.plan import order
from largebatch.plan.batch import resolve
from largebatch.plan.order import KeyedOrder, epoch_order


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 65, 1000, 4096, 4097, 100_003])
@pytest.mark.parametrize("key", [(0, 0), (7, 3)])
def test_a_keyed_order_is_a_permutation(length, key):
    whole = KeyedOrder(length, key)[:]
    assert np.array_equal(np.sort(whole), np.arange(length))


def test_every_place_is_known_alone():
    keyed = KeyedOrder(1001, (5, 2))
    whole, places = keyed[:], np.random.default_rng(0).integers(0, 1001, 300)
    assert np.array_equal(keyed[places], whole[places])
    assert np.array_equal(keyed[17:40], whole[17:40])
    assert len(keyed) == 1001


def test_keys_give_other_orders():
    orders = {tuple(KeyedOrder(50, (seed, epoch))[:]) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_a_set_of_a_trillion_takes_no_memory_in_proportion():
    size = 10**12
    keyed = epoch_order(size, 3, 1)
    assert isinstance(keyed, KeyedOrder)
    last = keyed[size - 1000 : size]
    assert len(np.unique(last)) == 1000
    assert last.min() >= 0
    assert last.max() < size
    plan = resolve(dataset_size=size, global_batch_size=4096, steps=3, seed=3)
    assert np.array_equal(plan.examples_of(1).indices, epoch_order(size, 3, 0)[4096:8192])


def test_the_stream_crosses_epochs_where_orders_are_computed(monkeypatch):
    monkeypatch.setattr(order, "LARGEST_KEPT", 10)
    epoch_order.cache_clear()
    plan = resolve(dataset_size=50, global_batch_size=32, epochs=3, seed=7)
    seen = np.concatenate([plan.examples_of(step).indices for step in range(plan.steps)])
    epoch_order.cache_clear()
    assert np.array_equal(seen, np.concatenate([KeyedOrder(50, (7, epoch))[:] for epoch in range(4)])[:160])


def squares_over_expected(counts: np.ndarray) -> float:
    """Pearson's chi-squared, less its mean, in its standard deviations."""
    expected, freedom = counts.mean(), counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


LENGTH, KEYS = 60, 4000


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return np.stack([KeyedOrder(LENGTH, (key, 1))[:] for key in range(KEYS)])


def test_every_index_comes_at_every_place_as_often(many):
    """A shuffle's counts: each index once in a row, so chi-squared is that of a table with fixed margins."""
    counts = np.zeros((LENGTH, LENGTH))
    for place in range(LENGTH):
        counts[place] = np.bincount(many[:, place], minlength=LENGTH)
    assert squares_over_expected(counts) < 4


@pytest.mark.parametrize("apart", [1, 2, 7, 30])
def test_neighbours_tell_nothing_of_each_other(many, apart):
    steps = (many[:, apart:] - many[:, :-apart]) % LENGTH
    assert squares_over_expected(np.bincount(steps.ravel(), minlength=LENGTH)[1:]) < 4


def test_one_long_order_is_even_in_its_parts():
    """Each tenth of the places holds as many of each tenth of the indices."""
    length = 1_000_000
    whole = KeyedOrder(length, (11, 4))[:]
    table = np.histogram2d(np.arange(length), whole, bins=20)[0]
    assert squares_over_expected(table) < 4
    assert abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 5 / np.sqrt(length)
