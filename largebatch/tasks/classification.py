"""One class of several: cross-entropy or a binary one of each class, judged by the share of right answers.

    loss = − Σᵢ Σ_c q_ic · log softmax(z_i)_c                                         q = (1 − s)·y + s/C
    loss = − Σᵢ (1/C)·Σ_c [t_ic·log σ(z_ic) + (1 − t_ic)·log(1 − σ(z_ic))]            t = q, or q > τ

y is 1 for the example's class, or what mixup and cutmix make of two examples; s is ``label_smoothing`` (Szegedy et al.
2016, arXiv:1512.00567, §7), of which an evaluation's loss has none. The second is ``kind`` = bce (Wightman et al. 2021,
arXiv:2110.00476, §2): τ is ``threshold``, and ``classes`` = sum leaves the 1/C out. An answer is right where it is the
class with the largest share. Where there are more than 20 classes an
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
    """Batches are (inputs, labels); outputs are logits (m, C). Labels are classes (m,) int64, or shares (m, C)."""

    label_smoothing: float = 0.0
    kind: str = "cross_entropy"  # or bce
    threshold: float | None = None  # of bce, like the next
    classes: str = "mean"  # or sum: of an example's losses

    score = ACCURACY
    soft_labels = True
    answers = "classes"

    def __post_init__(self) -> None:
        for key, share in (("label_smoothing", self.label_smoothing), ("threshold", self.threshold)):
            if key == "threshold" and share is None:
                continue
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
                raise UserError(f"task.{key} = {share!r} should be a number from 0 to below 1")
        for key, choices in (("kind", ("cross_entropy", "bce")), ("classes", ("mean", "sum"))):
            if (chosen := getattr(self, key)) not in choices:
                raise UserError(f"task.{key} = {chosen!r} is not known; valid: {' or '.join(choices)}")
        if self.kind != "bce" and (self.threshold is not None or self.classes != "mean"):
            raise UserError("task.threshold and task.classes have no effect without task.kind = bce")

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        with _other_labels_told(batch[1]):
            if self.kind == "cross_entropy":
                return auxiliary.cross_entropy(outputs, batch[1], self.label_smoothing)
            return auxiliary.summed(outputs, lambda logits: self._binary(logits, batch[1], self.label_smoothing))

    def _binary(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        count = logits.shape[1]
        shares = labels if labels.is_floating_point() else one_hot(labels, count)
        targets = (1 - smoothing) * shares.to(logits.dtype) + smoothing / count
        if self.threshold is not None:
            targets = (targets > self.threshold).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return loss / count if self.classes == "mean" else loss

    def tally(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels = auxiliary.logits_of(outputs), batch[1]
        with _other_labels_told(labels):
            if self.kind == "cross_entropy":
                loss = F.cross_entropy(logits, labels, reduction="sum")
            else:
                loss = self._binary(logits, labels, 0.0)
        classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
        sums = {"loss": loss, "correct": (logits.argmax(dim=1) == classes).sum()}
        if logits.shape[1] >= TOP_FIVE_FROM:
            likeliest = logits.topk(5, dim=1).indices
            sums["correct_of_five"] = (likeliest == classes[:, None]).sum()
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
        logits = auxiliary.logits_of(outputs).double()
        return logits.sigmoid() if self.kind == "bce" else logits.softmax(dim=1)

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


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(m, C) of 0 and 1; on the CPU an IndexError for a label that is none of them, as torch's losses give one."""
    found = torch.zeros(len(labels), classes, device=labels.device)
    try:
        return found.scatter_(1, labels[:, None], 1.0)
    except RuntimeError as error:
        if "out of bounds" in str(error):
            raise IndexError(f"there are {classes} classes") from error
        raise


TASK = Classification
