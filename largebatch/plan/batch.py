"""The batch plan: global = micro × accumulation × world, and which examples belong to which step.

An epoch is one seeded permutation of the whole data set (:mod:`largebatch.plan.order`). The epochs
laid end to end form one stream; step ``s`` is the stream's positions ``[s·B, (s+1)·B)``, so a batch
may cross an epoch's edge and no example is dropped. Rank ``r`` of ``w`` takes the ``r``-th contiguous
``B/w`` positions of it: the examples of a step do not depend on the world. A budget of ``E`` epochs
over ``N`` examples is ``ceil(E·N/B)`` full steps; the last one is completed from the next epoch. With phases or a ramp
``B`` changes at the first step that begins at or after the stated epoch: the stream stays, the cuts change. Where a
ramp adapts, the plan is that of a batch that stays, until it grows (:func:`grown`).

With ``repeats`` m (repeated augmentation: Hoffer et al. 2020, arXiv:1901.09335) each example of the stream stands there
m times, one after another, and is drawn for as often. An epoch stays N positions, of N/m examples, so that m epochs see
every example m times. DeiT's sampler draws the N/m of each epoch anew.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from largebatch.errors import UserError
from largebatch.plan import order

PAIR = 2  # examples that mixup and cutmix mix with each other: micro-batches hold whole pairs
TOKEN_PIXELS = 392  # what a token counts like: 256 sequences of 128 tokens are as many as 256 images of 224 pixels


class Examples(NamedTuple):
    """The examples of one rank in one step; three arrays of length B / world."""

    positions: np.ndarray  # int64, place in the stream of epochs: unique over the whole run
    epochs: np.ndarray  # int64, whose order each follows; with repeats an order is that of so many epochs
    indices: np.ndarray  # int64, which example of the training set it is


class Stage(NamedTuple):
    """Steps that share one global batch: those of a phase. A run without phases or a ramp has one stage."""

    first_step: int
    first_example: int  # examples seen before the stage
    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How a run's examples are cut into steps, ranks and micro-batches. Made by :func:`resolve`."""

    dataset_size: int
    world_size: int
    steps: int
    budget_examples: int  # what the schedules call the end: epochs · N, or steps · B
    seed: int
    stages: tuple[Stage, ...]
    repeats: int = 1  # of each example within a global batch

    @property
    def global_batch_size(self) -> int:
        """That of the first stage, like the next two."""
        return self.stages[0].global_batch_size

    @property
    def micro_batch_size(self) -> int:
        return self.stages[0].micro_batch_size

    @property
    def accumulation_steps(self) -> int:
        return self.stages[0].accumulation_steps

    def at(self, step: int) -> Stage:
        """The stage that ``step`` lies in."""
        return self.stages[self.number_at(step)]

    def number_at(self, step: int) -> int:
        """Which stage it is, counted from 0."""
        return bisect.bisect_right(self.stages, step, key=lambda stage: stage.first_step) - 1

    def examples_before(self, step: int) -> int:
        """Examples seen when ``step`` begins."""
        stage = self.at(step)
        return stage.first_example + (step - stage.first_step) * stage.global_batch_size

    def examples_at(self, epoch: float) -> float:
        """The examples of so many epochs; 0.56 · 1,500 is 840, whatever floating point makes of it."""
        return round(epoch * self.dataset_size, 6)

    def when(self, step: int) -> dict[str, Any]:
        """The moment at which ``step`` begins, as records have it."""
        examples = self.examples_before(step)
        return {"step": step, "examples_seen": examples, "epoch": examples / self.dataset_size}

    @property
    def examples(self) -> int:
        """Examples the whole run consumes; at most B − 1 more than the budget."""
        return self.examples_before(self.steps)

    def examples_of(self, step: int, rank: int = 0) -> Examples:
        """What ``rank`` trains on in ``step``, in order; micro-batches are consecutive slices of it."""
        size = self.at(step).global_batch_size
        share = size // self.world_size
        if self.repeats > 1:
            return self._repeated(self.examples_before(step), size, slice(rank * share, (rank + 1) * share))
        start = self.examples_before(step) + rank * share
        positions = np.arange(start, start + share, dtype=np.int64)
        return Examples(positions, *order.of_stream(self.dataset_size, self.seed, start, share))

    def _repeated(self, start: int, size: int, mine: slice) -> Examples:
        """Of the global batch of ``size`` from position ``start`` on; position p is example p // repeats of the stream.

        A batch has the first of each example's positions, then the second of each, and so on: equal ones lie far apart.
        """
        positions = np.arange(start, start + size, dtype=np.int64)
        positions = positions[np.argsort(positions % self.repeats, kind="stable")][mine]
        first = start // self.repeats
        count = (start + size - 1) // self.repeats + 1 - first
        epochs, indices = order.of_stream(self.dataset_size, self.seed, first, count)
        places = positions // self.repeats - first
        return Examples(positions, epochs[places], indices[places])

    def first_step_at(self, examples: float) -> int:
        """The first step at whose end at least ``examples`` have been seen, counted from 1."""
        stage = self.stages[max(0, bisect.bisect_left(self.stages, examples - 1e-6, key=lambda s: s.first_example) - 1)]
        return stage.first_step + math.ceil((examples - stage.first_example) / stage.global_batch_size - 1e-9)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What a micro-batch must be: ``size`` where stated, else at most ``largest``; a multiple of ``multiple_of``; a
    divisor of ``within``, or else of a rank's share."""

    size: int | None = None
    largest: int = 512
    multiple_of: int = 1
    within: int | None = None
    why: str = ""  # which key asks for ``multiple_of`` and ``within``
    size_key: str = "batch.micro_batch_size"  # that states ``size``; empty where none does

    def of(self, share: int) -> int | None:
        """The micro-batch of a rank with ``share`` examples in a step; None where there is none."""
        whole = self.within or share
        if share % whole or whole % self.multiple_of:
            return None
        if self.size is not None:
            return self.size if whole % self.size == 0 and self.size % self.multiple_of == 0 else None
        return self.multiple_of * largest_divisor(whole // self.multiple_of, max(1, self.largest // self.multiple_of))

    def all_of(self, share: int) -> list[int]:
        """Every micro-batch that such a rank may have, the smallest first."""
        return [part for part in divisors(share) if dataclasses.replace(self, size=self.size or part).of(share) == part]

    @property
    def unit(self) -> int:
        """Every rank's share is a multiple of it."""
        return self.within or math.lcm(self.size or 1, self.multiple_of)


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
    growth: tuple[tuple[float, int], ...] = (),
    micro: MicroBatch | None = None,
) -> BatchPlan:
    """Factor the global batch, or refuse it with the nearest sizes that factor.

    Without a ``micro_batch_size`` the largest divisor of B / world up to ``largest_micro_batch`` is taken; ``micro``
    states more. Exactly one of ``epochs`` (fractions allowed) and ``steps`` is the budget. ``growth`` holds (epoch,
    global batch from then on): a new stage begins with the first step at or after its epoch.
    """
    if (epochs is None) == (steps is None):
        raise UserError("give exactly one of epochs and steps as the budget of the run")
    if steps is not None and growth:
        raise UserError("batch.ramp needs the budget in epochs; with steps it would depend on the batch")
    micro = micro or MicroBatch(micro_batch_size, largest_micro_batch)
    sizes = [(0.0, global_batch_size), *growth]
    if steps is None:
        assert epochs is not None
        budget = max(1, round(epochs * dataset_size))
        ends = [*(min(begin * dataset_size, budget) for begin, _ in growth), budget]
        wishes = [
            StageWish("batch.ramp" if begin else "batch.global_batch_size", size, micro, until_examples=end)
            for (begin, size), end in zip(sizes, ends, strict=True)
        ]
    else:
        budget = steps * global_batch_size
        wishes = [StageWish("batch.global_batch_size", global_batch_size, micro, until_step=steps)]
    stages = [(stage, count) for stage, count in cut(wishes, dataset_size, world_size) if count]
    total = sum(count for _, count in stages)
    return BatchPlan(dataset_size, world_size, total, budget, seed, tuple(stage for stage, _ in stages))


