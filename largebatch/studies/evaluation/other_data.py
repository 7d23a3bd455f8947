"""A data set that a run did not have: a folder of images, a pack, shards, or a recipe file with a section ``data``.

It must ask for as many outputs as the model has, under the same names where both say them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from largebatch import data
from largebatch.data.preparation import prepared
from largebatch.data.sets import read_by_workers
from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.run.record import read_plan
from largebatch.studies.evaluation.restored import SavedWeights

KEPT = ("image_size", "crop", "decode", "workers")  # keys of a folder that are as the run has them


def with_other_data(run: config.Run, where: str) -> config.Run:
    """The run, with the data that ``where`` names."""
    written = run.as_set()
    if "://" not in where and Path(where).is_file():
        section = config.read(where).get("data")
        if not isinstance(section, dict):
            raise UserError(f"--data {where} has no section data; write data: {{name: ...}}, as in a recipe")
        written["data"] = {"hold_out": 0, **section}
    elif "://" in where or Path(where).is_dir():
        kept = {key: written["data"][key] for key in KEPT if key in written["data"] and read_by_workers(run.data.name)}
        written["data"] = {**kept, "name": "folder", "root": where}
    else:
        raise UserError(
            f"--data {where}: there is no such file or folder; give a recipe file with a section data, or a folder of "
            "images (val/<class>/), a pack or shards"
        )
    written.pop("expect", None)
    return config.from_dict(written, f"--data {where}")


def check_same_classes(weights: SavedWeights, dataset: data.Splits, where: str) -> None:
    """Refuse data that ask for something else than the model answers."""
    plan = read_plan(weights.directory)
    if plan is not None and plan.task is not None and weights.run.task is None and plan.task != dataset.task:
        raise UserError(f"{where}: {dataset.name} is for {dataset.task}, and {weights.directory} learned {plan.task}")
    what = "classes" if dataset.task == "classification" else "outputs"
    if dataset.outputs != weights.outputs:
        raise UserError(
            f"{where} has {dataset.outputs} {what}, and the model of {weights.directory} answers with {weights.outputs}"
        )
    if not (weights.classes and dataset.classes):
        return
    for number, (of_model, of_data) in enumerate(zip(weights.classes, dataset.classes, strict=False)):
        if of_model != of_data:
            raise UserError(
                f"{where} has other classes than the model of {weights.directory}: number {number} is {of_data!r} "
                f"there and {of_model!r} in the model"
            )


def check_shape_taken(weights: SavedWeights, model: nn.Module, dataset: data.Splits, where: str) -> None:
    """Refuse inputs for which the network would have layers of another shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if any(tuple(tensor.shape) != wanted.get(name) for name, tensor in weights.tensors.items()):
        trained_on = weights.facts.get("input", {}).get("input_size", ())
        shape, before = ("×".join(map(str, one)) for one in (dataset.input_shape, trained_on))
        raise UserError(
            f"{where}: the model of {weights.directory} does not take inputs of {shape}; it was trained on {before}"
        )


def differences(weights: SavedWeights, dataset: data.Splits) -> list[str]:
    """What is done to its images otherwise than to those of the run, a sentence each."""
    before, now = weights.facts.get("input", {}), prepared(dataset)
    told = {"input_size": "size", "mean": "mean", "std": "deviation", "resize": "short side before the crop"}
    return [
        f"images have a {word} of {_words(now[key])} here, and {_words(before[key])} in the run"
        for key, word in told.items()
        if key in before and key in now and before[key] != now[key]
    ]


def _words(value: Any) -> str:
    return " ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
