"""How small images are cropped and mirrored where a recipe says it: by loops over images and epochs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from largebatch import data
from largebatch.data.augment import alternating_flips, step_draws, windows
from largebatch.data.resident import ResidentSplit
from largebatch.data.statistics import Statistics
from largebatch.errors import UserError
from largebatch.recipes.config.mixing import CropWindow, Erase
from tests.data.conftest import pixels
from tests.data.test_resident import global_batches, plan_of

PLAIN = Statistics((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
ALTERNATING = CropWindow(padding=2, fill="reflect", flips="alternating")


def numbered(count: int, augment: str, window: CropWindow, side: int = 6) -> ResidentSplit:
    return ResidentSplit(pixels(count, side, 3), np.arange(count), PLAIN, augment, window=window)


@pytest.mark.parametrize("padding", [1, 2, 4])
@pytest.mark.parametrize("fill", ["black", "reflect"])
def test_a_window_is_cut_from_the_padded_image(fill, padding):
    raw = pixels(40, 6, 3)
    draws = step_draws("crop_flip", 5, 2, 40, padding)
    assert {*draws.top, *draws.left} == set(range(2 * padding + 1))
    found = windows(torch.from_numpy(raw), *map(torch.from_numpy, draws), how=CropWindow(padding=padding, fill=fill))
    mode = {"black": {"mode": "constant"}, "reflect": {"mode": "reflect"}}[fill]
    for row, image in enumerate(raw):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), **mode)
        window = padded[draws.top[row] : draws.top[row] + 6, draws.left[row] : draws.left[row] + 6]
        np.testing.assert_array_equal(found[row].numpy(), window[:, ::-1] if draws.flip[row] else window)


def seen(split: ResidentSplit, plan, first: int = 0, seed: int = 9) -> list[tuple[int, int, bool]]:
    """(epoch, index, mirrored) of every example of the steps from ``first`` on, told by its pixels."""
    raw, found = pixels(len(split), 6, 3), []
    for number, (images, labels) in enumerate(global_batches(split, plan, first, seed), first):
        of_step = [plan.examples_of(number, rank) for rank in range(plan.world_size)]
        epochs = np.concatenate([one.epochs for one in of_step])
        for image, index, epoch in zip(images, labels.tolist(), epochs.tolist(), strict=True):
            straight, turned = raw[index].astype(float), raw[index][:, ::-1].astype(float)
            pixels_ = image.permute(1, 2, 0).numpy()
            assert np.allclose(pixels_, straight) != np.allclose(pixels_, turned)
            found.append((epoch, index, bool(np.allclose(pixels_, turned))))
    return found


def test_two_epochs_in_turn_hold_each_image_once_each_way_round():
    split, plan = numbered(20, "flip", CropWindow(flips="alternating")), plan_of(20, 8, micro=4, steps=15)  # 6 epochs
    everything = seen(split, plan)
    for epoch in range(5):
        pair = sorted((index, turned) for e, index, turned in everything if e in (epoch, epoch + 1))
        assert pair == sorted((index, turned) for index in range(20) for turned in (False, True))


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 4), (4, 2)])
def test_which_way_round_is_the_same_in_any_world_and_after_a_resume(world, micro):
    split = numbered(20, "flip", CropWindow(flips="alternating"))
    whole = seen(split, plan_of(20, 8, micro=8, steps=15))
    assert seen(split, plan_of(20, 8, world, micro, steps=15)) == whole
    assert seen(split, plan_of(20, 8, world, micro, steps=15), first=7) == whole[7 * 8 :]


def test_half_of_the_images_are_mirrored_in_an_epoch_and_which_is_the_seeds():
    indices, epoch = np.arange(50_000), np.zeros(50_000, dtype=np.int64)
    first, other = (alternating_flips(seed, epoch, indices) for seed in (0, 1))
    assert abs(first.mean() - 0.5) < 0.01
    assert abs((first == other).mean() - 0.5) < 0.01
    assert abs((first[1:] == first[:-1]).mean() - 0.5) < 0.01
    assert (first + alternating_flips(0, epoch + 1, indices) == 1).all()


def test_without_a_window_nothing_is_drawn_otherwise():
    plan, usual = plan_of(20, 8), ResidentSplit(pixels(20, 6, 3), np.arange(20), PLAIN, "crop_flip")
    stated = numbered(20, "crop_flip", CropWindow())
    for (one, _), (other, _) in zip(global_batches(usual, plan), global_batches(stated, plan), strict=True):
        assert torch.equal(one, other)


def test_cutout_of_twelve_pixels():
    """Random erasing of one area and one ratio: a square of 12 × 12 at each of the 21 × 21 places."""
    from largebatch.data.erasing import step_erasing

    how = Erase(probability=1, area=(0.140625, 0.140625), ratio=(1, 1))
    boxes = step_erasing(how, 0, 0, 90_000, (3, 32, 32)).boxes
    assert {*(boxes[:, 1] - boxes[:, 0]), *(boxes[:, 3] - boxes[:, 2])} == {12}
    counts = np.bincount(21 * boxes[:, 0] + boxes[:, 2], minlength=441)
    assert len(counts) == 441
    assert abs(counts - 90_000 / 441).max() < 6 * (90_000 / 441) ** 0.5


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"augment": "flip", "window": CropWindow(padding=2)},
            "data.window: padding and fill have no effect with",
        ),
        (
            {"augment": "crop", "window": CropWindow(flips="alternating")},
            "data.window.flips has no effect with",
        ),
        (
            {"augment": "crop", "window": CropWindow(padding=8, fill="reflect")},
            "data.window.padding = 8 reflects",
        ),
    ],
)
def test_what_has_no_effect_is_one_sentence(keys, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        data.build("digits", **keys)


def test_a_set_without_images_has_no_window():
    with pytest.raises(UserError, match=re.escape("data.window")):
        data.build("diabetes", window=ALTERNATING)
