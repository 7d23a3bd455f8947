"""Random views of training images.

=================== ===================================================================================
``none``            the evaluation view
``flip``            mirrored left to right with probability 1/2
``crop``            4 pixels of raw zero (black, before normalisation) on every side, then a window of
                    the original size at one of the 9 × 9 places, uniformly
``crop_flip``       both; the standard for CIFAR
``resized_crop_flip`` a window of 8 % to 100 % of the area and of aspect ratio 3/4 to 4/3 (log-uniform),
                    resized, then ``flip``: Szegedy et al. 2015, arXiv:1409.4842; the standard for ImageNet
=================== ===================================================================================

Small sets are cropped and flipped in whole micro-batches on the device; the draws are made for the whole
global batch from PCG64 keyed by (seed, step). Image folders draw per example, keyed by (seed, position in
the stream of epochs), in the worker that decodes it. Neither knows of ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from largebatch.errors import UserError, suggestion

RESIDENT = ["none", "flip", "crop", "crop_flip"]
FOLDER = ["none", "flip", "resized_crop_flip"]
PADDING = 4
_STREAM = 0xA7  # sets these draws apart from the epoch permutations, which are keyed by (seed, epoch)


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


class Draws(NamedTuple):
    """The window's corner in the padded image and whether it is mirrored; int64, one per example."""

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray


def step_draws(augment: str, seed: int, step: int, global_batch_size: int) -> Draws:
    """The draws for a whole global batch, in the order of its examples."""
    rng = np.random.Generator(np.random.PCG64([seed, step, _STREAM]))
    corners = rng.integers(0, 2 * PADDING + 1, size=(2, global_batch_size))
    if not augment.startswith("crop"):
        corners = np.full_like(corners, PADDING)
    flip = rng.integers(0, 2, size=global_batch_size)
    return Draws(corners[0], corners[1], flip if augment.endswith("flip") else np.zeros_like(flip))


def windows(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """The drawn window of every image (m, H, W, C), mirrored where ``flip``; on the images' device."""
    count, height, width, channels = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    tall, wide = height + 2 * PADDING, width + 2 * PADDING
    across = torch.arange(width, device=images.device)
    columns = torch.where(flip.view(-1, 1) != 0, width - 1 - across, across) + left.view(-1, 1)
    rows = torch.arange(height, device=images.device) + top.view(-1, 1)
    first = torch.arange(count, device=images.device).view(-1, 1) * tall
    pixels = (first + rows).unsqueeze(2) * wide + columns.unsqueeze(1)
    return padded.view(-1, channels).index_select(0, pixels.flatten()).view(images.shape)


def example_generator(seed: int, position: int) -> np.random.Generator:
    """The generator of the example at ``position`` in the stream of epochs."""
    return np.random.Generator(np.random.PCG64([seed, position, _STREAM]))


def resized_crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of a window of 8–100 % of the area with aspect ratio 3/4–4/3.

    Ten tries; an image so long that none fits gives its largest central window within the ratios.
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(rng.integers(0, width - wide + 1))
            upper = int(rng.integers(0, height - tall + 1))
            return left, upper, left + wide, upper + tall
    wide = min(width, max(1, round(height * 4 / 3)))
    tall = min(height, max(1, round(width * 4 / 3)))
    left, upper = (width - wide) // 2, (height - tall) // 2
    return left, upper, left + wide, upper + tall
