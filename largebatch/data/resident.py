"""Small sets that live on the device: one uint8 tensor (N, H, W, C), moved once, augmented there.

Channels stand last in storage, so that a channels-last batch is a view of what was gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from largebatch.batch import BatchPlan
from largebatch.data import augment as augmentation
from largebatch.data.dataset import Batch, Placement, Statistics, normalised, share

HOLD_OUT_SEED = 20170608


class ResidentSplit:
    """``images`` uint8 (N, H, W, C) and ``labels``, read from wherever the placement asks."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, statistics: Statistics, augment: str = "none") -> None:
        assert images.dtype == np.uint8
        assert images.ndim == 4
        assert len(images) == len(labels)
        self.statistics = statistics
        self.augment = augment
        self._images = torch.from_numpy(np.ascontiguousarray(images))
        self._labels = torch.from_numpy(labels.astype(np.int64))
        self._placed: dict[torch.device, Batch] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        assert plan.dataset_size == len(self), "the plan was made for another split"
        for step in range(first_step, plan.steps):
            yield self._micro_batches(plan, rank, step, placement, seed)

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        images, labels = self.resident(placement.device)
        mine = share(len(self), rank, world)
        for start in range(mine.start, mine.stop, batch_size):
            part = slice(start, min(start + batch_size, mine.stop))
            yield self._as_model_input(images[part], placement), labels[part]

    def _micro_batches(self, plan: BatchPlan, rank: int, step: int, placement: Placement, seed: int) -> Iterator[Batch]:
        images, labels = self.resident(placement.device)
        stage = plan.at(step)
        numbers = [plan.examples_of(step, rank).indices]
        if self.augment != "none":
            held = stage.global_batch_size // plan.world_size
            mine = slice(rank * held, (rank + 1) * held)
            draws = augmentation.step_draws(self.augment, seed, step, stage.global_batch_size)
            numbers += [draw[mine] for draw in draws]
        on_device = _sent(np.stack(numbers), placement.device)
        for micro in range(stage.accumulation_steps):
            part = slice(micro * stage.micro_batch_size, (micro + 1) * stage.micro_batch_size)
            indices, *drawn = (row[part] for row in on_device)
            picked = images.index_select(0, indices)
            if drawn:
                picked = augmentation.windows(picked, *drawn)
            yield self._as_model_input(picked, placement), labels.index_select(0, indices)

    def _as_model_input(self, images: Tensor, placement: Placement) -> Tensor:
        return normalised(images.permute(0, 3, 1, 2), self.statistics, placement)

    def resident(self, device: torch.device) -> Batch:
        """All images, uint8 (N, H, W, C), and labels on the device; moved there once."""
        if device not in self._placed:
            self._placed[device] = (self._images.to(device), self._labels.to(device))
        return self._placed[device]


def _sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """``numbers`` on the device without making the host wait for it."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def held_out(labels: np.ndarray, count: int) -> np.ndarray:
    """Which ``count`` examples to hold out (a boolean mask): as many of each class as counts allow.

    The choice depends on the labels alone, never on a run's seed, so that every run of a search is
    judged on the same examples.
    """
    rng = np.random.Generator(np.random.PCG64(HOLD_OUT_SEED))
    shuffled = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before it
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    mask = np.zeros(len(labels), dtype=bool)
    mask[shuffled[np.argsort(turn[shuffled], kind="stable")[:count]]] = True
    return mask
