"""``lb.recipe`` and ``lb.decide``: what was written, and what follows from it. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.recipes.config.dotted import is_key, place
from largebatch.recipes.decide import decide as decided_of
from largebatch.recipes.decided import DataFacts, Decided
from largebatch.recipes.registry import HANDED_OVER
from largebatch.studies import reading

Overrides = Mapping[str, Any] | Sequence[str]
ARGUMENTS = {"model": "model", "data": "dataset", "task": "task", "optimizer": "optimizer"}  # of train, by section


def recipe(source: str | Path | Mapping[str, Any] | config.Run, overrides: Overrides = ()) -> config.Run:
    """A recipe, frozen and checked.

    Args:
        source: a file, a name of ``largebatch recipe list``, or the keys themselves, nested or with dots. Where keys
            name no ``model`` or ``data``, :func:`largebatch.train` must be given them.
        overrides: keys with dots and their values, laid over it: ``{"lr.base": 0.1}`` or ``["lr.base=0.1"]``.

    Raises:
        UserError: one sentence with the key, the value and what would be valid.
    """
    if isinstance(source, config.Run):
        written, whose = source.as_set(), source.name
    elif isinstance(source, Mapping):
        written, whose = _nested(source), "the recipe"
    else:
        file = reading.located(str(source))
        written, whose = config.read(file), str(file)
    return config.from_dict(config.overlay(written, texts(overrides)), whose)


def _nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {"name": "run"}
    for key, value in keys.items():
        if not is_key(key):
            raise UserError(f"the recipe: {str(key)[:60]!r} is no key; keys are words, such as 'lr.base'")
        place(written, key, plain(key, value))
    for key in ("model", "data"):
        if isinstance(section := written.setdefault(key, {}), dict):  # else it is refused with the other keys
            section.setdefault("name", HANDED_OVER)
    return written


def plain(key: str, value: Any) -> Any:
    """As a recipe holds it: numbers of numpy and torch, paths and tuples too. UserError for what it cannot hold."""
    if isinstance(value, Mapping):
        return {name: plain(f"{key}.{name}", one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(key, one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    argument = ARGUMENTS.get(key.partition(".")[0])
    instead = f"; hand it over as lb.train(run, {argument}=...)" if argument else ""
    raise UserError(f"{key} is a {type(value).__name__}, and a recipe holds numbers, text, lists and keys{instead}")


def texts(overrides: Overrides) -> list[str]:
    """As the command line has them."""
    if isinstance(overrides, str):
        raise UserError(f"overrides = {overrides[:60]!r} is one text; write a list of them, or a dict")
    if isinstance(overrides, Mapping):
        return [config.setting(key, plain(str(key), value)) for key, value in overrides.items()]
    if not isinstance(overrides, Sequence) or not all(isinstance(one, str) for one in overrides):
        raise UserError(f"overrides = {str(overrides)[:60]} should be a dict, or a list of texts such as 'lr.base=0.1'")
    return list(overrides)


def decide(
    run: config.Run | str | Path | Mapping[str, Any],
    *,
    examples: int | None = None,
    world_size: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Decided:
    """What a run comes to: batch plan, phases, learning rates, marks; nothing is read or trained.

    Args:
        examples: to train on; else as published for the data set.
        world_size: ranks.
        device: theirs.
    """
    run = recipe(run)
    return decided_of(run, _facts(run, examples), world_size, device)


def _facts(run: config.Run, examples: int | None) -> DataFacts:
    if run.data.name.partition("/")[0] == HANDED_OVER:
        if examples is None:
            raise UserError(f"data.name = {run.data.name} says not how many examples there are; give examples=")
        return DataFacts(examples, task=run.task.name if run.task else "classification")
    return reading.data_facts(run, examples)
