"""What the workers of a study share: a folder, on one machine or on a file system of several.

    OUT/study.json             the study as it stands, with what was added; the recipes as their files stood
    OUT/claims/                a file for each run that somebody makes: locked as long as they live
    OUT/ROW/BATCH/search/      the trials
    OUT/ROW/BATCH/best-N/      the runs with the values of trial N, the best: a seed each

Nothing else is kept: which run is next follows from those that ended. A lock ends with the process that holds it, so
whatever a killed worker was at is free at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.decide import decide
from largebatch.records.comparison import Tuning
from largebatch.records.facts import write_json
from largebatch.records.run import ResultRecord
from largebatch.run import record
from largebatch.run.assemble import data_facts, dataset_of, task_of
from largebatch.studies.rows import ComparedRecipe
from largebatch.studies.search.of_row import judged, set_itself
from largebatch.studies.study import file as files
from largebatch.studies.study.file import StudyFile
from largebatch.studies.study.jobs import Cell, Outcomes, chosen

STUDY, CLAIMS, VERSION = "study.json", "claims", 1


class StudyFolder:
    """A study that was begun."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._ended: dict[str, ResultRecord] = {}
        self._cells: tuple[dict[str, Any], list[Cell]] | None = None

    def begin(self, study: StudyFile, recipes: dict[str, Any]) -> None:
        """Make it, or go on with it, of these recipes by row; refuses a folder that holds another study."""
        try:
            (self.out / CLAIMS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.out} cannot be written: {error.strerror or error}") from None
        with self.claimed("study", wait=True):
            if not (self.out / STUDY).is_file():
                self._write(study, recipes, ())
                return
            facts = self._facts()
        there, written = self.study, facts["recipes"]
        self._check_versions(facts["points_by"], there.sampler)
        asked, stands = with_named_rows(study), with_named_rows(there)
        stands["recipes"] = {name: row for name, row in stands["recipes"].items() if name in asked["recipes"]}
        if more := [name for name in asked["recipes"] if name not in stands["recipes"]]:
            raise UserError(
                f"--out {self.out} holds the study without the recipe{'s' * (len(more) > 1)} {', '.join(more)}; "
                f"`largebatch study add {self.out} --recipe CONFIG` adds one to it, or choose another --out"
            )
        stands["batches"] = [batch for batch in stands["batches"] if batch in asked["batches"]]
        stands["seeds"] = min(stands["seeds"], asked["seeds"]) if study.seeds <= there.seeds else stands["seeds"]
        if different := record.differences(stands, asked):
            raise UserError(
                f"--out {self.out} holds another version of the study ({'; '.join(different)}); choose another --out, "
                "or `largebatch study add` for more batches, recipes, trials or seeds"
            )
        for name, recipe in recipes.items():
            if different := record.differences(written[name], recipe):
                raise UserError(
                    f"the recipe {name} was another when the study in {self.out} began ({'; '.join(different)}); give "
                    "the changed one an id of its own, or choose another --out"
                )

    def _check_versions(self, begun: dict[str, str], sampler: str) -> None:
        """Whoever asks again has to get the same trials."""
        here = points_by(sampler)
        for package, version in begun.items():
            if here.get(package) != version:
                raise UserError(
                    f"the study in {self.out} began with {package} {version}, whose points its trials are, and here is "
                    f"{here.get(package, 'none')}; install that version, or choose another --out"
                )

    def add(self, batches: list[int], recipes: list[Path], trials: int | None, seeds: int | None) -> StudyFile:
        """More of what there is; what was made stays."""
        self._facts()
        with self.claimed("study", wait=True):
            facts = self._facts()
            study, written = facts["study"], dict(facts["recipes"])
            study["batches"] = sorted({*study["batches"], *batches})
            study["seeds"] = max(study["seeds"], seeds or 0)
            study["recipes"] += [{"recipe": str(recipe)} for recipe in recipes]
            checked = files.checked(study, f"{self.out / STUDY} with what is added")
            for row in checked.recipes:
                if row.name not in written:
                    written[row.name] = files.recipe_of(row, Path())
            self._write(checked, written, (*facts["added_trials"], *([trials] if trials else [])))
        return checked

    def _write(self, study: StudyFile, recipes: dict[str, Any], added: tuple[int, ...]) -> None:
        """Nothing is written that could not be run."""
        facts = {
            "version": VERSION,
            "study": study.model_dump(mode="json"),
            "recipes": recipes,
            "added_trials": list(added),
            "points_by": points_by(study.sampler),
        }
        check(self._made(facts))
        write_json(self.out / STUDY, facts)

    def _facts(self) -> dict[str, Any]:
        try:
            facts = json.loads((self.out / STUDY).read_text(encoding="utf-8"))
            if facts["version"] > VERSION:
                raise ValueError(f"it has version {facts['version']}, and this largebatch reads {VERSION}")
            begun = {key: facts[key] for key in ("version", "study", "recipes", "added_trials")}
            return {**begun, "points_by": dict(facts.get("points_by", {}))}
        except FileNotFoundError:
            raise UserError(
                f"{self.out} holds no study; `largebatch study STUDY.yaml --out {self.out}` begins one"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
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

    def outcomes(self, cells: list[Cell]) -> Outcomes:
        """Of all runs that ended; those that were stopped go on."""
        for cell in cells:
            self._look(cell.trial_folder(number) for number in range(cell.trials))
            if (number := chosen(cell, self._ended)) is not None:
                self._look(cell.seed_folder(number, seed) for seed in range(cell.seeds))
        return self._ended

    def _look(self, folders: Iterable[str]) -> None:
        for folder in folders:
            if folder not in self._ended:
                result = record.read_result(self.out / folder)
                if result is not None and result.status != "stopped":
                    self._ended[folder] = result

    @contextlib.contextmanager
    def claimed(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Inside, whether what has this name is this process's alone."""
        with self._claim(name).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                raise UserError(
                    f"runs in {self.out} cannot be claimed: its file system does not lock ({error})"
                ) from None
            file.truncate(0)
            file.write(f"{socket.gethostname()} {os.getpid()}")
            file.flush()
            yield True
            file.truncate(0)

    def _claim(self, name: str) -> Path:
        return self.out / CLAIMS / f"{name.replace('/', '_')}.lock"

    def running(self) -> int:
        """The runs that somebody makes now."""
        claims = [
            path for path in (self.out / CLAIMS).glob("*.lock") if path.name not in ("study.lock", "findings.lock")
        ]
        return sum(_is_held(path) for path in claims)


def points_by(sampler: str) -> dict[str, str]:
    """The package that decides where trials lie, and its version."""
    package = "optuna" if sampler == "tpe" else "scipy"
    try:
        return {package: importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {}


def _is_held(claim: Path) -> bool:
    with claim.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def check(cells: list[Cell]) -> None:
    """Find the mistakes of every recipe at every batch before the first run."""
    for cell in cells:
        run = cell.recipe.run(*judged(cell.tuning))
        if run.regime_adaptation is not None:
            raise UserError(
                f"{cell.row}: regime_adaptation lengthens the run, and the budget of a study is the same for all"
            )
        task_of(run, cell.dataset)
        device = distributed.choose_device(run.device)
        decide(run, data_facts(cell.dataset), distributed.world_size(), device.type)
        cell.search  # noqa: B018, refuses a space that contradicts the recipe


def of_study(study: StudyFile, overrides: files.Overrides, batch: int) -> tuple[str, ...]:
    """What a study lays over a recipe: the batch, the budget and the target, the same for all."""
    for key in (*study.overrides, *overrides):
        if why := set_itself(key, free=("data.",)):
            raise UserError(f"overrides.{key} = {shown({**study.overrides, **overrides}[key])}: {why}")
    laid = {
        **study.overrides,
        **overrides,
        "batch.global_batch_size": batch,
        "epochs": study.epochs,
        "evaluate.every_epochs": study.every_epochs,
        "data.hold_out": 0,
        "evaluate.stop_at": study.target.model_dump(mode="json"),
    }
    return tuple(config.setting(key, value) for key, value in laid.items())


def with_named_rows(study: StudyFile) -> dict[str, Any]:
    """As JSON has it, but for the rows, which stand by their names."""
    return study.model_dump(mode="json") | {"recipes": {row.name: row.model_dump(mode="json") for row in study.recipes}}
