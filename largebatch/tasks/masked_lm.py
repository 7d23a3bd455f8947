"""Masked tokens are predicted (Devlin et al. 2018, arXiv:1810.04805), and if asked whether one segment follows another.

    loss = Σᵢ Σ_{j ∈ Mᵢ} −log softmax(z_ij)[t_ij]                over the masked tokens Mᵢ of sequence i
    with next sentences    + Σᵢ |Mᵢ| · (−log softmax(n_i)[y_i])

A unit is a masked token of the *global* batch, whose number varies. So a step's loss is the mean over masked tokens
plus a mean over sequences, each weighted by how many it has to predict; the original's is not weighted, which is the
same where all have as many. An evaluation gives the plain mean, and perplexity = exp(mean loss of a masked token).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.data.text.masks import IGNORED
from largebatch.errors import UserError
from largebatch.plan.score import Score
from largebatch.tasks.task import Task

WANTED = ("tokens", "positions", "labels")
OF_PAIRS = ("segments", "attended", "is_random")


class MaskedLM(Task):
    """Batches are dicts as data.name = text gives them; outputs are logits (m, P, V), for pairs also numbers (m, 2)."""

    units_vary = True
    score: ClassVar[Score] = Score(
        "masked_accuracy_percent", "masked accuracy", "%", more_is_better=True, tolerance=0.5
    )

    def forward(self, model: Any, batch: Batch) -> Any:
        return model(batch["tokens"], batch["positions"], batch.get("segments"), batch.get("attended"))

    def units(self, batch: Batch) -> Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        if "is_random" not in batch:
            return _of_tokens(outputs, batch["labels"])
        logits, follows = outputs
        masked = (batch["labels"] != IGNORED).sum(dim=1)
        return _of_tokens(logits, batch["labels"]) + (masked * _of_sentences(follows, batch)).sum()

    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        logits, follows = outputs if "is_random" in batch else (outputs, None)
        sums = {
            "masked_loss": _of_tokens(logits, batch["labels"]),
            "correct": (logits.argmax(dim=2) == batch["labels"]).sum(),
        }
        if follows is not None:
            sums["next_sentence_loss"] = _of_sentences(follows, batch).sum()
            sums["next_sentence_correct"] = (follows.argmax(dim=1) == batch["is_random"]).sum()
        return sums

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        masked, examples = max(float(sums["units"]), 1.0), float(sums["examples"])
        mean = float(sums["masked_loss"]) / masked
        found = {
            "loss": mean,
            "masked_accuracy_percent": 100.0 * float(sums["correct"]) / masked,
            "perplexity": math.exp(mean) if mean < 700 else math.inf,
        }
        if "next_sentence_loss" in sums:
            found["next_sentence_loss"] = float(sums["next_sentence_loss"]) / examples
            found["next_sentence_accuracy_percent"] = 100.0 * float(sums["next_sentence_correct"]) / examples
            found["loss"] += found["next_sentence_loss"]
        return found

    def check_data(self, batch: Batch, data: str) -> None:
        if not isinstance(batch, dict) or any(key not in batch for key in WANTED):
            raise UserError(
                f"task.name = masked_lm needs batches with {', '.join(WANTED[:-1])} and {WANTED[-1]}, as data.name = "
                f"text gives them; data.name = {data} gives others"
            )

    def check_outputs(self, outputs: Any, batch: Batch, model: str, wanted: int | None) -> None:
        pairs = "is_random" in batch
        if isinstance(outputs, tuple) != pairs:
            whose = "gives no numbers for it" if pairs else "gives numbers for it"
            raise UserError(
                f"data.next_sentence = {str(pairs).lower()} and model {model} {whose}; set data.next_sentence and "
                "model.next_sentence alike"
            )
        logits, places = outputs[0] if pairs else outputs, batch["labels"].shape
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
        if len(shape) != 3 or shape[:2] != places or wanted not in (None, shape[2]):
            raise UserError(
                f"model {model} gives {shape[1:] or type(logits).__name__} for a sequence; wanted are logits of "
                f"{wanted or 'all'} tokens of the vocabulary for each of {places[1]} places"
            )


def _of_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed; 0 where nothing is to be predicted."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def _of_sentences(follows: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(follows, batch["is_random"], reduction="none")


TASK = MaskedLM
