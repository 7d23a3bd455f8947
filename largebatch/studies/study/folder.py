"""What the workers of a study share: a folder, on one machine or on a file system of several.

    OUT/study.json             the study as it stands, with what was added; the recipes as their files stood
    OUT/claims/                a file for each run that somebody makes: locked as long as they live
    OUT/ROW/BATCH/search/      the trials
    OUT/ROW/BATCH/seed-N/      the runs with the best values

Nothing else is kept: which run is next follows from those that ended. A lock ends with the process that holds it, so
whatever a killed worker was at is free at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config, refusals
from largebatch.recipes.decide import decide, precision_of
from largebatch.records.comparison import Tuning
from largebatch.records.facts import write_json
from largebatch.records.run import ResultRecord
from largebatch.run import record
from largebatch.run.assemble import dataset_of
from largebatch.studies.rows import ComparedRecipe
from largebatch.studies.search.of_row import judged
from largebatch.studies.study import file as files
from largebatch.studies.study.file import StudyFile
from largebatch.studies.study.jobs import Cell, Outcomes

STUDY, CLAIMS = "study.json", "claims"
GROWS = ("batches", "trials", "seeds", "recipes")  # what study add may add to


class StudyFolder:
    """A study that was begun."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._ended: dict[str, ResultRecord] = {}
        self._cells: tuple[dict[str, Any], list[Cell]] | None = None

    def begin(self, study: StudyFile, beside: Path) -> None:
        """Make it, or go on with it; refuses a folder that holds another study."""
        try:
            (self.out / CLAIMS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.out} cannot be written: {error.strerror or error}") from None
        with self.claimed("study", wait=True):
            if not (self.out / STUDY).is_file():
                self._write(study, {row.name: files.recipe_of(row, beside)[1] for row in study.recipes}, ())
                return
        there = self.study
        asked, stands = (one.model_dump(mode="json") for one in (study, there))
        stands["recipes"] = [row for row in stands["recipes"] if row in asked["recipes"]]
        stands["batches"] = [batch for batch in stands["batches"] if batch in asked["batches"]]
        stands["seeds"] = min(stands["seeds"], asked["seeds"]) if study.seeds <= there.seeds else stands["seeds"]
        if different := record.differences(stands, asked):
            raise UserError(
                f"--out {self.out} holds another version of the study ({'; '.join(different)}); choose another --out, "
                "or `largebatch study add` for more batches, recipes, trials or seeds"
            )

    def add(self, batches: list[int], recipes: list[Path], trials: int | None, seeds: int | None) -> StudyFile:
        """More of what there is; what was made stays."""
        with self.claimed("study", wait=True):
            facts = self._facts()
            study, written = facts["study"], dict(facts["recipes"])
            study["batches"] = sorted({*study["batches"], *batches})
            study["seeds"] = max(study["seeds"], seeds or 0)
            study["recipes"] += [{"recipe": str(recipe)} for recipe in recipes]
            checked = files.checked(study, f"{self.out / STUDY} with what is added")
            for row in checked.recipes:
                if row.name not in written:
                    written[row.name] = files.recipe_of(row, Path())[1]
            self._write(checked, written, (*facts["added_trials"], *([trials] if trials else [])))
        return checked

    def _write(self, study: StudyFile, recipes: dict[str, Any], added: tuple[int, ...]) -> None:
        facts = {"version": 1, "study": study.model_dump(mode="json"), "recipes": recipes, "added_trials": list(added)}
        write_json(self.out / STUDY, facts)

    def _facts(self) -> dict[str, Any]:
        try:
            return json.loads((self.out / STUDY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.out} holds no study; `largebatch study STUDY.yaml --out {self.out}` begins one"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.out / STUDY} cannot be read ({error}); choose another --out") from None

    @property
    def study(self) -> StudyFile:
        return files.checked(self._facts()["study"], str(self.out / STUDY))

    def cells(self) -> list[Cell]:
        """Batch by batch, smallest first; made anew where the study has grown."""
        facts = self._facts()
        if self._cells is None or self._cells[0] != facts:
            self._cells = facts, self._made(facts)
        return self._cells[1]

    def _made(self, facts: dict[str, Any]) -> list[Cell]:
        study = files.checked(facts["study"], str(self.out / STUDY))
        rows = []
        for row in study.recipes:
            written = {**facts["recipes"][row.name]}
            if search := row.search or config.from_dict(written, row.recipe).search or study.search:
                written["search"] = {key: one.model_dump(mode="json", exclude_none=True) for key, one in search.items()}
            rows.append((row, written, search))
        hold_out = study.hold_out
        cells = []
        for batch in study.batches:
            for row, written, search in rows:
                recipe = ComparedRecipe(row.name, Path(row.recipe), written, of_study(study, row.overrides, batch))
                hold_out = hold_out or len(dataset_of(recipe.run()).train) // 6
                tuning = Tuning(study.trials, hold_out, space="search" if search else "lr", sampler=study.sampler)
                cells.append(Cell(row.name, batch, recipe, tuning, tuple(facts["added_trials"]), study.seeds))
        return cells

    def check(self) -> None:
        """Find the mistakes of every recipe at every batch before the first run."""
        device = distributed.choose_device("auto")
        for cell in self.cells():
            run = cell.recipe.run(*judged(cell.tuning))
            refusals.check(run, precision_of(run.precision, device.type))
            for sentence in (told for method in run.methods.values() for told in method.check_score(cell.score)):
                raise UserError(sentence)
            decide(run, cell.looked_at[0], distributed.world_size(), device.type)
            cell.search  # noqa: B018, refuses a space that contradicts the recipe

    def outcomes(self, cells: list[Cell]) -> Outcomes:
        """Of all runs that ended; those that were stopped go on."""
        for cell in cells:
            folders = [cell.trial_folder(number) for number in range(cell.trials)]
            for folder in (*folders, *map(cell.seed_folder, range(cell.seeds))):
                if folder not in self._ended:
                    result = record.read_result(self.out / folder)
                    if result is not None and result.status != "stopped":
                        self._ended[folder] = result
        return self._ended

    @contextlib.contextmanager
    def claimed(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Inside, whether what has this name is this process's alone."""
        path = self.out / CLAIMS / f"{name.replace('/', '_')}.lock"
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            file.truncate(0)
            file.write(f"{socket.gethostname()} {os.getpid()}")
            file.flush()
            yield True
            file.truncate(0)

    def running(self, cells: list[Cell]) -> list[str]:
        """The runs that somebody makes now."""
        folders = [cell.trial_folder(number) for cell in cells for number in range(cell.trials)]
        folders += [cell.seed_folder(seed) for cell in cells for seed in range(cell.seeds)]
        found = []
        for folder in folders:
            if (self.out / CLAIMS / f"{folder.replace('/', '_')}.lock").is_file():
                with self.claimed(folder) as free:
                    if not free:
                        found.append(folder)
        return found


def of_study(study: StudyFile, overrides: files.Overrides, batch: int) -> tuple[str, ...]:
    """What a study lays over a recipe: the batch, the budget and the target, the same for all."""
    laid = {
        **study.overrides,
        **overrides,
        "batch.global_batch_size": batch,
        "epochs": study.epochs,
        "evaluate.every_epochs": study.every_epochs,
        "evaluate.stop_at": study.target.model_dump(mode="json"),
    }
    return tuple(config.setting(key, value) for key, value in laid.items())
