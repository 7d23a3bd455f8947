"""What the files of a run must look like to be shown; whoever wrote them, a report ends in a page or in one sentence.

Only what a page relies on is stated: other keys may hold anything, and a number that is none is shown as absent.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from largebatch.errors import UserError

Count = Annotated[int, Field(ge=0, le=10**15)]
Number = Annotated[float, Field(ge=-1e100, le=1e100)]
Positive = Annotated[float, Field(gt=0, le=1e100)]
Word = Annotated[str, Field(min_length=1, max_length=80)]
Anything = dict[str, Any]


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Score(Shape):
    model_config = ConfigDict(extra="forbid")
    key: Word
    name: Word
    unit: Annotated[str, Field(max_length=20)] = ""
    more_is_better: bool = True
    tolerance: Annotated[float, Field(ge=0, le=1e100)] = 0.0


class Published(Shape):
    by_batch_size: dict[Annotated[int, Field(strict=False)], Anything | None] | None = None


class PhaseBegin(Shape):
    epoch: Number


class Plan(Shape):
    global_batch_size: Annotated[int, Field(gt=0, le=10**15)]
    steps: Count
    seed: Count
    ramp: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] | None = None
    phases: list[PhaseBegin] | None = None
    machine: Anything | None = None
    versions: Anything | None = None
    world_size: Count | None = None
    score: Score | None = None


class NoiseScale(Shape):
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    every_steps: Count = 1


class Record(Shape):
    noise_scale: NoiseScale | None = None


class Recipe(Shape):
    expect: Published | None = None
    record: Record | None = None


class Line(Shape):
    step: Count


class Trial(Shape):
    peak_lr: Number | None = None


class Search(Shape):
    trials: list[Trial] | None = None
    score: Score | None = None


class Row(Shape):
    id: str
    runs: list[str]
    overrides: list[str] | None = None
    config: str | None = None
    learning_rate_search: Search | None = None
    expect: Published | None = None


class Comparison(Shape):
    rows: list[Row]
    notes: list[str] | None = None
    created: str | None = None


class Noise(Shape):
    big_batch_size: Count


class Box(Shape):
    epsilon: Positive
    dimensions: Count | None = None


class Ascent(Shape):
    rho: Number


class Sharpness(Shape):
    keskar: list[Box]
    sam: list[Ascent] | None = None
    published: list[Anything] | None = None


class Density(Shape):
    eigenvalue: list[Number] | None = None
    density: list[Number] | None = None


class Spectrum(Shape):
    largest: list[Anything]
    smallest: list[Anything]
    density: Density | None = None


class Point(Shape):
    alpha: Annotated[float, Field(ge=-1e6, le=1e6)]


class Path(Shape):
    a: Anything
    b: Anything
    line: Annotated[list[Point], Field(min_length=1)]
    curve: list[Point] | None = None
    score: Score | None = None


class Plateau(Shape):
    sentence: str
    evidence: list[str] | None = None
    advice: list[str] | None = None


FACTS: dict[str, type[Shape]] = {
    "noise": Noise,
    "sharpness": Sharpness,
    "spectrum": Spectrum,
    "path": Path,
    "plateau": Plateau,
}


def shaped(value: Any, shape: type[Shape], where: object) -> Mapping[str, Any]:
    """The value itself, once it is known to have the shape."""
    try:
        shape.model_validate(value)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part)[:40] for part in problem["loc"])[:120]
        raise UserError(f"{where}: {key or 'the whole'}: {problem['msg'][:120]}") from None
    return value
