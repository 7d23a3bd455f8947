"""torch's profiler over some steps of a run: a Chrome trace and a table of operators (``record.profile``).

The profiler is made ready one step before the first, runs to the end of the last, and is then gone: all other steps are
left alone. What is profiled is what was trained anyway, on the same numbers. Each rank that is asked writes its own
files, at the next recording mark, and nothing is communicated.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from largebatch.methods import Built, Decision, Method, Part, PartRecorder
from largebatch.methods._steps_looked_at import FirstAndLast, StepsLookedAt
from largebatch.plan.batch import BatchPlan
from largebatch.recipes.keys import Switch

if TYPE_CHECKING:
    from largebatch.methods._profiler import Session
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step

KEY = "record.profile"


class Profile(Method):
    """Which steps, counted from 1, first and last included."""

    KEY = KEY
    CHANGES = False
    OF_RUN = True

    steps: FirstAndLast
    ranks: Literal["first", "all"] = "first"  # who is profiled: rank 0, or each
    shapes: Switch = False  # of the inputs of each operator
    stacks: Switch = False  # the lines of Python that each was called from

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> DecidedProfile:
        return DecidedProfile(self, StepsLookedAt(*self.steps).of_plan(plan))


@dataclasses.dataclass(frozen=True)
class DecidedProfile(Decision):
    OF_RUN = True

    method: Profile
    which: str

    @property
    def words(self) -> str:
        on = ", on all ranks" if self.method.ranks == "all" else ""
        return f"profiles {self.which}{on}"

    def part(self, job: Built) -> ProfileOfRun:
        return ProfileOfRun(self.method, job)


class ProfileOfRun(Part):
    """The profiler is there from the step before the first to the end of the last."""

    def __init__(self, method: Profile, job: Built) -> None:
        from largebatch.machine import distributed

        self.method, self.job = method, job
        self.steps = StepsLookedAt(*method.steps)
        self.asked = method.ranks == "all" or distributed.is_first()
        self.begun: int | None = None  # the first step of this session
        self.running: Session | None = None
        self.complete: Session | None = None  # whose files are still to be written
        self.sentences: list[str] = []  # to be told at the next mark

    def before(self, step: Step) -> None:
        number = step.number + 1
        if self.begun is None:
            self.begun = number
            if said := self.steps.of_session(number, KEY, "profiled"):
                self.sentences.append(said)
        if not self.asked:
            return
        if number == self.steps.first - 1:
            self.running = self._made(warmed_up=True)
        elif self.steps.holds(number):
            if self.running is None and number == max(self.begun, self.steps.first):
                self.running = self._made(warmed_up=False)
            if self.running is not None:
                self._try(lambda session: session.begin(number))

    def _made(self, warmed_up: bool) -> Session | None:
        from largebatch.methods._profiler import Session

        try:
            return Session(self.job.device.type, self.method.shapes, self.method.stacks, warmed_up)
        except RuntimeError as problem:  # there is one already: of who started the run
            self.sentences.append(f"{KEY}: the profiler cannot be started: {_first_line(problem)}")
            return None

    def _try(self, act: Any) -> None:
        """Of a profiler that fails the run knows nothing."""
        session = self.running
        try:
            act(session)
        except RuntimeError as problem:
            self.running = None
            self.sentences.append(f"{KEY}: the profiler failed: {_first_line(problem)}")

    def after(self, step: Step) -> None:
        if self.running is None:
            return
        number = step.number + 1
        if self.steps.holds(number):
            self._try(lambda session: session.end())
        if number >= self.steps.last:
            self._stop()

    def _stop(self) -> None:
        self._try(lambda session: session.stop())
        session, self.running = self.running, None
        if session is not None and session.steps:
            self.complete = session

    def read(self, recorder: PartRecorder) -> None:
        for sentence in self.sentences:
            recorder.say(sentence)
        self.sentences.clear()
        if self.complete is not None:
            session, self.complete = self.complete, None
            self._write(session, recorder)

    def _write(self, session: Session, recorder: PartRecorder) -> None:
        from largebatch.machine import distributed, watchdog
        from largebatch.methods._profiler import write

        watchdog.now("the trace of the profiler")
        folder = self.job.decided.directory
        try:
            trace, table = write(session, folder, distributed.rank(), distributed.world_size(), str(self.job.device))
        except (OSError, RuntimeError) as problem:
            recorder.say(f"{KEY}: the trace cannot be written ({_first_line(problem)}); the run goes on without it")
            return
        of = StepsLookedAt(session.steps[0], session.steps[-1])
        recorder.say(f"{KEY}: {of} in {trace} (open it in ui.perfetto.dev or chrome://tracing) and {table}")

    def close(self, recorder: PartRecorder, problem: BaseException | None) -> None:
        """Of a range that was cut short, what was complete is written."""
        if self.running is not None:
            self._stop()
        self.read(recorder)


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
