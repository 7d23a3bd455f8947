"""Which checkpoints stay, stated a second time, one question after the other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.checkpoint.retention import Retention, Saved, staying

QUARTER = 0.25  # epochs: numbers that binary fractions hold exactly
history = st.lists(
    st.tuples(st.integers(0, 12), st.none() | st.sampled_from([10.0, 50.0, 90.0])), min_size=1, max_size=12
).map(
    lambda gaps: [
        Saved(10 * number + 1, QUARTER * sum(gap for gap, _ in gaps[: number + 1]), accuracy)
        for number, (_, accuracy) in enumerate(gaps)
    ]
)
policies = st.builds(
    Retention,
    last=st.integers(1, 4),
    every_epochs=st.none() | st.integers(1, 8).map(lambda quarters: QUARTER * quarters),
    best=st.integers(0, 3),
)


def stays(one: Saved, saved: list[Saved], keep: Retention) -> bool:
    later = [other for other in saved if other.step > one.step]
    if len(later) < keep.last:
        return True
    if keep.every_epochs is not None:
        begin = 0.0
        while begin + keep.every_epochs <= one.epoch:
            begin += keep.every_epochs
        earlier = [other for other in saved if other.step < one.step and other.epoch >= begin]
        if begin > 0 and not earlier:
            return True
    if one.worth is None:
        return False
    judged = [other for other in saved if other.worth is not None]
    better = [other for other in judged if other.worth > one.worth]
    equal_and_later = [other for other in later if other.worth == one.worth]
    return len(better) + len(equal_and_later) < keep.best


@pytest.mark.worlds
@settings(max_examples=500, deadline=None)
@given(saved=history, keep=policies, chance=st.randoms(use_true_random=False))
def test_those_stay_that_the_policy_names(saved, keep, chance):
    shuffled = list(saved)
    chance.shuffle(shuffled)
    assert staying(shuffled, keep) == {one.step for one in saved if stays(one, saved, keep)}


@pytest.mark.worlds
@settings(max_examples=200, deadline=None)
@given(saved=history, keep=policies)
def test_deleting_as_they_come_keeps_what_deleting_at_the_end_keeps(saved, keep):
    """Nothing that will be wanted is removed on the way."""
    there: list[Saved] = []
    for one in saved:
        there.append(one)
        stay = staying(there, keep)
        there = [other for other in there if other.step in stay]
    assert {one.step for one in there} == staying(saved, keep)
