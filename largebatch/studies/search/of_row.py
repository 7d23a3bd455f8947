"""The search of one row: its space, its recipe's own values, and what a trial changes of the recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from largebatch.data import Splits
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.recipes.config.dotted import touches
from largebatch.recipes.decide import decide
from largebatch.records.comparison import Tuning
from largebatch.run.assemble import data_facts, task_of
from largebatch.studies.rows import ComparedRecipe
from largebatch.studies.search.rounds import SearchPlan
from largebatch.studies.search.space import Axis, Choice, Space, Values

LR = "lr.base"
SET_ITSELF = {  # keys that say what is measured, and by whom they are set
    "seed": "the search has one seed, and the runs after it theirs",
    "epochs": "the budget is the same for all trials",
    "steps": "the budget is the same for all trials",
    "batch.global_batch_size": "the batch is the row's",
    "data.name": "the data are the same for all trials",
    "data.root": "the data are the same for all trials",
    "data.hold_out": "the search holds out the same examples for all trials",
    "task": "the task is the same for all trials",
    "evaluate": "the target and its evaluations are the same for all trials",
    "record": "records change nothing of a run",
    "checkpoint": "checkpoints change nothing of a run",
}
FOLLOWED = "record.noise_scale"  # by an adaptive ramp: a record that changes the run
QUIET = ("evaluate.train=false", "record.to=[]", "checkpoint.keep=1")
TIMES = 8.0  # --tune lr looks so many times below and above the recipe's own


def set_itself(key: str, free: tuple[str, ...] = ()) -> str | None:
    """Why nobody else may set this key; None: anybody may, as all keys that begin with one of ``free``."""
    if key.startswith(FOLLOWED):
        return None
    return next((why for one, why in SET_ITSELF.items() if touches(key, one) and not one.startswith(free)), None)


class RowSearch:
    """Refuses a space that contradicts the recipe."""

    def __init__(self, row: ComparedRecipe, tuning: Tuning, dataset: Splits, added: tuple[int, ...] = ()) -> None:
        self.row, self.judged, self.dataset, self.facts = row, judged(tuning), dataset, data_facts(dataset)
        self.written = self._section(tuning.space)
        for key in self.written:
            if why := set_itself(key):
                raise UserError(f"{row.recipe}: search.{key} cannot be searched: {why}")
        space = Space.of(config.from_dict({**row.written, "search": self.written}).search or {})
        space = Space(tuple(self._in_whole_numbers(axis) for axis in space.axes))
        for key, value in space.ends():
            if problem := self.refusal({key: value}):
                raise UserError(
                    f"{row.recipe}: search.{key} goes to {value!r}, which the recipe does not take: {problem}"
                )
        written = row.run().as_written()
        known = [has_key(written, key) for key in self.written]
        begin = {key: value_at(written, key) for key in self.written}
        budgets = (tuning.trials, *added)
        self.plan = SearchPlan(
            space,
            begin if all(known) else None,
            budgets,
            lambda key, value: self.takes({key: value}),
            tuning.sampler,
            tuning.seed,
        )

    def _section(self, space: str) -> dict[str, Any]:
        """As a recipe has it."""
        run = self.row.run()
        if space == "search":
            if run.search is None:
                raise UserError(
                    f"{self.row.recipe}: --tune search needs the section search, such as search: "
                    "{lr.base: {log: [0.01, 10]}}"
                )
            return run.as_set()["search"]
        if run.lr.base is None:
            raise UserError(f"{self.row.recipe}: --tune lr needs lr.base; a table is not searched")
        return {LR: {"log": [run.lr.base / TIMES, run.lr.base * TIMES]}}

    def _in_whole_numbers(self, axis: Axis | Choice) -> Axis | Choice:
        """Where the recipe takes no others."""
        if isinstance(axis, Choice) or axis.scale == "one_minus_log":
            return axis
        middle = axis.value(0.5)
        between = math.floor(middle) + 0.5
        whole = self._read({axis.key: between}) is not None and self._read({axis.key: round(middle)}) is None
        return dataclasses.replace(axis, whole=whole)

    def _read(self, values: Values) -> UserError | None:
        try:
            self.row.run(*settings(values), *self.judged)
        except UserError as error:
            return error
        return None

    def refusal(self, values: Values) -> UserError | None:
        """Why the recipe cannot be run with them; a decay that would end above its peak cannot, for one."""
        try:
            run = self.row.run(*settings(values), *self.judged)
            task_of(run, self.dataset)
            decide(run, self.facts, distributed.world_size(), distributed.choose_device(run.device).type)
        except UserError as error:
            return error
        return None

    def takes(self, values: Values) -> bool:
        return self.refusal(values) is None


def has_key(written: Mapping[str, Any], key: str) -> bool:
    above, _, last = key.rpartition(".")
    section = value_at(written, above) if above else written
    return isinstance(section, Mapping) and last in section


def value_at(written: Mapping[str, Any], key: str) -> Any:
    """None where the recipe has none."""
    section: Any = written
    for name in key.split("."):
        section = section.get(name) if isinstance(section, Mapping) else None
    return section


def settings(values: Values) -> tuple[str, ...]:
    return tuple(config.setting(key, value) for key, value in values.items())


def judged(tuning: Tuning) -> tuple[str, ...]:
    """Not by the test set."""
    return (f"data.hold_out={tuning.hold_out}",)


def of_trial(row: ComparedRecipe, values: Values, tuning: Tuning, seed: int | None = None) -> tuple[str, ...]:
    """What a trial changes of the recipe; one with a target is evaluated as the recipe is."""
    seed = tuning.seed if seed is None else seed
    only_at_the_end = () if "target" in row.run().methods else ("evaluate.every_epochs=1000000",)
    return (*settings(values), *judged(tuning), f"seed={seed}", *only_at_the_end, *QUIET)
