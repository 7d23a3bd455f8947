"""The batch plan as arithmetic: no example lost, none depends on the machine, refusals name what would fit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.errors import UserError
from largebatch.plan.batch import largest_divisor, repeated, resolve
from largebatch.plan.order import epoch_order
from largebatch.recipes import config
from largebatch.recipes.config.dotted import place
from largebatch.recipes.derive import plan_of


def test_the_stream_is_epochs_of_permutations_laid_end_to_end():
    plan = resolve(dataset_size=50, global_batch_size=32, epochs=3, seed=7)
    seen = np.concatenate([plan.examples_of(step).indices for step in range(plan.steps)])
    stream = np.concatenate([epoch_order(50, 7, epoch) for epoch in range(4)])
    assert plan.steps == 5
    np.testing.assert_array_equal(seen, stream[:160])
    for epoch in range(3):
        assert sorted(seen[50 * epoch : 50 * (epoch + 1)]) == list(range(50))
    assert len({tuple(epoch_order(50, 7, epoch)) for epoch in range(3)}) == 3, "shuffled anew every epoch"


@pytest.mark.worlds
@given(
    st.integers(1, 300), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4),
    st.floats(0.1, 4), st.integers(0, 5),
)  # fmt: skip
def test_examples_of_a_step_do_not_depend_on_the_world(size, world, micro, accumulation, epochs, seed):
    batch_size = world * micro * accumulation
    if batch_size > size:
        with pytest.raises(UserError, match="larger than the training set"):
            resolve(dataset_size=size, global_batch_size=batch_size, world_size=world, epochs=epochs)
        return
    alone = resolve(dataset_size=size, global_batch_size=batch_size, epochs=epochs, seed=seed)
    many = resolve(
        dataset_size=size, global_batch_size=batch_size, world_size=world, micro_batch_size=micro,
        epochs=epochs, seed=seed,
    )  # fmt: skip
    assert many.steps == alone.steps == math.ceil(max(1, round(epochs * size)) / batch_size)
    assert many.accumulation_steps == accumulation
    assert 0 <= many.examples - many.budget_examples < batch_size
    for step in range(many.steps):
        ranks = [many.examples_of(step, rank) for rank in range(world)]
        for field in ("positions", "epochs", "indices"):
            joined = np.concatenate([getattr(rank, field) for rank in ranks])
            np.testing.assert_array_equal(joined, getattr(alone.examples_of(step), field))


def test_a_budget_of_steps_is_that_many_full_batches():
    plan = resolve(dataset_size=100, global_batch_size=64, steps=5)
    assert (plan.steps, plan.budget_examples, plan.examples) == (5, 320, 320)


@pytest.mark.parametrize(
    ("batch_size", "epochs", "steps"),
    [(32_768, 90, 3519), (8_192, 90, 14_076), (256, 90, 450_411)],  # 3519: You et al. 2019's own release
)
def test_steps_of_imagenet_budgets(batch_size, epochs, steps):
    assert resolve(dataset_size=1_281_167, global_batch_size=batch_size, epochs=epochs).steps == steps


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"global_batch_size": 100, "world_size": 3, "epochs": 1}, "into 3 ranks; nearest that do: 99 or 102"),
        (
            {"global_batch_size": 1000, "micro_batch_size": 64, "world_size": 2, "epochs": 1},
            "2 ranks × micro-batches of 64; nearest that do: 896 or 1024",
        ),
        ({"global_batch_size": 100, "micro_batch_size": 64, "epochs": 1}, "nearest that do: 64 or 128"),
        ({"global_batch_size": 1021, "epochs": 1}, "nearest that do: 512 or 1024; or state batch.micro_batch_size"),
        ({"global_batch_size": 5000, "epochs": 1}, "at most 2000 examples"),
        ({"global_batch_size": 10}, "exactly one of epochs and steps"),
        ({"global_batch_size": 10, "epochs": 1, "steps": 3}, "exactly one of epochs and steps"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_would(wish, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        resolve(dataset_size=2000, **wish)


def test_the_nearest_sizes_do_factor():
    for size in (99, 102):
        assert resolve(dataset_size=2000, global_batch_size=size, world_size=3, epochs=1).steps > 0


@pytest.mark.parametrize(
    ("share", "largest", "micro"), [(2048, 512, 512), (96, 64, 48), (7, 4, 1), (30, 30, 30), (509, 512, 509)]
)
def test_the_micro_batch_is_the_largest_divisor_that_fits(share, largest, micro):
    assert largest_divisor(share, largest) == micro
    plan = resolve(dataset_size=10_000, global_batch_size=share, largest_micro_batch=largest, steps=1)
    assert plan.micro_batch_size == micro


def test_marks_are_the_first_steps_that_reach_an_epoch():
    plan = resolve(dataset_size=100, global_batch_size=30, epochs=3)
    assert [plan.first_step_at(100 * k) for k in (1, 2, 3)] == [4, 7, 10]
    assert resolve(dataset_size=90, global_batch_size=30, epochs=1).first_step_at(90) == 3


def test_an_order_cannot_be_changed_by_its_reader():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(10, 0, 0)[0] = 3


@pytest.mark.parametrize(("size", "batch", "repeats"), [(20, 12, 3), (20, 10, 3), (7, 5, 2), (100, 2, 3), (12, 12, 4)])
def test_repeats_are_an_example_so_often_in_a_row_of_the_stream_cut_into_batches(size, batch, repeats):
    """A dumber statement: the stream with every example written down ``repeats`` times."""
    plan = dataclasses.replace(resolve(dataset_size=size, global_batch_size=batch, steps=30, seed=4), repeats=repeats)
    plain = resolve(dataset_size=size, global_batch_size=1, steps=30 * batch, seed=4)
    stream = [int(plain.examples_of(place).indices[0]) for place in range(30 * batch // repeats + 1)]
    written_down = [example for example in stream for _ in range(repeats)]
    positions = []
    for step in range(plan.steps):
        found = plan.examples_of(step)
        assert sorted(found.indices.tolist()) == sorted(written_down[step * batch : (step + 1) * batch])
        assert [written_down[place] for place in found.positions.tolist()] == found.indices.tolist()
        assert found.epochs.tolist() == [place // repeats // size for place in found.positions.tolist()]
        positions += found.positions.tolist()
        if batch >= 2 * repeats and batch % repeats == 0:  # whoever is mixed with its neighbour is mixed with another
            assert all(one != other for one, other in itertools.pairwise(found.indices.tolist()))
    assert sorted(positions) == list(range(30 * batch))


@pytest.mark.parametrize("repeats", [2, 3, 4, 5, 7])
def test_nobody_is_mixed_with_a_copy_of_itself_while_the_batch_has_twice_as_many_places(repeats):
    """Any even batch from 2m on, wherever it begins in the stream; one that has too few places does mix copies."""
    for size in range(2 * repeats, 6 * repeats, 2):
        plan = repeated(resolve(dataset_size=997, global_batch_size=size, steps=60), repeats, mixed=True)
        for step in range(plan.steps):
            places = plan.examples_of(step).positions // repeats
            assert (places[::2] != places[1::2]).all()
    size = 2 * repeats - 2
    plain = resolve(dataset_size=997, global_batch_size=size, steps=60)
    plan = repeated(plain, repeats, mixed=False) if repeats <= size else dataclasses.replace(plain, repeats=repeats)
    shares = [plan.examples_of(step).positions // repeats for step in range(plan.steps)]
    assert any((places[::2] == places[1::2]).any() for places in shares)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.repeats": 13}, "data.repeats = 13 is more than batch.global_batch_size = 12; at most 12"),
        ({"data.repeats": 13, "data.mix": {"mixup": 0.2}}, "more than batch.global_batch_size = 12; at most 6"),
        (
            {"data.repeats": 7, "data.mix": {"mixup": 0.2}},
            "data.repeats = 7 is more than half of batch.global_batch_size = 12, where data.mix would mix an example "
            "with itself; at most 6",
        ),
        (
            {"data.repeats": 9, "phases": [{"until_epoch": 1}, {"batch.global_batch_size": 8}]},
            "data.repeats = 9 is more than batch.global_batch_size = 8; at most 8",
        ),
        ({"data.repeats": 12}, None),
        ({"data.repeats": 6, "data.mix": {"mixup": 0.2}}, None),
    ],
)
def test_a_batch_with_too_few_places_for_repeats_is_refused(changes, sentence):
    written = {
        "name": "tiny", "model": {"name": "mlp"}, "data": {"name": "digits"}, "batch": {"global_batch_size": 12},
        "epochs": 2, "optimizer": {"name": "sgd"}, "lr": {"base": 0.1},
    }  # fmt: skip
    for key, value in changes.items():
        place(written, key, value)
    run = config.from_dict(written)
    with contextlib.nullcontext() if sentence is None else pytest.raises(UserError, match=re.escape(sentence)):
        assert plan_of(run, 100, 1, 512).repeats == changes["data.repeats"]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_repeats_are_the_same_in_any_world(world):
    whole, parts = (
        dataclasses.replace(resolve(dataset_size=20, global_batch_size=12, steps=9, world_size=w), repeats=3)
        for w in (1, world)
    )
    for step in range(9):
        joined = [
            np.concatenate(shares) for shares in zip(*(parts.examples_of(step, r) for r in range(world)), strict=True)
        ]
        assert all(np.array_equal(one, other) for one, other in zip(whole.examples_of(step), joined, strict=True))
