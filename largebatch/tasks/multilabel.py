"""Several labels at once: binary cross-entropy for each, judged by the mean average precision.

    loss = − Σᵢ (1/L)·Σ_l [y_il·log σ(z_il) + (1 − y_il)·log(1 − σ(z_il))]
    AP_l = Σ_k (R_k − R_{k−1})·P_k        over the distinct logits of label l as thresholds, from the highest
    mAP  = mean of AP_l over the labels that occur

Precision and recall count over all ranks, so logits are compared after rounding to float16: an evaluation adds up how
many positives and negatives have each of its 65,536 values, and the sum is exact in any world. Ties are one threshold,
as in scikit-learn's ``average_precision_score``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.plan.score import Score
from largebatch.tasks.task import Task, check_shape, check_targets, is_floating_matrix

LEVELS = 1 << 16  # values of a float16


class Multilabel(Task):
    """Batches are (inputs, labels (m, L) floating, 0 or 1); outputs are logits (m, L)."""

    soft_labels = True
    score: ClassVar[Score] = Score(
        "mean_average_precision_percent", "mean average precision", "%", more_is_better=True, tolerance=0.5
    )

    answers = "labels"

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return (
            F.binary_cross_entropy_with_logits(outputs, batch[1].to(outputs.dtype), reduction="sum") / outputs.shape[1]
        )

    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        count = outputs.shape[1]
        places = level_of(outputs) + LEVELS * torch.arange(count, device=outputs.device)
        positives = batch[1] > 0.5
        found = {"loss": self.loss(outputs, batch)}
        for key, those in (("positives", positives), ("negatives", ~positives)):
            found[key] = torch.bincount(places[those], minlength=count * LEVELS).view(count, LEVELS)
        return found

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        found = average_precision(sums["positives"], sums["negatives"])
        occurring = found[~found.isnan()]
        mean = float(occurring.mean()) if len(occurring) else float("nan")
        return {"loss": float(sums["loss"]) / float(sums["examples"]), "mean_average_precision_percent": 100.0 * mean}

    def answered(self, outputs: Any) -> Tensor:
        return outputs.double().sigmoid()

    def check_data(self, batch: Batch, data: str) -> None:
        wanted = "labels that are 0 or 1 for each, (examples × labels) floating"
        check_targets(batch, "multilabel", data, wanted, is_floating_matrix)

    def check_outputs(self, outputs: Any, batch: Batch, model: str, wanted: int | None) -> None:
        check_shape(outputs, batch, model, wanted, "labels")


def level_of(logits: Tensor) -> Tensor:
    """Which of the float16 values in ascending order each rounds to, 0 to 65,535: bits of a sign and a magnitude."""
    bits = (logits.half() + 0.0).view(torch.int16).long()  # + 0: the two zeros are one
    return torch.where(bits < 0, -bits - 1, bits + LEVELS // 2)


def average_precision(positives: Tensor, negatives: Tensor) -> Tensor:
    """Of each label, from how many (L, levels) there are at each level; NaN for a label that does not occur."""
    hits, misses = positives.double().flip(1), negatives.double().flip(1)
    found, wrong = hits.cumsum(1), misses.cumsum(1)
    precision = found / (found + wrong).clamp(min=1)
    return (hits * precision).sum(1) / found[:, -1]


TASK = Multilabel
