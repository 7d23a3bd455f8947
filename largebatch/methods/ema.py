"""An exponential moving average of the weights, evaluated beside the trained ones.

    w_ema ← d·w_ema + (1 − d)·w        after every so many steps; batch norm's statistics as well

Where workers step alone it follows their mean, whenever they are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from largebatch.methods import Built, Method, Part, in_steps
from largebatch.recipes.keys import Number, PositiveInt

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

    @property
    def words(self) -> str:
        return f"EMA of the weights, decay {self.decay:g} every {in_steps(self.every_steps)}"

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        for other in run.methods.values():
            if other.ALONE == "at the end":
                yield (
                    f"{other.where} ends with an average of its own; ema would follow only what came before: choose one"
                )
        if getattr(run.engine, "weights", "fp32") == "bf16":
            yield "ema cannot follow weights that are kept in bf16; valid: engine.weights = fp32"

    def saved(self, states: int) -> int:
        return 1

    def part(self, job: Built) -> MovingAverageOfRun:
        return MovingAverageOfRun(self, job)


class MovingAverageOfRun(Part):
    """Follows whatever this rank holds of the weights: it is as sharded as they are."""

    def __init__(self, method: Ema, job: Built) -> None:
        from largebatch.optim.averages import MovingAverage
        from largebatch.optim.shards import local

        self.engine, self.every_steps, self.key = job.engine, method.every_steps, job.task.score.key
        self.statistics = job.engine.statistics()

        def live() -> list[Tensor]:
            weights = [local(parameter).detach() for parameter in self.engine.model.parameters()]
            return [*weights, *self.statistics.values()]

        self.average = MovingAverage(live, method.decay)

    def after(self, step: Step) -> None:
        if step.together if step.workers > 1 else (step.number + 1) % self.every_steps == 0:
            self.average.follow()

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
