"""Training batches after mixup and cutmix (:mod:`largebatch.data.mixing`), of any data set of (inputs, labels).

They are mixed where they are trained on, after all that is done to an example alone, normalisation included. Classes
become soft labels (m, C): what a loss gets of them sums to one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.data.dataset import Placement, Split, Splits
from largebatch.data.mixing import Mixed, step_mixing
from largebatch.data.nested import Batch
from largebatch.data.resident import sent
from largebatch.errors import UserError
from largebatch.plan.batch import PAIR, BatchPlan
from largebatch.recipes.config.mixing import Mix


class MixedSplit:
    """``split``, its training batches mixed; what is evaluated of it is not. ``classes``: None where labels are numbers
    already."""

    def __init__(self, split: Split, how: Mix, classes: int | None) -> None:
        self.split, self.how, self.classes = split, how, classes

    def __len__(self) -> int:
        return len(self.split)

    @property
    def unreadable(self) -> Any:
        return getattr(self.split, "unreadable", None)

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        return self.split.batches(rank, world, batch_size, placement)

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        for stage in plan.stages:
            if stage.micro_batch_size % PAIR:
                raise UserError(
                    f"data.mix mixes examples two by two, and a micro-batch has {stage.micro_batch_size}; it should be "
                    "even"
                )
        for step, micro_batches in enumerate(self.split.steps(plan, rank, first_step, placement, seed), first_step):
            yield self._mixed(micro_batches, plan, rank, step, seed)

    def _mixed(
        self, micro_batches: Iterable[Batch], plan: BatchPlan, rank: int, step: int, seed: int
    ) -> Iterator[Batch]:
        size, held = plan.at(step).global_batch_size, plan.at(step).global_batch_size // plan.world_size
        drawn: Mixed | None = None
        start = 0
        for inputs, labels in micro_batches:
            if drawn is None:
                drawn = step_mixing(self.how, seed, step, size, tuple(inputs.shape))
                drawn = drawn.part(slice(rank * held, (rank + 1) * held))
            yield mixed(inputs, labels, drawn.part(slice(start, start + len(labels))), self.classes)
            start += len(labels)


def mixed(inputs: Tensor, labels: Tensor, drawn: Mixed, classes: int | None) -> tuple[Tensor, Tensor]:
    """``inputs`` (m, ...) and ``labels`` (m,) of ``classes``, or (m, L) floating, each mixed with its neighbour's.

    Labels become (m, C) or stay (m, L), in float32 or wider.
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    numbers = sent(np.column_stack(drawn).astype(np.float64), inputs.device)
    if classes is not None:
        labels = (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)
    weight = numbers[:, 1:2].to(labels.dtype)
    labels = labels * weight + neighbours(labels) * (1 - weight)
    others = neighbours(inputs)
    if (drawn.pixels < 1).any():
        weight = numbers[:, 0].to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
        inputs = inputs * weight + others * (1 - weight)
    if drawn.boxes.any():
        rows, columns = _inside(numbers[:, 2:4], inputs.shape[-2]), _inside(numbers[:, 4:], inputs.shape[-1])
        inputs = torch.where((rows[:, :, None] & columns[:, None, :])[:, None], others, inputs)
    return inputs, labels


def neighbours(rows: Tensor) -> Tensor:
    """Rows 2k and 2k + 1 in each other's place."""
    return rows.unflatten(0, (-1, PAIR)).flip(1).flatten(0, 1)


def _inside(edges: Tensor, side: int) -> Tensor:
    """Which of the places along a side lie from the first edge on and before the second: bool (m, side)."""
    places = torch.arange(side, device=edges.device)
    return (places >= edges[:, :1]) & (places < edges[:, 1:])


def with_mixing(splits: Splits, how: Mix) -> Splits:
    """The data set, its training batches mixed; refused where it has none that can be."""
    example = splits.example
    pair = isinstance(example, (tuple, list)) and [isinstance(part, Tensor) for part in example] == [True, True]
    if not pair or not example[0].is_floating_point():
        raise UserError(f"data.mix needs batches of (inputs, labels), and data.name = {splits.name} gives others")
    inputs, labels = example
    if how.cutmix and inputs.dim() != 4:
        shape = "×".join(map(str, inputs.shape[1:])) or "one number"
        raise UserError(
            f"data.mix.cutmix pastes a part of an image, and data.name = {splits.name} has inputs of {shape}; valid: "
            "data.mix.mixup"
        )
    classes = None if labels.is_floating_point() else splits.outputs
    if classes is None and not labels.is_floating_point():
        raise UserError(
            f"data.mix makes soft labels of as many classes as data.name = {splits.name} has, which does not say; give "
            "lb.Dataset outputs="
        )
    return dataclasses.replace(splits, train=MixedSplit(splits.train, how, classes))


def unmixed(split: Split) -> Split:
    """The split as it is read."""
    return split.split if isinstance(split, MixedSplit) else split
