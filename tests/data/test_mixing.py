"""Mixup and cutmix: their draws against timm's, what they make of a batch against a loop, any world, any resume."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import beta, chi2_contingency, ks_2samp
from timm.data.mixup import Mixup, cutmix_bbox_and_lam, mixup_target

from largebatch import data
from largebatch.data.finishing import FinishedSplit, mixed, neighbours
from largebatch.data.mixing import step_mixing
from largebatch.data.resident import ResidentSplit, TensorSplit
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.config.mixing import Mix
from largebatch.run.assemble import assemble
from tests.data.conftest import CPU, pixels
from tests.data.test_resident import PLAIN, global_batches, plan_of

MANY = 6_000
SHAPE = (3, 24, 32)


def of_timm(how: Mix, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What timm draws for each of ``count`` examples: weight of the label, whether it is cutmix, its box."""
    theirs = Mixup(
        how.mixup, how.cutmix, prob=how.probability, switch_prob=0.5 if how.switch is None else how.switch, mode="elem"
    )
    np.random.seed(11)  # noqa: NPY002  # timm draws from the global state
    weights, is_cut = theirs._params_per_elem(count)
    weights, boxes = weights.astype(np.float64), np.zeros((count, 4), np.int64)
    for row in np.flatnonzero(is_cut & (weights != 1)):
        (upper, lower, left, right), weights[row] = cutmix_bbox_and_lam(SHAPE, weights[row])
        boxes[row] = upper, lower, left, right
    return weights, is_cut, boxes


@pytest.mark.parametrize(
    "keys",
    [
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"mixup": 0.8, "cutmix": 1.0},
        {"mixup": 0.1, "cutmix": 0.5, "switch": 0.3, "probability": 0.7},
    ],
)
def test_the_draws_are_those_of_timm(keys):
    """Two samples of one distribution: λ of the label by kind, the boxes' sides and places, how often each kind is."""
    how = Mix(per="example", **keys)
    ours = step_mixing(how, seed=0, step=0, global_batch_size=MANY, shape=SHAPE)
    weights, is_cut, boxes = of_timm(how, MANY)
    cut_of_ours = ours.boxes.any(axis=1) & (ours.labels < 1)
    cut_of_theirs = boxes.any(axis=1) & (weights < 1)
    below = 1 - 1e-6  # timm's λ is in float32, where more of them are 1
    mixed_up = ours.pixels < below, ~is_cut & (weights < below)
    for one, other in ((cut_of_ours, cut_of_theirs), mixed_up):
        if one.any() or other.any():
            counts = [[sample.sum(), MANY - sample.sum()] for sample in (one, other)]
            assert chi2_contingency(np.array(counts) + 1).pvalue > 1e-4
    pairs = [(ours.labels.astype(np.float32), weights.astype(np.float32))]
    if how.mixup:
        pairs.append((ours.labels[mixed_up[0]], weights[mixed_up[1]]))
    if how.cutmix:
        pairs += [(ours.boxes[cut_of_ours][:, edge], boxes[cut_of_theirs][:, edge]) for edge in range(4)]
    assert all(ks_2samp(*pair).pvalue > 1e-4 for pair in pairs)


@pytest.mark.parametrize("per", ["batch", "pair", "example"])
def test_weights_are_beta_and_drawn_once_for_what_they_are_for(per):
    how = Mix(mixup=0.3, per=per)
    steps = 1 if per != "batch" else 4000
    drawn = [step_mixing(how, 5, step, 8000 if steps == 1 else 8, SHAPE) for step in range(steps)]
    each = {"batch": 8, "pair": 2, "example": 1}[per]
    for step in drawn:
        assert (step.labels.reshape(-1, each) == step.labels.reshape(-1, each)[:, :1]).all()
    values = np.concatenate([step.labels[::each] for step in drawn])
    theirs = beta.rvs(0.3, 0.3, size=len(values), random_state=0)
    assert ks_2samp(values, theirs).pvalue > 1e-4
    assert len(np.unique(values)) > 0.98 * len(values)


def test_cutmix_weighs_the_label_by_what_is_left_of_the_image():
    drawn = step_mixing(Mix(cutmix=1.0, per="pair"), 3, 0, 2000, SHAPE)
    area = (drawn.boxes[:, 1] - drawn.boxes[:, 0]) * (drawn.boxes[:, 3] - drawn.boxes[:, 2])
    np.testing.assert_allclose(drawn.labels, 1 - area / (24 * 32), rtol=0, atol=1e-15)
    assert (drawn.boxes >= 0).all()
    assert (drawn.boxes[:, 1] <= 24).all()
    assert (drawn.boxes[:, 3] <= 32).all()
    assert (drawn.pixels == 1).all()


