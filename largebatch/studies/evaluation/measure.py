"""A checkpoint's weights over every example of a split, once, over all ranks: the numbers, and what was answered.

The numbers are those that the run itself recorded at the step, bit by bit in the same world with the same threads and
``evaluate.batch_size``; in another world sums are added in another order.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch

from largebatch import data
from largebatch.checkpoint.named import NamedCheckpoint
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.recipes.decide import decide, precision_of
from largebatch.records.circumstances import circumstances_of
from largebatch.records.evaluation import EvaluationRecord
from largebatch.records.run import EvaluateLine
from largebatch.report.run import read_run
from largebatch.run.assemble import data_facts, dataset_of, model_of, task_of, with_batch_norm
from largebatch.run.measure import recompute
from largebatch.run.record import on_first_rank
from largebatch.steps.evaluate import Evaluation, evaluate
from largebatch.studies.evaluation import files
from largebatch.studies.evaluation.answers import (
    Answers,
    Collecting,
    calibration_of,
    classes_of,
    confusion_of,
)
from largebatch.studies.evaluation.other_data import check_same_classes, check_shape_taken, differences, with_other_data
from largebatch.studies.evaluation.restored import Restored, SavedWeights, filled, weights_of

OTHER = "other"
SPLITS = ("test", "held_out", "train")


class Measured(NamedTuple):
    record: EvaluationRecord
    answers: Answers | None  # on rank zero, of a task that gives any


@dataclasses.dataclass(frozen=True)
class AskedSplit:
    """Which examples: a split of the run's data, or the test set of others."""

    run: config.Run  # whose ``data`` has them
    name: str  # as evaluations of a run are called, or OTHER
    where: str  # for sentences

    def of(self, dataset: data.Splits) -> data.Split:
        return dataset.train if self.name == "train" else dataset.test


def asked_split(run: config.Run, split: str | None, where: str | None) -> AskedSplit:
    """UserError where the run has no such split."""
    if split not in (None, *SPLITS):
        raise UserError(f"--split {split} is not known; valid: {', '.join(SPLITS)}")
    if where is not None:
        if split in ("train", "held_out"):
            raise UserError(f"--split {split} is one of the run's own; of --data {where} the test set is evaluated")
        return AskedSplit(with_other_data(run, where), OTHER, f"--data {where}")
    own = "held_out" if run.data.hold_out else "test"
    if split == "held_out" and own != split:
        raise UserError("--split held_out: the run held nothing out (data.hold_out = 0); valid: test, train")
    if split == "test" and own == "held_out":
        run = run.model_copy(update={"data": run.data.model_copy(update={"hold_out": 0})})
    return AskedSplit(run, split or own, f"data.name = {run.data.name}")


def measure(
    at: NamedCheckpoint,
    device: torch.device,
    *,
    split: str | None = None,
    where: str | None = None,
    which: str = "trained",
    run: config.Run | None = None,
    command: str = "",
) -> Measured:
    """``which`` weights; ``run``: the recipe, where the caller has it. Collective."""
    weights = weights_of(at, which, run)
    asked = asked_split(weights.run, split, where)
    dataset = dataset_of(asked.run, quiet=True)
    check_same_classes(weights, dataset, asked.where)
    task = task_of(asked.run, dataset)
    restored = _restored(weights, asked, task, dataset, device)
    collecting = Collecting(task, list(dataset.classes) or weights.classes)
    examples = asked.of(dataset)
    batches = examples.batches(
        distributed.rank(), distributed.world_size(), asked.run.evaluate.batch_size, restored.placement
    )
    evaluation = evaluate(restored.model, task, restored, batches, device, views=restored.views, seen=collecting.take)
    assert evaluation.examples == len(examples), "an example was missed or counted twice"
    answers = collecting.of_all_ranks()
    notes = [*weights.complaints, *(differences(weights, dataset) if asked.name == OTHER else ())]
    facts = _facts(weights, asked, dataset, device, command) | {
        "score": task.score, "notes": notes, "answers": task.answers,
    }  # fmt: skip
    record = distributed.from_first(_record(facts, evaluation, answers, dataset.outputs))
    return Measured(record, answers)


def keep_predictions(measured: Measured, file: Path) -> None:
    """The answers in a file, written by rank zero; refused where the task gives none. Collective."""
    if not measured.record.answers:
        raise UserError(f"--predictions {file}: the run's task has scores, and no answer by example")

    def write() -> None:
        assert measured.answers is not None
        files.write_predictions(file, files.columns_of(measured.answers))

    on_first_rank(write, f"--predictions {file}")


def _restored(weights: SavedWeights, asked: AskedSplit, task: Any, dataset: data.Splits, device: Any) -> Restored:
    """The model, its batch norms with the statistics that it was judged with."""
    run = asked.run
    model = model_of(run, task, dataset)
    if asked.name == OTHER:
        check_shape_taken(weights, model, dataset, asked.where)
    model = filled(model, weights)
    recomputed = weights.stale or (run.recomputes_statistics and weights.which != "lawa")  # it has them
    if not recomputed or not dict(model.named_buffers()):
        return Restored(model, task, run, device)
    of_run = dataset if run is weights.run else dataset_of(weights.run, quiet=True)
    decided = decide(weights.run, data_facts(of_run), distributed.world_size(), device.type)
    restored = Restored(with_batch_norm(weights.run, model, decided.plan), task, run, device)
    seen = decided.evaluating.recomputed_examples
    recompute(restored.model, restored, of_run.train, decided.plan, seen, restored.placement, decided.seed)
    return restored


def _facts(
    weights: SavedWeights, asked: AskedSplit, dataset: data.Splits, device: torch.device, command: str
) -> dict[str, Any]:
    run = weights.run
    return {
        "directory": str(weights.directory),
        "run": run.name,
        "title": run.title,
        "weights": weights.which,
        "step": weights.step,
        "model": run.model.name,
        "data": asked.run.data.name,
        "precision": precision_of(run.precision, device.type),
        "split": asked.name,
        "source": dataset.source,
        "recorded": distributed.from_first(recorded(weights, asked.name)),
        "ranks": distributed.world_size(),
        **circumstances_of(command, device),
    }


def recorded(weights: SavedWeights, split: str) -> float | None:
    """The score that the run wrote down of these weights and examples; an average's is its evaluation on them.

    Looked up by the examples seen: where workers went on alone, lines and checkpoints count their steps otherwise.
    """
    judged = "held_out" if weights.run.data.hold_out else "test"
    wanted = split
    if weights.which != "trained":
        wanted = weights.which if split == judged else OTHER
    try:
        lines = read_run(weights.directory, weights.directory.name).lines_of(EvaluateLine)
    except UserError:
        return None
    key, seen = weights.facts["score"]["key"], weights.facts["examples_seen"]
    found = [line.number(key) for line in lines if line.split == wanted and line.examples_seen == seen]
    return found[-1] if found else None


def _record(
    facts: dict[str, Any], evaluation: Evaluation, answers: Answers | None, outputs: int | None
) -> EvaluationRecord:
    of_classes = {}
    if answers is not None and answers.kind == "classes" and outputs is not None:
        of_classes = {
            "classes": classes_of(answers, outputs),
            "confusion": confusion_of(answers, outputs),
            "calibration": calibration_of(answers),
        }
    return EvaluationRecord(**facts, examples=evaluation.examples, numbers=evaluation.numbers, **of_classes)
