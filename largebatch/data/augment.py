"""Random views of training images.

=================== ===================================================================================
``none``            the evaluation view
``flip``            mirrored left to right with probability 1/2
``crop``            p = 4 pixels of raw zero (black, before normalisation) on every side, then a window of
                    the original size at one of the (2p + 1)² places, uniformly
``crop_flip``       both; the standard for CIFAR
``resized_crop_flip`` a window of 8 % to 100 % of the area and of aspect ratio 3/4 to 4/3 (log-uniform),
                    resized, then ``flip``: Szegedy et al. 2015, arXiv:1409.4842; the standard for ImageNet
=================== ===================================================================================

A :class:`~largebatch.recipes.config.mixing.CropWindow` states another p, the image mirrored at its edge in place of
black (its outermost pixels not repeated), and flips that alternate: in epoch e the image of an index is mirrored where

    (bit of (seed, index) + e) mod 2 = 1

(Jordan 2024, arXiv:2404.00498, §3.6), so that any two epochs in turn hold each image once each way round.

``color_jitter`` = s goes beside any of them where images are photographs: brightness, contrast and saturation,
each by a factor uniform in [max(0, 1 − s), 1 + s], in an order drawn per image; torchvision's ColorJitter(s, s, s).

Small sets and packed pixels are drawn for and treated in whole batches; the draws are made for the whole
global batch from PCG64 keyed by (seed, step). Image folders draw per example, keyed by (seed, position in
the stream of epochs), in the worker that decodes it. Neither knows of ranks.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from largebatch.errors import UserError, suggestion
from largebatch.plan.order import mixed, numbered
from largebatch.recipes.config.mixing import CropWindow

RESIDENT = ["none", "flip", "crop", "crop_flip"]
FOLDER = ["none", "flip", "resized_crop_flip"]
USUAL = CropWindow()
AREA = (0.08, 1.0)
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
TRIES = 10
Box = tuple[int, int, int, int]  # left, upper, right, lower
_ORDERS = np.array(list(itertools.permutations(range(3))))
_STREAM = 0xA7  # sets these draws apart from the epoch permutations, which are keyed by (seed, epoch)
_WAY_ROUND = 0xF11B


def resolved(augment: str, standard: str, allowed: list[str], name: str) -> str:
    """``augment``, ``auto`` replaced by the set's ``standard``; refused where it does not suit the set."""
    if augment == "auto":
        return standard
    if augment not in RESIDENT + FOLDER:
        close = suggestion(augment, ["auto", *allowed])
        raise UserError(f"data.augment = {augment!r} is not an augmentation{close}")
    if augment not in allowed:
        valid = ", ".join(["auto", *allowed])
        raise UserError(f"data.augment = {augment!r} does not suit data set {name}; valid: {valid}")
    return augment


def check_window(window: CropWindow | None, augment: str, sides: tuple[int, ...]) -> None:
    """Refuse one by which an image of these sides cannot be augmented, or in which a key has no effect."""
    if window is None:
        return
    if not augment.startswith("crop") and (window.padding, window.fill) != (USUAL.padding, USUAL.fill):
        raise UserError(f"data.window: padding and fill have no effect with data.augment = {augment}; valid: crop_flip")
    if not augment.endswith("flip") and window.flips != USUAL.flips:
        raise UserError(f"data.window.flips has no effect with data.augment = {augment}; valid: flip, crop_flip")
    if window.fill == "reflect" and window.padding >= min(sides):
        raise UserError(
            f"data.window.padding = {window.padding} reflects more than an image of {min(sides)} pixels has; at most "
            f"{min(sides) - 1}"
        )


class Draws(NamedTuple):
    """The window's corner in the padded image and whether it is mirrored; int64, one per example."""

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray


def step_draws(augment: str, seed: int, step: int, global_batch_size: int, padding: int = USUAL.padding) -> Draws:
    """The draws for a whole global batch, in the order of its examples."""
    rng = np.random.Generator(np.random.PCG64([seed, step, _STREAM]))
    corners = rng.integers(0, 2 * padding + 1, size=(2, global_batch_size))
    if not augment.startswith("crop"):
        corners = np.full_like(corners, padding)
    flip = rng.integers(0, 2, size=global_batch_size)
    return Draws(corners[0], corners[1], flip if augment.endswith("flip") else np.zeros_like(flip))


