"""What a diagnosis must look like to be shown; whoever wrote it, a report ends in a page or in one sentence.

Only what a page relies on is stated: other keys may hold anything, and a number that is none is shown as absent.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from largebatch.errors import UserError
from largebatch.records.typed import Count, Judged, Number

Positive = Annotated[float, Field(gt=0, le=1e100)]
Anything = dict[str, Any]
Diagnosis = Mapping[str, Any]  # what one command measured, by key


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class NoiseShape(Shape):
    big_batch_size: Count


class BoxShape(Shape):
    epsilon: Positive
    dimensions: Count | None = None


class AscentShape(Shape):
    rho: Number


class SharpnessShape(Shape):
    keskar: list[BoxShape]
    sam: list[AscentShape] | None = None
    published: list[Anything] | None = None


class DensityShape(Shape):
    eigenvalue: list[Number] | None = None
    density: list[Number] | None = None


class SpectrumShape(Shape):
    largest: list[Anything]
    smallest: list[Anything]
    density: DensityShape | None = None


class PointShape(Shape):
    alpha: Annotated[float, Field(ge=-1e6, le=1e6)]


class PathShape(Shape):
    a: Anything
    b: Anything
    line: Annotated[list[PointShape], Field(min_length=1)]
    curve: list[PointShape] | None = None
    score: Judged | None = None


class PlateauShape(Shape):
    sentence: str
    evidence: list[str] | None = None
    advice: list[str] | None = None


DIAGNOSES: dict[str, type[Shape]] = {
    "noise": NoiseShape,
    "sharpness": SharpnessShape,
    "spectrum": SpectrumShape,
    "path": PathShape,
    "plateau": PlateauShape,
}


def shaped(value: Any, shape: type[Shape], where: object) -> Diagnosis:
    """The value itself, once it is known to have the shape."""
    try:
        shape.model_validate(value)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part)[:40] for part in problem["loc"])[:120]
        raise UserError(f"{where}: {key or 'the whole'}: {problem['msg'][:120]}") from None
    return value
