"""One class of several: cross-entropy, judged by the share of right answers.

    loss = − Σᵢ Σ_c q_ic · log softmax(z_i)_c        q = (1 − s)·onehot(y) + s/C        s ``label_smoothing``

s: Szegedy et al. 2016 (arXiv:1512.00567), §7. An evaluation's loss has none. Where there are more than 20 classes an
answer among the five likeliest is counted, too. Models with auxiliary classifiers: largebatch/models/auxiliary.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.errors import LocalError, UserError, first_words
from largebatch.models import auxiliary
from largebatch.plan.score import ACCURACY
from largebatch.tasks.task import Task, check_targets

TOP_FIVE_FROM = 21  # classes


@contextlib.contextmanager
def _other_labels_told(labels: Tensor) -> Iterator[None]:
    """On the CPU, where torch raises an exception at labels that are none of the model's classes."""
    try:
        yield
    except IndexError as error:
        raise LocalError(
            f"labels from {int(labels.min())} to {int(labels.max())} do not fit the model: {first_words(error)}"
        ) from error


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Batches are (inputs, labels (m,) int64); outputs are logits (m, C)."""

    label_smoothing: float = 0.0

    score = ACCURACY
    answers = "classes"

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        if isinstance(smoothing, bool) or not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
            raise UserError(f"task.label_smoothing = {smoothing!r} should be a number from 0 to below 1")

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        with _other_labels_told(batch[1]):
            return auxiliary.cross_entropy(outputs, batch[1], self.label_smoothing)

    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels = auxiliary.logits_of(outputs), batch[1]
        with _other_labels_told(labels):
            loss = F.cross_entropy(logits, labels, reduction="sum")
        sums = {"loss": loss, "correct": (logits.argmax(dim=1) == labels).sum()}
        if logits.shape[1] >= TOP_FIVE_FROM:
            likeliest = logits.topk(5, dim=1).indices
            sums["correct_of_five"] = (likeliest == labels[:, None]).sum()
        return sums

    def numbers(self, sums: dict[str, Tensor]) -> dict[str, float]:
        examples = float(sums["examples"])
        found = {
            "loss": float(sums["loss"]) / examples,
            "accuracy_percent": 100.0 * float(sums["correct"]) / examples,
        }
        if "correct_of_five" in sums:
            found["top5_accuracy_percent"] = 100.0 * float(sums["correct_of_five"]) / examples
        return found

    def answered(self, outputs: Any) -> Tensor:
        return auxiliary.logits_of(outputs).double().softmax(dim=1)

    def check_data(self, batch: Batch, data: str) -> None:
        wanted = "labels that are classes, a whole number (int64) per example"
        fits = lambda labels: labels.dtype == torch.int64 and labels.dim() == 1  # noqa: E731
        check_targets(batch, "classification", data, wanted, fits)

    def check_outputs(self, outputs: Any, batch: Batch, model: str, wanted: int | None) -> None:
        logits = auxiliary.logits_of(outputs)
        classes = "classes" if wanted is None else f"{wanted} classes"
        if not isinstance(logits, Tensor):
            raise UserError(
                f"model {model} gives a {type(outputs).__name__} per example; trained are models that give the logits "
                f"of the {classes}, and with auxiliary ones torchvision's googlenet and inception_v3"
            )
        if logits.dim() != 2 or len(logits) != len(batch[1]) or wanted not in (None, logits.shape[1]):
            raise UserError(f"model {model} gives {tuple(logits.shape[1:])} per example; the data set has {classes}")


TASK = Classification
