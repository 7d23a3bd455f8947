"""What of a run is saved, and how it goes on from there.

Saved are the engine's weights and optimizer states, what every part remembers under its name, and what every rank keeps
to itself: random state, running statistics, and its own of every part. A save is begun at its mark and ends
beside the training; how it ended is read at the next recording mark, where all ranks read it together. One that fails
is told, and the training goes on; weights that are not finite end the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from largebatch import checkpoint, models
from largebatch.checkpoint import randomness, tree
from largebatch.checkpoint.manifest import MANIFEST
from largebatch.checkpoint.pieces import State
from largebatch.data import contents
from largebatch.data.preparation import prepared
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.plan.batch import BatchPlan
from largebatch.recipes.decided import Decided
from largebatch.records import circumstances, names
from largebatch.records.files import sha256_of
from largebatch.records.saved import SavedRecord
from largebatch.records.typed import content
from largebatch.run import record
from largebatch.run.assemble import Job
from largebatch.run.measure import Measure
from largebatch.run.older import of_today
from largebatch.run.parts import Parts
from largebatch.steps.step import Step

SAVABLE = "valid: tensors, numbers, text, lists, mappings"


@dataclasses.dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # steps done
    seconds: float = 0.0  # spent in training steps, over all sessions
    device_seconds: float = 0.0  # the same, times the ranks of each session
    seconds_before: float = 0.0  # of sessions before this one, everything included
    skipped: list[int] = dataclasses.field(default_factory=list)  # steps whose gradient was not finite
    growth: list[list[int]] = dataclasses.field(default_factory=list)  # steps done, batch from then on
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def made(self, step: Step) -> int:
        """It is done; how many were skipped so far."""
        self.step += 1
        if step.skipped:
            self.skipped.append(step.number)
        return len(self.skipped)

    def spend(self, seconds: float) -> None:
        """Training took so long."""
        self.seconds += seconds
        self.device_seconds += seconds * distributed.world_size()

    @property
    def total_seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def save(self) -> State:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "seconds_before": self.total_seconds,
            "skipped": self.skipped,
            "growth": self.growth,
        }


class Saves:
    """The checkpoints of one run. All methods are collective."""

    def __init__(self, job: Job, directory: Path, parts: Parts, measure: Measure) -> None:
        self.job, self.engine = job, job.engine
        self.parts, self.measure = parts, measure
        self.run_directory, self.directory = directory, directory / names.CHECKPOINTS
        self.data: contents.Digests = {}  # on rank zero, which writes the manifest
        self.last: Path | None = None  # the newest that is on the disk
        self.lost = 0  # steps after the plan's that another world could not take over
        self.seconds_standing = 0.0  # that the loop stood still for the last save
        self.versions = circumstances.versions()
        self.began_with = began_with(job)
        saving = self.decided.saving
        keep = checkpoint.Retention(saving.keep_last, saving.keep_every_epochs, saving.keep_best)
        self.writer = checkpoint.Writer(self.directory, keep, saving.asynchronous)

    @property
    def decided(self) -> Decided:
        return self.job.decided

    @property
    def plan(self) -> BatchPlan:
        return self.job.plan

    def rehearse(self) -> None:
        """Refuse a part that cannot be saved before time is spent. Collective."""
        for name, part in self.parts.items() if self.decided.saving.at.every_epochs else ():
            for state in (part.save(), part.save_own()):
                try:
                    tree.flatten(state, name, {})
                except tree.Unsavable as problem:
                    raise UserError(f"the part {name} cannot be saved: {problem}; {SAVABLE}") from problem

    def begin(self, progress: Progress) -> None:
        """Copy everything and go on; :meth:`settle` first. Nothing where the run is not to be saved."""
        if not self.decided.saving.at.every_epochs:
            return
        clock = time.perf_counter()
        own = {  # first: parts may have to copy, and undo what they show for it
            "random": randomness.state(),
            "statistics": self.engine.statistics(),
            "parts": {name: part.save_own() for name, part in self.parts.items()},
        }
        beside = {
            "progress": progress.save(),
            "scores": self.measure.scores,
            "parts": {name: part.save() for name, part in self.parts.items()},
        }
        step = self.number(progress.step)
        with contextlib.ExitStack() as shown:
            for part in self.parts.values():
                shown.enter_context(part.shown())
            try:
                self.writer.save(step, self._facts(progress.step), {**self.engine.save(), **beside}, own)
            except tree.Unsavable as problem:
                raise UserError(f"the run cannot be saved: {problem}; {SAVABLE}") from problem
        self.seconds_standing = time.perf_counter() - clock

    def number(self, step: int) -> int:
        """Of the checkpoint: steps one after another, those after the plan's included; above those before it."""
        return self.lost + step + self.parts.beyond.executed

    def ended(self) -> bool:
        """Whether a save has ended that :meth:`settle` has not told; on this rank."""
        return self.writer.done()

    def settle(self) -> checkpoint.Outcome | None:
        """How the save in progress, or the last one, ended; waits for it. Told once."""
        outcome = self.writer.take()
        if outcome is not None and outcome.path is not None:
            self.last = outcome.path
        return outcome

    def _facts(self, step: int) -> dict[str, Any]:
        """What the manifest says beside the state."""
        beyond = self.parts.beyond
        examples, steps = self.plan.examples_before(step) + beyond.examples, step + beyond.steps
        record = SavedRecord(
            name=self.decided.name,
            step_of_loop=step,
            examples_seen=examples,
            epoch=examples / self.plan.dataset_size,
            score=self.job.task.score,
            reached={self.job.task.score.key: self.measure.scores.get(steps)},
            evaluated_on=self.measure.evaluated_on,
            seed=self.decided.seed,
            model={**self.decided.model, "num_classes": self.job.dataset.outputs},
            began_with=self.began_with,
            code=self.parts.code,
            input=prepared(self.job.dataset),
            plan={**dataclasses.asdict(self.plan), "stages": [stage._asdict() for stage in self.plan.stages]},
            data=self.data,
            machine=self.machine(),
            versions=self.versions,
            commit=circumstances.commit(),
            saved=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        return content(record)

    def resume(self) -> tuple[Progress, list[str]]:
        """Go on from the newest checkpoint that is whole; what is worth saying about it."""
        record.on_first_rank(lambda: checkpoint.clear_up(self.directory), str(self.directory))
        found = checkpoint.load_newest(self.directory)
        changed = self._same_data(found.facts.get("data") if found else None)
        if found is None:
            return Progress(), []
        state, self.last = of_today(found.state, self.plan), found.path
        progress = Progress(**state["progress"])
        self.job.grow(progress.growth)
        if progress.step > self.plan.steps:
            raise UserError(f"{found.path} lies beyond the run's {self.plan.steps} steps")
        complaints = taken_up(self.job, self.parts, state, progress.step)
        marks, end = self.decided.evaluating.at.steps(), self.plan.steps
        # a shorter run's evaluation at its end is none of this one's
        self.measure.scores = {at: score for at, score in state["scores"].items() if at in marks or at > end}
        self.lost = checkpoint.step_of(found.path) - self.number(progress.step)
        changed += [
            f"{key.replace('_', ' ')} is {now}, it was {found.facts['machine'][key]}"
            for key, now in self.machine().items()
            if found.facts["machine"].get(key, now) != now
        ]
        code = changed_code(found.facts.get("code") or {}, self.parts.code)
        changed += [f"{sentence}; it goes on with the new one" for sentence in code]
        before, self.began_with = self.began_with, found.facts.get("began_with")
        if before and self.began_with and before["sha256"] != self.began_with["sha256"]:
            changed.append(
                f"model.weights = {before['file']} is not the file any more that the run began with; it goes on from "
                "its checkpoint"
            )
        return progress, found.complaints + changed + complaints

    def _same_data(self, before: contents.Digests | None) -> list[str]:
        """The data that there are become those of the run. Refused where they are not those of ``before``, unless the
        recipe accepts that: then what changed, in a sentence. Collective."""
        told: list[str] = []

        def look() -> None:
            now = self.job.dataset.contents()
            self.data = contents.digests_of(now)
            if before and now and contents.changed(before, self.data):
                told.append(self._accepted(before, now))
            contents.keep(self.run_directory, now)

        record.on_first_rank(look, f"record.dir = {self.run_directory}")
        return told

    def _accepted(self, before: contents.Digests, now: contents.Contents) -> str:
        changes = contents.words_of_changes(before, contents.kept(self.run_directory), now)
        classes, were = ({split: of[split]["classes"] for split in of} for of in (self.data, before))
        if classes.get("train") != were.get("train"):
            raise UserError(
                f"record.dir = {self.run_directory} was trained on {were.get('train')} classes, and there are "
                f"{classes.get('train')} now ({changes}); another record.dir leaves it"
            )
        if not self.decided.accepts_changed_data:
            raise UserError(
                f"record.dir = {self.run_directory} was trained on other data ({changes}); data.if_changed=accept goes "
                "on with what there is now, another record.dir leaves it"
            )
        return f"the data changed, which data.if_changed = accept allows: {changes}"

    def machine(self) -> dict[str, Any]:
        """What the machine decided, and a resume on another one may change: batch norm sees the micro-batch, a crop the
        image as it was packed, and a matrix product adds up in another order with other threads."""
        return {
            "world_size": self.plan.world_size,
            "threads_per_rank": torch.get_num_threads(),
            "micro_batch_size": self.plan.micro_batch_size,
            "precision": self.decided.precision,
            "device": self.job.device.type,
            "engine": self.engine.description,
            "pixels": self.job.dataset.pixels,
        }

    def close(self) -> None:
        self.writer.close()


def taken_up(job: Job, parts: Parts, state: State, step: int) -> list[str]:
    """Weights, optimizer, random states and parts become those of ``state``; what parts complain of. Collective."""
    of_ranks, complaints = state["ranks"], []
    job.engine.load(state)
    randomness.restore([rank["random"] for rank in of_ranks], job.decided.seed, step)
    for name, part in parts.items():  # in the same order on all ranks: a part may communicate
        if name in state["parts"]:
            complaints.append(part.load(state["parts"][name], [rank["parts"].get(name, {}) for rank in of_ranks]))
    return [complaint for complaint in complaints if complaint]


def began_with(job: Job) -> dict[str, Any] | None:
    """The file whose weights a run begins with, as it is now; None where it has gone, or there never was one. Of
    another run's checkpoint it is the manifest, which has the sums of all its files."""
    if (point := job.starting_point) is not None:
        file = point.path / MANIFEST
        return {"file": str(file), "sha256": sha256_of(file)} if file.is_file() else None
    if (weights := job.decided.weights) is None:
        return None
    try:
        file = models.file_of(job.engine.model, job.decided.model["name"], weights)
    except UserError:
        return None
    return {"file": file, "sha256": sha256_of(Path(file))} if Path(file).is_file() else None


def changed_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences of the parts whose code is not that any more which the run was made with."""
    return [
        f"the code of {key} is not that any more which the run was made with ({now[key]['name']}, "
        f"{now[key]['file'] or 'typed into a session'})"
        for key in sorted(before.keys() & now.keys())
        if before[key]["sha256"] != now[key]["sha256"]
    ]


def no_place_for_checkpoints(decided: Decided) -> str | None:
    """Why nothing of the run could ever be saved, however much room there is; the same on every rank. Collective."""
    folder = decided.directory / names.CHECKPOINTS
    occupied = bool(decided.saving.at.every_epochs) and folder.exists() and not folder.is_dir()
    if not distributed.from_first(occupied):
        return None
    return (
        f"{folder} is a file, and the run keeps its checkpoints in a folder of this name; remove it, or choose another "
        "record.dir (checkpoint.every_epochs=0 saves nothing)"
    )
