from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from largebatch.data import Placement
from largebatch.data.augment import step_draws
from largebatch.data.dataset import Split
from largebatch.data.resident import ResidentSplit, held_out
from largebatch.data.statistics import Statistics
from largebatch.plan.batch import BatchPlan, resolve
from tests.data.conftest import CPU, pixels

PLAIN = Statistics((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # model input = raw pixel


def numbered(count: int, augment: str = "none", side: int = 6, statistics: Statistics = PLAIN) -> ResidentSplit:
    """Random images whose label is their own number."""
    return ResidentSplit(pixels(count, side, 3), np.arange(count), statistics, augment)


def plan_of(size: int, batch: int, world: int = 1, micro: int | None = None, steps: int = 5) -> BatchPlan:
    return resolve(
        dataset_size=size,
        global_batch_size=batch,
        world_size=world,
        micro_batch_size=micro,
        steps=steps,
        seed=3,
    )


def global_batches(split: Split, plan: BatchPlan, first: int = 0, seed: int = 9, placement: Placement = CPU):
    """[(images, labels)] per step, the ranks' micro-batches end to end."""
    ranks = [split.steps(plan, rank, first, placement, seed) for rank in range(plan.world_size)]
    steps = []
    for shares in zip(*ranks, strict=True):
        micro = [batch for share in shares for batch in share]
        assert {len(labels) for _, labels in micro} == {plan.micro_batch_size}
        assert len(micro) == plan.accumulation_steps * plan.world_size
        images, labels = zip(*micro, strict=True)
        steps.append((torch.cat(images), torch.cat(labels)))
    return steps


def test_the_examples_of_a_step_are_the_plans():
    split, plan = numbered(20), plan_of(20, 8, micro=2)
    steps = global_batches(split, plan)
    assert len(steps) == plan.steps
    for step, (images, labels) in enumerate(steps):
        indices = plan.examples_of(step, 0).indices
        assert labels.dtype == torch.int64
        assert labels.tolist() == indices.tolist()
        expected = pixels(20, 6, 3)[indices].transpose(0, 3, 1, 2).astype(np.float64)
        np.testing.assert_allclose(images.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 4), (2, 1), (4, 2)])
@pytest.mark.parametrize("augment", ["flip", "crop_flip"])
def test_an_example_looks_the_same_in_any_world(augment: str, world: int, micro: int):
    split = numbered(20, augment)
    whole = global_batches(split, plan_of(20, 8, micro=8))
    parts = global_batches(split, plan_of(20, 8, world, micro))
    for (images, labels), (other_images, other_labels) in zip(whole, parts, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_resuming_gives_what_would_have_come():
    split, plan = numbered(20, "crop_flip"), plan_of(20, 8, micro=4)
    whole, resumed = global_batches(split, plan), global_batches(split, plan, first=3)
    assert len(resumed) == plan.steps - 3
    for (images, _), (again, _) in zip(whole[3:], resumed, strict=True):
        assert torch.equal(images, again)


def test_the_seed_and_the_step_change_the_draws():
    draws = [step_draws("crop_flip", seed, step, 64) for seed, step in ((0, 0), (1, 0), (0, 1))]
    assert len({draw.top.tobytes() for draw in draws}) == 3
    assert len({draw.flip.tobytes() for draw in draws}) == 3


def test_draws_are_uniform():
    draws = step_draws("crop_flip", 0, 0, 90_000)
    counts = np.bincount(9 * draws.top + draws.left, minlength=81)
    assert len(counts) == 81
    assert abs(counts - 90_000 / 81).max() < 6 * (90_000 / 81) ** 0.5
    assert abs(draws.flip.mean() - 0.5) < 0.01


@pytest.mark.parametrize("augment", ["flip", "crop", "crop_flip"])
def test_windows_are_what_a_loop_over_images_cuts(augment: str):
    split, plan = numbered(20, augment), plan_of(20, 8, micro=4)
    raw = pixels(20, 6, 3)
    for step, (images, _) in enumerate(global_batches(split, plan)):
        draws = step_draws(augment, 9, step, 8)
        for row, index in enumerate(plan.examples_of(step, 0).indices):
            padded = np.zeros((14, 14, 3))
            padded[4:10, 4:10] = raw[index]
            top, left = draws.top[row], draws.left[row]
            window = padded[top : top + 6, left : left + 6]
            window = window[:, ::-1] if draws.flip[row] else window
            np.testing.assert_allclose(images[row].permute(1, 2, 0).numpy(), window, rtol=0, atol=1e-10)
        if augment == "flip":
            assert set(draws.top) | set(draws.left) == {4}
        if augment == "crop":
            assert not draws.flip.any()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_placement_is_kept(dtype: torch.dtype, channels_last: bool):
    statistics = Statistics((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    split = numbered(12, "crop_flip", statistics=statistics)
    placement = Placement(torch.device("cpu"), dtype, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for images, labels in split.batches(0, 1, 5, placement):
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=layout)
        raw = pixels(12, 6, 3)[labels].astype(np.float64) / 255
        expected = (raw - statistics.mean) / statistics.std
        np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-6)
    ((images, _),) = [batch for step in split.steps(plan_of(12, 4, steps=1), 0, 0, placement, 0) for batch in step]
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (1, 100), (3, 2), (4, 3), (12, 5), (15, 5)])
def test_evaluation_sees_every_example_once(world: int, batch: int):
    split = numbered(11, "crop_flip")
    seen = [
        [label for _, labels in split.batches(rank, world, batch, CPU) for label in labels.tolist()]
        for rank in range(world)
    ]
    assert [label for share in seen for label in share] == list(range(11))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_held_out_examples_are_as_equal_as_counts_allow():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [2, 30, 30, 38]))
    for count, expected in ((8, [2, 2, 2, 2]), (20, [2, 6, 6, 6]), (21, [2, 7, 6, 6]), (99, [2, 30, 30, 37])):
        mask = held_out(labels, count)
        assert mask.sum() == count
        assert sorted(Counter(labels[mask].tolist()).values()) == sorted(expected)
    assert set(np.flatnonzero(held_out(labels, 8))) < set(np.flatnonzero(held_out(labels, 20)))
