"""What every data set is to the trainer: two splits of images, and where their pixels are to lie.

Images reach the model as (raw / 255 − mean) / std, per channel, computed on the placement's device in
the placement's dtype, so that workers and memory hold uint8 only. Randomness belongs to the example: a
split draws its augmentations from generators keyed by what is trained on, never by who trains on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from largebatch.batch import BatchPlan
from largebatch.data.contents import Contents
from largebatch.data.processes import Helpers
from largebatch.data.sizes import Sizes

Batch = tuple[Tensor, Tensor]  # images (m, C, H, W) normalised, labels (m,) int64


class Placement(NamedTuple):
    """Where and how the model wants its images."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False


class Split(Protocol):
    """One part of a data set, read for training (``steps``) or for evaluation (``batches``)."""

    def __len__(self) -> int: ...

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        """One item per step from ``first_step`` to ``plan.steps``: this rank's micro-batches, augmented.

        The examples come in the order of ``plan.examples_of(step, rank)``. What is drawn for an example
        depends on ``seed`` and its place in the run alone: the same at any world size, micro-batch size
        and resume point. Take a step's micro-batches before asking for the next step.
        """
        ...

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        """Every example exactly once over all ranks, in order, not augmented.

        Ranks hold contiguous shares that differ by at most one; the last batch of a share may be
        smaller, and a rank without examples yields nothing.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    name: str
    num_classes: int
    image_shape: tuple[int, int, int]  # C, H, W of a test image as the model sees it; ``sizes`` has training's
    train: Split
    test: Split  # with hold_out > 0: the held-out part of the training set
    classes: list[str]
    source: str  # what the files are and where they lie, for the log
    facts: Mapping[str, str] = field(default_factory=dict)  # more to print: augmentation, splits
    pixels: str = "as they are"  # what beside the recipe decides them: who decoded them, at which size they were packed
    contents: Callable[[], Contents] = dict  # which examples it holds, held-out ones among those to train on
    helpers: Helpers = field(default_factory=Helpers)  # the processes that read it
    sizes: Sizes | None = None  # the sides that training images have, where the set gives any side

    @property
    def largest_shape(self) -> tuple[int, int, int]:
        """Of the images that a step may hold."""
        if self.sizes is None:
            return self.image_shape
        return self.image_shape[0], self.sizes.last, self.sizes.last


class Statistics(NamedTuple):
    """Per-channel mean and standard deviation of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalised(images: Tensor, statistics: Statistics, placement: Placement) -> Tensor:
    """(x / 255 − mean) / std of ``images`` (m, C, H, W), levels 0 to 255 in any layout; in the placement's layout."""
    layout = torch.channels_last if placement.channels_last else torch.contiguous_format
    shift, scale = _shift_and_scale(statistics, images.device, placement.dtype)
    return images.to(placement.dtype, memory_format=layout).sub_(shift).mul_(scale)


@functools.lru_cache(maxsize=16)
def _shift_and_scale(statistics: Statistics, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shift = torch.tensor([255 * mean for mean in statistics.mean], dtype=torch.float64)
    scale = torch.tensor([1 / (255 * std) for std in statistics.std], dtype=torch.float64)
    return shift.view(-1, 1, 1).to(device, dtype), scale.view(-1, 1, 1).to(device, dtype)


def share(length: int, rank: int, world: int) -> range:
    """The contiguous part of ``range(length)`` that ``rank`` evaluates; parts differ by at most one."""
    return range(length * rank // world, length * (rank + 1) // world)
