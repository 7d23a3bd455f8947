"""An exponential moving average of the weights, evaluated beside the trained ones.

    w_ema ← d·w_ema + (1 − d)·w        after every so many steps; batch norm's statistics as well
    d_t = min(d, (1 + t)/(10 + t))     with a warm-up, after t averages before: TensorFlow's ExponentialMovingAverage

Where workers step alone it follows their mean, whenever they are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from largebatch.methods import Built, Method, Part, in_steps
from largebatch.recipes.keys import Number, PositiveInt, Switch

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.checkpoint.pieces import State
    from largebatch.recipes.config import Run
    from largebatch.steps.evaluate import Evaluation
    from largebatch.steps.step import Step


class Ema(Method):
    """A second set of weights, w_ema <- decay·w_ema + (1 − decay)·w, evaluated beside the trained ones."""

    KEY = "ema"
    ROW = "EMA"
    CHANGES = False
    BESIDE = "their moving average"

    decay: Annotated[float, Field(gt=0, lt=1), Number] = 0.999
    every_steps: PositiveInt = 1
    warmup: Switch = False  # the decay begins small: min(decay, (1 + t)/(10 + t)) after t averages

    @property
    def words(self) -> str:
        begins = ", which begins at 0.1," if self.warmup else ""
        return f"EMA of the weights, decay {self.decay:g}{begins} every {in_steps(self.every_steps)}"

    def decay_after(self, averages: int) -> float:
        """That of the next, where so many were made."""
        return min(self.decay, (1 + averages) / (10 + averages)) if self.warmup else self.decay

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        for other in run.methods.values():
            if other.ALONE == "at the end":
                yield (
                    f"{other.where} ends with an average of its own; ema would follow only what came before: choose one"
                )
            if self.warmup and other.ALONE:
                yield f"ema.warmup = true counts the steps of one set of weights, and {other.where} has several"
        if getattr(run.engine, "weights", "fp32") == "bf16":
            yield "ema cannot follow weights that are kept in bf16; valid: engine.weights = fp32"

    def saved(self, states: float) -> float:
        return 1

    def part(self, job: Built) -> MovingAverageOfRun:
        return MovingAverageOfRun(self, job)


class MovingAverageOfRun(Part):
    """Follows whatever this rank holds of the weights: it is as sharded as they are."""

    def __init__(self, method: Ema, job: Built) -> None:
        from largebatch.optim.averages import MovingAverage
        from largebatch.optim.shards import local

        self.engine, self.method, self.key = job.engine, method, job.task.score.key
        self.statistics = job.engine.statistics()

        def live() -> list[Tensor]:
            weights = [local(parameter).detach() for parameter in self.engine.model.parameters()]
            return [*weights, *self.statistics.values()]

        self.average = MovingAverage(live, method.decay)

    def after(self, step: Step) -> None:
        every = self.method.every_steps
        if step.together if step.workers > 1 else (step.number + 1) % every == 0:
            self.average.follow(self.method.decay_after(step.number // every))  # counted by steps: a resume knows it

    def views(self) -> Mapping[str, AbstractContextManager[Any]]:
        return {"ema": self.average.applied()}

    def results(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        averaged = evaluations.get("ema")
        return {f"ema_test_{self.key}": averaged and averaged.numbers[self.key]}

    def kept(self) -> list[Tensor]:
        return self.average.tensors

    def save(self) -> State:
        from largebatch.checkpoint import pieces

        named = list(self.engine.model.named_parameters())
        return {
            name: pieces.of_parameter(parameter, average)
            for (name, parameter), average in zip(named, self.average.tensors, strict=False)
        }

    def save_own(self) -> State:
        of_norms = self.average.tensors[len(self.average.tensors) - len(self.statistics) :]
        return dict(zip(self.statistics, of_norms, strict=True))

    def load(self, state: State, of_ranks: list[State]) -> None:
        import torch

        from largebatch.engines import states

        statistics = states.statistics_of_this_rank(of_ranks)
        with self.average.applied(), torch.no_grad():
            states.take_weights(self.engine.model, state)
            for name, buffer in self.statistics.items():
                buffer.copy_(statistics[name])
