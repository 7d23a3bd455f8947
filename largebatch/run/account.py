"""What a run tells of itself: its losses, its evaluations, how its checkpoints ended, what went wrong, its result.

Losses stay on the device and are read at the recording marks: then the loss of every step since the last mark is known,
so that a loss that is not finite is named with its exact step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch

from largebatch.machine import distributed, watchdog
from largebatch.models import frozen
from largebatch.plan.batch import BatchPlan
from largebatch.plan.score import ACCURACY, Score
from largebatch.records import names
from largebatch.records.facts import write_json
from largebatch.records.mllog import MlperfLog, open_because
from largebatch.records.run import ResultRecord
from largebatch.records.target import AtScore, TargetRecord
from largebatch.records.typed import content, made
from largebatch.run import record
from largebatch.run.assemble import Job
from largebatch.run.beforehand import mlperf_facts, ramp_of
from largebatch.run.measure import Evaluations, Measure
from largebatch.run.orthogonalised import Orthogonalised
from largebatch.run.parts import Parts
from largebatch.run.saving import Progress, Saves
from largebatch.steps.evaluate import Evaluation
from largebatch.steps.part import Diverged
from largebatch.steps.step import Step


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended; the content of ``result.json``."""

    status: str  # finished, failed; stopped, by a signal or for want of a place to write: the same command goes on
    reason: str | None
    directory: Path
    record: ResultRecord | None
    signal: int | None = None
    score: Score = ACCURACY

    @property
    def numbers(self) -> dict[str, Any]:
        """What ``result.json`` holds, by key."""
        return content(self.record) if self.record is not None else {}

    @property
    def reached(self) -> float | None:
        """The score at the end, on what was evaluated; None where it did not come to that."""
        return self.record and self.record.number(f"test_{self.score.key}")

    @property
    def target(self) -> TargetRecord | None:
        """Whether and when ``evaluate.stop_at`` was reached; None without one."""
        return self.record and self.record.target

    def __str__(self) -> str:
        """What is told at its end, in one line."""
        if self.status != "finished" or self.reached is None:
            return f"{self.status}: {self.reason}"
        numbers = self.numbers
        told = (
            f"{self.score.name} {self.score.of(self.reached)} on {numbers['evaluated_on'].replace('_', '-')} after "
            f"{numbers['steps']:,} steps, {numbers['seconds_training']:.1f} s of training; {self.directory}"
        )
        told = f"{told}; {self.target.words(self.score)}" if self.target is not None else told
        return f"{told}; {self.reason}" if self.reason else told


