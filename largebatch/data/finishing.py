"""Training batches with what is done last, where they are trained on: random erasing, then mixup and cutmix.

Of any data set of (inputs, labels), after all that a set does itself, normalisation included (:mod:`largebatch.data.
erasing`, :mod:`largebatch.data.mixing`). By mixing, classes become soft labels (m, C): those of an example sum to one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.data.dataset import Placement, Split, Splits
from largebatch.data.erasing import Erased, step_erasing
from largebatch.data.mixing import Mixed, step_mixing
from largebatch.data.nested import Batch
from largebatch.data.resident import sent
from largebatch.data.sets import Asked
from largebatch.errors import UserError
from largebatch.plan.batch import PAIR, BatchPlan
from largebatch.recipes.config.mixing import Erase, Mix


class FinishedSplit:
    """``split``, with its training batches erased and mixed; what is evaluated of it is neither.

    ``classes``: that labels are of; None where they are numbers already.
    """

    def __init__(
        self, split: Split, mix: Mix | None = None, classes: int | None = None, erase: Erase | None = None
    ) -> None:
        self.split, self.mix, self.classes, self.erase = split, mix, classes, erase

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
        for stage in plan.stages if self.mix is not None else ():
            if stage.micro_batch_size % PAIR:
                raise UserError(
                    f"data.mix mixes examples two by two, and a micro-batch has {stage.micro_batch_size}; it should be "
                    "even"
                )
        for step, micro_batches in enumerate(self.split.steps(plan, rank, first_step, placement, seed), first_step):
            yield self._finished(micro_batches, plan, rank, step, seed)

    def _finished(
        self, micro_batches: Iterable[Batch], plan: BatchPlan, rank: int, step: int, seed: int
    ) -> Iterator[Batch]:
        size = plan.at(step).global_batch_size
        held = size // plan.world_size
        start = rank * held
        erasing: Erased | None = None
        mixing: Mixed | None = None
        for inputs, labels in micro_batches:
            rows = slice(start, start + len(inputs))
            if self.erase is not None:
                erasing = erasing or step_erasing(self.erase, seed, step, size, tuple(inputs.shape))
                inputs = erased(inputs, erasing.part(rows), self.erase.mode)
            if self.mix is not None:
                mixing = mixing or step_mixing(self.mix, seed, step, size, tuple(inputs.shape))
                inputs, labels = mixed(inputs, labels, mixing.part(rows), self.classes)
            yield inputs, labels
            start = rows.stop


def erased(images: Tensor, drawn: Erased, mode: str) -> Tensor:
    """``images`` (m, C, H, W) with what is put into the boxes: ``constant``, ``color`` or ``pixel``.

    Normal numbers come from a generator of the images' device, so they are the same in any world on the same kind.
    """
    rows = np.flatnonzero(drawn.boxes.any(axis=1))
    if not len(rows):
        return images
    images = images.clone()
    generator = torch.Generator(images.device)
    for row in rows:
        top, bottom, left, right = drawn.boxes[row].tolist()
        box = images[row, :, top:bottom, left:right]
        if mode == "constant":
            box.zero_()
            continue
        shape = box.shape if mode == "pixel" else (len(box), 1, 1)
        generator.manual_seed(int(drawn.keys[row]))
        box.copy_(torch.randn(shape, generator=generator, device=images.device))
    return images


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


def with_finish(splits: Splits, asked: Asked) -> Splits:
    """The data set with what is done last to its training batches; refused where it has none that can be."""
    example, name = splits.example, splits.name
    key = "data.mix" if asked.mix is not None else "data.erase"
    pair = isinstance(example, (tuple, list)) and [isinstance(part, Tensor) for part in example] == [True, True]
    if not pair or not example[0].is_floating_point():
        raise UserError(f"{key} needs batches of (inputs, labels), and data.name = {name} gives others")
    inputs, labels = example
    if asked.erase is not None and inputs.dim() != 4:
        raise UserError(
            f"data.erase puts a rectangle into an image, and data.name = {name} has inputs of {shown(inputs)}; "
            "leave it out"
        )
    if asked.mix is not None and asked.mix.cutmix and inputs.dim() != 4:
        raise UserError(
            f"data.mix.cutmix pastes a part of an image, and data.name = {name} has inputs of {shown(inputs)}; valid: "
            "data.mix.mixup"
        )
    classes = None if labels.is_floating_point() else splits.outputs
    if asked.mix is not None and classes is None and not labels.is_floating_point():
        raise UserError(
            f"data.mix makes soft labels of as many classes as data.name = {name} has, which does not say; give "
            "lb.Dataset outputs="
        )
    return dataclasses.replace(splits, train=FinishedSplit(splits.train, asked.mix, classes, asked.erase))


def shown(inputs: Tensor) -> str:
    """The shape of one example."""
    return "×".join(map(str, inputs.shape[1:])) or "one number"


def as_read(split: Split) -> Split:
    """What is read, before it is finished."""
    return split.split if isinstance(split, FinishedSplit) else split
