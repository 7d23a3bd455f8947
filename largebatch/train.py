"""The loop, top to bottom.

    for every step:   set the lr of the examples seen
        for every micro-batch of this rank's slice:   summed loss / global batch size -> backward
        the engine's step
        every few steps record; at their marks evaluate and checkpoint

Losses stay on the device and are read at the recording marks: then the loss of every step since the last mark
is known, so that a loss that is not finite is named with its exact step.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import rich.console
import rich.padding
import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch import checkpoint, config, distributed, record
from largebatch.assemble import Job, assemble, decisions, plan_facts, table_of_tensors
from largebatch.data.resident import ResidentSplit
from largebatch.errors import UserError
from largebatch.evaluate import Evaluation, evaluate
from largebatch.optim import LayerNumbers, Watch

STOPPING = (signal.SIGTERM, signal.SIGINT)


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
    job = assemble(run, device)
    directory = run.directory
    record.open_directory(directory, run.as_written(), science_of, run.resume)
    finished = distributed.gather(record.read_result(directory))[0]
    if finished is not None and finished["status"] == "finished":
        if distributed.is_first() and not quiet:
            console.print(f"{directory} is finished already: nothing to train", markup=False)
        return Result("finished", None, directory, finished)
    if distributed.is_first() and not quiet:
        for key, text in decisions(job, directory).items():
            console.print(f"{key:>10}  {text}", markup=False, highlight=False, soft_wrap=True)
        console.print(rich.padding.Padding(table_of_tensors(job.treatments), (0, 0, 0, 2)))
    with Loop(job, directory, console, quiet, command) as loop:
        return loop.run_to_the_end()


def science_of(written: dict[str, Any]) -> dict[str, Any]:
    return config.from_dict(written).science()


class Loop:
    """The state of one run in progress: the step it is at, and the losses not yet read."""

    def __init__(
        self, job: Job, directory: Path, console: rich.console.Console, quiet: bool, command: str = ""
    ) -> None:
        self.job, self.directory, self.plan, self.engine = job, directory, job.plan, job.engine
        self.step = 0  # steps done
        self.seconds = 0.0  # spent in training steps, over all sessions
        self.last_checkpoint: Path | None = None
        self.losses: list[Tensor] = []
        self.norm: Tensor | None = None
        self.watch = Watch(job.engine.model.named_parameters(), job.engine.optimizer)
        self.layers: list[tuple[int, LayerNumbers]] = []
        self.evaluations: dict[str, Evaluation] = {}
        self.started = time.perf_counter()
        self.total_before = 0.0
        complaints = self._resume()
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
            self.recorder.event("resume", step=self.step, examples_seen=self.examples_seen, **self._machine())
            self.recorder.say(f"resumed at step {self.step} of {self.plan.steps} from {self.last_checkpoint}")
        for row in job.treatments:
            self.recorder.note(
                f"{row.name} {tuple(row.shape)}: {row.kind}, {'decayed' if row.decayed else 'not decayed'}, "
                f"{'adapted' if row.adapted else 'not adapted'}"
            )

    @property
    def examples_seen(self) -> int:
        return self.step * self.plan.global_batch_size

    def run_to_the_end(self) -> Result:
        try:
            with signals_noticed() as noticed:
                self.train_steps(noticed)
                self.measure_result()
            if self.job.run.checkpoint.every_epochs:
                self.save()  # only now: a checkpoint that evaluates to nonsense is not a good one
            return self._result("finished")
        except Diverged as problem:
            return self._result("failed", str(problem))
        except Stopped as stop:
            self.recorder.event("stop", step=self.step, reason=str(stop))
            saved = f"; saved as {self.last_checkpoint}, the same command goes on" if self.last_checkpoint else ""
            return self._result("stopped", f"{stop} after step {self.step}{saved}", stop.signal)

    def train_steps(self, noticed: list[int]) -> None:
        run, plan, engine = self.job.run, self.plan, self.engine
        evaluations = marks(plan, run.evaluate.every_epochs)
        saves = marks(plan, run.checkpoint.every_epochs)
        stream = self.job.dataset.train.steps(plan, distributed.rank(), self.step, self.job.placement, run.seed)
        engine.model.train()
        with distributed.Flag() as flag:
            clock = time.perf_counter()
            for micro_batches in stream:
                recording = (self.step + 1) % run.record.every_steps == 0
                self.one_step(micro_batches, measure=recording)
                self.step += 1
                last = self.step == plan.steps
                evaluating, saving = self.step in evaluations, self.step in saves
                stop = flag.exchange(noticed[0] if noticed else 0) if not last else 0
                if not (recording or evaluating or saving or stop or last):
                    continue
                self.read_losses(since=clock)
                if evaluating and not last:
                    self.evaluate_on(self.job.dataset.test, self.evaluated_on)
                if (saving and not last) or (stop and run.checkpoint.every_epochs):
                    self.save()
                if stop:
                    raise Stopped(stop)
                clock = time.perf_counter()

    def one_step(self, micro_batches: Any, measure: bool) -> None:
        run, plan, engine = self.job.run, self.plan, self.engine
        lr = self.job.lr.schedule(self.examples_seen)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        loss_of_step: Tensor | None = None
        for number, (images, labels) in enumerate(micro_batches, start=1):
            outputs = engine.forward(images, last=number == plan.accumulation_steps)
            summed = F.cross_entropy(outputs, labels, label_smoothing=run.loss.label_smoothing, reduction="sum")
            loss = summed / plan.global_batch_size
            engine.backward(loss)
            loss_of_step = loss.detach() if loss_of_step is None else loss_of_step + loss.detach()
        assert loss_of_step is not None
        self.losses.append(loss_of_step)
        every = run.record.layers_every_steps
        watching = every > 0 and (self.step + 1) % every == 0
        if watching:
            self.watch.before()
        self.norm = engine.step(measure=measure)
        if watching:
            self.layers.append((self.step + 1, self.watch.after()))

    def read_losses(self, since: float) -> None:
        """Sum the unread losses over ranks, record them, stop at one that is not finite."""
        losses = distributed.sum_(torch.stack(self.losses).double()).tolist()
        self.losses.clear()
        self.seconds += time.perf_counter() - since
        first = self.window_step
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise Diverged(self._divergence(first + offset, loss))
        for step, numbers in self.layers:
            values = numbers.read()
            self.recorder.layers(step, step * self.plan.global_batch_size, values.summary(), values.by_layer())
        self.layers = []
        spent = self.seconds - self.window_seconds
        self.recorder.training(
            step=self.step,
            examples_seen=self.examples_seen,
            epoch=self.examples_seen / self.plan.dataset_size,
            seconds=self.seconds,
            lr=self.job.lr.schedule((self.step - 1) * self.plan.global_batch_size),
            loss=sum(losses) / len(losses),
            grad_norm=self.norm.item() if self.norm is not None else None,
            examples_per_second=(self.step - first) * self.plan.global_batch_size / spent,
        )
        self.window_step, self.window_seconds = self.step, self.seconds

    def _divergence(self, step: int, loss: float) -> str:
        lr = self.job.lr.schedule(step * self.plan.global_batch_size)
        good = self.last_checkpoint or "none was saved"
        return f"the loss is {loss} in step {step + 1} at lr {lr:g}; last good checkpoint: {good}"

    @property
    def evaluated_on(self) -> str:
        return "held_out" if self.job.run.data.hold_out else "test"

    def evaluate_on(self, split: Any, name: str) -> None:
        world, rank = distributed.world_size(), distributed.rank()
        batches = split.batches(rank, world, self.job.run.evaluate.batch_size, self.job.placement)
        with self.engine.whole_model():
            evaluation = evaluate(self.engine.model, self.engine.predict, batches, self.job.device)
        assert evaluation.examples == len(split), "an example was missed or counted twice"
        if not math.isfinite(evaluation.loss):
            raise Diverged(
                f"the {name.replace('_', '-')} loss is {evaluation.loss} after step {self.step}; "
                f"last good checkpoint: {self.last_checkpoint or 'none was saved'}"
            )
        self.evaluations[name] = evaluation
        self.recorder.event(
            "evaluate",
            step=self.step,
            examples_seen=self.examples_seen,
            epoch=self.examples_seen / self.plan.dataset_size,
            seconds=self.seconds,
            split=name,
            loss=evaluation.loss,
            accuracy_percent=evaluation.accuracy_percent,
            examples=evaluation.examples,
        )
        self.recorder.say(
            f"epoch {self.examples_seen / self.plan.dataset_size:6.2f}  step {self.step:>6}  "
            f"{name.replace('_', '-')} accuracy {evaluation.accuracy_percent:.2f} %  loss {evaluation.loss:.4f}"
        )

    def measure_result(self) -> None:
        self.evaluate_on(self.job.dataset.test, self.evaluated_on)
        asked, split = self.job.run.evaluate.train, self.job.dataset.train
        if asked or (asked is None and isinstance(split, ResidentSplit)):
            self.evaluate_on(split, "train")

    def save(self) -> None:
        if not self.engine.weights_are_finite():
            good = self.last_checkpoint or "none was saved"
            raise Diverged(f"weights are not finite after step {self.step}; last good checkpoint: {good}")
        state = {
            **self.engine.save(),
            **self._machine(),
            "seconds": self.seconds,
            "total_seconds": self._total_seconds(),
        }
        self.last_checkpoint = checkpoint.save(
            self.directory / "checkpoints", self.step, state, self.job.run.checkpoint.keep
        )

    def _resume(self) -> list[str]:
        """Go on from the newest checkpoint; what is worth saying about it."""
        found = checkpoint.load_newest(self.directory / "checkpoints")
        if found is None:
            return []
        state, self.last_checkpoint = found.state, found.path
        if state["step"] > self.plan.steps:
            raise UserError(f"{found.path} lies beyond the run's {self.plan.steps} steps")
        self.engine.load(state)
        checkpoint.restore_random(state, self.job.run.seed)
        self.step, self.seconds, self.total_before = state["step"], state["seconds"], state["total_seconds"]
        changed = [
            f"{key.replace('_', ' ')} is {now}, it was {state[key]}"
            for key, now in self._machine().items()
            if key in state and state[key] != now
        ]
        return found.complaints + changed

    def _machine(self) -> dict[str, Any]:
        """What the machine decided, and a resume on another one may change: batch norm sees the micro-batch."""
        return {
            "world_size": self.plan.world_size,
            "micro_batch_size": self.plan.micro_batch_size,
            "precision": self.job.precision,
            "device": self.job.device.type,
            "engine": self.engine.description,
        }

    def _total_seconds(self) -> float:
        return self.total_before + time.perf_counter() - self.started

    def _result(self, status: str, reason: str | None = None, number: int | None = None) -> Result:
        test = self.evaluations.get(self.evaluated_on) if status == "finished" else None
        training = self.evaluations.get("train") if status == "finished" else None
        per_step = self.seconds / self.step if self.step else None
        numbers = {
            "status": status,
            "reason": reason,
            "steps": self.step,
            "examples_seen": self.examples_seen,
            "evaluated_on": self.evaluated_on,
            "test_loss": test and test.loss,
            "test_accuracy_percent": test and test.accuracy_percent,
            "train_loss": training and training.loss,
            "train_accuracy_percent": training and training.accuracy_percent,
            "peak_lr": self.job.lr.schedule.peak,
            "seconds_training": self.seconds,
            "seconds_total": self._total_seconds(),
            "seconds_per_step": per_step,
            "seconds_per_epoch": per_step and per_step * self.plan.steps_per_epoch,
            "examples_per_second": self.examples_seen / self.seconds if self.seconds else None,
            "parameters": sum(p.numel() for p in self.engine.model.parameters()),
        }
        if distributed.is_first():
            record.write_json(self.directory / "result.json", numbers)
        if reason:
            self.recorder.note(f"{status}: {reason}")
        return Result(status, reason, self.directory, numbers, number)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.recorder.close()


def marks(plan: Any, every_epochs: float) -> set[int]:
    """Steps at whose end another ``every_epochs`` are complete, and the last; none for 0."""
    if not every_epochs:
        return set()
    count = math.floor(plan.examples / (every_epochs * plan.dataset_size) + 1e-9)
    steps = {plan.first_step_at(k * every_epochs * plan.dataset_size) for k in range(1, count + 1)}
    return steps | {plan.steps}


@contextmanager
def signals_noticed() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted, to be obeyed after the step; a second SIGINT interrupts at once."""
    noticed: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        if noticed and number == signal.SIGINT:
            raise KeyboardInterrupt
        noticed.append(number)
        if distributed.is_first():
            print("finishing the step, then saving a checkpoint ...", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, notice) for number in STOPPING}
    try:
        yield noticed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
