"""Points of others: files of what runs needed to a target at each batch, those of the package or one's own.

```yaml
title: MLPerf ResNet-50 v1.5 / ImageNet, LARS
source: mlcommons/logging, training_4.0.0/rcps_resnet.json
target: accuracy 75.9 %
score: {accuracy_percent: 75.9}         # the target as a number, by its key in an evaluation
model: {name: resnet50}     # these three as in a recipe: a plan refuses points of another model or of other data
data: {name: imagenet}
optimizer: {name: lars}
unit: images                # the plural of an example
epoch: 1281167              # examples of an epoch, where points are in epochs
middle: mean                # of the runs of a point; else the median
points:
  1632:
    lr: 7.4
    epochs: {33: 1, 34: 4, 35: 9, 37: 3}    # what was needed: by how many runs; or examples: {...}
    unreached: {60: 1}                      # what was seen without reaching it, in the same unit
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from largebatch.errors import UserError, suggestion
from largebatch.recipes.config.mistakes import section_of
from largebatch.recipes.keys import LARGEST, Finite, PositiveFloat, PositiveInt, Section, Size, a_number
from largebatch.recipes.strict_yaml import parse
from largebatch.studies.curves.measured import CurveParts, Middle, TargetCurve, TargetPoint, TargetRun

FOLDER = Path(__file__).parent / "points"
Needed = Annotated[float, Field(gt=0, le=LARGEST), pydantic.BeforeValidator(a_number)]
Runs = Annotated[dict[Needed, PositiveInt], Field(min_length=1)]


class PublishedPoint(Section):
    """A batch size: what was needed or seen, and by how many runs."""

    lr: PositiveFloat | None = None
    epochs: Runs | None = None
    examples: Runs | None = None
    unreached: Runs | None = None


class NamedPart(Section):
    """What of a recipe's section is said of points."""

    name: Annotated[str, Field(min_length=1)]


class PublishedCurve(Section):
    """A file."""

    title: Annotated[str, Field(min_length=1)]
    source: str | None = None
    target: str | None = None
    score: Annotated[dict[str, Finite], Field(min_length=1, max_length=1)] | None = None
    model: dict[str, pydantic.JsonValue] | None = None
    data: NamedPart | None = None
    optimizer: NamedPart | None = None
    unit: str = "examples"
    epoch: PositiveInt | None = None
    middle: Middle = "median"
    points: Annotated[dict[Size, PublishedPoint], Field(min_length=1)]

    @pydantic.field_validator("model")
    @classmethod
    def has_a_name(cls, model: dict[str, Any] | None) -> dict[str, Any] | None:
        if model is not None and not (isinstance(name := model.get("name"), str) and name):
            raise ValueError("model should have a name, as in model: {name: resnet50}")
        return model

    @pydantic.model_validator(mode="after")
    def in_one_unit(self) -> PublishedCurve:
        for batch, point in self.points.items():
            if point.epochs and point.examples:
                raise ValueError(f"points.{batch} has epochs and examples; give what was needed in one of them")
            if not (point.epochs or point.examples or point.unreached):
                raise ValueError(f"points.{batch} has no runs; give epochs, examples or unreached")
            if point.epochs and self.epoch is None:
                raise ValueError(f"points.{batch} is in epochs, so epoch is needed: how many examples an epoch has")
        return self

    def curve(self) -> TargetCurve:
        points = tuple(self._point(batch) for batch in sorted(self.points))
        return TargetCurve(self.title, points, self.unit, self.middle)

    @property
    def of(self) -> CurveParts:
        return CurveParts(self.model, self.data and self.data.name, self.optimizer and self.optimizer.name)

    @property
    def goal(self) -> tuple[str, float] | None:
        """Key and value of the target."""
        return next(iter(self.score.items())) if self.score else None

    def _point(self, batch: int) -> TargetPoint:
        written = self.points[batch]
        in_epochs = written.epochs is not None or (written.examples is None and self.epoch is not None)
        factor = self.epoch if in_epochs and self.epoch else 1
        needed = [
            (examples * factor, reached)
            for runs, reached in ((written.epochs or written.examples, True), (written.unreached, False))
            for examples, times in (runs or {}).items()
            for _ in range(times)
        ]
        runs = tuple(TargetRun(seed, examples, reached) for seed, (examples, reached) in enumerate(needed))
        return TargetPoint(batch, runs, {} if written.lr is None else {"lr": written.lr})


def names() -> list[str]:
    """Of the package's files."""
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.yaml"))


def located(name: str) -> Path:
    """The file at this path, or of the package."""
    if name.removesuffix(".yaml") in names():
        return FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return Path(name)
    known = suggestion(name, names())
    raise UserError(f"{name} is neither a file of points (.yaml) nor among those of largebatch study show{known}")


def short_name(name: str) -> str:
    """What its numbers and its picture are called: ``mlperf/resnet50``, or the stem of a file of one's own."""
    known = name.removesuffix(".yaml")
    return known if known in names() else Path(name).stem


def load(file: Path) -> PublishedCurve:
    """The points of a file, checked."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the points {file} cannot be read: {str(error)[:200]}") from None
    no_keys = f"{file} holds no points: expected keys such as title, unit, points"
    return section_of(PublishedCurve, parse(text, str(file)), str(file), no_keys)