def grown(plan: BatchPlan, growth: Sequence[tuple[int, int]]) -> BatchPlan:
    """The plan of a run whose batch has grown: (steps done, global batch from then on), one after another.

    Of ``plan`` the first stage counts. The micro-batch stays, and so do the steps before each growth.
    """
    micro = MicroBatch(plan.micro_batch_size)
    sizes = [plan.global_batch_size, *(size for _, size in growth)]
    wishes = [
        StageWish("batch.ramp", size, micro, until_step=end) for size, (end, _) in zip(sizes, growth, strict=False)
    ]
    wishes.append(StageWish("batch.ramp", sizes[-1], micro, until_examples=plan.budget_examples))
    stages = list(cut(wishes, plan.dataset_size, plan.world_size))
    total = sum(count for _, count in stages)
    return dataclasses.replace(plan, steps=total, stages=tuple(stage for stage, _ in stages))


def repeated(plan: BatchPlan, repeats: int, mixed: bool, key: str = "batch.global_batch_size") -> BatchPlan:
    """The plan with each example ``repeats`` times in a batch, where every batch has so many places.

    Where they are ``mixed``, in twice as many: then no two that are mixed with each other are one example.
    """
    size = min(stage.global_batch_size for stage in plan.stages)
    if repeats > size:
        raise UserError(f"data.repeats = {repeats} is more than {key} = {size}; at most {size // 2 if mixed else size}")
    if mixed and repeats > size // 2 and repeats > 1:
        raise UserError(
            f"data.repeats = {repeats} is more than half of {key} = {size}, where data.mix would mix an example with "
            f"itself; at most {size // 2}"
        )
    return dataclasses.replace(plan, repeats=repeats)


