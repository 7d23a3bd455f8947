"""Every method that a recipe can ask for, with parts that are handed over: the very run of the package's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_recipes import METHODS, recipe_of

import largebatch as lb
from largebatch import data, models
from largebatch.run.weights import of_newest_checkpoint

pytestmark = pytest.mark.worlds
NOT_OF_DIGITS = ("regression", "multilabel", "masked_lm", "next_sentence")


class Renamed(lb.Classification):
    """The package's, by another name."""


def handed_over(run: lb.Run) -> dict[str, Any]:
    """The recipe's parts as objects of a script: numbers in memory, a module, a task, a builder."""
    dtype = torch.float64 if run.precision == "fp64" else torch.float32
    known, placement = data.build("digits", augment="none"), data.Placement(torch.device("cpu"), dtype)
    train, test = (next(iter(split.batches(0, 1, 2_000, placement))) for split in (known.train, known.test))
    model = models.build(run.model.name, 10, (1, 8, 8), run.seed, run.model.arguments)
    loss = {"kind" if key == "name" else key: value for key, value in run.loss.changed().items()}
    return {"model": model, "dataset": lb.Dataset(train, test), "task": Renamed(**loss)}


@pytest.mark.parametrize("method", [name for name in METHODS if name not in NOT_OF_DIGITS])
def test_handed_over_or_named_it_is_the_same_run(tmp_path: Path, method: str):
    written = recipe_of(method, data={"name": "digits", "augment": "none"}, checkpoint={"keep": 1})
    runs = {name: lb.recipe({**written, "record": {"dir": str(tmp_path / name), "to": []}}) for name in "ab"}
    parts = handed_over(runs["b"])
    runs["b"] = runs["b"].model_copy(update={"loss": type(runs["b"].loss)()})  # which the task has now
    named, handed = lb.train(runs["a"]), lb.train(runs["b"], **parts)
    assert named.status == handed.status == "finished", (named.reason, handed.reason)
    assert named.reached == handed.reached
    there, here = (of_newest_checkpoint(tmp_path / name) for name in "ab")
    assert there.keys() == here.keys()
    for name, tensor in there.items():
        assert torch.equal(here[name], tensor), name
