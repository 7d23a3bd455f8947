"""What is recorded beside loss and learning rate where the recipe asks for it, measured while the training goes on.

    record.layers_every_steps       trust ratio, weight norm and update norm of every layer   (optim/telemetry.py)
    record.directions_every_steps   distance from the start, lengths and angles of steps      (optim/directions.py)
    record.noise_scale              the gradient noise scale                                  (diagnostics/noise.py)

Numbers stay on the device until the next recording mark. Nothing here changes what is trained. The averages of the
noise scale go on after a resume; the step before is forgotten, so the first directions after one have no angles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largebatch.diagnostics.noise import Averages, Squares
from largebatch.machine import distributed
from largebatch.optim import Directions, LayerNumbers, StepNumbers, Watch
from largebatch.recipes.decided import Noise
from largebatch.run.assemble import Job
from largebatch.run.record import Recorder
from largebatch.run.update import Update


class Observer:
    """Stands beside every step of the loop; made before a checkpoint is loaded, where the weights are the first."""

    def __init__(self, job: Job, update: Update) -> None:
        self.job, self.plan, self.engine, self.update = job, job.plan, job.engine, update
        recording = job.decided.recording
        self.layers_every, self.directions_every = recording.layers_every_steps, recording.directions_every_steps
        self.noise = NoiseScale(job, job.decided.noise) if job.decided.noise is not None else None
        self.watch = Watch(job.engine.model.named_parameters(), job.engine.optimizer) if self.layers_every else None
        self.directions = Directions(job.engine.model.parameters()) if self.directions_every else None
        self.layers: list[tuple[int, LayerNumbers]] = []  # steps done, what they showed
        self.steps: list[tuple[int, StepNumbers]] = []
        update.look = self.with_gradient

    def before(self, step: int) -> None:
        if self.watch is not None and due(step, self.layers_every):
            self.watch.before()
        if self.directions is not None:
            if self._walks(step):
                self.directions.before()
            else:
                self.directions.forget()
        if self.noise is not None:
            self.noise.before(step)

    def with_gradient(self, step: int) -> None:
        if self.directions is not None and self._walks(step):
            self.directions.with_gradient(due(step, self.directions_every))
        if self.noise is not None and self.update.squares is not None:
            self.noise.with_gradient(step, self.update.squares)

    def after(self, step: int) -> None:
        if self.watch is not None and due(step, self.layers_every):
            self.layers.append((step + 1, self.watch.after()))
        if self.directions is not None and self._walks(step):
            numbers = self.directions.after(due(step, self.directions_every))
            if numbers is not None:
                self.steps.append((step + 1, numbers))

    def _walks(self, step: int) -> bool:
        """A step that is looked at, or the one before it."""
        return due(step, self.directions_every) or due(step + 1, self.directions_every)

    def read(self, recorder: Recorder) -> None:
        """Send what was measured since the last time. Collective."""
        for step, layers in self.layers:
            values = layers.read()
            recorder.layers(step, self.plan.examples_before(step), values.summary(), values.by_layer())
        for step, numbers in self.steps:
            recorder.event("directions", **self._when(step), **numbers.read())
        self.layers, self.steps = [], []
        if self.noise is not None and (found := self.noise.read()):
            step, facts = found
            recorder.event("noise_scale", **self._when(step), **facts)

    def _when(self, step: int) -> dict[str, Any]:
        examples = self.plan.examples_before(step)
        return {"step": step, "examples_seen": examples, "epoch": examples / self.plan.dataset_size}

    def save(self) -> dict[str, Any]:
        """Collective where something is waiting to be read."""
        if self.noise is None:
            return {}
        self.noise.settle()
        return {"noise": self.noise.averages.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        if self.noise is not None and "noise" in state:  # else it was not recorded before
            smoothing = self.noise.averages.smoothing
            self.noise.averages.load_state_dict({**state["noise"], "smoothing": smoothing})


class NoiseScale:
    """The averages of :mod:`largebatch.diagnostics.noise` over the steps of a run."""

    def __init__(self, job: Job, rule: Noise) -> None:
        self.plan, self.engine, self.every = job.plan, job.engine, rule.every_steps
        self.small = dict(zip(job.plan.stages, rule.small_batches, strict=True))
        self.averages = Averages(rule.smoothing)
        self.waiting: list[tuple[int, Tensor]] = []  # steps done, and their squares as the engine gives them
        self.last: tuple[int, Squares] | None = None
        self.always = job.decided.adascale_parts > 0  # AdaScale measures every step itself

    def before(self, step: int) -> None:
        parts = self.engine.parts  # type: ignore[attr-defined]  # only ddp has them
        parts.active = self.always or due(step, self.every)
        if parts.active:
            parts.examples = self.small[self.plan.at(step)]

    def with_gradient(self, step: int, squares: Tensor) -> None:
        if due(step, self.every):
            self.waiting.append((step + 1, squares))

    def settle(self) -> None:
        """Complete what is waiting over ranks, and average it. Collective."""
        if not self.waiting:
            return
        sums = distributed.sum_(torch.stack([squares[0] for _, squares in self.waiting])).tolist()
        wholes = torch.stack([squares[1] for _, squares in self.waiting]).tolist()
        for (step, _), parts_sum, whole in zip(self.waiting, sums, wholes, strict=True):
            stage = self.plan.at(step - 1)
            small = self.small[stage]
            parts = stage.global_batch_size // small
            squares = Squares(small, stage.global_batch_size, parts_sum * parts, whole)
            self.averages.add(squares)
            self.last = step, squares
        self.waiting.clear()

    def read(self) -> tuple[int, dict[str, Any]] | None:
        """The newest measured step and the averages up to it; None where nothing is new. Collective."""
        self.settle()
        if self.last is None:
            return None
        (step, squares), self.last = self.last, None
        found = self.averages.estimate()
        return step, {
            "small_batch_size": squares.small_batch_size,
            "big_batch_size": squares.big_batch_size,
            "noise_scale": found.noise_scale,
            "noise_scale_low": found.low,
            "noise_scale_high": found.high,
            "gradient_square": found.gradient_square,
            "variance_trace": found.variance_trace,
        }


def due(step: int, every: int) -> bool:
    """Whether the step that begins after ``step`` steps is one in ``every``; never for 0."""
    return every > 0 and (step + 1) % every == 0
