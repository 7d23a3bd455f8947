"""Cross-entropy whose units vary: an example counts as often as its digit says, and a zero not at all."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.plan.score import Score
from largebatch.tasks.task import Task


class Weighted(Task):
    score = Score("perplexity_like", "weighted loss", more_is_better=False, tolerance=0.01)
    units_vary = True

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return (batch[1] * F.cross_entropy(outputs, batch[1], reduction="none")).sum()

    def units(self, batch: Batch) -> Tensor:
        return batch[1].sum()

    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(outputs, batch)}

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        mean = float(sums["loss"]) / float(sums["units"])
        return {"loss": mean, "perplexity_like": mean}


TASK = Weighted
