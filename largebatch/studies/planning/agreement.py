"""Whether what examples to a target are of is what the recipe trains.

Points, studies and diagnoses say model, data and optimizer, or do not. Another model or other data is refused; what
neither contradicts nor is said is told. Another optimizer is told, too: the plan is then how long it takes if the
recipe's needs as few examples. A target that is a number of an evaluation is held beside what the recipe's own source
reports at each batch (``expect``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from largebatch.errors import UserError
from largebatch.plan.score import ACCURACY, words_of
from largebatch.recipes import config
from largebatch.records.plan import ClusterPlanRecord, PlannedPoint
from largebatch.report.numerals import count, listing
from largebatch.studies.curves.measured import CurveParts

OPEN = ("folder", "text")  # data sets whose name does not say what is in them
NO_MODEL_KEYS = ("name", "weights", "frozen")


@dataclass(frozen=True)
class ScoreGoal:
    """A number of an evaluation, by its key."""

    key: str
    value: float

    @property
    def words(self) -> str:
        name, unit = words_of(self.key)
        return f"{name} {self.value:g} {unit}".rstrip()


@dataclass(frozen=True)
class SourceParts:
    """What a source of examples says of itself."""

    of: CurveParts = field(default_factory=CurveParts)
    goal: ScoreGoal | None = None


def check(name: str, of: CurveParts, run: config.Run) -> list[str]:
    """UserError where the source ``name`` is of another model or other data; else what could not be checked."""
    return [*_of_model(name, of, run), *_of_data(name, of, run)]


def _of_model(name: str, of: CurveParts, run: config.Run) -> Iterator[str]:
    if of.model is None:
        yield f"{name} does not say of which model it is: that it is {run.model.name} was not checked"
        return
    theirs, ours = str(of.model.get("name")), run.model.name
    if _bare(theirs) != _bare(ours):
        raise UserError(f"--target {name} is of model {theirs}, and the recipe trains {ours}; give a target of {ours}")
    shape = {key: value for key, value in of.model.items() if key not in NO_MODEL_KEYS}
    for key, value in shape.items():
        if key in run.model.arguments and run.model.arguments[key] != value:
            raise UserError(
                f"--target {name} is of model {theirs} with {key} {value}, and the recipe has model.{key} = "
                f"{run.model.arguments[key]}; give a target of the same"
            )
    own = {key for key, value in run.model.arguments.items() if type(value) in (int, str)}  # sizes, and names of them
    if unsaid := sorted(shape.keys() - run.model.arguments.keys() if shape else own):
        silent, other = ("the recipe", name) if shape else (name, "the recipe")
        keys = listing(f"model.{key}" for key in unsaid)
        yield f"{silent} does not say {keys}, which {other} does: that they agree was not checked"


def _of_data(name: str, of: CurveParts, run: config.Run) -> Iterator[str]:
    ours = run.data.name
    if of.data is None:
        yield f"{name} does not say of which data it is: that they are {ours} was not checked"
    elif of.data != ours and not {of.data, ours} & set(OPEN):
        raise UserError(
            f"--target {name} is of data {of.data}, and the recipe trains on {ours}; give a target of {ours}"
        )
    elif opened := [one for one in (of.data, ours) if one in OPEN]:
        yield f"data.name = {opened[0]} does not say which data: that {name} is of the recipe's was not checked"


def _bare(name: str) -> str:
    """``resnet50`` of ``timm/resnet50``."""
    return name.rpartition("/")[2]


def optimizers(ours: str, theirs: str | None) -> str | None:
    """A sentence where they differ."""
    if theirs in (None, ours):
        return None
    return (
        f"points are of {theirs}, the recipe trains by {ours}: this is how long it takes if {ours} needs as few "
        "examples, which is not measured"
    )


def reported_at(run: config.Run, batch: int, key: str) -> float | None:
    """What the recipe's source reports at this batch, of the number with this key."""
    expect = run.expect
    row = None if expect is None else expect.by_batch_size.get(batch)
    if row is None and expect is not None and not expect.by_batch_size and batch == run.batch.global_batch_size:
        row = expect
    if row is None:
        return None
    return row.top1 if key == ACCURACY.key and row.top1 is not None else row.numbers.get(key)


def with_reported(points: Sequence[PlannedPoint], run: config.Run, goal: ScoreGoal | None) -> list[PlannedPoint]:
    """Beside what the recipe's source reports; a recipe with phases has no target."""
    number = number_of(run, goal)
    if number is None or run.phases is not None:
        return list(points)
    reported = {point.global_batch_size: reported_at(run, point.global_batch_size, number) for point in points}
    return [
        dataclasses.replace(point, reported=value, short=falls_short(value, goal))
        for point in points
        for value in [reported[point.global_batch_size]]
    ]


def number_of(run: config.Run, goal: ScoreGoal | None) -> str | None:
    """The key of what the recipe's source reports: the target's, else the recipe's own where it has one."""
    if goal is not None or run.expect is None:
        return goal and goal.key
    rows = [run.expect, *run.expect.by_batch_size.values()]
    keys = {key for row in rows for key in row.numbers} | {ACCURACY.key for row in rows if row.top1 is not None}
    return keys.pop() if len(keys) == 1 else None


def falls_short(value: float | None, goal: ScoreGoal | None) -> bool | None:
    """Of percents, where more is better; None where one of the two is not known, or has no percents."""
    if value is None or goal is None or words_of(goal.key)[1] != "%":
        return None
    return value < goal.value


def of_reported(facts: ClusterPlanRecord) -> Iterator[str]:
    """What the recipe's own source reports at these batches: short of the target, or whatever it is without one."""
    number, source = facts.reported_number, facts.reported_by
    reported = {
        point.global_batch_size: point.reported
        for point in facts.points
        if point.reported is not None and (point.short or facts.target_score is None)
    }
    if number is None or not reported:
        return
    name, unit = words_of(number)
    rows = listing(f"{value:g} {unit}".rstrip() + f" at {count(batch)}" for batch, value in sorted(reported.items()))
    if facts.target_score is None:
        yield f"the recipe's source ({source}) reports {name} {rows}"
        return
    yield (
        f"short: the recipe's own source ({source}) ends below {ScoreGoal(number, facts.target_score).words} there, "
        f"with {rows}; whether the recipe reaches the target at such a batch is open"
    )
