"""What mixup and cutmix draw for a global batch: who is mixed with whom, with which weight, by which box.

    mixup     x̃ = λ·x + (1 − λ)·x′        ỹ = λ·y + (1 − λ)·y′        λ ~ Beta(α, α)      Zhang 2018, arXiv:1710.09412
    cutmix    x̃ = x′ inside a box of √(1 − λ) of each side, x outside; λ of ỹ is the share that is left of x
              the box has its centre anywhere and is cut off at the edges             Yun et al. 2019, arXiv:1905.04899

x′ is the neighbour: places 2k and 2k + 1 of the global batch are mixed with each other. The order of an epoch is a
random permutation, so that is a pairing at random, as any fixed one is (timm's takes i and B − 1 − i). Neither ranks
nor micro-batches cut a pair in two: both hold an even number of examples. What is drawn belongs to (seed, step) and is
drawn for the whole global batch, so any world draws the same.

λ, the kind and the box are drawn once for a global batch, for each pair or for each example: ``per`` (timm's modes
batch, pair and elem). With several devices timm draws once for each device's batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from largebatch.plan.batch import PAIR

if TYPE_CHECKING:
    from largebatch.recipes.config.mixing import Mix

_STREAM = 0x3179  # apart from what is drawn for views


class Mixed(NamedTuple):
    """One row for each example of a global batch."""

    pixels: np.ndarray  # float64 (B,): weight of the example's own pixels; 1 under cutmix, whose box says which are
    labels: np.ndarray  # float64 (B,): weight of its own label
    boxes: np.ndarray  # int64 (B, 4): first and behind the last row, first and behind the last column; empty: 0s

    def part(self, rows: slice) -> Mixed:
        return Mixed(*(drawn[rows] for drawn in self))


def step_mixing(how: Mix, seed: int, step: int, global_batch_size: int, shape: tuple[int, ...]) -> Mixed:
    """For the global batch of ``step``, whose examples have this ``shape``: height and width last."""
    assert global_batch_size % PAIR == 0
    count = {"batch": 1, "pair": global_batch_size // PAIR, "example": global_batch_size}[how.per]
    rng = np.random.Generator(np.random.PCG64([seed, step, _STREAM]))
    is_mixed = rng.random(count) < how.probability
    is_cut = rng.random(count) < how.share_of_cutmix
    weights = [rng.beta(alpha, alpha, count) if alpha else np.ones(count) for alpha in (how.mixup, how.cutmix)]
    weight = np.where(is_mixed, np.where(is_cut, weights[1], weights[0]), 1.0)
    boxes = np.zeros((count, 4), np.int64)
    labels = weight
    if how.cutmix:
        boxes[is_cut] = _boxes(weight, shape[-2], shape[-1], rng)[is_cut]
        cut = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        labels = np.where(is_cut, 1.0 - cut / (shape[-2] * shape[-1]), weight)
    drawn = Mixed(np.where(is_cut, 1.0, weight), labels, boxes)
    return Mixed(*(np.repeat(rows, global_batch_size // count, axis=0) for rows in drawn))


def _boxes(weight: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Of √(1 − weight) of each side, rounded down, cut off at the edges; int64 (n, 4)."""
    edges = []
    for side in (height, width):
        length = (side * np.sqrt(1.0 - weight)).astype(np.int64)
        centre = rng.integers(0, side, len(weight))
        edges += [np.maximum(centre - length // 2, 0), np.minimum(centre + (length + 1) // 2, side)]
    return np.stack(edges, axis=1)