class Account:
    """Of one run in progress. All methods are collective."""

    def __init__(
        self,
        job: Job,
        directory: Path,
        progress: Progress,
        parts: Parts,
        measure: Measure,
        saves: Saves,
        recorder: record.Recorder,
        mllog: MlperfLog | None,
    ) -> None:
        self.job, self.directory, self.progress = job, directory, progress
        self.parts, self.measure, self.saves = parts, measure, saves
        self.recorder, self.mllog = recorder, mllog
        self.orthogonalised = Orthogonalised(job)
        self.looked = time.perf_counter()  # when the last evaluation began
        self.unsaved: str | None = None  # why the newest checkpoint is not on the disk
        self.read_step, self.read_seconds = progress.step, progress.seconds  # up to where losses are read

    def beginning(self, complaints: list[str]) -> None:
        """What a log says before the first step. ``complaints``: of a resume."""
        for complaint in complaints:
            self.recorder.say(complaint)
        if step := self.progress.step:
            self.recorder.event("resume", step=step, examples_seen=self.examples_seen, **self.saves.machine())
            most = "at most " if self.job.decided.adapting else ""
            self.recorder.say(f"resumed at step {step} of {most}{self.plan.steps} from {self.saves.last}")
        for row in self.job.treatments:
            self.recorder.note(
                f"{row.name} {tuple(row.shape)}: {row.kind}, {'decayed' if row.decayed else 'not decayed'}, "
                f"{'adapted' if row.adapted else 'not adapted'}{', orthogonalised' if row.orthogonalised else ''}"
            )
        for name, tensor in frozen.still(self.job.engine.model).items():
            self.recorder.note(f"{name} {tuple(tensor.shape)}: frozen")
        if self.mllog is not None:
            facts = mlperf_facts(self.job)
            if reason := open_because(facts):
                self.recorder.say(f"record.mllog: the open division, for {reason}")
            self.mllog.start(facts, self.examples_seen / self.plan.dataset_size)

    @property
    def plan(self) -> BatchPlan:
        return self.job.plan

    @property
    def examples_seen(self) -> int:
        return self.plan.examples_before(self.progress.step)

    @property
    def taken(self) -> tuple[int, int]:
        """Steps one after another and examples of all, those after the plan's included once they count."""
        beyond = self.parts.beyond
        return self.progress.step + beyond.steps, self.examples_seen + beyond.examples

    @property
    def last_good(self) -> str:
        return f"last good checkpoint: {self.saves.last or 'none was saved'}"

    def losses(self, unread: list[Step], since: float) -> None:
        """Sum the unread losses over ranks and record them; one that is not finite ends the run."""
        here = [self.saves.ended(), self.orthogonalised.since()]
        ended = torch.tensor(here, device=self.job.device, dtype=torch.float64)
        of_steps = torch.stack([step.loss for step in unread if step.loss is not None]).double()
        *losses, ended, computed = distributed.sum_(torch.cat([of_steps, ended])).tolist()
        self.progress.spend(time.perf_counter() - since)
        step, seconds, last = self.progress.step, self.progress.seconds, unread[-1]
        self.skipped(unread)
        for one, loss in zip(unread, losses, strict=True):
            if not math.isfinite(loss) and not one.skipped:
                raise Diverged(f"the loss is {loss} in step {one.number + 1} at lr {one.lr:g}; {self.last_good}")
        if ended == distributed.world_size():
            self.save_ended()
        grows = len(self.plan.stages) > 1 or self.job.decided.adapting is not None
        beside = {"global_batch_size": last.examples} if grows else {}
        beside |= self.orthogonalised.of_world(computed, sum(not one.skipped for one in unread))
        self.recorder.training(
            **self.plan.when(step),
            seconds=seconds,
            lr=last.lr,
            loss=mean_loss(losses, [one.examples for one in unread]),
            grad_norm=last.norm.item() if last.norm is not None else None,
            examples_per_second=sum(one.examples for one in unread) / (seconds - self.read_seconds),
            **last.numbers,
            **beside,
        )
        self.read_step, self.read_seconds = step, seconds

    def skipped(self, steps: list[Step]) -> None:
        """Those of the steps that nobody made; too many of a run end it."""
        before = len(self.progress.skipped) - sum(step.skipped for step in steps)
        for number, step in enumerate((step for step in steps if step.skipped), start=before + 1):
            self.recorder.event("skipped", step=step.number + 1, skipped_so_far=number)
            self.recorder.say(f"step {step.number + 1} is skipped on all ranks: its gradient is not finite")
        skipped, at_most = self.progress.skipped, self.job.decided.skipped_at_most
        if len(skipped) > at_most:
            raise Diverged(
                f"the gradient was not finite in {len(skipped)} steps, the last of them step {skipped[-1] + 1}; "
                f"nonfinite_gradients.at_most = {at_most}; {self.last_good}"
            )

    def unreadable(self) -> None:
        """Training images that others stood in for since the last mark, of all ranks; too many end the run."""
        known = getattr(self.job.dataset.train, "unreadable", None)  # only image folders have them
        if known is None or not known.at_most:
            return
        new = known.join(distributed.gather(known.take_fresh()))
        if not new:
            return
        self.recorder.event(
            "unreadable",
            step=self.progress.step,
            examples_seen=self.examples_seen,
            count=len(known.met),
            share=known.share,
            files=new,
        )
        for number, (file, reason) in enumerate(new.items()):
            tell = self.recorder.say if number < 10 else self.recorder.note
            tell(f"{file} cannot be read as an image ({reason}); the next readable one stands in for it")
        self.recorder.say(f"{len(known.met)} of {known.examples} training images are unreadable so far")

    def look(self, place: str) -> None:
        """An evaluation begins."""
        watchdog.now(place)
        self.looked = time.perf_counter()

    def evaluations(self, evaluations: Evaluations) -> None:
        """Each as it comes."""
        with contextlib.closing(evaluations):  # whatever ends it: the model is then as it was
            for name, evaluation in evaluations:
                self.evaluation(name, evaluation)

    def evaluation(self, name: str, result: Evaluation) -> None:
        """A loss that is not finite ends the run."""
        told = name.replace("_", "-")
        if not math.isfinite(result.loss):
            raise Diverged(f"the {told} loss is {result.loss} after step {self.progress.step}; {self.last_good}")
        step, examples = self.taken
        epoch = examples / self.plan.dataset_size
        self.recorder.event(
            "evaluate",
            step=step,
            examples_seen=examples,
            epoch=epoch,
            seconds=self.progress.seconds,
            split=name,
            **result.numbers,
            examples=result.examples,
        )
        score = self.job.task.score
        told = f"{told} {score.name} {score.of(result.numbers[score.key])}"
        self.recorder.say(f"epoch {epoch:6.2f}  step {step:>6}  {told}  loss {result.loss:.4f}")
        if self.mllog is not None and name == self.measure.evaluated_on:
            reached = result.numbers[score.key] / (100 if score.unit == "%" else 1)
            self.mllog.evaluation(epoch, reached, time.perf_counter() - self.looked)
        at = AtScore(
            score=self.measure.score,
            steps=step,
            examples=examples,
            epochs=epoch,
            seconds=self.progress.seconds,
            device_seconds=self.progress.device_seconds,
        )
        for part in self.parts.values():
            part.evaluated(name, result, at)

    def save_ended(self) -> None:
        """How the save in progress, or the last one, ended; waits for it. Numbers that are not finite end the run."""
        outcome = self.saves.settle()
        if outcome is None:
            return
        if not outcome.finite:
            raise Diverged(f"weights are not finite after step {outcome.step} ({outcome.problem}); {self.last_good}")
        self.unsaved = None
        if outcome.problem:
            failed = f"the checkpoint of step {outcome.step} could not be written ({outcome.problem})"
            last = f"the last good one is {self.saves.last or 'none'}"
            self.unsaved = f"{failed}; {last}"
            self.recorder.say(f"{failed}; the training goes on, {last}")
        self.recorder.event(
            "checkpoint",
            step=outcome.step,
            written=outcome.path is not None,
            problem=outcome.problem,
            megabytes=outcome.bytes / 1e6,
            seconds_saving=outcome.seconds,
            seconds_standing=self.saves.seconds_standing,
        )

    def stopped(self, reason: str, number: int | None) -> Result:
        """The end of a run that the same command continues."""
        self.recorder.event("stop", step=self.progress.step, reason=reason)
        saved = f"; saved as {self.saves.last}, the same command goes on" if self.saves.last else ""
        saved = f"; {self.unsaved}" if self.unsaved else saved
        return self.result("stopped", f"{reason} after step {self.progress.step}{saved}", number)

    def result(self, status: str, reason: str | None = None, number: int | None = None) -> Result:
        """The end of the run; ``result.json``. A run is finished if all that it tells of itself is on the disk."""
        unwritten = distributed.from_first(self._unwritten())
        if status == "finished" and unwritten:
            status, reason = "stopped", f"the training is done, but {unwritten}"
        found = self.measure.last if status == "finished" else {}
        test, training = found.get(self.measure.evaluated_on), found.get("train")
        score = self.job.task.score.key
        steps, examples = self.taken
        executed = self.progress.step + self.parts.beyond.executed
        seconds = self.progress.seconds
        numbers = {
            "status": status,
            "reason": reason,
            "steps": steps,
            "examples_seen": examples,
            "evaluated_on": self.measure.evaluated_on,
            **prefixed("test", test, score),
            f"test_{score}": test and self.measure.score,
            **prefixed("train", training, score),
            "peak_lr": self.job.decided.peak_lr,
            "seconds_training": seconds,
            "seconds_total": self.progress.total_seconds,
            "seconds_per_step": seconds / executed if executed else None,
            "seconds_per_epoch": seconds * self.plan.dataset_size / examples if examples else None,
            "examples_per_second": examples / seconds if seconds else None,
            "parameters": sum(p.numel() for p in self.job.engine.model.parameters()),
        }
        if self.job.decided.adapting is not None:
            numbers["ramp"] = ramp_of(self.plan)
        for part in self.parts.values():
            numbers |= part.results(found)
        ended = made(ResultRecord, numbers)
        problem = None
        if distributed.is_first():
            try:
                write_json(self.directory / names.RESULT, content(ended))
            except OSError as error:
                problem = f"{self.directory / names.RESULT} cannot be written: {error.strerror or error}"
                self.recorder.say(problem)
        problem = distributed.from_first(problem)
        if status == "finished" and problem:
            status, reason = "stopped", f"the training is done, but {problem}"
            ended = dataclasses.replace(ended, status=status, reason=reason)
        if reason:
            self.recorder.note(f"{status}: {reason}")
        self.recorder.ended(ended)
        if self.mllog is not None and status != "stopped":  # a stopped run goes on in the same log
            self.mllog.stop(status == "finished" and (ended.target is None or bool(ended.target.reached)))
        return Result(status, reason, self.directory, ended, number, self.job.task.score)

    def _unwritten(self) -> str | None:
        """What of the run has found no room to the end; rank zero's to know."""
        return self.unsaved or self.recorder.unwritten() or (self.mllog.problem if self.mllog is not None else None)


def prefixed(split: str, evaluation: Evaluation | None, score: str) -> dict[str, float | None]:
    """``{"test_loss": ...}``; the loss and the score are null where nothing was evaluated."""
    numbers: dict[str, Any] = {"loss": None, score: None} if evaluation is None else evaluation.numbers
    return {f"{split}_{key}": number for key, number in numbers.items()}


def mean_loss(losses: list[float], sizes: list[int]) -> float | None:
    """Over the examples; those of skipped steps do not count."""
    finite = [(loss, size) for loss, size in zip(losses, sizes, strict=True) if math.isfinite(loss)]
    return sum(loss * size for loss, size in finite) / sum(size for _, size in finite) if finite else None
