"""Views against torchvision's, and their draws against the distribution of torchvision's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional

from largebatch.data import augment as augmentation
from largebatch.data.views import _weights, by_interpolation, by_matmul, centre_box, coloured
from tests.data.conftest import pixels


def smooth(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Photographs are smoother than noise: a third of both, and hard black and white edges."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(side)[:, None, None] / 9 + rng.uniform(0, 6, (count, 1, side, 3)))
    images = np.clip(128 + 90 * waves + rng.normal(0, 25, waves.shape), 0, 255).astype(np.uint8)
    images[:, ::7] = 255
    images[:, :, ::11] = 0
    return images


def drawn(count: int, side: int, seed: int = 0) -> augmentation.Views:
    return augmentation.step_views("resized_crop_flip", 0.0, seed, 0, count, side, centre_box(side))


def torchvisions(images: np.ndarray, views: augmentation.Views, size: int) -> np.ndarray:
    """One image at a time; (m, 3, S, S) as integers that can be subtracted."""
    result = []
    for image, (left, upper, right, lower), flip in zip(images, views.boxes.tolist(), views.flip, strict=True):
        planar = torch.from_numpy(image).permute(2, 0, 1)
        view = functional.resized_crop(planar, upper, left, lower - upper, right - left, [size, size], antialias=True)
        result.append(functional.horizontal_flip(view) if flip else view)
    return torch.stack(result).numpy().astype(int)


def interpolated(images: np.ndarray, views: augmentation.Views, size: int) -> np.ndarray:
    result = by_interpolation(torch.from_numpy(images), views.boxes.tolist(), views.flip.tolist(), size)
    assert result.dtype == torch.uint8
    assert result.is_contiguous(memory_format=torch.channels_last)
    return result.numpy().astype(int)


def multiplied(
    images: np.ndarray, views: augmentation.Views, size: int, dtype: torch.dtype, device: str = "cpu"
) -> np.ndarray:
    arrays = (torch.from_numpy(array).to(device) for array in (images, views.boxes, views.flip))
    result = by_matmul(*arrays, size, dtype)
    assert result.dtype == torch.uint8
    return result.cpu().numpy().astype(int)


@pytest.mark.worlds
@pytest.mark.parametrize(("side", "size"), [(64, 56), (64, 24), (64, 96), (256, 224), (256, 128), (19, 16), (5, 1)])
@pytest.mark.parametrize("kind", [smooth, lambda count, side: pixels(count, side, 3)])
def test_both_forms_are_torchvisions(kind, side: int, size: int):
    count = 40 if side > 100 else 200
    images, views = kind(count, side), drawn(count, side)
    assert 0 < views.flip.sum() < count
    expected = torchvisions(images, views, size)
    assert abs(interpolated(images, views, size) - expected).max() <= 1
    whole = multiplied(images, views, size, torch.float32)
    assert abs(whole - expected).max() <= 1
    halves = multiplied(images, views, size, torch.float16)
    assert abs(halves - expected).max() <= 1
    assert (halves != whole).mean() < 0.1  # what the docstring says of float16: now and then the next level


@pytest.mark.worlds
def test_float16_moves_no_pixel_by_half_a_level():
    """What both roundings of the device's form cost before the levels are rounded, in float64 beside it."""
    side, size = 256, 224
    images, views = torch.from_numpy(smooth(24, side)).double(), drawn(24, side)
    edges = torch.from_numpy(views.boxes).float().T.view(2, 2, -1)
    levels = []
    for dtype in (torch.float64, torch.float16):
        across, down = _weights(edges[0], edges[1] - edges[0], torch.zeros(2, 24), side, size, dtype).double()
        rows = torch.einsum("mxp,mypc->mycx", across, images).to(dtype).double()
        levels.append(torch.einsum("myp,mpcx->mycx", down, rows))
    assert 0.01 < abs(levels[0] - levels[1]).max() < 0.4


