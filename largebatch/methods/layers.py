"""Trust ratio, weight norm and update norm of every layer, every so many steps (optim/telemetry.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from largebatch.methods import Built, Part, PartRecorder, Recorded
from largebatch.plan.batch import due

if TYPE_CHECKING:
    from largebatch.optim import LayerNumbers
    from largebatch.steps.step import Step


class Layers(Recorded):
    KEY = "record.layers_every_steps"

    def part(self, job: Built) -> LayersOfRun:
        return LayersOfRun(self, job)


class LayersOfRun(Part):
    """Numbers stay on the device until they are read."""

    def __init__(self, method: Layers, job: Built) -> None:
        from largebatch.optim import Watch

        self.job, self.every = job, method.every_steps
        self.watch = Watch(job.engine.model.named_parameters(), job.engine.optimizer)
        self.waiting: list[tuple[int, LayerNumbers]] = []  # steps done, what they showed

    def before(self, step: Step) -> None:
        if due(step.number, self.every):
            self.watch.before()

    def after(self, step: Step) -> None:
        if due(step.number, self.every):
            self.waiting.append((step.number + 1, self.watch.after()))

    def read(self, recorder: PartRecorder) -> None:
        for step, layers in self.waiting:
            values = layers.read()
            recorder.layers(step, self.job.plan.examples_before(step), values.summary(), values.by_layer())
        self.waiting = []
