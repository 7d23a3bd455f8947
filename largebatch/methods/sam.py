"""Sharpness-aware minimisation: a step's gradient is that at w + ρ·g/‖g‖ (Foret et al. 2021; optim/sam.py).

One perturbation for the global batch, or one for each ``m`` examples (m-sharpness), which then are a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from largebatch.errors import UserError
from largebatch.methods import Built, Method, MicroBatchWish, Part
from largebatch.recipes.keys import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.data.nested import Batch
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step


class Sam(Method):
    """Sharpness-aware minimisation: the gradient at w + rho·g/‖g‖ (Foret et al. 2021)."""

    KEY = "sam"
    ROW = "SAM"
    WHOLE = True
    REPLAYED = False

    rho: PositiveFloat = 0.05
    m: PositiveInt | None = None  # examples that share one perturbation (m-sharpness); unset: the global batch

    @property
    def words(self) -> str:
        whose = "the global batch" if self.m is None else f"each {self.m} examples"
        return f"SAM, rho {self.rho:g}, one perturbation for {whose}"

    @property
    def passes(self) -> int:
        return 2

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        for other in run.methods.values():
            if other.AT_WEIGHTS:
                yield f"{other.where} measures gradients at the weights, sam takes them elsewhere; choose one"
            if other.ALONE == "by turns" and self.m is None:
                yield f"{other.where} with sam needs sam.m: workers that step alone share no perturbation"

    def micro_batch(self, run: Run, world_size: int) -> MicroBatchWish | None:
        size, stated, bn = run.batch.global_batch_size, run.batch.stated_micro_batch_size, run.batch.bn_batch_size
        if self.m is None:
            return None
        if stated not in (None, self.m):
            raise UserError(
                f"sam.m = {self.m} needs micro-batches of so many examples; batch.micro_batch_size = {stated} says "
                "otherwise"
            )
        if size % self.m:
            raise UserError(f"sam.m = {self.m} does not divide batch.global_batch_size = {size}; it should")
        if bn is not None and bn > self.m:
            raise UserError(
                f"batch.bn_batch_size = {bn} is more than sam.m = {self.m}, and each of these examples sees weights of "
                f"its own; at most {self.m}"
            )
        return MicroBatchWish(f"sam.m = {self.m}", size=self.m)

    def part(self, job: Built) -> Uphill:
        return Uphill(self, job)


class Uphill(Part):
    """Takes a step's micro-batches to where the weights are at w + ε."""

    def __init__(self, method: Sam, job: Built) -> None:
        from largebatch.optim.sam import Perturbation

        self.job, self.m = job, method.m
        self.weights: list[Tensor] = [
            parameter for parameter in job.engine.model.parameters() if parameter.requires_grad
        ]
        self.perturbation = Perturbation(self.weights, method.rho)

    def turns(self, turns: Iterator[Step]) -> Iterator[Step]:
        from largebatch.steps.step import count_units

        for turn in turns:
            units = count_units(turn, self.job.task, self.job.device)
            turn.micro_batches = self.uphill(turn, turn.micro_batches, units)
            yield turn

    def uphill(self, turn: Step, micro_batches: Iterable[Batch], units: int | Tensor) -> Iterator[Batch]:
        """The micro-batches, each while the weights are at w + ε.

        What the step makes of them is the second look at the same examples: batch norm's statistics stay as the first
        left them.
        """
        from largebatch.models import batch_norm
        from largebatch.steps.step import units_of

        if self.m is None:
            micro_batches = list(micro_batches)
            self.go(turn, micro_batches, units, turn.alone)
        for batch in micro_batches:
            if self.m is not None:
                self.go(turn, *units_of([batch], self.m, self.job.task, self.job.device, alone=True), alone=True)
            with batch_norm.frozen_statistics(self.job.engine.model):
                yield batch
            if self.m is not None:
                self.back(turn)
                turn.lap("data")
        if self.m is None:
            self.back(turn)

    def back(self, turn: Step) -> None:
        turn.lap("backward")
        self.perturbation.undo()

    def go(self, turn: Step, batches: Iterable[Batch], units: int | Tensor, alone: bool) -> None:
        """To w + ε, with the gradient of the mean loss over ``units``: of all ranks, or of this one ``alone``."""
        import torch

        from largebatch.machine import distributed, watchdog

        engine, task = self.job.engine, self.job.task
        total: list[Tensor] | None = None
        for batch in batches:
            turn.lap("forward")
            loss = task.loss(engine.predict(task, batch), batch) / units
            turn.lap("backward")
            gradient = list(torch.autograd.grad(loss, self.weights, materialize_grads=True))
            total = gradient if total is None else list(torch._foreach_add(total, gradient))
            watchdog.alive()
        assert total is not None
        if not alone:
            turn.lap("communication")
            distributed.sum_all_(total)
            turn.lap("backward")
        self.perturbation.apply(total)