def test_windows_of_one_size_are_cut_exactly():
    images = pixels(6, 32, 3)
    corners = np.array([(0, 0), (4, 4), (0, 4), (4, 1), (2, 2), (3, 2)])
    boxes = np.concatenate((corners, corners + 28), axis=1)
    views = augmentation.plain_views((0, 0, 28, 28), 6)._replace(boxes=boxes, flip=np.arange(6) % 2 == 1)
    for row, view in enumerate(interpolated(images, views, 28)):
        left, upper, right, lower = boxes[row]
        window = images[row, upper:lower, left:right]
        assert np.array_equal(view.transpose(1, 2, 0), window[:, ::-1] if row % 2 else window)
    for dtype in (torch.float32, torch.float16):
        assert np.array_equal(multiplied(images, views, 28, dtype), interpolated(images, views, 28))


def test_the_centre():
    assert centre_box(256) == (16, 16, 240, 240)
    assert centre_box(64) == (4, 4, 60, 60)
    assert centre_box(1) == (0, 0, 1, 1)
    for side in range(1, 300):
        left, upper, right, lower = centre_box(side)
        assert 0 <= left == upper < right == lower <= side
        assert abs((right - left) - 0.875 * side) <= 0.5
        assert 0 <= side - right - left <= 1


def torchvisions_boxes(width: int, height: int, count: int) -> np.ndarray:
    """Columns as ours: left, upper, right, lower."""
    image = torch.empty(1, height, width)
    torch.manual_seed(0)
    rows = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    upper, left, tall, wide = np.array(rows).T
    return np.stack((left, upper, left + wide, upper + tall), axis=1)


@pytest.mark.worlds
@pytest.mark.parametrize(("width", "height"), [(256, 256), (500, 375), (96, 200)])
def test_boxes_are_distributed_as_torchvisions(width: int, height: int):
    ours = augmentation.resized_crop_boxes(width, height, 40_000, np.random.default_rng(0))
    one_by_one = [
        augmentation.resized_crop_box(width, height, augmentation.example_generator(0, n)) for n in range(6000)
    ]
    theirs = torchvisions_boxes(width, height, 12_000)
    assert ours.dtype == np.int64
    for boxes in (ours, np.array(one_by_one)):
        for name, measure in MEASURES.items():
            found = stats.ks_2samp(measure(boxes, width, height), measure(theirs, width, height))
            assert found.pvalue > 1e-3, f"{name}: {found}"
    assert ours[:, :2].min() >= 0
    assert (ours[:, 2] <= width).all()
    assert (ours[:, 3] <= height).all()


MEASURES = {
    "area": lambda b, w, h: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),
    "ratio": lambda b, w, h: (b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]),
    "left": lambda b, w, h: b[:, 0],
    "upper": lambda b, w, h: b[:, 1],
    "right": lambda b, w, h: b[:, 2],
    "lower": lambda b, w, h: b[:, 3],
    "left in what is free": lambda b, w, h: b[:, 0] / np.maximum(1, w - b[:, 2] + b[:, 0]),
    "across and down": lambda b, w, h: b[:, 0] * h - b[:, 1] * w,
}


