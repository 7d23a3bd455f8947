"""Outer momentum over any optimizer: every H steps a (Nesterov) step on how far the weights went (optim/outer.py).

With one set of weights MuLoCo-1, or Snoo; over the workers of post-local SGD DiLoCo, from where they step alone: the
outer step follows their average, and each goes on from there with optimizer states of its own. Running statistics of
batch norm stay those of the inner steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from largebatch.errors import UserError
from largebatch.methods import AveragedEvery, Built, Decision, Method, Part, in_steps
from largebatch.plan.batch import BatchPlan
from largebatch.recipes.keys import Number, PositiveFloat, PositiveInt, Switch

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.checkpoint.pieces import State
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step

OF_ONE = 30  # steps, as MuLoCo's


class OuterStep(Method):
    """Every so many steps u <- momentum·u + δ and θ <- θ_ref − lr·(δ + momentum·u), δ the way since the last time."""

    KEY = "outer_momentum"
    ROW = "outer momentum"

    every_steps: PositiveInt | None = None  # unset: 30; where workers are averaged, averaging.period
    lr: PositiveFloat = 0.7
    end_lr: PositiveFloat | None = None  # at step t of T: lr + (end_lr − lr)·(t/T)^power; unset: lr throughout
    power: PositiveFloat = 1.0
    drop_rest: Switch = False  # steps that are left over at the end are dropped: the result is the last outer step's
    momentum: Annotated[float, Field(ge=0, lt=1), Number] = 0.6
    nesterov: Switch = True  # false: θ <- θ_ref − lr·u

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        if getattr(run.engine, "weights", "fp32") == "bf16":
            yield "outer_momentum cannot move weights that are kept in bf16; valid: engine.weights = fp32"
        if self.end_lr is None and self.power != 1:
            yield f"outer_momentum.power = {self.power:g} has no effect without outer_momentum.end_lr"
        if self.drop_rest and any(method.ENDS_EARLY for method in run.methods.values()):
            yield "outer_momentum.drop_rest = true needs to know the last step; leave out what may end the run earlier"
        if self.lr == 1 and not self.momentum and self.end_lr in (None, 1):
            yield (
                "outer_momentum.lr = 1 with outer_momentum.momentum = 0 leaves the weights where they are; leave "
                "outer_momentum out, or choose another of the two"
            )
        if self.every_steps and (averages := averages_of(run)) and self.every_steps % averages.period:
            yield (
                f"outer_momentum.every_steps = {self.every_steps} is no multiple of averaging.period = "
                f"{averages.period}, and between two averages no weights are those of all workers"
            )

    @property
    def counts_on_steps(self) -> bool:
        return self.end_lr is not None or self.drop_rest

    def saved(self, states: float) -> float:
        return 2

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> OuterSteps:
        averages = averages_of(run)
        first = 0 if averages is None else plan.first_step_at(plan.examples_at(averages.from_epoch))
        every = self.every_steps or (OF_ONE if averages is None else averages.period)
        if (steps := plan.steps - first) <= 0:
            raise UserError("outer_momentum begins where workers step alone, and averaging does so after the run's end")
        if steps < every:
            since = " from averaging.from_epoch on" if first else ""
            raise UserError(
                f"outer_momentum.every_steps = {every} is more than the {in_steps(steps)} of the run{since}; at most "
                f"{steps}"
            )
        return OuterSteps(self, first, every, plan.steps, averages)


def averages_of(run: Run) -> AveragedEvery | None:
    """Of the run's workers; None: there is one set of weights."""
    return next((found for method in run.methods.values() if (found := method.averages(run)) is not None), None)


@dataclasses.dataclass(frozen=True)
class OuterSteps(Decision):
    method: OuterStep
    first: int  # steps before those that it counts
    every: int
    steps: int  # of the run
    averages: AveragedEvery | None  # of workers; None: there is one set of weights

    def lr_after(self, steps: int) -> float:
        """Of the outer step after so many steps of the run."""
        method = self.method
        if method.end_lr is None:
            return method.lr
        return method.lr + (method.end_lr - method.lr) * (steps / self.steps) ** method.power

    @property
    def words(self) -> str:
        lr, momentum = f"{self.method.lr:g}", f"{self.method.momentum:g}"
        if self.method.end_lr is not None:
            lr += f" to {self.method.end_lr:g}" + (f" by power {self.method.power:g}" if self.method.power != 1 else "")
        kind = "Nesterov" if self.method.nesterov else "heavy-ball"
        how = f"{kind}, lr {lr}, momentum {momentum}" if self.method.momentum else f"lr {lr}, no momentum (lookahead)"
        whose = "" if self.averages is None else f", on the workers' mean, from step {self.first + 1:,} on"
        left = (self.steps - self.first) % self.every
        none = "dropped" if self.method.drop_rest else "none"
        verb = ("is" if left == 1 else "are") if self.method.drop_rest else ("has" if left == 1 else "have")
        after = f"; the last {in_steps(left)} {verb} {none}" if left > 0 else ""
        return f"outer momentum every {in_steps(self.every)}: {how}{whose}{after}"

    def first_difference(self, now: OuterSteps, steps: int) -> str | None:
        if min(self.first, steps) == min(now.first, steps):  # how often is the recipe's, and so the same
            return None
        return f"began at step {self.first + 1:,} and would begin at step {now.first + 1:,}"

    def part(self, job: Built) -> OuterOfRun:
        return OuterOfRun(self, job)


class OuterOfRun(Part):
    """Anchor and momentum are as sharded as the weights that it moves."""

    def __init__(self, decision: OuterSteps, job: Built) -> None:
        from largebatch.methods._trained import TrainedWeights
        from largebatch.optim.outer import OuterMomentum

        method = decision.method
        self.decision, self.engine = decision, job.engine
        self.trained = TrainedWeights(job.engine)
        self.outer = OuterMomentum(self.trained.live, method.lr, method.momentum, method.nesterov)

    def before(self, step: Step) -> None:
        if step.number == self.decision.first:
            self.outer.begin()

    def after(self, step: Step) -> None:
        made = step.number + 1 - self.decision.first
        due = made > 0 and made % self.decision.every == 0
        dropped = self.decision.method.drop_rest and step.number + 1 == self.decision.steps and not due
        if not due and not dropped:
            return
        step.lap("optimizer")
        if due:
            self.outer.lr = self.decision.lr_after(step.number + 1)
            self.outer.step()
        else:
            self.outer.back()
        self.engine.take_up_weights()
        step.lap("other")

    def kept(self) -> list[Tensor]:
        return [*self.outer.anchors, *self.outer.buffers]

    def save(self) -> State:
        saved = self.trained.saved
        return {"anchor": saved(self.outer.anchors), "momentum": saved(self.outer.buffers)}

    def load(self, state: State, of_ranks: list[State]) -> None:
        self.trained.take(self.outer.anchors, state["anchor"])
        self.trained.take(self.outer.buffers, state["momentum"])