def alternating_flips(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Whether the example of each index is mirrored in its epoch; int64."""
    begun = mixed(np.array([seed], np.uint64) + np.uint64(_WAY_ROUND))
    return (numbered(begun, indices) + epochs.astype(np.uint64) & np.uint64(1)).astype(np.int64)


def windows(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, how: CropWindow = USUAL) -> Tensor:
    """The drawn window of every image (m, H, W, C), mirrored where ``flip``; on the images' device."""
    count, height, width, channels = images.shape
    rows = torch.arange(height, device=images.device) + top.view(-1, 1)
    across = torch.arange(width, device=images.device)
    columns = torch.where(flip.view(-1, 1) != 0, width - 1 - across, across) + left.view(-1, 1)
    if how.fill == "reflect":
        rows, columns = (_reflected(places - how.padding, side) for places, side in ((rows, height), (columns, width)))
    else:
        images = torch.nn.functional.pad(images, (0, 0, *[how.padding] * 4))
    tall, wide = images.shape[1:3]
    first = torch.arange(count, device=images.device).view(-1, 1) * tall
    pixels = (first + rows).unsqueeze(2) * wide + columns.unsqueeze(1)
    picked = images.reshape(-1, channels).index_select(0, pixels.flatten())
    return picked.view(count, height, width, channels)


def _reflected(places: Tensor, side: int) -> Tensor:
    """Places beyond either edge, mirrored at the outermost pixel."""
    places = places.abs()
    return torch.where(places >= side, 2 * (side - 1) - places, places)


def example_generator(seed: int, position: int) -> np.random.Generator:
    """The generator of the example at ``position`` in the stream of epochs."""
    return np.random.Generator(np.random.PCG64([seed, position, _STREAM]))


def resized_crop_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Left, upper, right, lower of a window of 8–100 % of the area with aspect ratio 3/4–4/3.

    Ten tries; an image so long that none fits gives its largest central window within the ratios.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(*LOG_RATIO))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(rng.integers(0, width - wide + 1))
            upper = int(rng.integers(0, height - tall + 1))
            return left, upper, left + wide, upper + tall
    return _central_window(width, height)


def resized_crop_boxes(width: int, height: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` windows as :func:`resized_crop_box` draws them; int64 (count, 4)."""
    boxes = np.tile(np.array(_central_window(width, height)), (count, 1))
    pending = np.arange(count)
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA, size=len(pending))
        ratio = np.exp(rng.uniform(*LOG_RATIO, size=len(pending)))
        sides = np.rint(np.sqrt((area * ratio, area / ratio))).astype(np.int64)
        fits = (sides[0] > 0) & (sides[0] <= width) & (sides[1] > 0) & (sides[1] <= height)
        wide, tall = sides[:, fits]
        left, upper = rng.integers(0, width - wide + 1), rng.integers(0, height - tall + 1)
        boxes[pending[fits]] = np.stack((left, upper, left + wide, upper + tall), axis=1)
        pending = pending[~fits]
        if not len(pending):
            break
    return boxes


def _central_window(width: int, height: int) -> Box:
    wide = min(width, max(1, round(height * 4 / 3)))
    tall = min(height, max(1, round(width * 4 / 3)))
    left, upper = (width - wide) // 2, (height - tall) // 2
    return left, upper, left + wide, upper + tall


class Views(NamedTuple):
    """What is seen of each image of a batch; one row per image."""

    boxes: np.ndarray  # int64 (m, 4): left, upper, right, lower
    flip: np.ndarray  # bool (m,)
    factors: np.ndarray  # float32 (m, 3): of brightness, contrast, saturation; (m, 0) where colours stay
    orders: np.ndarray  # int64 (m, 3): which of the three comes first, second, third; (m, 0)

    def part(self, rows: slice) -> Views:
        return Views(*(drawn[rows] for drawn in self))


def plain_views(box: Box, count: int) -> Views:
    """The same ``box`` of each image, as it is."""
    return Views(
        np.tile(np.array(box), (count, 1)),
        np.zeros(count, bool),
        np.zeros((count, 0), np.float32),
        np.zeros((count, 0), np.int64),
    )


def step_views(
    augment: str, color_jitter: float, seed: int, step: int, global_batch_size: int, side: int, centre: Box
) -> Views:
    """The views of a whole global batch of ``side`` × ``side`` images, in the order of its examples.

    ``centre`` is the window where none is drawn.
    """
    rng = np.random.Generator(np.random.PCG64([seed, step, _STREAM]))
    boxes, flip, factors, orders = plain_views(centre, global_batch_size)
    if augment.endswith("flip"):
        flip = rng.integers(0, 2, size=global_batch_size).astype(bool)
    if augment.startswith("resized_crop"):
        boxes = resized_crop_boxes(side, side, global_batch_size, rng)
    if color_jitter:
        factors, orders = color_draws(color_jitter, global_batch_size, rng)
    return Views(boxes, flip, factors, orders)


def color_draws(color_jitter: float, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The factors and orders of :class:`Views`."""
    factors = rng.uniform(max(0.0, 1 - color_jitter), 1 + color_jitter, size=(count, 3)).astype(np.float32)
    return factors, _ORDERS[rng.integers(0, len(_ORDERS), size=count)]
