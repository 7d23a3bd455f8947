"""Distance from the start, and lengths and angles of steps, every so many steps (optim/directions.py).

The step before is forgotten by a resume, so the first directions after one have no angles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from largebatch.methods import Built, Part, PartRecorder, Recorded
from largebatch.plan.batch import due

if TYPE_CHECKING:
    from largebatch.optim import StepNumbers
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step


class DirectionsOfSteps(Recorded):
    KEY = "record.directions_every_steps"
    ONE_STEP = True

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        if precision == "fp16":
            yield (f"{self.KEY} does not go with precision = fp16, whose gradients are scaled; valid: bf16, fp32, fp64")

    def part(self, job: Built) -> DirectionsOfRun:
        return DirectionsOfRun(self, job)


class DirectionsOfRun(Part):
    """Numbers stay on the device until they are read."""

    def __init__(self, method: DirectionsOfSteps, job: Built) -> None:
        from largebatch.optim import Directions

        self.job, self.every = job, method.every_steps
        self.directions = Directions(job.engine.model.parameters())
        self.waiting: list[tuple[int, StepNumbers]] = []  # steps done, what they showed

    def before(self, step: Step) -> None:
        if self.walks(step):
            self.directions.before()
        else:
            self.directions.forget()

    def with_gradient(self, turn: Step) -> None:
        if self.walks(turn):
            self.directions.with_gradient(due(turn.number, self.every))

    def after(self, step: Step) -> None:
        if self.walks(step):
            numbers = self.directions.after(due(step.number, self.every))
            if numbers is not None:
                self.waiting.append((step.number + 1, numbers))

    def walks(self, step: Step) -> bool:
        """A step that is looked at, or the one before it."""
        return due(step.number, self.every) or due(step.number + 1, self.every)

    def read(self, recorder: PartRecorder) -> None:
        for step, numbers in self.waiting:
            recorder.event("directions", **self.job.plan.when(step), **numbers.read())
        self.waiting = []
