"""Random erasing: its draws against timm's and torchvision's, what it makes of a batch, any world, any resume."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest, norm
from scipy.stats import ks_2samp as of_one_distribution
from timm.data.random_erasing import RandomErasing as OfTimm
from torchvision.transforms.v2 import RandomErasing as OfTorchvision

from largebatch.data.erasing import step_erasing
from largebatch.data.finishing import FinishedSplit, erased
from largebatch.data.resident import ResidentSplit
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.config.mixing import Erase
from largebatch.run.assemble import assemble
from tests.data.conftest import CPU, pixels
from tests.data.test_resident import PLAIN, global_batches, plan_of

SHAPE = (3, 20, 28)
MANY = 3000


def box_of(image: torch.Tensor) -> list[int]:
    """Of the zeros in an image of ones; all 0 where there are none."""
    rows, columns = ((image[0] == 0).any(dim=side).nonzero().flatten() for side in (1, 0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]


def of_timm(how: Erase) -> list[list[int]]:
    random.seed(3)
    theirs = OfTimm(how.probability, *how.area, min_aspect=how.ratio[0], max_aspect=how.ratio[1], device="cpu")
    return [box_of(theirs(torch.ones(SHAPE))) for _ in range(MANY)]


def of_torchvision(how: Erase) -> list[list[int]]:
    theirs = OfTorchvision(how.probability, scale=how.area, ratio=how.ratio)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [box_of(theirs(torch.ones(SHAPE))) for _ in range(MANY)]


@pytest.mark.parametrize(
    ("how", "peer"),
    [
        (Erase(probability=0.25), of_timm),
        (Erase(probability=0.8, area=(0.1, 0.9)), of_timm),
        (Erase(probability=0.5, area=(0.02, 0.33), ratio=(0.3, 3.3)), of_torchvision),
    ],
)
def test_the_rectangles_are_those_of_timm_and_of_torchvision(how, peer):
    ours = step_erasing(how, seed=0, step=0, global_batch_size=MANY, shape=SHAPE).boxes
    theirs = np.array(peer(how))
    hit = [boxes.any(axis=1) for boxes in (ours, theirs)]
    assert binomtest(int(hit[0].sum()), MANY, max(hit[1].mean(), 1e-9)).pvalue > 1e-4
    for of in (
        lambda b: b[:, 0], lambda b: b[:, 2], lambda b: b[:, 1] - b[:, 0], lambda b: b[:, 3] - b[:, 2],
        lambda b: (b[:, 1] - b[:, 0]) * (b[:, 3] - b[:, 2]),
    ):  # fmt: skip
        assert of_one_distribution(of(ours[hit[0]]), of(theirs[hit[1]])).pvalue > 1e-4


@pytest.mark.parametrize("mode", ["constant", "color", "pixel"])
def test_what_is_put_there(mode):
    images = torch.full((400, *SHAPE), 7.0, dtype=torch.float64)
    drawn = step_erasing(Erase(mode=mode), 1, 2, 400, SHAPE)
    found = erased(images, drawn, mode)
    assert (images == 7).all(), "the batch that is given stays"
    values = []
    for row, (top, bottom, left, right) in enumerate(drawn.boxes.tolist()):
        box = found[row, :, top:bottom, left:right]
        assert (found[row] != 7).sum() == box.numel()
        if mode == "constant":
            assert (box == 0).all()
        elif mode == "color" and box.numel():
            assert (box == box[:, :1, :1]).all()
            values += box[:, 0, 0].tolist()
        else:
            values += box.flatten()[:40].tolist()
    if mode != "constant":
        assert kstest(values, norm.cdf).pvalue > 1e-4


def numbered_and_erased(mode: str) -> FinishedSplit:
    plain = ResidentSplit(pixels(20, 6, 3), np.arange(20), PLAIN, "flip")
    return FinishedSplit(plain, erase=Erase(probability=0.8, mode=mode))  # type: ignore[arg-type]


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 3), (3, 4), (12, 1)])
@pytest.mark.parametrize("mode", ["constant", "color", "pixel"])
def test_an_example_looks_the_same_in_any_world_and_after_a_resume(mode, world, micro):
    whole = global_batches(numbered_and_erased(mode), plan_of(20, 12, micro=12))
    parts = global_batches(numbered_and_erased(mode), plan_of(20, 12, world, micro), first=2)
    for (images, labels), (other_images, other_labels) in zip(whole[2:], parts, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    (plain, _), *_ = global_batches(numbered_and_erased(mode).split, plan_of(20, 12, micro=12))
    assert 0 < (plain != whole[0][0]).sum() < plain.numel()


def test_an_evaluation_is_not_erased():
    seen = [images for images, _ in numbered_and_erased("constant").batches(0, 1, 7, CPU)]
    assert torch.equal(torch.cat(seen), torch.from_numpy(pixels(20, 6, 3)).permute(0, 3, 1, 2).double())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"name": "digits", "erase": {"area": [0.5, 0.2]}},
            "data.erase.area = [0.5, 0.2] should be two numbers in order",
        ),
        (
            {"name": "digits", "erase": {"area": [0.5, 2]}},
            "data.erase.area = [0.5, 2] should be two numbers in order and",
        ),
        ({"name": "digits", "erase": {"probability": 0}}, "data.erase.probability"),
        ({"name": "digits", "erase": {"mode": "noise"}}, "data.erase.mode"),
        (
            {"name": "diabetes", "erase": {}},
            "data.erase puts a rectangle into an image, and data.name = diabetes has in",
        ),
    ],
)
def test_what_cannot_be_erased_is_one_sentence(data, sentence):
    written = {
        "name": "tiny", "model": {"name": "mlp", "width": 4, "depth": 1}, "data": data, "device": "cpu",
        "batch": {"global_batch_size": 100}, "epochs": 1, "optimizer": {"name": "sgd"}, "lr": {"base": 0.1},
    }  # fmt: skip
    with pytest.raises(UserError, match=re.escape(sentence)):
        assemble(config.from_dict(written), torch.device("cpu"))


def test_mirror_images_are_averaged_with_images():
    from largebatch.plan.image_views import ImageViews
    from largebatch.steps.evaluate import judged

    images, weights = torch.randn(5, 3, 4, 6), torch.randn(3 * 4 * 6, 7)
    views = ImageViews(flips=True)
    found = judged(lambda batch: batch[0].flatten(1) @ weights, (images, torch.arange(5)), views)
    mirrored = torch.tensor(np.ascontiguousarray(images.numpy()[:, :, :, ::-1]))
    torch.testing.assert_close(found, 0.5 * images.flatten(1) @ weights + 0.5 * mirrored.flatten(1) @ weights)


def test_mirror_images_need_images():
    written = {
        "name": "tiny", "model": {"name": "mlp", "width": 4, "depth": 1}, "data": {"name": "diabetes"}, "epochs": 1,
        "batch": {"global_batch_size": 38}, "optimizer": {"name": "sgd"}, "lr": {"base": 0.1}, "device": "cpu",
        "evaluate": {"flips": True},
    }  # fmt: skip
    with pytest.raises(
        UserError, match="evaluate.flips = true mirrors images, and data.name = diabetes has inputs of 10"
    ):
        assemble(config.from_dict(written), torch.device("cpu"))