@pytest.mark.parametrize("per", ["batch", "pair", "example"])
@pytest.mark.parametrize("keys", [{"mixup": 0.7}, {"cutmix": 1.0}, {"mixup": 0.7, "cutmix": 1.0, "probability": 0.8}])
def test_a_batch_is_what_a_loop_over_examples_makes(keys, per):
    random = torch.Generator().manual_seed(4)
    images = torch.randn(8, 3, 6, 7, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 5, (8,), generator=random)
    for step in range(20):
        drawn = step_mixing(Mix(per=per, **keys), 1, step, 8, images.shape)
        found, shares = mixed(images, labels, drawn, 5)
        for row in range(8):
            other, (top, bottom, left, right) = row ^ 1, drawn.boxes[row].tolist()
            wanted = float(drawn.pixels[row]) * images[row] + (1 - float(drawn.pixels[row])) * images[other]
            for down in range(top, bottom):
                for across in range(left, right):
                    wanted[:, down, across] = images[other, :, down, across]
            torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-15)
            by_class = [0.0] * 5
            by_class[labels[row]] += float(drawn.labels[row])
            by_class[labels[other]] += 1 - float(drawn.labels[row])
            assert shares[row].tolist() == pytest.approx(by_class, abs=1e-15)


def test_labels_smoothed_in_the_loss_are_those_that_timm_smooths():
    labels, weight = torch.tensor([3, 0, 2, 2]), 0.37
    ours = mixed(torch.zeros(4, 1, 2, 2, dtype=torch.float64), labels, step_of(weight), 5)[1] * 0.9 + 0.1 / 5
    in_order = torch.tensor([0, 2, 3, 1])  # so that timm, which turns the batch around, has the same pairs
    theirs = mixup_target(labels[in_order], 5, weight, smoothing=0.1)
    torch.testing.assert_close(ours[in_order].float(), theirs, rtol=0, atol=1e-7)


def step_of(weight: float):
    from largebatch.data.mixing import Mixed

    return Mixed(np.full(4, weight), np.full(4, weight), np.zeros((4, 4), np.int64))


