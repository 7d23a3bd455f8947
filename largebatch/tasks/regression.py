"""One number or several per example: squared error, judged by its mean.

loss = Σᵢ (1/T)·Σ_t (z_it − y_it)²        T targets per example
R²   = 1 − Σ (z − y)² / Σ (y − ȳ)²        over all examples and targets, ȳ the mean of each target over what is
                                          evaluated: the mean over targets, each weighted by its variance
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.plan.score import Score
from largebatch.tasks.task import Task, check_shape, check_targets, is_floating_matrix

ROUNDING = 1e-12  # of the targets' mean square: what the difference of two float64 sums cannot tell from no variance


class Regression(Task):
    """Batches are (inputs, targets (m, T) floating); outputs are (m, T)."""

    score: ClassVar[Score] = Score("squared_error", "squared error", more_is_better=False, tolerance=0.01)

    answers = "numbers"

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return (outputs - batch[1]).square().mean(dim=1).sum()

    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        targets = batch[1].double()
        return {
            "squared_errors": (outputs.double() - targets).square().sum(dim=0),
            "targets": targets.sum(dim=0),
            "squared_targets": targets.square().sum(dim=0),
        }

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        examples = float(sums["examples"])
        error = float(sums["squared_errors"].mean()) / examples
        mean_squares = sums["squared_targets"] / examples
        variance = float((mean_squares - (sums["targets"] / examples).square()).mean())
        varies = variance > ROUNDING * float(mean_squares.mean())
        return {"loss": error, "squared_error": error, "r2": 1 - error / variance if varies else float("nan")}

    def answered(self, outputs: Any) -> Tensor:
        return outputs.double()

    def check_data(self, batch: Batch, data: str) -> None:
        wanted = "targets that are numbers, (examples × targets) floating"
        check_targets(batch, "regression", data, wanted, is_floating_matrix)

    def check_outputs(self, outputs: Any, batch: Batch, model: str, wanted: int | None) -> None:
        check_shape(outputs, batch, model, wanted, "targets")


TASK = Regression
