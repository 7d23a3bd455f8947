"""The search of one row: its space, its recipe's own values, and what a trial changes of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.recipes.decide import decide
from largebatch.recipes.decided import DataFacts
from largebatch.records.comparison import Tuning
from largebatch.studies.rows import ComparedRecipe
from largebatch.studies.search.rounds import SearchPlan
from largebatch.studies.search.space import Space, Values

LR = "lr.base"
QUIET = ("evaluate.train=false", "record.tensorboard=false", "checkpoint.keep=1")
TIMES = 8.0  # --tune lr looks so many times below and above the recipe's own


class RowSearch:
    """Refuses a space that contradicts the recipe."""

    def __init__(self, row: ComparedRecipe, tuning: Tuning, facts: DataFacts, added: tuple[int, ...] = ()) -> None:
        self.row, self.judged, self.facts = row, judged(tuning), facts
        self.written = self._section(tuning.space)
        space = Space.of(config.from_dict({**row.written, "search": self.written}).search or {})
        for key, value in space.ends():
            try:
                row.run(config.setting(key, value))
            except UserError as error:
                raise UserError(f"{row.recipe}: --tune {tuning.space} searches {key}: {error}") from None
        own = {key: value_at(row.run().as_written(), key) for key in self.written}
        self.plan = SearchPlan(
            space,
            None if None in own.values() else own,
            (tuning.trials, *added),
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

    def takes(self, values: Values) -> bool:
        """Whether the recipe can be run with them; a decay that would end above its peak cannot, for one."""
        try:
            run = self.row.run(*settings(values), *self.judged)
            decide(run, self.facts, distributed.world_size(), distributed.choose_device(run.device).type)
        except UserError:
            return False
        return True


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


def of_trial(row: ComparedRecipe, values: Values, tuning: Tuning) -> tuple[str, ...]:
    """What a trial changes of the recipe; one with a target is evaluated as the recipe is."""
    only_at_the_end = () if "target" in row.run().methods else ("evaluate.every_epochs=1000000",)
    return (*settings(values), *judged(tuning), f"seed={tuning.seed}", *only_at_the_end, *QUIET)
