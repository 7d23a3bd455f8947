"""Everything that follows from a recipe, the facts of the data, the world and the device: once, frozen, without torch.

:func:`decide.decide` makes it; the update, evaluations, saving, telling, the dry run and the doctor read it
and never ask the recipe again. Lengths are in examples or steps: stretched by a regime adaptation, if there is one.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from largebatch.plan.batch import BatchPlan, Stage
from largebatch.plan.image_views import AS_THEY_ARE, ImageViews
from largebatch.plan.phases import Span
from largebatch.plan.schedules import Schedule
from largebatch.recipes.methods import Decision, GainClock
from largebatch.recipes.registry import Code

if TYPE_CHECKING:  # whose package needs this module
    from largebatch.recipes import config
    from largebatch.recipes.config.model import FirstWeights
    from largebatch.recipes.config.start import Start
    from largebatch.recipes.micro_batch import Trying


class DataFacts(NamedTuple):
    """What must be known of a data set before a run can be decided; no example is read for it."""

    examples: int  # to train on
    pixels: int = 1  # of the largest image that a step may hold; 1 where examples are no images
    task: str = "classification"  # what it is for, where the recipe does not say


@dataclasses.dataclass(frozen=True)
class ExplainedSchedule:
    """A schedule with the words that explain it."""

    schedule: Schedule
    rule: str
    warmup: str
    decay: str

    @property
    def words(self) -> str:
        return f"{self.rule}; warm-up {self.warmup}; decay {self.decay}"

    def __call__(self, examples_seen: float) -> float:
        return self.schedule(examples_seen)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a run with its own batch, schedule, size and optimizer settings.

    A run without phases is one; one with a batch ramp has several, of one clock.
    """

    span: Span
    stage: Stage
    lr: ExplainedSchedule
    clock: Span  # that the lr follows: the phase's own, or one that began before it
    optimizer: Any  # a section of largebatch.optimizers
    weight_decay: float  # of the tensors that are decayed
    side: int | None = None  # of its images, where phases say so
    length: int | None = None  # of its sequences, where phases say so

    def lr_at(self, examples_seen: float) -> float:
        return self.lr.schedule(examples_seen - self.clock.first_example)


class Beside(NamedTuple):
    """What is unlike a plain run: the key that asks for it, and what it does, in a sentence."""

    key: str
    words: str


class Marks(NamedTuple):
    """The steps at whose end another ``every_epochs`` are complete, and the last; none for 0."""

    plan: BatchPlan
    every_epochs: float

    def steps(self) -> set[int]:
        plan, every = self.plan, self.every_epochs * self.plan.dataset_size
        if not every:
            return set()
        if every <= min(stage.global_batch_size for stage in plan.stages):  # every step completes another
            return set(range(1, plan.steps + 1))
        count = math.floor(plan.examples / every + 1e-9)
        return {plan.first_step_at(k * every) for k in range(1, count + 1)} | {plan.steps}


class Adapting(NamedTuple):
    """A ramp whose batch grows as the run's noise scale has it."""

    at: Marks  # where it is asked; at the end there is nothing left to decide
    rule: config.Ramp

    def steps(self) -> set[int]:
        return self.at.steps() - {self.at.plan.steps}


class Evaluating(NamedTuple):
    at: Marks
    batch_size: int  # examples of a rank and a forward pass
    on: str  # test, or held_out
    training_set: bool | None  # at the end as well; None: where it lies on the device
    median_of: int  # the last so many evaluations are the result
    recomputes: bool  # batch norm's statistics, before each; weights of a method may have none in any case
    recomputed_examples: int  # that it sees for them
    views: ImageViews = AS_THEY_ARE  # of images: what is judged is the mean of their outputs


class Saving(NamedTuple):
    at: Marks  # none: the run is not saved
    keep_last: int
    keep_every_epochs: float | None
    keep_best: int
    asynchronous: bool


class Recording(NamedTuple):
    every_steps: int
    to: tuple[str, ...]  # who gets the scalars beside metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Decided:
    name: str
    title: str | None
    directory: Path
    seed: int
    device: str  # cpu or cuda
    precision: str
    data: str  # the names of things
    task: str
    model: Mapping[str, Any]  # name and arguments
    weights: FirstWeights | None  # that the model begins with
    start: Start | None  # or another run's
    code: Mapping[str, Code]  # of parts that are not the package's, by the key that names them
    plan: BatchPlan  # a stage for each phase
    phases: tuple[Phase, ...]
    optimizer: Any  # a section of largebatch.optimizers, its builder: as outside of phases, at the run's batch
    stated: Any  # the same as the recipe says it
    weight_decay: float  # the same
    stretch: int  # κ of the regime adaptation; 1 without
    clock: GainClock | None  # of the schedule; None: the examples seen
    methods: Mapping[str, Decision]  # by name, in the order of their parts
    adapting: Adapting | None  # the batch; None: it changes where the plan says so
    evaluating: Evaluating
    saving: Saving
    recording: Recording
    skipped_at_most: int  # steps whose gradient is not finite
    accepts_changed_data: bool
    trying: Trying | None  # micro-batches, on a device
    beside: tuple[Beside, ...]

    @property
    def batch_words(self) -> str:
        plan = self.plan
        made_of = f"{plan.world_size} × {plan.micro_batch_size:,} × {plan.accumulation_steps}"
        return f"{plan.global_batch_size:,} = {made_of} (ranks × micro-batch × accumulation)"

    @property
    def budget_words(self) -> str:
        plan, stretch = self.plan, self.stretch
        steps = f"{plan.steps:,} steps"
        if self.clock is not None:
            least = math.ceil(plan.steps / self.clock.parts)
            steps = f"{least:,} to {plan.steps:,} steps, as their gains turn out"
        if self.adapting is not None:
            steps = f"at most {plan.steps:,} steps, as its noise scale turns out"
        adapted = f" ({stretch} times as many by regime adaptation)" if stretch > 1 else ""
        return f"{steps}, {plan.budget_examples / plan.dataset_size:.4g} epochs{adapted}"

    @property
    def beside_words(self) -> str:
        return "; ".join(method.words for method in self.beside)

    @property
    def lr(self) -> ExplainedSchedule:
        """Of the first phase."""
        return self.phases[0].lr

    @property
    def peak_lr(self) -> float:
        """The highest of all phases."""
        return max(phase.lr.schedule.peak for phase in self.phases)

    def phase_at(self, examples_seen: float) -> int:
        """Which phase a step lies in before which so many examples have been seen, counted from 0."""
        return bisect.bisect_right(self.phases, examples_seen, key=lambda phase: phase.span.first_example) - 1

    def lr_at(self, examples_seen: float) -> float:
        return self.phases[self.phase_at(examples_seen)].lr_at(examples_seen)

    def rates_at(self, examples_seen: float) -> tuple[float, dict[str, Any]]:
        """The lr of a step that begins there, and what beside it every parameter group is told."""
        phase = self.phases[self.phase_at(examples_seen)]
        epoch = examples_seen / self.plan.dataset_size / self.stretch  # as the recipe states them
        return phase.lr_at(examples_seen), phase.optimizer.settings_at(epoch)
