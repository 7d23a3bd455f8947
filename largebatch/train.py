"""The loop, top to bottom.

    for every step:   update      lr, gradient of the global batch, the optimizer's step (update.py)
        every few steps record; at their marks evaluate and checkpoint
    then, if the recipe says so, SWAP's workers (swap.py); at the end evaluate and save

Losses stay on the device and are read at the recording marks: then the loss of every step since the last mark
is known, so that a loss that is not finite is named with its exact step.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from pathlib import Path
from typing import Any

import rich.console
import rich.padding
import torch
from torch import Tensor

from largebatch import checkpoint, config, derive, distributed, record, watchdog
from largebatch.assemble import Job, assemble, decisions, mlperf_facts, plan_facts, table_of_tensors
from largebatch.averaging import Ema
from largebatch.determinism import deterministic
from largebatch.errors import Lost, UserError
from largebatch.evaluate import Evaluation
from largebatch.measure import Measure
from largebatch.mllog import MlperfLog
from largebatch.observe import Observer
from largebatch.ranks import Ranks
from largebatch.saving import Progress, Saves
from largebatch.signals import signals_noticed
from largebatch.swap import Swap
from largebatch.update import Update
from largebatch.watchdog import watched


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended; the content of ``result.json``."""

    status: str  # finished, failed, stopped
    reason: str | None
    directory: Path
    numbers: dict[str, Any]
    signal: int | None = None


class Diverged(Exception):
    """The loss is not finite any more."""


class Stopped(Exception):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(signal.Signals(number).name)


def train(
    run: config.Run, *, command: str = "", console: rich.console.Console | None = None, quiet: bool = False
) -> Result:
    """One run, from its recipe to its ``result.json``. Collective: every rank of the group calls it.

    A run directory that holds an unfinished run of the same recipe is continued; a finished one is read.
    """
    device = distributed.choose_device(run.device)
    console = console or rich.console.Console()
    if run.engine.name != "ddp" and not distributed.joined():
        raise UserError(f"engine.name = {run.engine.name} needs a process group; call train inside distributed.group")
    checkpoint.seed_rank(run.seed)
    directory = run.directory
    mllog = MlperfLog(directory / "mllog.txt") if run.record.mllog and distributed.is_first() else None
    job = assemble(run, device)
    record.open_directory(directory, run.as_written(), run.science(), science_of_file, run.resume)
    finished = distributed.gather(record.read_result(directory))[0]
    if finished is not None and finished["status"] == "finished":
        if distributed.is_first() and not quiet:
            console.print(f"{directory} is finished already: nothing to train", markup=False)
        return Result("finished", None, directory, finished)
    if distributed.is_first() and not quiet:
        for key, text in decisions(job, directory).items():
            console.print(f"{key:>10}  {text}", markup=False, highlight=False, soft_wrap=True)
        console.print(rich.padding.Padding(table_of_tensors(job.treatments), (0, 0, 0, 2)))
    with (
        record.locked(directory),
        deterministic(run.deterministic),
        Loop(job, directory, console, quiet, command, mllog) as loop,
    ):
        return loop.run_to_the_end()


def science_of_file(file: Path) -> dict[str, Any]:
    return config.from_dict(config.read(file), str(file)).science()


