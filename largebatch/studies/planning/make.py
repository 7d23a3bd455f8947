"""A plan: all batches on all numbers of devices, the chosen point, what is to be typed for it and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from largebatch.errors import UserError
from largebatch.recipes import config, derive
from largebatch.records.circumstances import commit, versions
from largebatch.records.plan import ClusterPlanRecord, LeftOut, PlannedPoint
from largebatch.report.numerals import count, listing
from largebatch.studies.cluster.machine import Machine
from largebatch.studies.planning.agreement import number_of, with_reported
from largebatch.studies.planning.choice import choice_of
from largebatch.studies.planning.devices import nearest
from largebatch.studies.planning.interruptions import Failures, with_failures
from largebatch.studies.planning.legs import PLENTY, PlannedRecipe
from largebatch.studies.planning.lines import lines_of, of_length
from largebatch.studies.planning.memory import StepMemory
from largebatch.studies.planning.pace import pace_name
from largebatch.studies.planning.points import LegOnMachine, Unplanned, compared, left_out, point_of
from largebatch.studies.planning.precision import precision_on, precision_ratio
from largebatch.studies.planning.sources import NamedSource, RecipeBudget, agreed, source_named, stated_law
from largebatch.studies.planning.sure import sentences
from largebatch.studies.planning.traces import Traces
from largebatch.studies.reading import training_examples

MOST_BATCHES = 12


@dataclass(frozen=True)
class PlanWish:
    """What is asked for. ``within`` in hours; ``epochs`` are those of small batches."""

    recipe: Path
    overrides: Sequence[str]
    machine: Machine
    devices: Sequence[int]
    batches: Sequence[int] | None = None
    target: str | None = None
    row: str | None = None
    critical_batch: float | None = None
    epochs: float | None = None
    price: float | None = None
    within: float | None = None
    budget: float | None = None
    failures: Failures | None = None
    workload: str | None = None
    examples: int | None = None
    classes: int | None = None
    device: str = "cuda"
    command: str = ""
    folder: Path | None = field(default=None)


def made_plan(wish: PlanWish, note: Callable[[str], None]) -> ClusterPlanRecord:
    """The facts; ``note`` is told of every trace that is made."""
    recipe = PlannedRecipe(wish.recipe, wish.overrides, None)
    recipe.dataset_size = training_examples(recipe.run.data, wish.examples)[0]
    source = source_of(wish, recipe)
    batches = batches_of(wish, recipe, source)
    workloads = {
        number: pace_name(wish.machine, laid, wish.workload)
        for number, laid in enumerate(config.of_phases(recipe.run), start=1)
    }
    for name in workloads.values():
        precision_ratio(wish.machine, name, precision_on(recipe.run, wish.device))  # which may refuse
    points, left = [], []
    kept: dict[int, Traces] = {}
    for batch in batches:
        legs = legs_of(wish, recipe, source, batch, workloads, kept, note, left)
        for devices in wish.devices if legs else ():
            try:
                points.append(point_of(legs, devices, recipe.size, wish.price))
            except Unplanned as error:
                left.append(left_out(devices, batch, str(error)))
    if not points:
        raise UserError(nothing_fits(wish, batches, left))
    return recorded(wish, recipe, source, list(workloads.values()), points, left)


def legs_of(
    wish: PlanWish, recipe: PlannedRecipe, source: NamedSource | None, batch: int, workloads: dict[int, str],
    kept: dict[int, Traces], note: Callable[[str], None], left: list[LeftOut],
) -> list[LegOnMachine]:  # fmt: skip
    """None where the recipe refuses the batch, which is then left out everywhere."""
    try:
        legs = recipe.at(batch, source and source.target, wish.critical_batch)
    except UserError as error:
        left += [left_out(devices, batch, str(error)) for devices in wish.devices]
        return []
    placed = []
    for place, leg in enumerate(legs, start=1):
        traces = Traces(leg.run, wish.device, wish.examples, wish.classes, note, wish.folder)
        if (before := kept.get(place)) is not None and before.alike(traces):
            traces = before
        kept[place] = traces
        placed.append(LegOnMachine(leg, wish.machine, workloads[place], StepMemory(leg.run, traces), recipe.size))
    return placed


def source_of(wish: PlanWish, recipe: PlannedRecipe) -> NamedSource | None:
    """None: the recipe's own budget."""
    if wish.target is not None and wish.critical_batch is not None:
        raise UserError("--target and --critical-batch both say how many examples are needed; give one of them")
    if wish.epochs is not None and wish.critical_batch is None:
        raise UserError(f"--epochs {wish.epochs:g} are those of small batches, and need --critical-batch N beside them")
    if recipe.phased:
        if wish.target is not None or wish.epochs is not None:
            option = "--target" if wish.target is not None else "--epochs"
            raise UserError(
                f"{option} is of a run of one batch, and {wish.recipe} has phases; --critical-batch N scales their "
                "own examples"
            )
        return None
    if wish.target is None and wish.critical_batch is None:
        return None
    plan = derive.plan_of(recipe.run, recipe.size, 1, PLENTY)
    budget = RecipeBudget(recipe.first_batch, plan.budget_examples)
    if wish.target is not None:
        return agreed(source_named(wish.target, wish.row, budget), recipe.run)
    assert wish.critical_batch is not None
    least = None if wish.epochs is None else wish.epochs * recipe.size
    return NamedSource(stated_law(wish.critical_batch, least, budget))