class StageWish(NamedTuple):
    """Steps that are asked for with one global batch, and where they end: exactly one of the last three."""

    key: str  # that says so, for refusals
    global_batch_size: int
    micro: MicroBatch
    until_examples: float | None = None  # the first step at whose end so many have been seen is the last
    until_step: int | None = None  # so many steps are done then, those before it included
    steps: int | None = None


def cut(wishes: Iterable[StageWish], dataset_size: int, world_size: int) -> Iterator[tuple[Stage, int]]:
    """The stages one after another, each with its number of steps: none where its end is reached before it begins."""
    step = example = 0
    for wish in wishes:
        size = wish.global_batch_size
        fitting = factored(wish.key, size, world_size, dataset_size, wish.micro)
        if wish.until_examples is not None:
            steps = math.ceil((wish.until_examples - example) / size - 1e-9)
        else:
            steps = wish.steps if wish.until_step is None else wish.until_step - step
            assert steps is not None
        steps = max(steps, int(step == 0))  # at least 0; the first step has the first stage's batch
        yield Stage(step, example, size, fitting, size // (fitting * world_size)), steps
        step, example = step + steps, example + steps * size


def factored(key: str, global_batch_size: int, world_size: int, dataset_size: int, micro: MicroBatch) -> int:
    """The micro-batch of this global batch, or a refusal with the nearest global batches that have one."""
    if global_batch_size > dataset_size:
        raise UserError(
            f"{key} = {global_batch_size} is larger than the training set; "
            f"at most {dataset_size} examples can be one batch"
        )
    share, rest = divmod(global_batch_size, world_size)
    found = None if rest else micro.of(share)
    if found is None:
        made_of = f"{world_size} ranks" if world_size > 1 else "1 rank"
        if micro.size:
            made_of += f" × micro-batches of {micro.size}"
        if micro.why:
            made_of += f" with {micro.why}"
        if micro.within and micro.within % micro.multiple_of:
            raise UserError(
                f"{key} = {global_batch_size} is cut into {micro.within} examples at a time ({micro.why}); they "
                f"should be a multiple of {micro.multiple_of}"
            )
        if micro.size and micro.size_key and micro.size % micro.multiple_of:
            why = micro.why.removeprefix(f"{micro.size_key} = {micro.size} and ")
            raise UserError(
                f"{micro.size_key} = {micro.size} should be a multiple of {micro.multiple_of}"
                + (f" ({why})" if why else "")
            )
        if micro.within and micro.size and micro.within % micro.size:
            raise UserError(
                f"batch.micro_batch_size = {micro.size} does not divide {micro.within}, as {micro.why} needs; take a "
                "divisor, or leave it out"
            )
        unit = world_size * micro.unit
        near = multiples_near(global_batch_size, unit, dataset_size)
        raise UserError(f"{key} = {global_batch_size} does not factor into {made_of}; nearest that do: {near}")
    if micro.size is None and micro.within is None and 4 * found < min(share, micro.largest):
        near = multiples_near(global_batch_size, world_size * micro.largest, dataset_size)
        raise UserError(
            f"{key} = {global_batch_size} leaves {share} examples per rank, which have no divisor "
            f"between {found} and {micro.largest} for a micro-batch; nearest that do: {near}; or state "
            "batch.micro_batch_size"
        )
    return found


def multiples_near(size: int, unit: int, at_most: int) -> str:
    """``'99 or 102'``: the multiples of ``unit`` on both sides of ``size``, as far as they are possible."""
    below = size // unit * unit
    possible = [str(multiple) for multiple in (below, below + unit) if 0 < multiple <= at_most]
    return " or ".join(possible) or "none within the training set"


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is not above ``at_most``."""
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)


def divisors(number: int) -> list[int]:
    """Ascending."""
    small = [part for part in range(1, int(number**0.5) + 1) if number % part == 0]
    return sorted({*small, *(number // part for part in small)})


def due(step: int, every: int) -> bool:
    """Whether the step that begins after ``step`` steps is one in ``every``; never for 0."""
    return every > 0 and (step + 1) % every == 0
