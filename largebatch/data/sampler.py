"""The examples of a plan, and the shares of an evaluation, for torch's DataLoader.

    sampler = ExactSampler(train, global_batch_size=4096, epochs=90)
    loader = DataLoader(train, batch_sampler=sampler, num_workers=8)
    for micro_batches in sampler.steps(loader):
        ...                                         # backward each, then step

The stream is that of :mod:`largebatch.plan.batch`: which examples a step has depends on the seed and on how many came
before it, and on no world. Torch's DistributedSampler pads or drops, and begins its epoch anew after a resume.

What a loader's workers have fetched ahead was not trained on. So the sampler does not count what it hands out: a step
is done when its last micro-batch was taken from :meth:`ExactSampler.steps`, or when whoever counts steps says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from largebatch.data.dataset import share
from largebatch.data.items import Items
from largebatch.errors import UserError
from largebatch.plan.batch import BatchPlan, resolve

Item = TypeVar("Item")


class InStream(NamedTuple):
    """What a data set is asked for where a sampler gives ``positions``: :class:`SeededDataset` understands it."""

    index: int
    position: int  # in the stream of epochs: unique over the whole run


class ExactSampler(Sampler[list[Any]]):
    """This rank's micro-batches, lists of indices, from the step it stands at to the end of the run.

    One pass of the loader is the run, all epochs of it: a batch may cross an epoch's edge, so that none is padded and
    none dropped. ``global_batch_size`` is that of all ranks together; they take equal shares in micro-batches of
    ``micro_batch_size``, or of the largest divisor up to 512. Exactly one of ``epochs`` and ``steps`` is the budget;
    ``growth`` holds (epoch, global batch from then on). Rank and world are torch.distributed's, or 0 of 1, unless
    given. With ``positions`` a data set gets a :class:`InStream` where it would get an index.

    The length is that of the whole run: ``plan.steps`` times ``plan.accumulation_steps`` where the batch stays.
    """

    def __init__(
        self,
        dataset: Sized,
        global_batch_size: int,
        *,
        epochs: float | None = None,
        steps: int | None = None,
        micro_batch_size: int | None = None,
        growth: tuple[tuple[float, int], ...] = (),
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        positions: bool = False,
    ) -> None:
        self.rank, world_size = ranked(rank, world_size)
        self.plan: BatchPlan = resolve(
            dataset_size=length(dataset),
            global_batch_size=global_batch_size,
            world_size=world_size,
            micro_batch_size=micro_batch_size,
            epochs=epochs,
            steps=steps,
            seed=seed,
            growth=growth,
        )
        self.positions = positions
        self.step = 0  # steps done
        self._counted = True  # whether it has seen them taken

    def __len__(self) -> int:
        plan = self.plan
        ends = [*(stage.first_step for stage in plan.stages[1:]), plan.steps]
        stages = zip(plan.stages, ends, strict=True)
        return sum((end - stage.first_step) * stage.accumulation_steps for stage, end in stages)

    def __iter__(self) -> Iterator[list[Any]]:
        self._counted = False
        return self._micro_batches(self.step)

    def _micro_batches(self, first_step: int) -> Iterator[list[Any]]:
        for step in range(first_step, self.plan.steps):
            examples, size = self.plan.examples_of(step, self.rank), self.plan.at(step).micro_batch_size
            asked: list[Any] = examples.indices.tolist()
            if self.positions:
                asked = list(map(InStream, asked, examples.positions.tolist()))
            yield from (asked[first : first + size] for first in range(0, len(asked), size))

    def steps(self, loader: Iterable[Item]) -> Iterator[Iterator[Item]]:
        """The batches of ``loader``, which has this sampler, by steps; :attr:`step` counts those that were taken whole.

        What the loop leaves of a step is passed over, and is no part of a state that is taken before the next.
        """
        batches = iter(loader)
        for step in range(self.step, self.plan.steps):
            micro_batches = self._of_step(batches, step)
            yield micro_batches
            for _ in micro_batches:
                pass

    def _of_step(self, batches: Iterator[Item], step: int) -> Iterator[Item]:
        last = self.plan.at(step).accumulation_steps
        for number in range(1, last + 1):
            batch = next(batches, None)
            if batch is None:
                raise UserError(f"the loader ended in step {step} of {self.plan.steps}; valid: one with this sampler")
            self._counted = True
            if number == last:
                self.step = step + 1
            yield batch

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Where the training stands: after ``step`` steps of the optimizer, or after those that :meth:`steps` gave."""
        if step is None:
            if not self._counted:
                raise UserError(
                    "the sampler does not know what of it was trained on, since workers fetch ahead; valid: "
                    "state_dict(step=...), the optimizer's steps so far, or a loop over sampler.steps(loader)"
                )
            step = self.step
        if not 0 <= step <= self.plan.steps:
            raise UserError(f"step = {step} is none of the run's; valid: 0 to {self.plan.steps}")
        return {
            "step": step,
            "examples_seen": self.plan.examples_before(step),
            "dataset_size": self.plan.dataset_size,
            "seed": self.plan.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there, in any world and with any micro-batch: the next pass begins with the step after it."""
        plan, step = self.plan, int(state["step"])
        now = {"dataset_size": plan.dataset_size, "seed": plan.seed, "examples_seen": plan.examples_before(step)}
        for key, value in now.items():
            if state[key] != value:
                raise UserError(
                    f"the sampler's state has {key} = {state[key]} after {step} steps, and here it is {value}; valid: "
                    "the data set, seed and global batch that it was saved with"
                )
        self.step, self._counted = step, True


class ShareSampler(Sampler[int]):
    """The examples that this rank evaluates: contiguous shares that differ by at most one, each example in one of them.

    It is a loader's ``sampler``; shares may be of unequal numbers of batches, so nothing may be communicated in a
    batch: :func:`largebatch.steps.evaluate.exact_sums`.
    """

    def __init__(self, dataset: Sized, *, rank: int | None = None, world_size: int | None = None) -> None:
        self.share = share(length(dataset), *ranked(rank, world_size))

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)


class SeededDataset(TorchDataset[Any]):
    """``dataset`` with randomness that belongs to the example: the same in any world and after a resume.

    Read through ``ExactSampler(..., positions=True)`` what is drawn for an example follows from ``seed`` and its place
    in the run, as :class:`largebatch.Dataset` has it: ``__getitem__(index, generator)`` gets a ``torch.Generator`` of
    its own, and for ``__getitem__(index)`` the global random states are set, and put back. Read by a plain index, as in
    an evaluation, it follows from the index.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset = dataset
        self._reader = Items(dataset, "training", columns=None, collate=list, seed=seed)

    def __len__(self) -> int:
        return length(self.dataset)

    def __getitem__(self, place: InStream | int) -> Any:
        index, position = place if isinstance(place, tuple) else (place, None)
        return self._reader.drawn(index, position)


def ranked(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """As given, else torch.distributed's, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise UserError("give both of rank and world_size, or neither to take those of torch.distributed")
    if rank is None or world_size is None:
        return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    if not 0 <= rank < world_size:
        raise UserError(f"rank = {rank} is none of {world_size} ranks; valid: 0 to {world_size - 1}")
    return rank, world_size


def length(dataset: Sized) -> int:
    try:
        return len(dataset)
    except TypeError:
        raise UserError(
            f"{type(dataset).__name__} has no length, so nobody knows what an epoch of it is; valid: a data set with "
            "__len__ and __getitem__"
        ) from None
