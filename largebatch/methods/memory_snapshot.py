"""What lies in the memory of a CUDA device after some steps, and where there was no more (``record.memory_snapshot``).

torch's allocator keeps a history of what it gives and takes back, with the lines of Python that asked; a snapshot is
that history and all that lies there. It is drawn by https://pytorch.org/memory_viz, into which the file is dragged: it
is read by the browser, and sent nowhere. Each rank writes its own device's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.methods import Built, Decision, Method, Part, PartRecorder
from largebatch.methods._steps_looked_at import FirstAndLast, StepsLookedAt
from largebatch.plan.batch import BatchPlan
from largebatch.recipes.keys import PositiveInt, Switch

if TYPE_CHECKING:
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step

KEY = "record.memory_snapshot"
HOW = "drag it into https://pytorch.org/memory_viz"


class MemorySnapshot(Method):
    """Which steps, counted from 1, first and last included; and whether there is one where memory does not suffice."""

    KEY = KEY
    SWITCH = True
    CHANGES = False
    OF_RUN = True
    DEVICE = "cuda"

    steps: FirstAndLast = (1, 2)  # in the first one, the optimizer's states are made
    out_of_memory: Switch = True  # then a history is kept in all steps
    entries: PositiveInt = 100_000  # of the history, at most: its newest

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> DecidedSnapshot:
        return DecidedSnapshot(self, StepsLookedAt(*self.steps).of_plan(plan))


@dataclasses.dataclass(frozen=True)
class DecidedSnapshot(Decision):
    OF_RUN = True

    method: MemorySnapshot
    which: str

    @property
    def words(self) -> str:
        beside = ", and where memory does not suffice" if self.method.out_of_memory else ""
        return f"a memory snapshot of {self.which}{beside}"

    def part(self, job: Built) -> SnapshotOfRun:
        return SnapshotOfRun(self.method, job)


class SnapshotOfRun(Part):
    """The history begins with the first of the steps; where memory may not suffice, already with the session."""

    def __init__(self, method: MemorySnapshot, job: Built) -> None:
        from largebatch.machine import distributed

        self.method, self.folder = method, job.decided.directory
        self.steps, self.rank = StepsLookedAt(*method.steps), distributed.rank()
        self.begun: int | None = None  # the first step of this session
        self.current = 0  # the step in progress, or the last
        self.history = False  # whether there is one now
        self.sentences: list[str] = []  # to be told at the next mark

    def before(self, step: Step) -> None:
        number = self.current = step.number + 1
        first_of_session = self.begun is None
        if self.begun is None:
            self.begun = number
            if said := self.steps.of_session(number, KEY, "recorded"):
                self.sentences.append(said)
        anew = self.steps.holds(number) and number == max(self.begun, self.steps.first)
        if anew or (first_of_session and self.method.out_of_memory):
            self._keep_history()

    def after(self, step: Step) -> None:
        if step.number + 1 != self.steps.last or not self.history or self.begun is None:
            return
        of = StepsLookedAt(max(self.begun, self.steps.first), self.steps.last)
        self._write(f"steps-{of.first}-{of.last}-rank-{self.rank}.pickle", str(of))
        if not self.method.out_of_memory:
            self._forget_history()

    def _keep_history(self) -> None:
        """From now on: what was kept before is forgotten."""
        from torch.cuda import memory

        memory._record_memory_history(None)
        memory._record_memory_history("all", max_entries=self.method.entries, stacks="python")
        self.history = True

    def _forget_history(self) -> None:
        from torch.cuda import memory

        memory._record_memory_history(None)
        self.history = False

    def _write(self, name: str, what: str) -> None:
        from torch.cuda import memory

        from largebatch.records import names
        from largebatch.records.files import whole

        file = Path(self.folder) / names.MEMORY / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole(file) as unfinished:
                memory._dump_snapshot(str(unfinished))
        except (OSError, RuntimeError) as problem:
            first_line = (str(problem).splitlines() or [type(problem).__name__])[0]
            self.sentences.append(f"{KEY}: {file} cannot be written ({first_line}); the run goes on without it")
            return
        self.sentences.append(f"{KEY}: {what} in {file}; to look at it, {HOW}")

    def read(self, recorder: PartRecorder) -> None:
        for sentence in self.sentences:
            recorder.say(sentence)
        self.sentences.clear()

    def close(self, recorder: PartRecorder, problem: BaseException | None) -> None:
        import torch

        if isinstance(problem, torch.OutOfMemoryError) and self.method.out_of_memory:
            name = f"out-of-memory-step-{self.current}-rank-{self.rank}.pickle"
            self._write(name, f"what lay there when memory did not suffice in step {self.current}, or behind it,")
        if self.history:
            self._forget_history()
        self.read(recorder)
