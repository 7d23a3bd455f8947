"""Rows: recipes × varied keys, each as its file stood when the study of them began."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.recipes import config


@dataclasses.dataclass(frozen=True)
class ComparedRecipe:
    """A recipe as its file stood when the comparison began, with the row's overrides."""

    id: str
    recipe: Path
    written: dict[str, Any]
    overrides: tuple[str, ...]

    def run(self, *more: str) -> config.Run:
        return config.from_dict(config.overlay(self.written, [*self.overrides, *more]), str(self.recipe))


def rows_of(recipes: Sequence[Path | config.Run], vary: list[str], overrides: list[str]) -> list[ComparedRecipe]:
    for text in (*vary, *overrides):
        for key, instead in (("seed", "--seeds N runs the seeds 0 to N - 1"), ("record.dir", "--out names the folder")):
            if text.partition("=")[0] == key:
                raise UserError(f"{text}: a comparison sets {key} itself; {instead}")
    values_of_keys = [varied(text) for text in vary]
    rows = []
    for recipe in recipes:
        made = isinstance(recipe, config.Run)
        name, written = (recipe.name, recipe.as_set()) if made else (recipe.stem, config.read(recipe))
        for values in itertools.product(*values_of_keys):
            suffix = "".join(f"_{short(value)}" for value in values)
            file = Path(name) if made else recipe
            rows.append(ComparedRecipe(slug(name + suffix), file, written, (*overrides, *values)))
    twice = {row.id for row in rows if sum(other.id == row.id for other in rows) > 1}
    if twice:
        raise UserError(f"two rows would be called {sorted(twice)[0]}; give the recipes other names")
    return rows


def varied(text: str) -> list[str]:
    """``'a.b=1,2'`` -> ``['a.b=1', 'a.b=2']``; commas inside brackets do not separate."""
    key, equals, values = text.partition("=")
    parts = [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", values)]
    if not equals or not key or not all(parts):
        raise UserError(f"--vary {text} is not of the form key=a,b,c")
    return [f"{key}={part}" for part in parts]


def short(override: str) -> str:
    """``'lr.base=0.1'`` -> ``'base=0.1'``."""
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text)
