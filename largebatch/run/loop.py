"""The loop, top to bottom: a step on one screen, the run on a second.

What stands beside a step is a part (steps/part.py) of a method (methods/). What a run tells of itself is account.py's,
what it saves and how it goes on saving.py's, how it is judged measure.py's.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import rich.console
from torch import Tensor

from largebatch.data.nested import Batch
from largebatch.errors import Lost
from largebatch.machine import distributed, watchdog
from largebatch.machine.signals import signals_noticed
from largebatch.optim.groups import rate_of
from largebatch.plan.batch import BatchPlan
from largebatch.records.mllog import MlperfLog
from largebatch.run.account import Account, Result
from largebatch.run.assemble import Job
from largebatch.run.beforehand import planned, writers_of_scalars
from largebatch.run.buffers import Buffers
from largebatch.run.growing import AdaptiveRamp
from largebatch.run.measure import Measure
from largebatch.run.parts import Added, Parts
from largebatch.run.record import Recorder
from largebatch.run.saving import Saves
from largebatch.steps.part import Diverged
from largebatch.steps.step import Step, count_units

HELPER_LOST = 1000  # among the numbers of signals: a process that reads data died


class Steps:
    """The steps of a job, with the parts beside them."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.engine, self.task, self.parts = job, job.engine, job.task, parts
        self.buffers = Buffers(job.engine)

    @property
    def plan(self) -> BatchPlan:
        return self.job.plan

    def begin(self, number: int, measured: bool = False) -> Step:
        """The step after ``number`` others; its examples are still to come."""
        stage = self.plan.at(number)
        seen = self.plan.examples_before(number)
        (lr, settings), phase = self.job.decided.rates_at(seen), self.job.decided.phase_at(seen)
        step = Step(number, stage.global_batch_size, (), stage.accumulation_steps, lr, settings, measured, phase)
        for part in self.parts.values():
            part.before(step)
        return step

    def make(self, step: Step, micro_batches: Iterable[Batch]) -> Step:
        """Train on this rank's micro-batches of the step."""
        step.lap("other")
        step.micro_batches = micro_batches
        for turn in self.parts.turns(step):
            loss = self.take(turn)
            if turn is not step:
                step.add(loss / turn.workers)
        for part in self.parts.values():
            part.after(step)
        return step

    def take(self, turn: Step) -> Tensor:
        """The gradient of the mean loss over the units of the turn's examples, and the optimizer's step with it.

        Gives the loss, this rank's part of it.
        """
        engine, task = self.engine, self.task
        self.buffers.remember()
        units = count_units(turn, task, self.job.device)
        turn.lap("data")
        for number, batch in enumerate(turn.micro_batches, start=1):
            turn.lap("forward")
            outputs = engine.predict(task, batch) if turn.alone else engine.forward(task, batch, number == turn.last)
            loss = task.loss(outputs, batch) / units
            turn.count(task, outputs, batch)
            turn.lap("last_backward" if number == turn.last else "backward")
            if turn.alone:
                loss.backward()
            else:
                engine.backward(loss)
            turn.add(loss.detach())
            watchdog.alive()
            turn.lap("data")
        turn.lap("other")
        if not turn.alone:
            turn.squares = engine.squares_of_parts()
            for part in self.parts.values():
                part.with_gradient(turn)
        turn.lap("optimizer")
        self.job.settings.tell(engine.optimizer.param_groups, turn.phase)
        seen = self.plan.examples_before(turn.number)
        for group in engine.optimizer.param_groups:
            group.update(turn.settings, lr=rate_of(group, turn.lr, seen))
        turn.norm = engine.step(measure=turn.measured, alone=turn.alone)
        turn.skipped, turn.micro_batches = engine.skipped, ()
        self.buffers.settle(turn.skipped)
        turn.lap("other")
        assert turn.loss is not None
        return turn.loss


class StepsLeft:
    """The examples of the steps that are left, and after which of them something is to be done."""

    def __init__(self, job: Job, step: int, ramp: AdaptiveRamp) -> None:
        decided, self.job, self.ramp = job.decided, job, ramp
        self.stream = job.dataset.train.steps(job.plan, distributed.rank(), step, job.placement, decided.seed)
        self.evaluations, self.saves = decided.evaluating.at.steps(), decided.saving.at.steps()
        self.asked = ramp.asked_after()

    def anew(self, step: int) -> StepsLeft:
        """From where the batch has grown, after so many steps."""
        if isinstance(self.stream, Generator):
            self.stream.close()  # what was read ahead is cut into other steps
        return StepsLeft(self.job, step, self.ramp)


class Stopped(Exception):
    """A signal asked the run to stop, or a process died that reads data for it."""

    def __init__(self, reason: str, number: int | None) -> None:
        self.signal = number
        super().__init__(reason)


