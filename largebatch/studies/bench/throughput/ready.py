"""Batches that lie ready on the device, so that a loop over them does no data work at all: the ceiling.

They are the training set's own first micro-batches, so shapes, types, layout and numbers are those of a run. Some are
enough: a step takes them in turn, over and over.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch

from largebatch.data import Placement
from largebatch.data.nested import Batch, mapped, tensors_of
from largebatch.machine import distributed
from largebatch.plan.batch import BatchPlan
from largebatch.run.assemble import Job

MOST = 8  # different micro-batches
MOST_BYTES = 2**31  # of all together; one is always there


class Ready:
    """A training split without data work. It is never evaluated."""

    def __init__(self, batches: list[Batch], examples: int) -> None:
        self.kept, self.examples = batches, examples

    def __len__(self) -> int:
        return self.examples

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        endless = itertools.cycle(self.kept)
        for step in range(first_step, plan.steps):
            yield list(itertools.islice(endless, plan.at(step).accumulation_steps))

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        raise AssertionError("ready batches are trained on, not evaluated")


def ready(job: Job) -> Ready:
    """The first micro-batches of the job's training set, copied: a split may use its memory again."""
    split, plan = job.dataset.train, job.plan
    stream = split.steps(plan, distributed.rank(), 0, job.placement, job.run.seed)
    kept: list[Batch] = []
    for batch in itertools.islice(itertools.chain.from_iterable(stream), MOST):
        kept.append(mapped(torch.clone, batch))
        if (len(kept) + 1) * sum(tensor.nbytes for tensor in tensors_of(batch)) > MOST_BYTES:
            break
    return Ready(kept, len(split))
