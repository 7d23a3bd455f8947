"""``diagnose path A B``: loss and accuracy, train and test, on the line and the curve between two solutions.

Batch norm's statistics belong to weights that were trained, so they are recomputed at every point, over the examples
that are looked at (``--batch-norm recomputed``), or every batch is normalised by itself, in training and testing
alike, as the paper has it (``--batch-norm batch``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import rich.table
import torch

from largebatch.data.nested import Batch
from largebatch.diagnostics import path
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.models import batch_norm
from largebatch.records.diagnoses import PathEnd, PathPoint, PathRecord
from largebatch.run import record
from largebatch.steps.evaluate import Evaluation, evaluate
from largebatch.studies.diagnose.opened import (
    Opened,
    TrainingSample,
    check_norm,
    circumstances,
    enough_to_normalise,
    keep,
    opened,
)

LINE, CURVE = (-1.0, 2.0), (0.0, 1.0)
NORMS = ("recomputed", "batch")


def measure(
    first: Path,
    second: Path,
    device: torch.device,
    *,
    points: int = 25,
    curve: bool = True,
    examples: int | None = None,
    batch_size: int = 1000,
    norm: str = "recomputed",
    precision: str = "fp32",
    command: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> PathRecord:
    """Collective. The record lies with both runs; α = 0 is ``first``, α = 1 ``second``."""
    if points < 2:
        raise UserError(f"--points {points} makes no line; at least 2")
    check_norm(norm, NORMS)
    a, b = opened(first, device, precision), opened(second, device, precision)
    check_alike(a, b)
    if first.resolve() == second.resolve():
        raise UserError(f"{first} and {second} are one run; a path lies between two")
    sample = a.sample(examples, batch_size)
    norm, score = a.mode(norm), a.task.score
    ends = [{name: p.detach().clone() for name, p in run.model.named_parameters()} for run in (a, b)]
    lines: dict[str, list[PathPoint]] = {"line": [], "curve": []}
    kinds = [("line", path.on_line, LINE), *([("curve", path.on_curve, CURVE)] if curve else [])]
    for kind, point, (low, high) in kinds:
        for alpha in path.evenly(low, high, points):
            weights = point(ends[0], ends[1], alpha)
            with torch.no_grad():
                for name, parameter in a.model.named_parameters():
                    parameter.copy_(weights[name])
            training, test = at_these_weights(a, sample, batch_size, norm)
            lines[kind].append(PathPoint(alpha=alpha, numbers=_by_split(training, test)))
            reached = f"test {score.name} {score.of(test.numbers[score.key])}"
            progress(f"{kind} {alpha:+.3f}  train loss {training.loss:.4f}  {reached}")
    measured = PathRecord(
        **circumstances(device, command),
        directory=str(first),
        a=end(a),
        b=end(b),
        model=a.run.model.name,
        data=a.run.data.name,
        precision=precision,
        score=score,
        distance=path.distance(*ends),
        examples=sample.examples,
        batch_size=sample.batch_size,
        batch_norm=norm,
        line=lines["line"],
        curve=lines["curve"],
    )
    keep(a.directory, measured)
    keep(b.directory, measured)
    return measured


def _by_split(training: Evaluation, test: Evaluation) -> dict[str, float]:
    return {
        f"{split}_{key}": number
        for split, of_split in (("train", training), ("test", test))
        for key, number in of_split.numbers.items()
    }


def check_alike(a: Opened, b: Opened) -> None:
    """A line needs two points of one space, and one data set to look at it with."""
    of_a, of_b = ({"model": run.run.model.model_dump(), "data": {"name": run.run.data.name}} for run in (a, b))
    if different := record.differences(of_a, of_b):
        raise UserError(
            f"{a.directory} and {b.directory} differ ({'; '.join(different)}); a path lies between two solutions of "
            "one model on one data set"
        )


def end(run: Opened) -> PathEnd:
    return PathEnd(
        run=run.run.name,
        title=run.title,
        directory=str(run.directory),
        step=run.step,
        seed=run.run.seed,
        global_batch_size=run.global_batch_size,
    )


def at_these_weights(run: Opened, sample: TrainingSample, batch_size: int, norm: str) -> tuple[Evaluation, Evaluation]:
    """(training sample, test set) at whatever weights the model has. Collective."""
    if norm == "recomputed":
        with torch.no_grad(), enough_to_normalise(), batch_norm.recomputed_statistics(run.model, distributed.sum_):
            for batch in sample.mine():
                run.task.forward(run.model, batch)
    whole = run.dataset.test.batches(0, 1, batch_size, run.placement)  # cut alike in any world
    test = itertools.islice(whole, distributed.rank(), None, distributed.world_size())
    return tuple(evaluated(run, batches, norm) for batches in (sample.mine(), test))  # type: ignore[return-value]


def evaluated(run: Opened, batches: Any, norm: str) -> Evaluation:
    def forward(batch: Batch) -> Any:
        with run.normalised_by("batch") if norm == "batch" else nullcontext():
            return run.task.forward(run.model, batch)

    return evaluate(run.model, run.task, forward, batches, run.placement.device)


def table(measured: PathRecord) -> rich.table.Table:
    """The ends, and the worst between them."""
    a, b = (f"{end.title}, batch {end.global_batch_size:,}" for end in measured.ends.values())
    shown = rich.table.Table(title=f"{a} (α = 0) to {b} (α = 1)")
    score = measured.judged_by
    unit = f", {score.unit}" if score.unit else f" {score.name}"
    for heading in ("", "α", "train loss", f"train{unit}", "test loss", f"test{unit}"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for way, points in measured.ways.items():
        between = [point for point in points if 0 < point.alpha < 1]
        ends = [point for point in points if point.alpha in (-1, 0, 1, 2)] if way == "line" else []
        worst = [max(between, key=lambda point: known(point, "train_loss"))] if between else []
        for word, chosen in (("", ends), (", highest between", worst)):
            for point in chosen:
                cells = [f"{point.alpha:.3g}"]
                for split in ("train", "test"):
                    loss, reached = (known(point, f"{split}_{key}") for key in ("loss", score.key))
                    cells += [f"{loss:.4g}", score.of(reached).removesuffix(" %")]
                shown.add_row(way + word, *cells)
    return shown


def known(point: PathPoint, key: str) -> float:
    number = point.numbers[key]
    assert number is not None  # it was measured a moment ago
    return number
