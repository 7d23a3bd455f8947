"""The loop, top to bottom.

    for every step:   update      lr; forward, loss, backward of every micro-batch; the optimizer's step (update.py)
        every few steps record; at their marks evaluate and checkpoint
    then, if the recipe says so, SWAP's workers (swap.py); at the end evaluate and save

What a run tells of itself is account.py's, what it saves and how it goes on saving.py's.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from pathlib import Path

import rich.console
from torch import Tensor

from largebatch.errors import Lost
from largebatch.machine import distributed, watchdog
from largebatch.machine.signals import signals_noticed
from largebatch.plan.score import ACCURACY
from largebatch.recipes.decided import Marks
from largebatch.records.mllog import MlperfLog, open_because
from largebatch.run import record
from largebatch.run.account import Account, Diverged, Result
from largebatch.run.assemble import Job, mlperf_facts, plan_facts
from largebatch.run.averaging import Ema
from largebatch.run.measure import Measure
from largebatch.run.observe import Observer
from largebatch.run.ranks import Ranks
from largebatch.run.saving import Saves
from largebatch.run.swap import Swap
from largebatch.run.update import Update

HELPER_LOST = 1000  # among the numbers of signals: a process that reads images died


class Stopped(Exception):
    """A signal asked the run to stop, or a process died that reads images for it."""

    def __init__(self, reason: str, number: int | None) -> None:
        self.signal = number
        super().__init__(reason)


class Loop:
    """One run in progress: how far it is, and the losses not yet read."""

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
        decided = self.decided = job.decided
        self.losses: list[Tensor] = []
        self.update = Update(job)
        self.swap = Swap(job, self.update, decided.swap) if decided.swap is not None else None
        self.ema = Ema(job.engine, *decided.ema) if decided.ema is not None else None
        self.measure = Measure(job, self.update, self.ema, self.swap)
        self.epoch_marks = Marks(self.plan, 1.0).steps()
        self.mllog = mllog
        self.observer = Observer(job, self.update)
        self.ranks = Ranks(job, self.update)
        self.saves = Saves(job, directory, self.update, self.observer, self.measure, self.ema, self.swap)
        job.dataset.helpers.watched = True
        watchdog.now("the last checkpoint")
        self.progress, complaints = self.saves.resume()
        self.recorder = record.Recorder(
            directory,
            plan_facts(job, command),
            first_step=self.step,
            tensorboard=decided.recording.tensorboard,
            quiet=quiet,
            console=console,
        )
        self.account = Account(
            job, directory, self.progress, self.update, self.measure, self.saves, self.swap, self.recorder, mllog
        )
        self.measure.tell = self.account.evaluation
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
            facts = mlperf_facts(job)
            if reason := open_because(facts):
                self.recorder.say(f"record.mllog: the open division, for {reason}")
            self.mllog.start(facts, self.examples_seen / self.plan.dataset_size)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    @property
    def examples_seen(self) -> int:
        return self.plan.examples_before(self.step)

    def run_to_the_end(self) -> Result:
        try:
            with signals_noticed() as noticed, distributed.losses_told():
                if self.swap is None or not self.swap.begun:
                    self.train_steps(noticed)
                if self.swap is not None:
                    self.train_workers(self.swap, noticed)
                self.look("the evaluation at the end")
                self.measure.at_the_end(self.account.taken[0])
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
            self.recorder.event("stop", step=self.step, reason=str(stop))
            saved = f"; saved as {self.saves.last}, the same command goes on" if self.saves.last else ""
            saved = f"; {self.account.unsaved}" if self.account.unsaved else saved
            return self.account.result("stopped", f"{stop} after step {self.step}{saved}", stop.signal)

    def train_steps(self, noticed: list[int]) -> None:
        decided, plan = self.decided, self.plan
        if self.update.complete:
            return
        stream = self.job.dataset.train.steps(plan, distributed.rank(), self.step, self.job.placement, decided.seed)
        stream = self.ranks.timed(stream, self.step)
        evaluations, saves = decided.evaluating.at.steps(), decided.saving.at.steps()
        self.engine.model.train()
        with distributed.Flag() as flag:
            clock = time.perf_counter()
            watchdog.now(f"the data of step {self.step + 1}")
            for micro_batches in stream:
                recording = (self.step + 1) % decided.recording.every_steps == 0
                self.before_step()
                self.losses.append(self.update.step(self.step, micro_batches, measure=recording))
                self.after_step()
                recording = recording or len(self.update.skipped) > decided.skipped_at_most
                watchdog.now(f"the end of step {self.step}")
                last = self.phase_1_is_over() or self.step == plan.steps or self.update.complete
                evaluating, saving = self.step in evaluations, self.step in saves
                stop = flag.exchange(self.asked_to_stop(noticed)) if not last else 0
                if not (recording or evaluating or saving or stop or last):
                    watchdog.now(f"the data of step {self.step + 1}")
                    continue
                self.read(since=clock)
                if stop and evaluating:
                    self.save(wait=True)  # what sent the signal may not wait for an evaluation
                if evaluating and not last:
                    self.look(f"the evaluation after step {self.step}")
                    self.measure.during(self.step)
                if (saving and not last) or stop:
                    self.save(wait=stop > 0)
                if stop:
                    raise self.stopped(stop)
                if last:
                    break
                watchdog.now(f"the data of step {self.step + 1}")
                clock = time.perf_counter()

    def before_step(self) -> None:
        watchdog.now(f"the gradient of step {self.step + 1}")
        self.observer.before(self.step)

    def after_step(self) -> None:
        """What stands beside the step that was just made."""
        self.ranks.after(self.step)
        self.observer.after(self.step)
        if self.ema is not None and self.update.workers is None:
            self.ema.after_step(self.step + 1)
        elif self.ema is not None and self.update.together:
            self.ema.follow()
        self.progress.step += 1

    def asked_to_stop(self, noticed: list[int]) -> int:
        """By which signal, or HELPER_LOST; 0: not at all."""
        if noticed:
            return noticed[0]
        return HELPER_LOST if self.job.dataset.helpers.lost else 0

    def stopped(self, number: int) -> Stopped:
        """The end that some rank asked for, the same on all. Collective."""
        if number != HELPER_LOST:
            return Stopped(signal.Signals(number).name, number)
        lost = [sentence for sentence in distributed.gather(self.job.dataset.helpers.lost) if sentence]
        return Stopped(f"{lost[0]}; stopped", None)

    def phase_1_is_over(self) -> bool:
        """SWAP's: at the end of each epoch the share of right answers in its training is looked at."""
        if self.swap is None or self.step not in self.epoch_marks:
            return False
        accuracy = self.update.take_numbers()[ACCURACY.key]
        self.recorder.event(
            "train_accuracy", step=self.step, examples_seen=self.examples_seen, accuracy_percent=accuracy
        )
        self.swap.target_reached = accuracy >= self.swap.rule.stop_at_train_accuracy
        if self.step == self.plan.steps and not self.swap.target_reached:
            self.recorder.say(
                f"SWAP: the train accuracy is {accuracy:.2f} % at the end of phase 1, below the "
                f"{self.swap.rule.stop_at_train_accuracy:g} % at which it was to stop"
            )
        return self.swap.target_reached

    def train_workers(self, swap: Swap, noticed: list[int]) -> None:
        """SWAP's second and third phase; saved after every round of workers."""
        if not swap.begun:
            self.recorder.say(
                f"SWAP: phase 1 ends at step {self.step}; {swap.rule.workers} workers go on, {swap.steps} steps each"
            )
            swap.begin()
            self.measure.scores.clear()  # of another model than the average to come
            self.save()
        with distributed.Flag() as flag:

            def stop() -> None:
                watchdog.now("the workers' steps")
                if number := flag.exchange(self.asked_to_stop(noticed)):
                    self.account.save_ended()
                    raise self.stopped(number)

            for number in swap.rounds_left():
                for result in swap.run_round(number, stop):
                    if not math.isfinite(result.train_loss):
                        raise Diverged(f"the loss of SWAP's worker {result.worker + 1} is {result.train_loss}")
                    self.recorder.event("worker", step=self.step, **dataclasses.asdict(result))
                    self.recorder.say(
                        f"worker {result.worker + 1} of {swap.rule.workers}: loss {result.train_loss:.4f}, test "
                        f"accuracy {result.test_accuracy_percent:.2f} % before averaging"
                    )
                self.progress.seconds += swap.seconds_of_round
                self.save()
        swap.average()

    def read(self, since: float) -> None:
        """Everything that waits on the device: losses, what was observed, what each rank was busy with."""
        self.account.losses(self.losses, since)
        self.losses.clear()
        self.observer.read(self.recorder)
        self.ranks.read(self.recorder)
        self.account.unreadable()

    def look(self, place: str) -> None:
        """An evaluation begins."""
        watchdog.now(place)
        self.account.looked = time.perf_counter()

    def save(self, wait: bool = False) -> None:
        """Begin a checkpoint, if the run is to have any; ``wait`` until it is on the disk."""
        watchdog.now(f"the checkpoint of step {self.step}")
        self.account.save_ended()
        self.saves.begin(self.progress)
        if wait:
            self.account.save_ended()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.saves.close()
        self.recorder.close()
        if self.mllog is not None:
            self.mllog.close()
