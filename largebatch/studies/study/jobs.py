"""The runs of a study, and which of them can be made now: a function of those that ended.

A cell is a recipe at a batch. Its trials are searched in rounds (:mod:`largebatch.studies.search.rounds`), judged on
held-out training examples: those that reach the target by the fewest examples, before those that do not by their best
score. A trial of a later round is given up once it has seen ``PATIENT`` times what the best of the rounds before it
needed. The best values are then run at every seed, on the whole training set, to the target on the test set.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence

from largebatch.data import Splits
from largebatch.plan.score import Score
from largebatch.recipes import config
from largebatch.records import names
from largebatch.records.comparison import Tuning
from largebatch.records.run import ResultRecord
from largebatch.run.assemble import dataset_of, task_of
from largebatch.studies.rows import ComparedRecipe
from largebatch.studies.search import of_row
from largebatch.studies.search.of_row import QUIET, RowSearch, judged, settings
from largebatch.studies.search.rounds import Round, rounds
from largebatch.studies.search.space import Values
from largebatch.studies.search.trial import Trial, best, worth_of

PATIENT = 1.25

Outcomes = Mapping[str, ResultRecord]  # of runs that ended, by their folder


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run: its folder below the study's, and what is laid over the cell's recipe."""

    folder: str
    overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recipe at a batch."""

    row: str
    batch: int
    recipe: ComparedRecipe
    tuning: Tuning
    added: tuple[int, ...]  # trials that were asked for later
    seeds: int

    @property
    def folder(self) -> str:
        return f"{self.row}/{self.batch}"

    @functools.cached_property
    def dataset(self) -> Splits:
        """What trials train on and are judged by."""
        return _read_once(self.recipe.run(*judged(self.tuning)))

    @functools.cached_property
    def score(self) -> Score:
        return task_of(self.recipe.run(*judged(self.tuning)), self.dataset).score

    @functools.cached_property
    def search(self) -> RowSearch:
        return RowSearch(self.recipe, self.tuning, self.dataset, self.added)

    @functools.cached_property
    def known(self) -> dict[frozenset[int], dict[int, Trial]]:
        """What :func:`tried` found, by the trials that had ended."""
        return {}

    @property
    def trials(self) -> int:
        return self.tuning.trials + sum(self.added)

    def trial_folder(self, number: int) -> str:
        return f"{self.folder}/{names.SEARCH}/trial-{number:02}"

    def seed_folder(self, chosen: int, seed: int) -> str:
        """Of the values of trial ``chosen``: more trials may find better ones, which are run anew."""
        return f"{self.folder}/best-{chosen:02}/seed-{seed}"


_READ: dict[str, Splits] = {}


def _read_once(run: config.Run) -> Splits:
    """For all cells that share the data."""
    key = json.dumps(run.as_written()["data"])
    if key not in _READ:
        _READ[key] = dataset_of(run)
    return _READ[key]


def tried(cell: Cell, outcomes: Outcomes) -> dict[int, Trial]:
    """The trials that ended, by number, and those that the recipe cannot take."""
    results = {
        number: result
        for number in range(cell.trials)
        if (result := outcomes.get(cell.trial_folder(number))) is not None
    }
    ended = frozenset(results)
    if ended not in cell.known:
        cell.known.clear()
        cell.known[ended] = _tried(cell, results)
    return cell.known[ended]


def _tried(cell: Cell, results: Mapping[int, ResultRecord]) -> dict[int, Trial]:
    trials: dict[int, Trial] = {}
    while True:
        before = len(trials)
        for one in rounds(cell.search.plan, trials):
            for number, values in enumerate(one.values, start=one.first):
                if number in results:
                    trials[number] = Trial(values, worth_of(results[number], cell.score))
                elif number not in trials and not cell.search.takes(values):
                    trials[number] = Trial(values, None)
        if len(trials) == before:
            return trials


def chosen(cell: Cell, outcomes: Outcomes) -> int | None:
    """The number of the best trial, once all of them ended; None before, and where nothing could be trained."""
    trials = tried(cell, outcomes)
    if len(trials) < cell.trials or (top := best([trials[number] for number in sorted(trials)])) is None:
        return None
    return next(number for number in sorted(trials) if trials[number] is top)


def due(cell: Cell, outcomes: Outcomes) -> Iterator[PlannedRun]:
    """What can be made now; nothing where all is made, or waits for runs that others make."""
    trials = tried(cell, outcomes)
    if len(trials) == cell.trials:
        yield from _seeds(cell, outcomes)
        return
    for one in rounds(cell.search.plan, trials):
        for number, values in enumerate(one.values, start=one.first):
            if number not in trials:
                yield PlannedRun(cell.trial_folder(number), of_round(cell, values, one, trials))


def _seeds(cell: Cell, outcomes: Outcomes) -> Iterator[PlannedRun]:
    if (number := chosen(cell, outcomes)) is None:
        return
    values = tried(cell, outcomes)[number].values
    for seed in range(cell.seeds):
        if (folder := cell.seed_folder(number, seed)) not in outcomes:
            yield PlannedRun(folder, (*settings(values), f"seed={seed}", *QUIET))


def of_round(cell: Cell, values: Values, one: Round, trials: Mapping[int, Trial]) -> tuple[str, ...]:
    """What a trial changes, and when it is given up."""
    overrides = of_row.of_trial(cell.recipe, values, cell.tuning)
    if (epochs := given_up_after(cell, [trials[number] for number in range(one.first)])) is not None:
        overrides += (config.setting("evaluate.stop_at.give_up_epochs", epochs),)
    return overrides


def given_up_after(cell: Cell, before: Sequence[Trial]) -> float | None:
    """Epochs; None where no trial reached the target yet, or the budget is shorter."""
    top = best(before)
    if top is None or top.worth is None or top.worth[0] < 1:
        return None
    epochs = float(f"{PATIENT * -top.worth[1] / len(cell.dataset.train):.4g}")
    return epochs if epochs < (cell.recipe.run().epochs or 0.0) else None


def left(cell: Cell, outcomes: Outcomes) -> int:
    """Runs that are still to be made, those of later rounds included."""
    if waiting := cell.trials - len(tried(cell, outcomes)):
        return waiting + cell.seeds
    return sum(1 for _ in _seeds(cell, outcomes))
