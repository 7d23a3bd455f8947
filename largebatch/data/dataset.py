"""What every data set is to the trainer: two splits that give batches, and where their tensors are to lie.

Images reach the model as (raw / 255 − mean) / std, per channel, computed on the placement's device in
the placement's dtype, so that workers and memory hold uint8 only. Randomness belongs to the example: a
split draws its augmentations from generators keyed by what is trained on, never by who trains on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from largebatch.data.contents import Contents
from largebatch.data.nested import Batch, mapped, tensors_of
from largebatch.data.processes import Helpers
from largebatch.data.sizes import Sizes
from largebatch.data.statistics import Statistics
from largebatch.plan.batch import TOKEN_PIXELS, BatchPlan


class Placement(NamedTuple):
    """Where and how the model wants its batches."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def placed(self, batch: Batch) -> Batch:
        """On the device; floating tensors in the dtype, images among them in the layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def there(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.to(self.device, non_blocking=True)
            if tensor.dim() != 4:
                return tensor.to(self.device, self.dtype, non_blocking=True)
            return tensor.to(self.device, self.dtype, non_blocking=True, memory_format=layout)

        return mapped(there, batch)


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
class Splits:
    name: str
    example: Batch  # one (blank) example as an evaluation meets it, on the CPU; ``sizes`` has the sides of training's
    outputs: int | None  # the numbers that a model is to give for each: classes, targets, labels; None: nobody says
    train: Split
    test: Split  # with hold_out > 0: the held-out part of the training set
    source: str  # what the files are and where they lie, for the log
    task: str = "classification"  # what it is for, where the recipe does not say
    classes: list[str] = field(default_factory=list)  # what the outputs are called
    facts: Mapping[str, str] = field(default_factory=dict)  # more to print: augmentation, splits
    pixels: str = "as they are"  # what beside the recipe decides them: who decoded them, at which size they were packed
    preparation: Mapping[str, Any] = field(default_factory=dict)  # how inputs were made, to export; {}: as images are
    contents: Callable[[], Contents] = dict  # which examples it holds, held-out ones among those to train on
    helpers: Helpers = field(default_factory=Helpers)  # the processes that read it
    sizes: Sizes | None = None  # of training examples, where the set gives any: sides of images, lengths of sequences
    sized: Callable[[int], Batch] | None = None  # one blank example of another size; unset: images have another side

    def blank(self, count: int, size: int | None = None) -> Batch:
        """``count`` such examples on the CPU; of another ``size`` if given."""
        example = self.example if self.sized is None or size is None else self.sized(size)

        def repeated(tensor: Tensor) -> Tensor:
            if size is None or tensor.dim() != 4:
                return tensor.repeat_interleave(count, dim=0)
            return torch.zeros(count, tensor.shape[1], size, size, dtype=tensor.dtype)

        return mapped(repeated, example)

    def largest(self, count: int) -> Batch:
        """``count`` blank examples as large as a training step may hold them."""
        return self.blank(count, self.sizes.last if self.sizes else None)

    @property
    def extremes(self) -> list[int | None]:
        """The sizes by which the passes of a run differ most; None for what an evaluation meets."""
        of_training = {self.sizes.first, self.sizes.last} - {self.sizes.evaluate} if self.sizes else set()
        return [None, *sorted(of_training)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the first tensor of an example as an evaluation meets it: channels, height, width of an image."""
        return tuple(tensors_of(self.example)[0].shape[1:])

    @property
    def pixels_per_example(self) -> int:
        """Of the largest that a step may hold: of an image, or what a sequence counts like; else 1."""
        return self.pixels_at(self.sizes.last if self.sizes else None)

    def pixels_at(self, size: int | None) -> int:
        """What the memory of an example of this size goes with."""
        shape = tensors_of(self.blank(1, size))[0].shape[1:]
        if self.sized is not None:
            return TOKEN_PIXELS * shape[0]
        return math.prod(shape[1:]) if len(shape) == 3 else 1


def blank_image(shape: tuple[int, ...]) -> Batch:
    """One black image (C, H, W) with its label."""
    return torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)


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
