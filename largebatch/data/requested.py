"""A split that a reader reads: requests for micro-batches, answered by worker processes or in the trainer's own."""

from __future__ import annotations

import abc
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from largebatch.data.dataset import Placement, share
from largebatch.data.nested import Batch
from largebatch.data.processes import Helpers, answered
from largebatch.data.streams import in_steps, one_ahead
from largebatch.errors import LocalError
from largebatch.plan.batch import BatchPlan


class ReadRefusal(NamedTuple):
    """Carried back as a value, since an exception leaves a worker wrapped in its traceback."""

    message: str


class RequestedSplit(abc.ABC):
    """``workers`` processes read it; with 0 of them the trainer does."""

    def __init__(self, workers: int, helpers: Helpers | None) -> None:
        self.workers, self.helpers = workers, helpers or Helpers()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def reader(self, seed: int) -> Dataset:
        """What a worker holds: request -> batch, or a ReadRefusal."""

    @abc.abstractmethod
    def of_step(self, plan: BatchPlan, step: int, rank: int) -> Iterator[Any]:
        """A request for each of the rank's micro-batches, in order."""

    @abc.abstractmethod
    def of_evaluation(self, indices: np.ndarray) -> Any:
        """The request for these examples, neither shuffled nor augmented."""

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        assert plan.dataset_size == len(self), "the plan was made for another split"
        requests = (request for step in range(first_step, plan.steps) for request in self.of_step(plan, step, rank))
        return in_steps(self._read(requests, placement, seed), plan, first_step)

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        mine = share(len(self), rank, world)
        starts = range(mine.start, mine.stop, batch_size)
        requests = (self.of_evaluation(np.arange(start, min(start + batch_size, mine.stop))) for start in starts)
        return self._read(requests, placement, seed=0)

    def _read(self, requests: Iterator[Any], placement: Placement, seed: int) -> Generator[Batch, None, None]:
        """The batches asked for, on the device. Closing it ends its workers."""
        return one_ahead(self._placed(self.reader(seed), requests, placement), placement.device)

    def _placed(self, reader: Dataset, requests: Iterator[Any], placement: Placement) -> Generator[Batch, None, None]:
        pinned = placement.device.type == "cuda"
        with closing(answered(reader, requests, self.workers, pinned, self.helpers)) as answers:
            for answer in answers:
                if isinstance(answer, ReadRefusal):
                    raise LocalError(answer.message)
                yield placement.placed(answer)


def parts_of(plan: BatchPlan, step: int) -> Iterator[slice]:
    """A rank's micro-batches, as slices of its share of the step."""
    stage = plan.at(step)
    for number in range(stage.accumulation_steps):
        yield slice(number * stage.micro_batch_size, (number + 1) * stage.micro_batch_size)
