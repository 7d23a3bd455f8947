"""What a run tells of itself: its losses, its evaluations, how its checkpoints ended, what went wrong, its result.

Losses stay on the device and are read at the recording marks: then the loss of every step since the last mark is known,
so that a loss that is not finite is named with its exact step.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch.machine import distributed
from largebatch.plan.score import ACCURACY, Score
from largebatch.records import names
from largebatch.records.facts import write_json
from largebatch.records.mllog import MlperfLog
from largebatch.run import record
from largebatch.run.assemble import Job
from largebatch.run.evaluate import Evaluation
from largebatch.run.measure import Measure
from largebatch.run.saving import Progress, Saves
from largebatch.run.swap import Swap
from largebatch.run.update import Update


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended; the content of ``result.json``."""

    status: str  # finished, failed; stopped, by a signal or for want of a place to write: the same command goes on
    reason: str | None
    directory: Path
    numbers: dict[str, Any]
    signal: int | None = None
    score: Score = ACCURACY

    @property
    def reached(self) -> float | None:
        """The score at the end, on what was evaluated; None where it did not come to that."""
        return self.numbers.get(f"test_{self.score.key}")


class Diverged(Exception):
    """The loss is not finite any more."""


class Account:
    """Of one run in progress. All methods are collective."""

    def __init__(
        self,
        job: Job,
        directory: Path,
        progress: Progress,
        update: Update,
        measure: Measure,
        saves: Saves,
        swap: Swap | None,
        recorder: record.Recorder,
        mllog: MlperfLog | None,
    ) -> None:
        self.job, self.plan, self.directory, self.progress = job, job.plan, directory, progress
        self.update, self.measure, self.saves, self.swap = update, measure, saves, swap
        self.recorder, self.mllog = recorder, mllog
        self.looked = time.perf_counter()  # when the last evaluation began
        self.unsaved: str | None = None  # why the newest checkpoint is not on the disk
        self.read_step, self.read_seconds = progress.step, progress.seconds  # up to where losses are read

    @property
    def examples_seen(self) -> int:
        return self.plan.examples_before(self.progress.step)

    @property
    def taken(self) -> tuple[int, int]:
        """Steps one after another and examples of all, those of SWAP's workers included once they are averaged."""
        if self.swap is None or not self.swap.averaged:
            return self.progress.step, self.examples_seen
        return self.progress.step + self.swap.steps, self.examples_seen + self.swap.examples

    @property
    def last_good(self) -> str:
        return f"last good checkpoint: {self.saves.last or 'none was saved'}"

    def losses(self, unread: list[Tensor], since: float) -> None:
        """Sum the unread losses over ranks and record them; one that is not finite ends the run."""
        ended = torch.tensor([float(self.saves.ended())], device=self.job.device, dtype=torch.float64)
        *losses, ended = distributed.sum_(torch.cat([torch.stack(unread).double(), ended])).tolist()
        self.progress.seconds += time.perf_counter() - since
        first, step, seconds = self.read_step, self.progress.step, self.progress.seconds
        self.skipped(first)
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss) and first + offset not in self.update.skipped:
                raise Diverged(self._divergence(first + offset, loss))
        if ended == distributed.world_size():
            self.save_ended()
        sizes = [self.plan.at(one).global_batch_size for one in range(first, step)]
        adascale = self.update.adascale
        beside = {"gain": self.update.gain, "progress": adascale.progress} if adascale else {}
        if len(self.plan.stages) > 1:
            beside["global_batch_size"] = self.plan.at(step - 1).global_batch_size
        self.recorder.training(
            step=step,
            examples_seen=self.examples_seen,
            epoch=self.examples_seen / self.plan.dataset_size,
            seconds=seconds,
            lr=self.update.lr,
            loss=mean_loss(losses, sizes),
            grad_norm=self.update.norm.item() if self.update.norm is not None else None,
            examples_per_second=sum(sizes) / (seconds - self.read_seconds),
            **beside,
        )
        self.read_step, self.read_seconds = step, seconds

    def _divergence(self, step: int, loss: float) -> str:
        lr = self.update.lr if self.update.adascale else self.job.decided.lr.schedule(self.plan.examples_before(step))
        return f"the loss is {loss} in step {step + 1} at lr {lr:g}; {self.last_good}"

    def skipped(self, first: int) -> None:
        """The steps since ``first`` that nobody made; too many of them end the run."""
        skipped = self.update.skipped
        for number, step in enumerate(skipped, start=1):
            if step >= first:
                self.recorder.event("skipped", step=step + 1, skipped_so_far=number)
                self.recorder.say(f"step {step + 1} is skipped on all ranks: its gradient is not finite")
        at_most = self.job.decided.skipped_at_most
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

    def evaluation(self, name: str, found: Evaluation) -> None:
        """A loss that is not finite ends the run."""
        told = name.replace("_", "-")
        if not math.isfinite(found.loss):
            raise Diverged(f"the {told} loss is {found.loss} after step {self.progress.step}; {self.last_good}")
        step, examples = self.taken
        epoch = examples / self.plan.dataset_size
        self.recorder.event(
            "evaluate",
            step=step,
            examples_seen=examples,
            epoch=epoch,
            seconds=self.progress.seconds,
            split=name,
            **found.numbers,
            examples=found.examples,
        )
        score = self.job.task.score
        told = f"{told} {score.name} {score.of(found.numbers[score.key])}"
        self.recorder.say(f"epoch {epoch:6.2f}  step {step:>6}  {told}  loss {found.loss:.4f}")
        if self.mllog is not None and name == self.measure.evaluated_on:
            reached = found.numbers[score.key] / (100 if score.unit == "%" else 1)
            self.mllog.evaluation(epoch, reached, time.perf_counter() - self.looked)

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

    def result(self, status: str, reason: str | None = None, number: int | None = None) -> Result:
        """The end of the run; ``result.json``. A run is finished if all that it tells of itself is on the disk."""
        unwritten = distributed.from_first(self._unwritten())
        if status == "finished" and unwritten:
            status, reason = "stopped", f"the training is done, but {unwritten}"
        found = self.measure.last if status == "finished" else {}
        test, training, averaged = (found.get(name) for name in (self.measure.evaluated_on, "train", "ema"))
        score = self.job.task.score.key
        steps, examples = self.taken
        executed = self.progress.step + (self.swap.steps_of_this_rank if self.swap else 0)
        seconds = self.progress.seconds
        numbers = {
            "status": status,
            "reason": reason,
            "steps": steps,
            "examples_seen": examples,
            "evaluated_on": self.measure.evaluated_on,
            **prefixed("test", test, score),
            f"test_{score}": test and self.measure.score,
            f"ema_test_{score}": averaged and averaged.numbers[score],
            "workers": [dataclasses.asdict(result) for result in self.swap.results] if self.swap else None,
            "reached_train_accuracy": self.swap.target_reached if self.swap else None,
            **prefixed("train", training, score),
            "peak_lr": self.update.highest_lr or self.job.decided.lr.schedule.peak,
            "seconds_training": seconds,
            "seconds_total": self.progress.total_seconds,
            "seconds_per_step": seconds / executed if executed else None,
            "seconds_per_epoch": seconds * self.plan.dataset_size / examples if examples else None,
            "examples_per_second": examples / seconds if seconds else None,
            "parameters": sum(p.numel() for p in self.job.engine.model.parameters()),
        }
        problem = None
        if distributed.is_first():
            try:
                write_json(self.directory / names.RESULT, numbers)
            except OSError as error:
                problem = f"{self.directory / names.RESULT} cannot be written: {error.strerror or error}"
                self.recorder.say(problem)
        problem = distributed.from_first(problem)
        if status == "finished" and problem:
            status, reason = "stopped", f"the training is done, but {problem}"
            numbers |= {"status": status, "reason": reason}
        if reason:
            self.recorder.note(f"{status}: {reason}")
        if self.mllog is not None and status != "stopped":  # a stopped run goes on in the same log
            self.mllog.stop(status == "finished")
        return Result(status, reason, self.directory, numbers, number, self.job.task.score)

    def _unwritten(self) -> str | None:
        """What of the run has found no room to the end; rank zero's to know."""
        return self.unsaved or self.recorder.unwritten() or (self.mllog.problem if self.mllog is not None else None)


def prefixed(split: str, found: Evaluation | None, score: str) -> dict[str, float | None]:
    """``{"test_loss": ...}``; the loss and the score are null where nothing was evaluated."""
    numbers: dict[str, Any] = {"loss": None, score: None} if found is None else found.numbers
    return {f"{split}_{key}": number for key, number in numbers.items()}


def mean_loss(losses: list[float], sizes: list[int]) -> float | None:
    """Over the examples; those of skipped steps do not count."""
    finite = [(loss, size) for loss, size in zip(losses, sizes, strict=True) if math.isfinite(loss)]
    return sum(loss * size for loss, size in finite) / sum(size for _, size in finite) if finite else None