@pytest.mark.worlds
@pytest.mark.parametrize(("width", "height"), [(256, 40), (40, 300)])
def test_the_central_window_is_as_frequent_as_torchvisions(width: int, height: int):
    def share_of(boxes: np.ndarray) -> float:
        wide, tall = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        sides = (boxes[:, 2] - boxes[:, 0] == wide) & (boxes[:, 3] - boxes[:, 1] == tall)
        corners = (boxes[:, 0] == (width - wide) // 2) & (boxes[:, 1] == (height - tall) // 2)
        return (sides & corners).mean()

    ours = share_of(augmentation.resized_crop_boxes(width, height, 40_000, np.random.default_rng(0)))
    theirs = share_of(torchvisions_boxes(width, height, 8000))
    assert 0.05 < theirs < 0.95
    assert abs(ours - theirs) < 4 * (0.25 / 8000 + 0.25 / 40_000) ** 0.5


def test_an_image_too_long_for_any_window_gives_its_centre():
    for width, height in ((1000, 10), (10, 1000)):
        expected = torchvisions_boxes(width, height, 1)
        boxes = augmentation.resized_crop_boxes(width, height, 5, np.random.default_rng(0))
        assert (boxes == expected).all()


@pytest.mark.worlds
def test_what_a_step_draws():
    centre = centre_box(64)
    views = augmentation.step_views("resized_crop_flip", 0.4, 3, 7, 50_000, 64, centre)
    assert abs(views.flip.mean() - 0.5) < 0.01
    assert len({array.tobytes() for array in (views.flip[::2], views.flip[1::2])}) == 2
    other = [augmentation.step_views("resized_crop_flip", 0.4, *key, 50_000, 64, centre) for key in ((4, 7), (3, 8))]
    for field in ("boxes", "flip", "factors", "orders"):
        assert len({getattr(each, field).tobytes() for each in (views, *other)}) == 3
    again = augmentation.step_views("resized_crop_flip", 0.4, 3, 7, 50_000, 64, centre)
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    plain = augmentation.step_views("none", 0.0, 3, 7, 8, 64, centre)
    assert (plain.boxes == centre).all()
    assert not plain.flip.any()
    assert plain.factors.shape == plain.orders.shape == (8, 0)
    flipped = augmentation.step_views("flip", 0.0, 3, 7, 64, 64, centre)
    assert (flipped.boxes == centre).all()
    assert 0 < flipped.flip.sum() < 64


@pytest.mark.worlds
@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_colours_are_drawn_as_torchvisions(strength: float):
    factors, orders = augmentation.color_draws(strength, 20_000, np.random.default_rng(0))
    jitter = ColorJitter(strength, strength, strength, 0)
    torch.manual_seed(0)
    theirs = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(5000)
    ]
    for kind in range(3):
        known = np.array([row[1 + kind] for row in theirs])
        assert stats.ks_2samp(factors[:, kind], known).pvalue > 1e-3
        low, high = max(0.0, 1 - strength), 1 + strength
        assert low <= factors[:, kind].min() < low + 0.01
        assert high - 0.01 < factors[:, kind].max() <= np.float32(high)
    assert abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.04
    counts = Counter(map(tuple, orders.tolist()))
    known = Counter(tuple(int(turn) for turn in row[0] if turn < 3) for row in theirs)
    assert set(counts) == set(known)
    table = [[counts[order], known[order]] for order in sorted(counts)]
    assert len(table) == 6
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_colours_are_changed_as_torchvision_does():
    count = 60
    images = torch.from_numpy(smooth(count, 24)).permute(0, 3, 1, 2)
    factors, orders = augmentation.color_draws(0.8, count, np.random.default_rng(1))
    given = images.clone()
    found = coloured(images, torch.from_numpy(factors), torch.from_numpy(orders), torch.float64)
    assert torch.equal(images, given)
    change = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    for row in range(count):
        expected: Tensor = images[row].double() / 255
        for kind in orders[row]:
            expected = change[kind](expected, float(factors[row, kind]))
        np.testing.assert_allclose(found[row].numpy(), 255 * expected.numpy(), rtol=0, atol=1e-9)
    assert found.min() == 0
    assert found.max() == 255
    single = coloured(images.float(), torch.from_numpy(factors), torch.from_numpy(orders))
    assert single.dtype == torch.float32
    assert abs(single - found).max() < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("side", "size"), [(256, 224), (256, 128), (64, 96)])
def test_the_device_gives_what_the_processor_gives(side: int, size: int):
    images, views = smooth(64, side), drawn(64, side)
    expected = interpolated(images, views, size)
    for dtype in (torch.float16, torch.float32):
        found = multiplied(images, views, size, dtype, "cuda")
        assert abs(found - expected).max() <= 1
        assert (found != expected).mean() < 0.1
