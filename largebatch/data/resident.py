"""Small sets that live on the device: moved once, gathered and augmented there.

Images are one uint8 tensor (N, H, W, C); channels stand last in storage, so that a channels-last batch is a view of
what was gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from largebatch.data import augment as augmentation
from largebatch.data import nested
from largebatch.data.dataset import Placement, normalised, share
from largebatch.data.draws import keys_of
from largebatch.data.nested import Batch
from largebatch.data.policies import policed
from largebatch.data.sets import leaves_some
from largebatch.data.statistics import Statistics
from largebatch.plan.batch import BatchPlan
from largebatch.recipes.config.mixing import CropWindow

HOLD_OUT_SEED = 20170608
Rows = tuple[np.ndarray, ...]


class TensorSplit:
    """Examples that are rows of ``tensors``, a batch of all of them; read from wherever the placement asks."""

    augment = "none"
    window = augmentation.USUAL
    policy: str | None = None

    def __init__(self, tensors: Batch) -> None:
        nested.check(tensors, "the data set")
        self.tensors = tensors
        self._placed: dict[torch.device, Batch] = {}

    def __len__(self) -> int:
        return nested.examples_of(self.tensors)

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        assert plan.dataset_size == len(self), "the plan was made for another split"
        for step in range(first_step, plan.steps):
            yield self._micro_batches(plan, rank, step, placement, seed)

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        everything = self.resident(placement.device)
        mine = share(len(self), rank, world)
        for start in range(mine.start, mine.stop, batch_size):
            part = slice(start, min(start + batch_size, mine.stop))
            yield self.given(nested.rows_of(everything, part), placement)

    def _micro_batches(self, plan: BatchPlan, rank: int, step: int, placement: Placement, seed: int) -> Iterator[Batch]:
        everything = self.resident(placement.device)
        stage = plan.at(step)
        positions, epochs, mine_of_all = plan.examples_of(step, rank)
        numbers = [mine_of_all]
        if self.augment != "none":
            held = stage.global_batch_size // plan.world_size
            mine = slice(rank * held, (rank + 1) * held)
            padding, alternating = self.window.padding, self.window.flips == "alternating"
            draws = augmentation.step_draws(self.augment, seed, step, stage.global_batch_size, padding)
            numbers += [draw[mine] for draw in draws]
            if alternating:
                numbers[-1] = augmentation.alternating_flips(seed, epochs, mine_of_all)
        on_device = sent(np.stack(numbers), placement.device)
        for micro in range(stage.accumulation_steps):
            part = slice(micro * stage.micro_batch_size, (micro + 1) * stage.micro_batch_size)
            indices, *drawn = (row[part] for row in on_device)
            picked = nested.rows_of(everything, indices)
            if drawn:
                picked = self.augmented(picked, *drawn)
            if self.policy is not None:
                keys = keys_of(seed, positions[part], mine_of_all[part])
                picked = self.policed(picked, keys)
            yield self.given(picked, placement)

    def augmented(self, batch: Batch, *drawn: Tensor) -> Batch:
        raise NotImplementedError

    def policed(self, batch: Batch, keys: np.ndarray) -> Batch:
        raise NotImplementedError

    def given(self, batch: Batch, placement: Placement) -> Batch:
        """Examples as they are kept -> as the model wants them."""
        return placement.placed(batch)

    def resident(self, device: torch.device) -> Batch:
        """All examples on the device; moved there once."""
        if device not in self._placed:
            self._placed[device] = nested.mapped(lambda tensor: tensor.to(device), self.tensors)
        return self._placed[device]


class ResidentSplit(TensorSplit):
    """``images`` uint8 (N, H, W, C) and what belongs to each: ``labels`` (N,), or several (N, L) of 0 and 1."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        statistics: Statistics,
        augment: str = "none",
        policy: str | None = None,
        window: CropWindow | None = None,
    ) -> None:
        assert images.dtype == np.uint8
        assert images.ndim == 4
        kept = labels.astype(np.int64 if labels.ndim == 1 else np.float32)
        super().__init__((torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(kept)))
        self.statistics = statistics
        self.augment, self.policy, self.window = augment, policy, window or augmentation.USUAL

    def policed(self, batch: Batch, keys: np.ndarray) -> Batch:
        """On the CPU, image by image, wherever they live."""
        images, labels = batch
        assert self.policy is not None
        copied = images.cpu() if images.device.type != "cpu" else images.clone()
        return policed(copied, self.policy, keys).to(images.device, non_blocking=True), labels

    def augmented(self, batch: Batch, *drawn: Tensor) -> Batch:
        images, labels = batch
        return augmentation.windows(images, *drawn, how=self.window), labels

    def given(self, batch: Batch, placement: Placement) -> Batch:
        images, labels = batch
        if labels.is_floating_point():
            labels = labels.to(placement.dtype)
        return normalised(images.permute(0, 3, 1, 2), self.statistics, placement), labels


def sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """``numbers`` on the device without making the host wait for it."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def divided(load: Callable[[str], Sequence[np.ndarray]], hold_out: int) -> tuple[Rows, Rows, dict[str, Rows]]:
    """What is trained on, what is judged by, and all that was read for it, by part.

    ``load`` gives the arrays of ``train`` or ``test``, a row for each example, what belongs to each last. Examples that
    are held out stand in for the test set, which is not read then.
    """
    read = {"train": tuple(load("train"))}
    if not hold_out:
        read["test"] = tuple(load("test"))
        return read["train"], read["test"], read
    labels = read["train"][-1]
    leaves_some(hold_out, len(labels))
    mask = held_out(labels, hold_out)
    train, test = (tuple(array[rows] for array in read["train"]) for rows in (~mask, mask))
    return train, test, read


def held_out(labels: np.ndarray, count: int) -> np.ndarray:
    """Which ``count`` examples to hold out (a boolean mask): as many of each class as counts allow; of ``labels`` that
    are several (N, L) or numbers, whichever the draw begins with.

    The choice depends on the labels alone, never on a run's seed, so that every run of a search is
    judged on the same examples.
    """
    rng = np.random.Generator(np.random.PCG64(HOLD_OUT_SEED))
    shuffled = rng.permutation(len(labels))
    if labels.ndim > 1:
        labels = np.zeros(len(labels), dtype=np.int64)
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before it
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    mask = np.zeros(len(labels), dtype=bool)
    mask[shuffled[np.argsort(turn[shuffled], kind="stable")[:count]]] = True
    return mask
