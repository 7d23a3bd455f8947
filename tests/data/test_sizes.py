"""The side of the training images, step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.data.sizes import Sizes, constant
from largebatch.plan.batch import resolve


def test_it_grows_linearly_in_multiples():
    plan = resolve(dataset_size=100, global_batch_size=10, epochs=10)
    sizes = Sizes(128, 224, evaluate=256, from_epoch=2, until_epoch=8)
    found = [sizes.at(step, plan) for step in range(plan.steps)]
    # 16 pixels an epoch between the second and the eighth: 144 after the third, which is 160 to the nearest multiple
    assert found == [128] * 30 + [160] * 20 + [192] * 20 + [224] * 30
    assert sizes.all == [128, 160, 192, 224]


def test_without_an_end_it_grows_to_the_end_of_the_budget():
    plan = resolve(dataset_size=100, global_batch_size=10, steps=10)
    found = [Sizes(96, 128, evaluate=128, multiple_of=16).at(step, plan) for step in range(10)]
    assert found == [96] * 3 + [112] * 5 + [128] * 2


def test_the_ends_need_not_be_multiples():
    sizes = Sizes(100, 150, evaluate=150, until_epoch=1)
    plan = resolve(dataset_size=1000, global_batch_size=10, epochs=2)
    found = [sizes.at(step, plan) for step in range(plan.steps)]
    assert sorted(set(found)) == sizes.all == [100, 128, 150]
    assert found == sorted(found)


@pytest.mark.worlds
@given(
    first=st.integers(1, 300), more=st.integers(0, 300), multiple=st.integers(1, 64), begin=st.floats(0, 5),
    length=st.floats(0.1, 5), size=st.integers(1, 40),
)  # fmt: skip
def test_it_never_shrinks_and_knows_all_its_sides(first, more, multiple, begin, length, size):
    sizes = Sizes(first, first + more, first + more, begin, begin + length, multiple)
    plan = resolve(dataset_size=40, global_batch_size=size, epochs=11, micro_batch_size=size)
    found = [sizes.at(step, plan) for step in range(plan.steps)]
    assert found == sorted(found)
    assert set(found) <= set(sizes.all)
    assert found[0] == first
    assert found[-1] == first + more
    assert all(side % multiple == 0 for side in found if side not in (first, first + more))


def test_the_size_depends_on_examples_seen_alone():
    """Another batch, another world: the same side at the same place of the run."""
    sizes = Sizes(64, 256, evaluate=256)
    small, large = (resolve(dataset_size=640, global_batch_size=b, epochs=4) for b in (8, 64))
    for step in range(large.steps):
        assert sizes.at(step, large) == sizes.at(8 * step, small)


@pytest.mark.parametrize("side", [1, 224])
def test_a_number_is_that_side_throughout(side):
    plan = resolve(dataset_size=10, global_batch_size=5, epochs=3)
    assert {constant(side).at(step, plan) for step in range(plan.steps)} == {side}
    assert constant(side).all == [side]
