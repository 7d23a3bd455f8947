"""The pixels of a set of images in two numbers a channel, by which they are normalised. No torch."""

from __future__ import annotations

import math
from typing import NamedTuple


class Statistics(NamedTuple):
    """Per-channel mean and standard deviation of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def uniform(channels: int) -> Statistics:
    """The statistics of pixels drawn uniformly from [0, 1]."""
    return Statistics((0.5,) * channels, (1 / math.sqrt(12),) * channels)