def test_layout_and_kind_stay():
    images = torch.randn(4, 3, 6, 6).to(torch.float32, memory_format=torch.channels_last)
    for keys in ({"mixup": 1.0}, {"cutmix": 1.0}):
        found, shares = mixed(images, torch.arange(4), step_mixing(Mix(**keys), 0, 1, 4, images.shape), 4)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found.dtype, shares.dtype) == (torch.float32, torch.float32)
    half, shares = mixed(images.bfloat16(), torch.arange(4), step_mixing(Mix(mixup=1.0), 0, 1, 4, images.shape), 4)
    assert (half.dtype, shares.dtype) == (torch.bfloat16, torch.float32)
    assert neighbours(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


def numbered_and_mixed(per: str) -> FinishedSplit:
    plain = ResidentSplit(pixels(20, 6, 3), np.arange(20), PLAIN, "crop_flip")
    return FinishedSplit(plain, Mix(mixup=0.5, cutmix=1.0, per=per), 20)


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 6), (3, 4), (3, 2), (6, 2)])
@pytest.mark.parametrize("per", ["batch", "pair", "example"])
def test_an_example_looks_the_same_in_any_world(per, world, micro):
    whole = global_batches(numbered_and_mixed(per), plan_of(20, 12, micro=12))
    parts = global_batches(numbered_and_mixed(per), plan_of(20, 12, world, micro))
    plain = global_batches(numbered_and_mixed(per).split, plan_of(20, 12, micro=12))
    for (images, labels), (other_images, other_labels) in zip(whole, parts, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    assert not all(torch.equal(one, other) for (one, _), (other, _) in zip(whole, plain, strict=True))


def test_resuming_gives_what_would_have_come():
    split, plan = numbered_and_mixed("pair"), plan_of(20, 8, micro=4)
    whole, resumed = global_batches(split, plan), global_batches(split, plan, first=3)
    assert len(resumed) == plan.steps - 3
    for (images, labels), (again, same) in zip(whole[3:], resumed, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


def test_an_evaluation_is_not_mixed():
    seen = [labels for _, labels in numbered_and_mixed("batch").batches(0, 1, 7, CPU)]
    assert torch.cat(seen).tolist() == list(range(20))


def test_several_labels_at_once_are_mixed_as_they_are():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    drawn = step_mixing(Mix(mixup=1.0), 0, 0, 2, (2, 4))
    share = float(drawn.labels[0])
    _, found = mixed(torch.zeros(2, 4, dtype=torch.float64), labels, drawn, None)
    torch.testing.assert_close(found, torch.tensor([[share, 0, 1], [1 - share, 0, 1]], dtype=torch.float64))


TINY = {
    "name": "tiny", "model": {"name": "mlp", "width": 4, "depth": 1}, "data": {"name": "digits"}, "device": "cpu",
    "batch": {"global_batch_size": 100}, "epochs": 1, "optimizer": {"name": "sgd"}, "lr": {"base": 0.1},
}  # fmt: skip
BOTH = {"mixup": 0.2, "cutmix": 1.0}
DIGITS = {"name": "digits", "mix": BOTH}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"name": "digits", "mix": {}}}, "data.mix mixes nothing; valid: {mixup: 0.2}, {cutmix: 1.0}, or "),
        (
            {"data": {"name": "digits", "mix": {"mixup": 0.2, "switch": 0.3}}},
            "data.mix.switch = 0.3 has no effect without both of data.mix.mixup and data.mix.cutmix",
        ),
        ({"data": {"name": "digits", "mix": {"mixup": -1}}}, "data.mix.mixup"),
        ({"data": {"name": "digits", "mix": {**BOTH, "per": "image"}}}, "data.mix.per"),
        (
            {"data": {"name": "digits", "mix": BOTH}, "batch": {"global_batch_size": 101}},
            "batch.global_batch_size = 101 does not factor into 1 rank with data.mix, which mixes two by two; nearest "
            "that do: 100 or 102",
        ),
        (
            {"data": DIGITS, "batch": {"global_batch_size": 500, "micro_batch_size": 125}},
            "batch.micro_batch_size = 125 should be a multiple of 2 (data.mix, which mixes two by two)",
        ),
        (
            {"data": DIGITS, "batch": {"global_batch_size": 500}, "sam": {"rho": 0.1, "m": 125}},
            "sam.m = 125 should be a multiple of 2 (data.mix, which mixes two by two)",
        ),
        (
            {"data": DIGITS, "averaging": {"name": "post_local_sgd", "workers": 4, "from_epoch": 0}},
            "batch.global_batch_size = 100 is cut into 25 examples at a time (averaging.workers = 4 and data.mix, "
            "which mixes two by two); they should be a multiple of 2",
        ),
        (
            {
                "data": DIGITS,
                "averaging": {
                    "name": "swap",
                    "stop_at_train_accuracy": 50,
                    "workers": 2,
                    "worker_batch_size": 25,
                    "epochs": 1,
                    "lr": {"base": 0.1},
                },
            },
            "averaging.worker_batch_size = 25 should be at most the 1500 training examples and a multiple of 2, as "
            "data.mix mixes two by two",
        ),
        (
            {"data": {"name": "diabetes", "mix": {"mixup": 0.2}}},
            "data.mix makes soft labels, and the loss of task.name = regression takes none; valid: classification",
        ),
        (
            {"data": {"name": "diabetes", "mix": {"cutmix": 1.0}}},
            "data.mix.cutmix pastes a part of an image, and data.name = diabetes has inputs of 10; valid: data.mix.m",
        ),
        ({"loss": {"threshold": 0.2}}, "loss.threshold = 0.2 has no effect without loss.name = bce"),
        ({"data": {"name": "diabetes"}, "loss": {"name": "bce"}}, "loss.name = bce has no effect on task.name = regre"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as told:
        assemble(config.from_dict({**TINY, **changes}), torch.device("cpu"))
    assert "\n" not in str(told.value)


def test_a_loss_of_ones_own_is_asked_for_soft_labels():
    import largebatch as lb
    from largebatch.tasks.task import takes_soft_labels

    class Focal(lb.Classification):
        def loss(self, outputs, batch):
            return super().loss(outputs, batch)

    class Told(Focal):
        soft_labels = True

    class Renamed(lb.Classification):
        pass

    found = [takes_soft_labels(kind()) for kind in (lb.Classification, Focal, Told, Renamed, lb.Regression)]
    assert found == [True, False, True, True, False]


def test_classes_that_nobody_states_are_asked_for():
    import largebatch as lb

    class Items(list):
        pass

    items = Items([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 2, 2), 1)])
    held = data.sets.REGISTRY.holding("unsaid", lambda: lb.Dataset(items, items))
    with held, pytest.raises(UserError, match=r"does not say; give lb.Dataset outputs="):
        data.built(data.Asked("unsaid", mix=Mix(mixup=0.2)))


def test_mixup_of_numbers_that_are_no_images():
    split = FinishedSplit(TensorSplit((torch.randn(12, 5), torch.arange(12) % 3)), Mix(mixup=0.5, per="pair"), 3)
    (step,) = split.steps(plan_of(12, 12, micro=6, steps=1), 0, 0, CPU, 0)
    for inputs, shares in step:
        assert inputs.shape == (6, 5)
        assert torch.allclose(shares.sum(1), torch.ones(6, dtype=shares.dtype))
        assert math.isfinite(float(inputs.sum()))
