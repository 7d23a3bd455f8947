"""What is typed to train the chosen point."""

from __future__ import annotations

import shlex

from largebatch.recipes import config
from largebatch.records.plan import PlannedPoint
from largebatch.studies.cluster.machine import Machine
from largebatch.studies.planning.legs import PlannedRecipe
from largebatch.studies.planning.target import BUDGET

SAME_LENGTH = 0.01
"""Relative, up to which a run is as long as its recipe says."""


def lines_of(recipe: PlannedRecipe, machine: Machine, point: PlannedPoint) -> list[str]:
    """One for each host, which is the same on all of them."""
    if machine.launcher == "none":
        return [f"# nothing: largebatch does not run on {machine.name}, of which its file has times alone"]
    hosts = machine.hosts(point.devices)
    where = f"NPROC_PER_NODE={min(point.devices, machine.host)} "
    if hosts > 1:
        where = f"NNODES={hosts} RDZV_ENDPOINT=HOST:29500 {where}"
    settings = [*recipe.overrides, *settings_of(recipe, point)]
    words = ["launch/torchrun.sh", "train", str(recipe.path), *settings]
    return [where + shlex.join(words)]


def settings_of(recipe: PlannedRecipe, point: PlannedPoint) -> list[str]:
    """Overrides of the recipe."""
    settings = recipe.overrides_at(point.global_batch_size)
    for number, phase in enumerate(point.phases, start=1):
        key = f"phases.{number}." if recipe.phased else ""
        settings.append(f"{key}batch.micro_batch_size={phase.micro_batch_size}")
    return [*settings, *budget_of(recipe, point)]


def of_length(recipe: PlannedRecipe, point: PlannedPoint) -> list[str]:
    """That the run is not as long as the recipe says, where it is not: its schedule is stretched or cut with it."""
    if recipe.phased or not (typed := budget_of(recipe, point)):
        return []
    run = run_at(recipe, point)
    stated = f"{run.steps:,} steps" if run.epochs is None else f"{run.epochs:g} epochs"
    return [f"the recipe is of {stated}: with {typed[0]} its learning rates are others, and may need to be stated anew"]


def budget_of(recipe: PlannedRecipe, point: PlannedPoint) -> list[str]:
    """What the run's length becomes, where it is another than the recipe's."""
    run = recipe.run
    if all(phase.basis == BUDGET for phase in point.phases) and (run.steps is None or not recipe.phased):
        return []
    if run.steps is None:
        at = run_at(recipe, point)
        epochs = point.epochs / at.stretch
        return [] if recipe.phased or as_long(epochs, at.epochs) else [f"epochs={epochs:.4g}"]
    if not recipe.phased:
        steps = point.phases[0].steps
        return [] if as_long(steps, run_at(recipe, point).steps) else [f"steps={steps}"]
    steps = sum(phase.steps for phase in point.phases)
    settings = [
        f"phases.{number}.steps={phase.steps}"
        for number, (laid, phase) in enumerate(zip(run.phases or (), point.phases, strict=True), start=1)
        if laid.ends.get("steps", phase.steps) != phase.steps
    ]
    return [*settings, *[f"steps={steps}"] * (steps != run.steps)]


def as_long(length: float, stated: float | None) -> bool:
    return stated is not None and abs(length / stated - 1) <= SAME_LENGTH


def run_at(recipe: PlannedRecipe, point: PlannedPoint) -> config.Run:
    """As the recipe says it at this batch."""
    return config.load(recipe.path, [*recipe.overrides, *recipe.overrides_at(point.global_batch_size)])
