"""What random erasing draws for a global batch: a rectangle of some images, and what is put there.

    area = u·H·W, u ~ U(area); ratio of height to width = exp(v), v ~ U(log ratio)         Zhong 2017, arXiv:1708.04896

Both sides are rounded and must be smaller than the image's; ten tries, then the image stays. It is the last that is
done to an example alone, after normalisation, so that what is put there has a mean of 0: 0 itself (``constant``), a
normal number for each channel (``color``) or for each pixel (``pixel``). Timm's and torchvision's are this with areas
and ratios of their own. What is drawn belongs to (seed, step) and is drawn for the whole global batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from largebatch.recipes.config.mixing import Erase

TRIES = 10
_STREAM = 0xE5A5  # apart from what is drawn for views and for mixing


class Erased(NamedTuple):
    """One row for each example of a global batch."""

    boxes: np.ndarray  # int64 (B, 4): first and behind the last row, first and behind the last column; all 0: none
    keys: np.ndarray  # int64 (B,): of the generator of what is put there

    def part(self, rows: slice) -> Erased:
        return Erased(*(drawn[rows] for drawn in self))


def step_erasing(how: Erase, seed: int, step: int, global_batch_size: int, shape: tuple[int, ...]) -> Erased:
    """For the global batch of ``step``, whose images have this ``shape``: height and width last."""
    height, width = shape[-2:]
    rng = np.random.Generator(np.random.PCG64([seed, step, _STREAM]))
    keys = rng.integers(0, 2**63 - 1, global_batch_size)
    boxes = np.zeros((global_batch_size, 4), np.int64)
    pending = np.flatnonzero(rng.random(global_batch_size) < how.probability)
    for _ in range(TRIES):
        if not len(pending):
            break
        area = height * width * rng.uniform(*how.area, size=len(pending))
        ratio = np.exp(rng.uniform(*np.log(how.ratio), size=len(pending)))
        sides = np.rint(np.sqrt((area * ratio, area / ratio))).astype(np.int64)
        fits = (sides[0] < height) & (sides[1] < width)
        tall, wide = sides[:, fits]
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        boxes[pending[fits]] = np.stack((top, top + tall, left, left + wide), axis=1)
        pending = pending[~fits]
    return Erased(boxes, keys)
