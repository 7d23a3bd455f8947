"""The batch plan: global = micro × accumulation × world, and which examples belong to which step.

An epoch is one seeded permutation of the whole data set (PCG64 keyed by seed and epoch). The epochs
laid end to end form one stream; step ``s`` is the stream's positions ``[s·B, (s+1)·B)``, so a batch
may cross an epoch's edge and no example is dropped. Rank ``r`` of ``w`` takes the ``r``-th contiguous
``B/w`` positions of it: the examples of a step do not depend on the world. A budget of ``E`` epochs
over ``N`` examples is ``ceil(E·N/B)`` full steps; the last one is completed from the next epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from largebatch.errors import UserError


class Examples(NamedTuple):
    """The examples of one rank in one step; three arrays of length B / world."""

    positions: np.ndarray  # int64, place in the stream of epochs: unique over the whole run
    epochs: np.ndarray  # int64, which epoch each position lies in
    indices: np.ndarray  # int64, which example of the training set it is


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How a run's examples are cut into steps, ranks and micro-batches. Made by :func:`resolve`."""

    dataset_size: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    steps: int
    budget_examples: int  # what the schedules call the end: epochs · N, or steps · B
    seed: int

    @property
    def accumulation_steps(self) -> int:
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def examples(self) -> int:
        """Examples the whole run consumes; at most B − 1 more than the budget."""
        return self.steps * self.global_batch_size

    @property
    def steps_per_epoch(self) -> float:
        return self.dataset_size / self.global_batch_size

    def examples_of(self, step: int, rank: int = 0) -> Examples:
        """What ``rank`` trains on in ``step``, in order; micro-batches are consecutive slices of it."""
        share = self.global_batch_size // self.world_size
        start = step * self.global_batch_size + rank * share
        positions = np.arange(start, start + share, dtype=np.int64)
        epochs, places = np.divmod(positions, self.dataset_size)
        indices = np.empty(share, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = epoch_order(self.dataset_size, self.seed, epoch)[places[here]]
        return Examples(positions, epochs, indices)

    def first_step_at(self, examples: float) -> int:
        """The first step at whose end at least ``examples`` have been seen, counted from 1."""
        return math.ceil(examples / self.global_batch_size - 1e-9)


@functools.lru_cache(maxsize=3)
def epoch_order(dataset_size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of ``range(dataset_size)`` that is epoch ``epoch`` of a run with ``seed``."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(dataset_size)
    order.setflags(write=False)
    return order


def resolve(
    *,
    dataset_size: int,
    global_batch_size: int,
    world_size: int = 1,
    micro_batch_size: int | None = None,
    largest_micro_batch: int = 512,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> BatchPlan:
    """Factor the global batch, or refuse it with the nearest sizes that factor.

    Without a ``micro_batch_size`` the largest divisor of B / world up to ``largest_micro_batch`` is
    taken. Exactly one of ``epochs`` (fractions allowed) and ``steps`` is the budget.
    """
    if (epochs is None) == (steps is None):
        raise UserError("give exactly one of epochs and steps as the budget of the run")
    if global_batch_size > dataset_size:
        raise UserError(
            f"batch.global_batch_size = {global_batch_size} is larger than the training set; "
            f"at most {dataset_size} examples can be one batch"
        )
    unit = world_size * (micro_batch_size or 1)
    if global_batch_size % unit:
        made_of = f"{world_size} ranks" if world_size > 1 else "1 rank"
        if micro_batch_size:
            made_of += f" × micro-batches of {micro_batch_size}"
        raise UserError(
            f"batch.global_batch_size = {global_batch_size} does not factor into {made_of}; "
            f"nearest that do: {multiples_near(global_batch_size, unit, dataset_size)}"
        )
    share = global_batch_size // world_size
    micro = micro_batch_size or largest_divisor(share, largest_micro_batch)
    if micro_batch_size is None and 4 * micro < min(share, largest_micro_batch):
        near = multiples_near(global_batch_size, world_size * largest_micro_batch, dataset_size)
        raise UserError(
            f"batch.global_batch_size = {global_batch_size} leaves {share} examples per rank, which have no divisor "
            f"between {micro} and {largest_micro_batch} for a micro-batch; nearest that do: {near}; or state "
            "batch.micro_batch_size"
        )
    if steps is None:
        assert epochs is not None
        budget = max(1, round(epochs * dataset_size))
        steps = math.ceil(budget / global_batch_size)
    else:
        budget = steps * global_batch_size
    return BatchPlan(dataset_size, global_batch_size, micro, world_size, steps, budget, seed)


def multiples_near(size: int, unit: int, at_most: int) -> str:
    """``'99 or 102'``: the multiples of ``unit`` on both sides of ``size``, as far as they are possible."""
    below = size // unit * unit
    possible = [str(multiple) for multiple in (below, below + unit) if 0 < multiple <= at_most]
    return " or ".join(possible) or "none within the training set"


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is not above ``at_most``."""
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)
