"""Images without labels -> what a run's model answers. Needs a checkpoint and nothing else of the run: no data set.

An image becomes the model's input as a test image of the run did (:mod:`largebatch.data.preparation`); where those came
as they are, all of one size, another one is resized to it (bilinear, antialiased).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from largebatch import models, tasks
from largebatch.checkpoint.named import NamedCheckpoint
from largebatch.data.dataset import normalised
from largebatch.data.decode import Window, evaluation_window, rgb, view, why_unreadable
from largebatch.data.folder import SUFFIXES, read_regular
from largebatch.data.statistics import Statistics
from largebatch.errors import UserError
from largebatch.run.assemble import task_arguments
from largebatch.run.record import read_plan
from largebatch.steps.evaluate import judged
from largebatch.studies.evaluation.answers import Answers, likeliest
from largebatch.studies.evaluation.restored import Restored, SavedWeights, filled, weights_of
from largebatch.tasks.task import Task

ASKED = ("classes", "labels")  # of a task, that images can be asked for


class Predicted(NamedTuple):
    images: list[str]  # those that were read, in order
    answers: Answers  # a row for each; no labels
    notes: list[str]  # a sentence for each image that could not be read, and what else the reader should know


def predict(
    at: NamedCheckpoint,
    images: Sequence[Any],
    device: torch.device,
    *,
    top: int = 5,
    which: str = "trained",
    run: Any = None,
) -> Predicted:
    """``images``: files, folders, and images of Pillow; ``which`` weights. Refused where none can be read."""
    weights = weights_of(at, which, run, with_statistics=True)
    restored = restored_of(weights, device)
    prepare = Preparation(weights)
    chosen = found_in(images)
    names: list[str] = []
    notes = [*weights.complaints, *not_recomputed(weights)]
    rows: dict[str, list[Tensor]] = {}
    size = weights.run.evaluate.batch_size
    for start in range(0, len(chosen), size):
        views = []
        for name, image in chosen[start : start + size]:
            try:
                views.append(prepare.view(image))
                names.append(name)
            except Exception as failure:  # a broken image can raise nearly anything
                notes.append(f"{name} cannot be read as an image: {why_unreadable(failure)}")
        if views:
            for key, column in answered(restored, prepare.batch(views, restored), top).items():
                rows.setdefault(key, []).append(column.cpu())
    if not names:
        raise UserError(notes[-1])
    found = {key: torch.cat(parts) for key, parts in rows.items()}
    return Predicted(names, Answers("classes", found, weights.classes), notes)


def answered(restored: Restored, images: Tensor, top: int) -> dict[str, Tensor]:
    with torch.no_grad():
        return likeliest(restored.task.answered(judged(restored, (images, None), restored.views)), top)


def restored_of(weights: SavedWeights, device: torch.device) -> Restored:
    """The model, built of what the checkpoint says."""
    section, shape = weights.facts["model"], weights.facts.get("input", {}).get("input_size", ())
    arguments = {key: value for key, value in section.items() if key not in ("name", "num_classes")}
    task = task_named(weights)
    model = models.build(section["name"], weights.outputs, tuple(shape), weights.run.seed, arguments)
    return Restored(filled(model, weights), task, weights.run, device)


def task_named(weights: SavedWeights) -> Task:
    """What the run learned; refused where it is nothing that an image can be asked for."""
    section, plan = weights.run.task, read_plan(weights.directory)
    name = section.name if section is not None else (plan and plan.task) or "classification"
    task = tasks.build(name, task_arguments(weights.run, name))
    if task.answers not in ASKED or not weights.facts.get("input", {}).get("mean"):
        raise UserError(
            f"{weights.directory} learned {name} on {weights.run.data.name}; predict asks models of images for classes "
            "(`largebatch evaluate --predictions` writes the answers of others)"
        )
    return task


def not_recomputed(weights: SavedWeights) -> list[str]:
    """Where batch norm's statistics are not those that evaluations of the run had."""
    at_the_end = weights.which == "trained" and weights.facts["step_of_loop"] == weights.facts["plan"].get("steps")
    if not weights.run.recomputes_statistics or at_the_end or weights.which == "lawa":
        return []
    return ["batch norm's running statistics are used, and not recomputed ones, which only the end of a run saves"]


class Preparation:
    """An image, encoded or of Pillow -> uint8 (H, W, C); several -> what the model is given."""

    def __init__(self, weights: SavedWeights) -> None:
        facts = weights.facts["input"]
        self.channels, self.height, self.width = facts["input_size"]
        self.photographs = facts["resize"] is not None
        self.crop = weights.run.data.crop
        self.decode = "pillow" if weights.run.data.decode == "pillow" else "turbo"
        self.statistics = Statistics(tuple(facts["mean"]), tuple(facts["std"]))

    def view(self, image: str | Image.Image) -> Tensor:
        if isinstance(image, Image.Image):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            data = buffer.getvalue()
        else:
            data = read_regular(image)
        if self.photographs:
            return view(data, self.height, self._window, self.decode)
        with Image.open(io.BytesIO(data)) as file:
            found = file.convert("L") if self.channels == 1 and file.mode in ("1", "L") else rgb(file)
        if found.size != (self.width, self.height):
            found = found.resize((self.width, self.height), Image.Resampling.BILINEAR)
        if self.channels == 1:
            found = found.convert("L")
        return torch.from_numpy(np.array(found)).reshape(self.height, self.width, self.channels)

    def _window(self, width: int, height: int) -> Window:
        return evaluation_window(width, height, self.height, self.crop)

    def batch(self, views: list[Tensor], restored: Restored) -> Tensor:
        images = torch.stack(views).to(restored.placement.device).permute(0, 3, 1, 2)
        return normalised(images, self.statistics, restored.placement)


def found_in(images: Sequence[Any]) -> list[tuple[str, Any]]:
    """(name, file or image), those of a folder sorted; UserError for what is not there."""
    if not images:
        raise UserError("predict needs at least one image or folder of images")
    return [pair for place, one in enumerate(images) for pair in _found_in(one, place)]


def _found_in(one: Any, place: int) -> Iterator[tuple[str, Any]]:
    if isinstance(one, Image.Image):
        yield f"image {place}", one
        return
    path = Path(one)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: there is no such image or folder")
        yield str(path), str(path)
        return
    files = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    yield from ((file, file) for file in files)