class Loop:
    """The state of one run in progress: the step it is at, and the losses not yet read."""

    def __init__(
        self,
        job: Job,
        directory: Path,
        console: rich.console.Console,
        quiet: bool,
        command: str = "",
        mllog: MlperfLog | None = None,
    ) -> None:
        self.job, self.directory, self.plan, self.engine = job, directory, job.plan, job.engine
        self.losses: list[Tensor] = []
        self.update = Update(job)
        self.swap = Swap(job, self.update) if isinstance(job.run.averaging, config.Swap) else None
        self.ema = Ema(job.engine, job.run.ema.decay, job.run.ema.every_steps) if job.run.ema else None
        self.measure = Measure(job, self.update, self.ema, self.swap)
        self.measure.tell = self.tell
        self.epoch_marks = marks(self.plan, 1.0)
        self.mllog = mllog
        self.looked = time.perf_counter()  # when the last evaluation began
        self.observer = Observer(job, self.update)
        self.ranks = Ranks(job, self.update)
        self.started = time.perf_counter()
        self.saves = Saves(job, directory, self.update, self.observer, self.measure, self.ema, self.swap)
        progress, complaints = self.saves.resume()
        self.step, self.seconds, self.total_before = progress.step, progress.seconds, progress.total_seconds
        self.window_step, self.window_seconds = self.step, self.seconds
        self.recorder = record.Recorder(
            directory,
            plan_facts(job, command),
            first_step=self.step,
            tensorboard=job.run.record.tensorboard,
            quiet=quiet,
            console=console,
        )
        for complaint in complaints:
            self.recorder.say(complaint)
        if self.step:
            self.recorder.event("resume", step=self.step, examples_seen=self.examples_seen, **self.saves.machine())
            self.recorder.say(f"resumed at step {self.step} of {self.plan.steps} from {self.saves.last}")
        for row in job.treatments:
            self.recorder.note(
                f"{row.name} {tuple(row.shape)}: {row.kind}, {'decayed' if row.decayed else 'not decayed'}, "
                f"{'adapted' if row.adapted else 'not adapted'}"
            )
        if self.mllog is not None:
            self.mllog.start(mlperf_facts(job), self.examples_seen / self.plan.dataset_size)

    @property
    def examples_seen(self) -> int:
        return self.plan.examples_before(self.step)

    @property
    def taken(self) -> tuple[int, int]:
        """Steps one after another and examples of all, those of SWAP's workers included once they are averaged."""
        if self.swap is None or not self.swap.averaged:
            return self.step, self.examples_seen
        return self.step + self.swap.steps, self.examples_seen + self.swap.examples

    def run_to_the_end(self) -> Result:
        try:
            with signals_noticed() as noticed, watched(self.job.run.timeout_minutes), distributed.losses_told():
                if self.swap is None or not self.swap.begun:
                    self.train_steps(noticed)
                if self.swap is not None:
                    self.train_workers(self.swap, noticed)
                self.looked = time.perf_counter()
                watchdog.now("the evaluation at the end")
                self.measure.at_the_end(self.taken[0])
                self.tell_unreadable()
                self.save(wait=True)  # only now: a checkpoint that evaluates to nonsense is not a good one
            return self._result("finished")
        except Diverged as problem:
            return self._result("failed", str(problem))
        except Lost as problem:
            self.recorder.note(str(problem))
            raise
        except Stopped as stop:
            self.recorder.event("stop", step=self.step, reason=str(stop))
            saved = f"; saved as {self.saves.last}, the same command goes on" if self.saves.last else ""
            return self._result("stopped", f"{stop} after step {self.step}{saved}", stop.signal)

    def train_steps(self, noticed: list[int]) -> None:
        run, plan, engine = self.job.run, self.plan, self.engine
        if self.update.complete:
            return
        stretch = derive.stretch_of(run)
        evaluations = marks(plan, run.evaluate.every_epochs * stretch)
        saves = marks(plan, run.checkpoint.every_epochs * stretch)
        stream = self.job.dataset.train.steps(plan, distributed.rank(), self.step, self.job.placement, run.seed)
        stream = self.ranks.timed(stream, self.step)
        engine.model.train()
        with distributed.Flag() as flag:
            clock = time.perf_counter()
            watchdog.now(f"the data of step {self.step + 1}")
            for micro_batches in stream:
                recording = (self.step + 1) % run.record.every_steps == 0
                self.one_step(micro_batches, measure=recording)
                self.step += 1
                watchdog.now(f"the end of step {self.step}")
                last = self.phase_1_is_over() or self.step == plan.steps or self.update.complete
                evaluating, saving = self.step in evaluations, self.step in saves
                stop = flag.exchange(noticed[0] if noticed else 0) if not last else 0
                if not (recording or evaluating or saving or stop or last):
                    watchdog.now(f"the data of step {self.step + 1}")
                    continue
                self.read_losses(since=clock)
                if evaluating and not last:
                    self.looked = time.perf_counter()
                    watchdog.now(f"the evaluation after step {self.step}")
                    self.measure.during(self.step)
                if (saving and not last) or stop:
                    self.save(wait=stop > 0)
                if stop:
                    raise Stopped(stop)
                if last:
                    break
                watchdog.now(f"the data of step {self.step + 1}")
                clock = time.perf_counter()

    def one_step(self, micro_batches: Any, measure: bool) -> None:
        watchdog.now(f"the gradient of step {self.step + 1}")
        self.observer.before(self.step)
        self.losses.append(self.update.step(self.step, micro_batches, measure))
        self.ranks.after(self.step)
        self.observer.after(self.step)
        if self.ema is not None and self.update.workers is None:
            self.ema.after_step(self.step + 1)
        elif self.ema is not None and self.update.together:
            self.ema.follow()

    def phase_1_is_over(self) -> bool:
        """SWAP's: at the end of each epoch the share of right answers in its training is looked at."""
        if self.swap is None or self.step not in self.epoch_marks:
            return False
        begin = max((step for step in self.epoch_marks if step < self.step), default=0)
        seen = self.examples_seen - self.plan.examples_before(begin)
        accuracy = 100.0 * self.update.take_correct() / seen
        self.recorder.event(
            "train_accuracy", step=self.step, examples_seen=self.examples_seen, accuracy_percent=accuracy
        )
        self.swap.target_reached = accuracy >= self.swap.section.stop_at_train_accuracy
        if self.step == self.plan.steps and not self.swap.target_reached:
            self.recorder.say(
                f"SWAP: the train accuracy is {accuracy:.2f} % at the end of phase 1, below the "
                f"{self.swap.section.stop_at_train_accuracy:g} % at which it was to stop"
            )
        return self.swap.target_reached

    def train_workers(self, swap: Swap, noticed: list[int]) -> None:
        """SWAP's second and third phase; saved after every round of workers."""
        if not swap.begun:
            self.recorder.say(
                f"SWAP: phase 1 ends at step {self.step}; {swap.section.workers} workers go on, {swap.steps} steps each"
            )
            swap.begin()
            self.measure.accuracies.clear()  # of another model than the average to come
            self.save()
        with distributed.Flag() as flag:

            def stop() -> None:
                watchdog.now("the workers' steps")
                if number := flag.exchange(noticed[0] if noticed else 0):
                    raise Stopped(number)

            for number in swap.rounds_left():
                for result in swap.run_round(number, stop):
                    if not math.isfinite(result.train_loss):
                        raise Diverged(f"the loss of SWAP's worker {result.worker + 1} is {result.train_loss}")
                    self.recorder.event("worker", step=self.step, **dataclasses.asdict(result))
                    self.recorder.say(
                        f"worker {result.worker + 1} of {swap.section.workers}: loss {result.train_loss:.4f}, test "
                        f"accuracy {result.test_accuracy_percent:.2f} % before averaging"
                    )
                self.seconds += swap.seconds_of_round
                self.save()
        swap.average()

    def read_losses(self, since: float) -> None:
        """Sum the unread losses over ranks, record them, stop at one that is not finite."""
        ended = torch.tensor([float(self.saves.ended())], device=self.job.device, dtype=torch.float64)
        *losses, ended = distributed.sum_(torch.cat([torch.stack(self.losses).double(), ended])).tolist()
        self.losses.clear()
        self.seconds += time.perf_counter() - since
        first = self.window_step
        self.tell_skipped(first)
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss) and first + offset not in self.update.skipped:
                raise Diverged(self._divergence(first + offset, loss))
        if ended == distributed.world_size():
            self.tell_save()
        self.observer.read(self.recorder)
        self.ranks.read(self.recorder)
        self.tell_unreadable()
        spent = self.seconds - self.window_seconds
        sizes = [self.plan.at(step).global_batch_size for step in range(first, self.step)]
        examples = sum(sizes)
        adascale = self.update.adascale
        beside = {"gain": self.update.gain, "progress": adascale.progress} if adascale else {}
        if len(self.plan.stages) > 1:
            beside["global_batch_size"] = self.plan.at(self.step - 1).global_batch_size
        self.recorder.training(
            step=self.step,
            examples_seen=self.examples_seen,
            epoch=self.examples_seen / self.plan.dataset_size,
            seconds=self.seconds,
            lr=self.update.lr,
            loss=mean_loss(losses, sizes),
            grad_norm=self.update.norm.item() if self.update.norm is not None else None,
            examples_per_second=examples / spent,
            **beside,
        )
        self.window_step, self.window_seconds = self.step, self.seconds

    def tell_unreadable(self) -> None:
        """Training images that others stood in for since the last mark, of all ranks; too many end the run."""
        unreadable = getattr(self.job.dataset.train, "unreadable", None)  # only image folders have them
        if unreadable is None or not unreadable.at_most:
            return
        new = unreadable.join(distributed.gather(unreadable.take_fresh()))
        if not new:
            return
        self.recorder.event(
            "unreadable",
            step=self.step,
            examples_seen=self.examples_seen,
            count=len(unreadable.met),
            share=unreadable.share,
            files=new,
        )
        for number, (file, reason) in enumerate(new.items()):
            tell = self.recorder.say if number < 10 else self.recorder.note
            tell(f"{file} cannot be read as an image ({reason}); the next readable one stands in for it")
        self.recorder.say(f"{len(unreadable.met)} of {unreadable.examples} training images are unreadable so far")

    def _divergence(self, step: int, loss: float) -> str:
        lr = self.update.lr if self.update.adascale else self.job.lr.schedule(self.plan.examples_before(step))
        good = self.saves.last or "none was saved"
        return f"the loss is {loss} in step {step + 1} at lr {lr:g}; last good checkpoint: {good}"

    def tell(self, name: str, evaluation: Evaluation) -> None:
        """Record an evaluation; a loss that is not finite ends the run."""
        if not math.isfinite(evaluation.loss):
            raise Diverged(
                f"the {name.replace('_', '-')} loss is {evaluation.loss} after step {self.step}; "
                f"last good checkpoint: {self.saves.last or 'none was saved'}"
            )
        step, examples = self.taken
        epoch = examples / self.plan.dataset_size
        self.recorder.event(
            "evaluate",
            step=step,
            examples_seen=examples,
            epoch=epoch,
            seconds=self.seconds,
            split=name,
            loss=evaluation.loss,
            accuracy_percent=evaluation.accuracy_percent,
            examples=evaluation.examples,
        )
        self.recorder.say(
            f"epoch {epoch:6.2f}  step {step:>6}  "
            f"{name.replace('_', '-')} accuracy {evaluation.accuracy_percent:.2f} %  loss {evaluation.loss:.4f}"
        )
        if self.mllog is not None and name == self.measure.evaluated_on:
            self.mllog.evaluation(epoch, evaluation.accuracy_percent / 100, time.perf_counter() - self.looked)

    def save(self, wait: bool = False) -> None:
        """Begin a checkpoint, if the run is to have any; ``wait`` until it is on the disk."""
        watchdog.now(f"the checkpoint of step {self.step}")
        self.tell_save()
        self.saves.begin(Progress(self.step, self.seconds, self._total_seconds()))
        if wait:
            self.tell_save()

    def tell_save(self) -> None:
        """Record how the save in progress ended. Collective."""
        outcome = self.saves.settle()
        if outcome is None:
            return
        if not outcome.finite:
            raise Diverged(
                f"weights are not finite after step {outcome.step} ({outcome.problem}); last good checkpoint: "
                f"{self.saves.last or 'none was saved'}"
            )
        if outcome.problem:
            self.recorder.say(
                f"the checkpoint of step {outcome.step} could not be written ({outcome.problem}); the training goes "
                f"on, the last good one is {self.saves.last or 'none'}"
            )
        self.recorder.event(
            "checkpoint",
            step=outcome.step,
            written=outcome.path is not None,
            problem=outcome.problem,
            megabytes=outcome.bytes / 1e6,
            seconds_saving=outcome.seconds,
            seconds_standing=self.saves.seconds_standing,
        )

    def tell_skipped(self, first: int) -> None:
        """Record the steps since ``first`` that nobody made; too many of them end the run."""
        skipped = self.update.skipped
        for step in skipped:
            if step >= first:
                self.recorder.event("skipped", step=step + 1, skipped_so_far=skipped.index(step) + 1)
                self.recorder.say(f"step {step + 1} is skipped on all ranks: its gradient is not finite")
        at_most = self.job.run.nonfinite_gradients.at_most
        if len(skipped) > at_most:
            raise Diverged(
                f"the gradient was not finite in {len(skipped)} steps, the last of them step {skipped[-1] + 1}; "
                f"nonfinite_gradients.at_most = {at_most}; last good checkpoint: {self.saves.last or 'none was saved'}"
            )

    def _total_seconds(self) -> float:
        return self.total_before + time.perf_counter() - self.started

    def _result(self, status: str, reason: str | None = None, number: int | None = None) -> Result:
        found = self.measure.last if status == "finished" else {}
        test, training, averaged = (found.get(name) for name in (self.measure.evaluated_on, "train", "ema"))
        steps, examples = self.taken
        executed = self.step + (self.swap.steps_of_this_rank if self.swap else 0)
        numbers = {
            "status": status,
            "reason": reason,
            "steps": steps,
            "examples_seen": examples,
            "evaluated_on": self.measure.evaluated_on,
            "test_loss": test and test.loss,
            "test_accuracy_percent": test and self.measure.accuracy_percent,
            "ema_test_accuracy_percent": averaged and averaged.accuracy_percent,
            "workers": [dataclasses.asdict(result) for result in self.swap.results] if self.swap else None,
            "reached_train_accuracy": self.swap.target_reached if self.swap else None,
            "train_loss": training and training.loss,
            "train_accuracy_percent": training and training.accuracy_percent,
            "peak_lr": self.update.highest_lr or self.job.lr.schedule.peak,
            "seconds_training": self.seconds,
            "seconds_total": self._total_seconds(),
            "seconds_per_step": self.seconds / executed if executed else None,
            "seconds_per_epoch": self.seconds * self.plan.dataset_size / examples if examples else None,
            "examples_per_second": examples / self.seconds if self.seconds else None,
            "parameters": sum(p.numel() for p in self.engine.model.parameters()),
        }
        if distributed.is_first():
            try:
                record.write_json(self.directory / "result.json", numbers)
            except OSError as error:
                self.recorder.say(f"{self.directory / 'result.json'} cannot be written: {error.strerror or error}")
        if reason:
            self.recorder.note(f"{status}: {reason}")
        if self.mllog is not None and status != "stopped":  # a stopped run goes on in the same log
            self.mllog.stop(status == "finished")
        return Result(status, reason, self.directory, numbers, number)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.saves.close()
        self.recorder.close()
        if self.mllog is not None:
            self.mllog.close()


def mean_loss(losses: list[float], sizes: list[int]) -> float | None:
    """Over the examples; those of skipped steps do not count."""
    finite = [(loss, size) for loss, size in zip(losses, sizes, strict=True) if math.isfinite(loss)]
    return sum(loss * size for loss, size in finite) / sum(size for _, size in finite) if finite else None


def marks(plan: Any, every_epochs: float) -> set[int]:
    """Steps at whose end another ``every_epochs`` are complete, and the last; none for 0."""
    if not every_epochs:
        return set()
    count = math.floor(plan.examples / (every_epochs * plan.dataset_size) + 1e-9)
    steps = {plan.first_step_at(k * every_epochs * plan.dataset_size) for k in range(1, count + 1)}
    return steps | {plan.steps}