class Loop:
    """One run in progress: how far it is, and the steps whose losses were not yet read."""

    def __init__(
        self,
        job: Job,
        directory: Path,
        console: rich.console.Console,
        quiet: bool,
        command: str = "",
        mllog: MlperfLog | None = None,
        added: Added | None = None,
    ) -> None:
        self.job, self.directory, self.engine, self.mllog = job, directory, job.engine, mllog
        self.unread: list[Step] = []
        self.noticed: list[int] = []  # signals
        self.parts = Parts(job, added, of_run=True)
        self.steps = Steps(job, self.parts)
        self.measure = Measure(job, self.parts)
        self.saves = Saves(job, directory, self.parts, self.measure)
        job.dataset.helpers.watched = True
        watchdog.now("the last checkpoint")
        self.saves.rehearse()
        self.progress, complaints = self.saves.resume()
        self.ramp = AdaptiveRamp(job, self.parts, self.progress)
        self.recorder = Recorder(
            directory,
            planned(job, command, self.parts.code),
            first_step=self.step,
            writers=writers_of_scalars(job, directory, self.step),
            quiet=quiet,
            console=console,
        )
        self.account = Account(
            job, directory, self.progress, self.parts, self.measure, self.saves, self.recorder, mllog
        )
        self.account.beginning(complaints)

    @property
    def plan(self) -> BatchPlan:
        """Another from where the batch has grown."""
        return self.job.plan

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    @property
    def over(self) -> bool:
        """No step is left."""
        return self.step == self.plan.steps or self.parts.over

    def run_to_the_end(self) -> Result:
        try:
            with signals_noticed(self.recorder.quiet) as self.noticed, distributed.losses_told():
                self.train()
                for part in self.parts.values():
                    part.afterwards(self)
                self.account.look("the evaluation at the end")
                self.account.evaluations(self.measure.at_the_end(self.account.taken[0]))
                self.account.unreadable()
                self.save(wait=True)  # only now: a checkpoint that evaluates to nonsense is not a good one
            if self.job.dataset.helpers.lost:
                self.recorder.say(f"{self.job.dataset.helpers.lost}; what was left was read without them")
            return self.account.result("finished")
        except Diverged as problem:
            return self.account.result("failed", str(problem))
        except Lost as problem:
            self.recorder.note(str(problem))
            raise
        except Stopped as stop:
            return self.account.stopped(str(stop), stop.signal)

    def train(self) -> None:
        """The steps that are left of the plan."""
        decided, left = self.job.decided, StepsLeft(self.job, self.step, self.ramp)
        self.engine.model.train()
        with distributed.Flag() as flag:
            if self.step in left.evaluations and not self.over and not self.measure.knows(self.step):
                self.evaluate()  # killed in it, after a signal's save
            clock = time.perf_counter()
            while not self.over:
                watchdog.now(f"the data of step {self.step + 1}")
                recording = (self.step + 1) % decided.recording.every_steps == 0
                step = self.steps.begin(self.step, measured=recording)
                micro_batches = next(left.stream)
                watchdog.now(f"the gradient of step {self.step + 1}")
                self.unread.append(self.steps.make(step, micro_batches))
                recording |= self.progress.made(step) > decided.skipped_at_most
                watchdog.now(f"the end of step {self.step}")
                last = self.over
                if self.step in left.asked and not last and self.ramp.ask(self.recorder):
                    left = left.anew(self.step)
                evaluating, saving = self.step in left.evaluations, self.step in left.saves
                stop = flag.exchange(self.asked_to_stop()) if not last else 0
                if not (recording or evaluating or saving or stop or last):
                    continue
                self.read(since=clock)
                if stop and evaluating:
                    self.save(wait=True)  # what sent the signal may not wait for an evaluation
                if evaluating and not last:
                    self.evaluate()
                if (saving and not self.over) or stop:
                    self.save(wait=stop > 0)
                if stop:
                    raise self.stopped(stop)
                clock = time.perf_counter()

    def evaluate(self) -> None:
        """At a mark of the training; it may end the steps."""
        self.account.look(f"the evaluation after step {self.step}")
        self.account.evaluations(self.measure.during(self.step))

    def read(self, since: float) -> None:
        """Everything that waits on the device: losses, and what the parts have seen."""
        self.account.losses(self.unread, since)
        self.unread.clear()
        for part in self.parts.values():
            part.read(self.recorder)
        self.account.unreadable()

    def save(self, wait: bool = False) -> None:
        """Begin a checkpoint, if the run is to have any; ``wait`` until it is on the disk."""
        watchdog.now(f"the checkpoint of step {self.step}")
        self.account.save_ended()
        self.saves.begin(self.progress)
        if wait:
            self.account.save_ended()

    def asked_to_stop(self) -> int:
        """By which signal, or HELPER_LOST; 0: not at all."""
        if self.noticed:
            return self.noticed[0]
        return HELPER_LOST if self.job.dataset.helpers.lost else 0

    def stopped(self, number: int) -> Stopped:
        """The end that some rank asked for, the same on all. Collective."""
        if number != HELPER_LOST:
            return Stopped(signal.Signals(number).name, number)
        lost = [sentence for sentence in distributed.gather(self.job.dataset.helpers.lost) if sentence]
        return Stopped(f"{lost[0]}; stopped", None)

    # What a part finds that goes on after the steps.

    def take(self, turn: Step) -> Tensor:
        return self.steps.take(turn)

    @contextlib.contextmanager
    def stoppable(self, doing: str) -> Iterator[Callable[[], None]]:
        """What is called inside, after each step: it raises where a rank was asked to stop. Collective."""
        with distributed.Flag() as flag:

            def stop_if_asked() -> None:
                watchdog.now(doing)
                if number := flag.exchange(self.asked_to_stop()):
                    self.account.save_ended()
                    raise self.stopped(number)

            yield stop_if_asked

    def spent(self, seconds: float) -> None:
        self.progress.spend(seconds)

    def new_weights(self) -> None:
        self.measure.scores.clear()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        with contextlib.ExitStack() as closing:  # all of them, whatever one raises; the last first
            if self.mllog is not None:
                closing.callback(self.mllog.close)
            closing.callback(self.recorder.close)
            closing.callback(self.saves.close)
            for part in self.parts.values():
                closing.callback(part.close, self.recorder, problem)
