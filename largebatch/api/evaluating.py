"""``lb.evaluate``: a run's weights, or a model's, over every example of a split; the process goes on as before."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from largebatch.api.handed_over import Handed
from largebatch.api.training import Recipe, command, prepared
from largebatch.checkpoint.named import LAST, NamedCheckpoint, parted, step_named
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.records import names
from largebatch.records.evaluation import EvaluationRecord
from largebatch.run.assemble import assemble
from largebatch.run.measure import Measure
from largebatch.run.parts import Parts
from largebatch.studies.evaluation import files
from largebatch.studies.evaluation import measure as studies


class Evaluated(dict[str, Any]):
    """The numbers by key, ``examples`` among them; ``record`` has classes, confusion and calibration where weights of a
    checkpoint were evaluated, as ``largebatch evaluate --json`` writes them."""

    record: EvaluationRecord | None = None


def evaluate(
    run: Recipe,
    *,
    model: Any = None,
    dataset: Any = None,
    task: Any = None,
    checkpoint: int | str = LAST,
    split: str | None = None,
    data: str | Path | None = None,
    weights: str = "trained",
    predictions: str | Path | None = None,
) -> Evaluated:
    """The numbers of an evaluation, by key: every example of a split once, over all ranks. Collective.

    Args:
        run: a recipe, as :func:`largebatch.recipe` takes or makes it, whose run directory has checkpoints; or that
            directory, such as ``"runs/baseline"`` or ``"runs/baseline@best"``.
        model: with the weights that it has; left out, those of a checkpoint. The next arguments are for these alone.
        dataset, task: as in :func:`largebatch.train`.
        checkpoint: a step, ``"last"`` or ``"best"``, by the score.
        split: ``"test"``, ``"held_out"`` or ``"train"``, without augmentation; else the one the run is judged on.
        data: other data: a recipe file with a section ``data``, a folder of images, a pack, shards.
        weights: ``"trained"``, ``"ema"``, their moving average, or ``"lawa"``, the mean of their latest snapshots.
        predictions: a file for the answer to each example: ``.csv``, ``.npz`` or ``.parquet``.

    Raises:
        UserError: a mistake, in one sentence.
    """
    recipe, checkpoint = _meant(run, checkpoint)
    if predictions is not None:
        files.check_predictions(Path(predictions))
    with prepared(recipe, Handed(model, dataset, task)) as standing:
        if model is not None:
            asked = {"split": split, "data": data, "predictions": predictions}
            for name, value in (asked | {"weights": None if weights == "trained" else weights}).items():
                if value:
                    raise UserError(f"{name} = {value} is for weights of a checkpoint; leave model= out")
            return _of_model(standing)
        if not (standing.directory / names.RECIPE).is_file():
            raise UserError(f"{standing.directory} has no checkpoint to evaluate; train it, or give model=")
        at = NamedCheckpoint(standing.directory, step_named(standing.directory, str(checkpoint)))
        measured = studies.measure(
            at,
            distributed.choose_device(standing.device),
            split=split,
            where=None if data is None else str(data),
            which=weights,
            run=standing,
            command=command(),
        )
        if predictions is not None:
            studies.keep_predictions(measured, Path(predictions))
        found = Evaluated(measured.record.numbers, examples=measured.record.examples)
        found.record = measured.record
        return found


def _meant(run: Recipe, checkpoint: int | str) -> tuple[Recipe, int | str]:
    """A run directory's recipe, and which of its checkpoints."""
    if isinstance(run, (str, Path)):
        directory, asked = parted(str(run))
        if (directory / names.RECIPE).is_file():
            recipe = config.load(directory / names.RECIPE)
            here = recipe.model_copy(update={"record": recipe.record.model_copy(update={"dir": str(directory)})})
            return here, asked if asked != LAST else checkpoint
    return run, checkpoint


def _of_model(run: config.Run) -> Evaluated:
    """Of the weights that the module has which stands in the run."""
    job = assemble(run, distributed.choose_device(run.device), begun=True, quiet=True)
    measure = Measure(job, Parts(job))
    with contextlib.closing(measure.during(0)) as evaluations:
        _, evaluation = next(evaluations)
    return Evaluated(evaluation.numbers, examples=evaluation.examples)


def predict(
    run: Recipe,
    images: Any,
    *,
    model: Any = None,
    checkpoint: int | str = LAST,
    top: int = 5,
    weights: str = "trained",
) -> list[dict[str, Any]]:
    """What a trained run says of images: ``[{"image": NAME, "answers": [{"class", "name", "probability"}, ...]}]``.

    Args:
        run: as in :func:`evaluate`.
        images: a file, a folder or an image of Pillow, or several of them; one that cannot be read has no entry.
        model: the module or builder that was trained, where the recipe does not name it; its weights are a
            checkpoint's.
        checkpoint, weights: as in :func:`evaluate`.
        top: so many of the likeliest classes.

    Raises:
        UserError: a mistake, in one sentence; no image could be read.
    """
    from largebatch.studies.evaluation.predict import predict as predicted_by

    recipe, checkpoint = _meant(run, checkpoint)
    several = images if isinstance(images, (list, tuple)) else [images]
    with prepared(recipe, Handed(model)) as standing:
        at = NamedCheckpoint(standing.directory, step_named(standing.directory, str(checkpoint)))
        device = distributed.choose_device(standing.device)
        found = predicted_by(at, several, device, top=top, which=weights, run=standing)
        return files.by_image(found.images, found.answers)
