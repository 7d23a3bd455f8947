"""Schedule-free training over any optimizer without momentum (optim/schedule_free.py).

The model holds y, where gradients are taken; judged and saved is the average x. Batch norm's statistics belong to y in
training, so that they are recomputed over training examples for each evaluation, as the authors ask for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from largebatch.methods import Built, Method, Part
from largebatch.recipes.keys import Number

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.checkpoint.pieces import State
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step

MOMENTUM = ("momentum", "beta1")
AVERAGES = ("ema", "lawa", "outer_momentum")


class ScheduleFreeAverage(Method):
    """Gradients at y = (1 − beta)·z + beta·x, the optimizer's steps in z, their weighted mean x is what is judged."""

    KEY = "schedule_free"
    ROW = "schedule-free"
    SWITCH = True
    RECOMPUTES = True
    STALE_STATISTICS = True

    beta: Annotated[float, Field(ge=0, lt=1), Number] = 0.9

    @property
    def words(self) -> str:
        return f"schedule-free: gradients at {1 - self.beta:.3g}·z + {self.beta:g}·x; the average x is judged and saved"

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        from largebatch.recipes import config

        for key in MOMENTUM:
            if value := getattr(run.optimizer, key, 0):
                yield (
                    f"schedule_free.beta takes the place of momentum, and optimizer.{key} is {value:g}; valid: "
                    f"optimizer.{key} = 0"
                )
        for name, other in run.methods.items():
            if name in AVERAGES or other.ALONE:
                yield f"schedule_free averages the weights, and {other.where} moves or averages them, too; choose one"
        if getattr(run.engine, "weights", "fp32") == "bf16":
            yield "schedule_free cannot average weights that are kept in bf16; valid: engine.weights = fp32"
        sizes, sides = run.data.image_size, {laid.data.side for laid in config.of_phases(run)}
        if (sizes is not None and sizes.first != sizes.last) or len(sides) > 1:
            yield (
                "schedule_free recomputes batch norm's statistics over images of one side, and data.image_size has "
                "several; choose one"
            )

    def saved(self, states: float) -> float:
        return 1

    def part(self, job: Built) -> ScheduleFreeOfRun:
        return ScheduleFreeOfRun(self, job)


class ScheduleFreeOfRun(Part):
    """x and z are as sharded as the weights."""

    def __init__(self, method: ScheduleFreeAverage, job: Built) -> None:
        from largebatch.methods._trained import TrainedWeights
        from largebatch.optim.schedule_free import ScheduleFree

        self.engine = job.engine
        self.trained = TrainedWeights(job.engine)
        self.weights = ScheduleFree(self.trained.live, method.beta)

    def after(self, step: Step) -> None:
        if step.skipped:
            return
        step.lap("optimizer")
        self.weights.follow(step.lr)
        self.engine.take_up_weights()
        step.lap("other")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self.weights.applied():
            self.engine.take_up_weights()
            yield
        self.engine.take_up_weights()

    def kept(self) -> list[Tensor]:
        return [*self.weights.fast, *self.weights.mean]

    def save(self) -> State:
        fast = self.trained.saved(self.weights.fast)
        return {"z": fast, "largest_lr": self.weights.largest_lr, "total": self.weights.total}

    def load(self, state: State, of_ranks: list[State]) -> None:
        """The model has the checkpoint's weights, which are x."""
        import torch

        torch._foreach_copy_(self.weights.mean, self.weights.live())
        self.trained.take(self.weights.fast, state["z"])
        self.weights.largest_lr, self.weights.total = state["largest_lr"], state["total"]
        self.weights.take_up()
        self.engine.take_up_weights()