def batches_of(wish: PlanWish, recipe: PlannedRecipe, source: NamedSource | None) -> list[int]:
    """As asked; else those of the recipe's table or doublings of its batch, within what the source calls sensible."""
    if wish.batches is not None:
        return sorted(set(wish.batches))
    first, table = recipe.first_batch, [] if recipe.phased else recipe.table
    ends = source.target.sensible if source is not None else None
    if ends is None:
        return table or [first]
    low, high = ends[0], min(ends[1], recipe.size)
    near = table or [int(first * 2.0**power) for power in range(-20, 21) if (first * 2.0**power).is_integer()]
    found = {size for size in near if low <= size <= high}
    return sorted({*found, first} if not table else found or {first})[-MOST_BATCHES:]


def nothing_fits(wish: PlanWish, batches: Sequence[int], left: Sequence[LeftOut]) -> str:
    """With the nearest numbers of devices, where it is the factors that do not fit."""
    first = left[0]
    asked = listing(count(number) for number in wish.devices)
    if any("does not factor" in one.reason for one in left):
        near = nearest(wish.devices[0], batches, wish.machine)
        if near:
            sizes = listing(count(size) for size in batches)
            offered = " or ".join(map(str, near))
            return f"--devices {asked}: batch {sizes} does not factor into so many; nearest that do: {offered}"
    return f"--devices {asked}: no batch has a place on so many; batch {count(first.global_batch_size)}: {first.reason}"


def recorded(
    wish: PlanWish, recipe: PlannedRecipe, source: NamedSource | None, workloads: Sequence[str],
    points: Sequence[PlannedPoint], left: Sequence[LeftOut],
) -> ClusterPlanRecord:  # fmt: skip
    goal = source.parts.goal if source else None
    points = compared(sorted(points, key=lambda point: (point.devices, point.global_batch_size)))
    points = with_reported(points, recipe.run, goal)
    if wish.failures is not None:
        points = [with_failures(point, wish.failures) for point in points]
    choice = choice_of(points, wish.within, wish.budget)
    chosen = points[choice.chosen]
    target = source.target if source else None
    if target is not None:
        words = target.words
    elif wish.critical_batch is not None:
        words = f"the recipe's phases, with a stated critical batch of {count(wish.critical_batch)}"
    else:
        words = "the recipe's own budget at every batch; that it reaches as much there is not said"
    return ClusterPlanRecord(
        recipe=str(wish.recipe), title=recipe.run.title, machine=wish.machine.name, machine_title=wish.machine.title,
        workload=", ".join(dict.fromkeys(workloads)), engine=recipe.run.engine.name, target=words,
        unit=source.unit if source else "examples", dataset_size=recipe.size,
        critical_batch_size=target.critical if target else wish.critical_batch, optimizer=recipe.run.optimizer.name,
        target_optimizer=source.parts.of.optimizer if source else None, target_score=goal and goal.value,
        reported_number=number_of(recipe.run, goal), reported_by=recipe.run.expect and recipe.run.expect.source,
        unchecked=list(source.unchecked) if source else [], price=wish.price, points=points,
        left_out=sorted(left, key=lambda one: (one.global_batch_size, one.devices)),
        fastest=choice.fastest, cheapest=choice.cheapest, knee=choice.knee, chosen=choice.chosen,
        chosen_as=choice.chosen_as,
        sure=[*sentences(wish.machine, workloads, target, points), *of_length(recipe, chosen)],
        lines=lines_of(recipe, wish.machine, chosen), command=wish.command, versions=versions(), commit=commit(),
    )  # fmt: skip
