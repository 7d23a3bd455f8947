"""What a model answered, example by example, over all ranks in the order of the split; and what is counted in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.diagnostics import calibration, confusion
from largebatch.machine import distributed
from largebatch.records.evaluation import Calibration, CalibrationBin, EvaluatedClass
from largebatch.tasks.task import Task

TOP = 5  # likeliest classes that are kept of each example
LARGEST_MATRIX = 2_000  # classes


@dataclasses.dataclass(frozen=True)
class Answers:
    """Columns by name, (n,) or (n, k), on the CPU; ``kind`` is the task's word for what they are."""

    kind: str
    columns: dict[str, Tensor]
    names: list[str]  # of the classes, labels or numbers; [] where nobody says

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def name(self, number: int) -> str:
        return self.names[number] if self.names else str(number)


class Collecting:
    """This rank's answers, in the order in which it gives them."""

    def __init__(self, task: Task, names: list[str], top: int = TOP) -> None:
        self.task, self.names, self.top = task, names, top
        self.kept: dict[str, list[Tensor]] = {}

    def take(self, outputs: Any, batch: Batch) -> None:
        if self.task.answers is None:
            return
        answered, truth = self.task.answered(outputs).detach(), batch[1]
        found = {"label": truth, "answer": answered}
        if self.task.answers == "classes":
            found = likeliest(answered, self.top)
            found |= {"label": truth, "brier": calibration.brier(answered, truth)}
        for name, column in found.items():
            self.kept.setdefault(name, []).append(column.cpu())

    def of_all_ranks(self) -> Answers | None:
        """Those of all ranks on rank zero, where shares follow one another; None on others. Collective."""
        own = {name: torch.cat(parts).numpy() for name, parts in self.kept.items()}
        ranks = [one for one in distributed.gather_to_first(own) if one]
        if not ranks:
            return None
        columns = {name: torch.cat([torch.from_numpy(one[name]) for one in ranks]) for name in ranks[0]}
        return Answers(str(self.task.answers), columns, self.names)


def likeliest(probabilities: Tensor, top: int) -> dict[str, Tensor]:
    """The answer, of equally likely ones the first, as an accuracy counts it; and the ``top`` likeliest classes."""
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return {"answer": probabilities.argmax(dim=1), "likeliest": best.indices, "probability": best.values}


def classes_of(answers: Answers, classes: int) -> list[EvaluatedClass]:
    counted = confusion.of_classes(answers.columns["label"], answers.columns["answer"], classes)
    numbers = zip(*(column.tolist() for column in counted), strict=True)
    shares = zip(*(_percent(column) for column in (counted.recall, counted.precision, counted.f1)), strict=True)
    return [
        EvaluatedClass(
            name=answers.name(number), examples=examples, predicted=predicted, right=right,
            recall_percent=recall, precision_percent=precision, f1_percent=f1,
        )
        for number, ((examples, predicted, right), (recall, precision, f1)) in enumerate(
            zip(numbers, shares, strict=True)
        )
    ]  # fmt: skip


def confusion_of(answers: Answers, classes: int) -> list[list[int]] | None:
    """None where it would be larger than anybody reads."""
    if classes > LARGEST_MATRIX:
        return None
    return confusion.matrix(answers.columns["label"], answers.columns["answer"], classes).tolist()


def calibration_of(answers: Answers) -> Calibration:
    right = answers.columns["answer"] == answers.columns["label"]
    found = calibration.binned(answers.columns["probability"][:, 0], right)
    each = zip(found.examples.tolist(), *(_finite(one) for one in (found.confidence, found.accuracy)), strict=True)
    return Calibration(
        expected_error_percent=100 * found.expected_error,
        largest_error_percent=100 * found.largest_error,
        brier=float(answers.columns["brier"].mean()),
        bins=[
            CalibrationBin(above=place / calibration.BINS, examples=count, confidence=confidence, accuracy=accuracy)
            for place, (count, confidence, accuracy) in enumerate(each)
        ],
    )


def _percent(shares: Tensor) -> list[float | None]:
    return _finite(100 * shares)


def _finite(values: Tensor) -> list[float | None]:
    return [value if value == value else None for value in values.tolist()]  # NaN is no number
