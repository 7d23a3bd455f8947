"""Post-local SGD: from an epoch on K workers step alone, and are averaged every H steps (Lin et al. 2020, 1808.07217).

A worker takes B / K examples of a step, whoever holds it (engines/workers.py).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from largebatch.errors import UserError
from largebatch.methods import AveragedEvery, Built, Decision, Method, MicroBatchWish, Part, in_steps
from largebatch.plan.batch import BatchPlan
from largebatch.recipes import decays
from largebatch.recipes.keys import NonNegativeFloat, PositiveInt, Several

if TYPE_CHECKING:
    from largebatch.checkpoint.pieces import State
    from largebatch.engines.workers import Workers
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step


class PostLocalSgd(Method):
    """From an epoch on every worker steps alone, and the workers are averaged every ``period`` steps (Lin 2020)."""

    KEY = "averaging"
    ROW = "averaging"
    WHOLE = True
    REPLAYED = False
    ALONE = "by turns"

    name: Literal["post_local_sgd"]
    workers: Several  # each takes global_batch_size / workers examples of a step
    period: PositiveInt = 16
    from_epoch: NonNegativeFloat | None = None  # unset: the first epoch of lr.decay

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        if looking := [other.where for other in run.methods.values() if other.ONE_STEP]:
            yield (f"{self.where} has as many gradients and directions as workers; leave out {' and '.join(looking)}")
        if run.phases is not None and self.from_epoch is None:
            yield "averaging.from_epoch is missing; with phases no first epoch of lr.decay stands for it"
        if run.batch.ramp is not None:
            yield f"{self.where} divides one batch among its workers, batch.ramp changes it; choose one"

    def micro_batch(self, run: Run, world_size: int) -> MicroBatchWish:
        size = run.batch.global_batch_size
        if self.workers % world_size or size % self.workers:
            raise UserError(
                f"averaging.workers = {self.workers} does not fit {world_size} ranks and batch.global_batch_size = "
                f"{size}; it should be a multiple of the ranks and divide the batch"
            )
        return MicroBatchWish(f"averaging.workers = {self.workers}", within=size // self.workers)

    def saved(self, states: float) -> float:
        return (self.workers - 1) * (1 + states)

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> LocalSteps:
        begin, epochs = self.begin(run), plan.budget_examples / plan.dataset_size
        examples = plan.examples_at(begin)
        return LocalSteps(self.workers, self.period, begin, examples, epochs, plan.first_step_at(examples), plan.steps)

    def averages(self, run: Run) -> AveragedEvery:
        return AveragedEvery(self.begin(run), self.period)

    def begin(self, run: Run) -> float:
        """The epoch from which workers step alone: as stated, else that of the first decay of the lr."""
        if self.from_epoch is not None:
            return self.from_epoch * run.stretch
        decay = run.lr.decay
        if not decay.epochs:
            jumping = " or ".join(name for name, kind in decays.table().items() if kind.JUMPS)
            raise UserError(
                f"averaging.from_epoch is missing, and lr.decay.name = {decay.name} has no first epoch to stand for "
                f"it; valid: a number of epochs, or lr.decay.name = {jumping}"
            )
        return decay.epochs[0] * run.stretch


@dataclasses.dataclass(frozen=True)
class LocalSteps(Decision):
    workers: int
    period: int
    from_epoch: float
    from_examples: float  # seen
    epochs: float  # of the run
    first: int  # steps before the first that workers make alone
    steps: int  # of the run

    @property
    def words(self) -> str:
        never = ", which is after the end of the run" if self.from_epoch >= self.epochs else ""
        how = f"{self.workers} workers, averaged every {in_steps(self.period)}"
        return f"post-local SGD from epoch {self.from_epoch:g}{never}: {how}"

    @property
    def sets(self) -> int:
        return self.workers

    def averages_after(self, step: int) -> bool:
        """Whether the workers are averaged after so many steps: in turn, and at the end."""
        return step > self.first and ((step - self.first) % self.period == 0 or step == self.steps)

    def first_difference(self, now: LocalSteps, steps: int) -> str | None:
        if min(self.first, steps) != min(now.first, steps):
            return f"began at step {self.first + 1:,} and would begin at step {now.first + 1:,}"
        if self.averages_after(steps) and not now.averages_after(steps):
            since = in_steps((steps - self.first) % self.period)
            return (
                f"averaged its workers after step {steps:,}, the end, {since} after the average before, and would "
                f"average them every {in_steps(self.period)} (averaging.period)"
            )
        return None

    def part(self, job: Built) -> LocalWorkers:
        return LocalWorkers(self, job)


class LocalWorkers(Part):
    """A step becomes one for each worker of this rank."""

    def __init__(self, decision: LocalSteps, job: Built) -> None:
        self.decision, self.plan, self.engine = decision, job.plan, job.engine
        self.workers: Workers | None = None  # until they step alone

    def turns(self, turns: Iterator[Step]) -> Iterator[Step]:
        for step in turns:
            if self.plan.examples_before(step.number) < self.decision.from_examples:
                yield step
            else:
                yield from self.each(step)

    def each(self, step: Step) -> Iterator[Step]:
        """Each of this rank's workers takes its own consecutive part of the rank's examples."""
        workers, count = self.begun(), self.decision.workers
        examples = step.examples // count
        stream, micro_batches = iter(step.micro_batches), examples // self.plan.at(step.number).micro_batch_size
        for worker in range(workers.per_rank):
            workers.enter(worker)
            part = itertools.islice(stream, micro_batches)
            yield step.turn(examples=examples, micro_batches=part, last=None, workers=count)
        step.workers, step.together = count, self.decision.averages_after(step.number + 1)
        if step.together:
            step.lap("communication")
            workers.average()
            step.lap("other")

    def begun(self) -> Workers:
        from largebatch.engines.workers import Workers

        self.workers = self.workers or Workers(self.engine, self.decision.workers)
        return self.workers

    def shown(self) -> AbstractContextManager[Any]:
        """The mean of all workers."""
        return self.workers.shown() if self.workers else nullcontext()

    def save_own(self) -> State:
        return {"workers": self.workers.save_own() if self.workers else []}

    def load(self, state: State, of_ranks: list[State]) -> None:
        if workers := [worker for rank in of_ranks for worker in rank["workers"]]:
            self.begun().load(workers)
