"""One turn of the trainer: the real loop, timed once it runs.

The clock starts when the first steps are over (workers started, memory allocated, kernels chosen), with nothing
in flight on the device and all ranks there; it stops when the last loss is read. Records and TensorBoard are part of
it, evaluations and checkpoints are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from largebatch.data import Placement, Split, Splits
from largebatch.data.nested import Batch
from largebatch.machine import distributed
from largebatch.machine.determinism import deterministic
from largebatch.methods import step_times
from largebatch.plan.batch import BatchPlan
from largebatch.recipes import config
from largebatch.records import names
from largebatch.records.run import RanksLine
from largebatch.records.typed import Numbers, read
from largebatch.run.assemble import Job
from largebatch.run.loop import Loop
from largebatch.terminal.console import Console

LEAD_IN = 2  # steps before the clock starts
SPLIT_STEPS = 20  # at most; whose parts are measured


def timed(run: config.Run, steps: int) -> tuple[config.Run, list[str]]:
    """The run as it is timed: so many steps after the lead-in, all alike; and what was changed for that."""
    changes: dict[str, Any] = {
        "epochs": None,
        "steps": LEAD_IN + steps,
        "checkpoint": config.Checkpoint(every_epochs=0),
        "evaluate": run.evaluate.model_copy(update={"every_epochs": 1e9, "stop_at": None}),
        "lr": config.LearningRate(base=1e-4),  # the time of a step does not depend on it, divergence does
    }
    said = []
    if run.phases is not None:
        run = config.of_phases(run)[0]
        said.append("phases: every step is one of the first phase")
    if run.batch.ramp is not None:
        changes["batch"] = run.batch.model_copy(update={"ramp": None})
        said.append(f"batch.ramp: every step has the first size, {run.batch.global_batch_size:,}")
    if (sizes := run.data.image_size) is not None and sizes.first != sizes.last:
        largest = sizes.model_copy(update={"first": sizes.last, "from_epoch": 0.0, "until_epoch": None})
        changes["data"] = run.data.model_copy(update={"image_size": largest})
        said.append(
            f"data.image_size: every step has the largest side, {sizes.last}; data.image_size=N measures another"
        )
    return run.model_copy(update=changes), said


def with_training_set(job: Job, split: Split) -> Job:
    """The same job, trained on another split of the same kind of images."""
    dataset: Splits = dataclasses.replace(job.dataset, train=split)
    return dataclasses.replace(job, dataset=dataset)


def trainer_seconds(job: Job) -> float:
    """Of the steps after the lead-in, with all that the loop does beside them. Collective."""
    clock = Clock(job.device)
    job = with_training_set(job, Started(job.dataset.train, clock.start))
    with run_of(job) as loop:
        loop.train()
        return clock.seconds()


def split_of_step(job: Job, steps: int) -> dict[str, float | None]:
    """Seconds per step of each part, as the loop itself measures them on request (methods/step_times.py), and
    what is left over; means over the steps. On several ranks each is the median rank's. Collective.

    ``communication`` is the exposed part: what was summed while gradients were still being computed is not in it.
    """
    plan = dataclasses.replace(job.plan, steps=min(steps, SPLIT_STEPS) + step_times.WARM_UP)
    methods = {"step_times": step_times.StepTimes(every_steps=1), **job.decided.methods}
    decided = dataclasses.replace(job.decided, methods=methods, plan=plan)
    with run_of(dataclasses.replace(job, decided=decided)) as loop:
        loop.train()
        lines = (loop.directory / names.METRICS).read_text().splitlines() if distributed.is_first() else []
    of_steps = [line for line in map(json.loads, lines) if line["event"] == RanksLine.EVENT]
    return distributed.from_first(mean_parts([read(RanksLine, line, names.METRICS).seconds for line in of_steps]))


def mean_parts(of_steps: Sequence[Numbers]) -> dict[str, float | None]:
    """``<part>_seconds`` and ``step_seconds`` of what the loop recorded; None where the engine does not tell."""
    found: dict[str, float | None] = {}
    for part in (*step_times.DISJOINT, "step"):
        known = [number for seconds in of_steps if (number := seconds[f"{part}_seconds_median"]) is not None]
        found[f"{part}_seconds"] = sum(known) / len(known) if known and len(known) == len(of_steps) else None
    whole, parts = found["step_seconds"], [found[f"{part}_seconds"] for part in step_times.DISJOINT]
    told = whole is not None and None not in parts
    found["other_seconds"] = max(0.0, whole - sum(parts)) if told else None  # type: ignore[operator,arg-type]  # told
    return found


@contextlib.contextmanager
def run_of(job: Job) -> Iterator[Loop]:
    """The loop of ``job``, silent, in a folder that goes away."""
    silent = Console(quiet=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        deterministic(job.run.deterministic),
        Loop(job, Path(folder), silent, quiet=True) as loop,
    ):
        yield loop


class Clock:
    """Seconds between two moments at which the device has nothing left to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.began = 0.0

    def start(self) -> None:
        """Collective."""
        self._settle()
        distributed.sum_(torch.zeros(1, device=self.device))
        self._settle()
        self.began = time.perf_counter()

    def seconds(self) -> float:
        self._settle()
        return time.perf_counter() - self.began

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Started:
    """A split that says when the lead-in of its training stream is over; everything else is the split's own."""

    def __init__(self, split: Split, begin: Callable[[], None]) -> None:
        self.split, self.begin = split, begin

    def __len__(self) -> int:
        return len(self.split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        return started(self.split.steps(plan, rank, first_step, placement, seed), self.begin)

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        return self.split.batches(rank, world, batch_size, placement)


def started(stream: Iterator[Any], begin: Callable[[], None]) -> Iterator[Any]:
    """The same steps; ``begin`` is called before the first one after the lead-in is asked for."""
    for number in itertools.count():
        if number == LEAD_IN:
            begin()
        step = next(stream, None)
        if step is None:
            return
        yield step


def loop_seconds(job: Job, steps: Iterator[Any], loop: Callable[[Iterator[Any]], None]) -> float:
    """Of any other ``loop`` over ``steps``, which are as many as the trainer's, timed alike."""
    clock = Clock(job.device)
    with deterministic(job.run.deterministic):
        loop(started(steps, clock.start))
        return clock.seconds()
