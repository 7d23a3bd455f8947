"""What STUDY.yaml says, checked as strictly as a recipe is.

name: quickstart
recipes: [configs/quickstart/baseline.yaml, {recipe: configs/quickstart/lars2017.yaml, search: {...}}]
batches: [64, 256, 1024]
target: {score: 90}
epochs: 10                       # the budget of every run
every_epochs: 0.25               # evaluations
trials: 16                       # of the search of each recipe at each batch
seeds: 6
search: {lr.base: {log: [0.01, 10]}}    # of recipes that have none here or of their own
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, Field

from largebatch.errors import UserError
from largebatch.recipes import config, strict_yaml
from largebatch.recipes.config.mistakes import section_of
from largebatch.recipes.config.search import Search
from largebatch.recipes.keys import Finite, PositiveFloat, PositiveInt, Section
from largebatch.records.comparison import SAMPLERS
from largebatch.studies.reading import located
from largebatch.studies.rows import slug

Overrides = Mapping[str, pydantic.JsonValue]


class StudyTarget(Section):
    score: Finite  # in the task's unit and direction
    patience: PositiveInt = 1  # evaluations in a row that must be at it or beyond


class StudyRecipe(Section):
    """A row: a recipe, and what is laid over it."""

    recipe: str
    id: str | None = None  # else the file's name
    overrides: Overrides = Field(default_factory=dict)
    search: Search = None

    @property
    def name(self) -> str:
        return slug(self.id or Path(self.recipe).stem)


def a_recipe(written: Any) -> Any:
    return {"recipe": written} if isinstance(written, str) else written


class StudyFile(Section):
    """Recipes × batches, each searched by as many trials and run at as many seeds, all with the same budget."""

    name: str
    recipes: tuple[Annotated[StudyRecipe, BeforeValidator(a_recipe)], ...]
    batches: tuple[PositiveInt, ...]
    target: StudyTarget
    epochs: PositiveFloat
    every_epochs: PositiveFloat
    trials: PositiveInt = 16
    seeds: PositiveInt = 6
    hold_out: PositiveInt | None = None  # [examples] of the training set, which trials are judged on; else a sixth
    overrides: Overrides = Field(default_factory=dict)
    search: Search = None
    sampler: str = SAMPLERS[0]

    @pydantic.field_validator("name")
    @classmethod
    def a_folder(cls, name: str) -> str:
        if slug(name) != name or not any(map(str.isalnum, name)):
            raise ValueError(f"name = {name} should be letters, digits, '.', '_' and '-'")
        return name

    @pydantic.field_validator("batches")
    @classmethod
    def ascending(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if not batches or list(batches) != sorted(set(batches)):
            raise ValueError(f"batches = {list(batches)} must be sizes that ascend")
        return batches

    @pydantic.field_validator("sampler")
    @classmethod
    def known(cls, sampler: str) -> str:
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler = {sampler} is not known; valid: {', '.join(SAMPLERS)}")
        return sampler

    @pydantic.model_validator(mode="after")
    def rows_have_names(self) -> StudyFile:
        names = [recipe.name for recipe in self.recipes]
        if wrong := [name for name in names if not any(map(str.isalnum, name))]:
            raise ValueError(f"id = {wrong[0]} should have letters or digits")
        if not names:
            raise ValueError("recipes = [] should name at least one")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two recipes would be called {sorted(twice)[0]}; give one an id")
        return self


def load(path: Path) -> StudyFile:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the study {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the study {path} is not UTF-8 text") from None
    return checked(strict_yaml.parse(text, str(path)), str(path))


def checked(written: Any, source: str) -> StudyFile:
    return section_of(StudyFile, written, source, f"{source} should hold keys, as in name: quickstart")


def recipes_of(study: StudyFile, beside: Path) -> dict[str, dict[str, Any]]:
    """What stands in the file of each row."""
    return {row.name: recipe_of(row, beside) for row in study.recipes}


def recipe_of(row: StudyRecipe, beside: Path) -> dict[str, Any]:
    """Its file is looked for beside the study's first."""
    path = beside / row.recipe
    return config.read(path if path.is_file() else located(row.recipe))
