"""The gradient noise scale of a run, from gradients that its training takes anyway (diagnostics/noise.py).

Its averages go on after a resume. A ramp that adapts to it switches it on, and has the small batch be the same in every
world: it then decides how the run goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic

from largebatch.errors import UserError
from largebatch.methods import Built, Decision, Method, MicroBatchWish, Part, PartRecorder
from largebatch.plan.batch import PAIR, BatchPlan, Stage, due, largest_divisor
from largebatch.recipes.keys import Fraction, PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

    from largebatch.checkpoint.pieces import State
    from largebatch.diagnostics.noise import Estimate, Squares
    from largebatch.recipes.config import Run
    from largebatch.steps.step import Step

NAME = "noise_scale"
PARTS = 8  # of the first batch, where a ramp has them measured and nothing is stated


class NoiseScale(Method):
    """McCandlish's simple noise scale, from gradients that the training takes anyway."""

    KEY = "record.noise_scale"
    SWITCH = True
    CHANGES = False
    WHOLE = True
    AT_WEIGHTS = True
    ONE_STEP = True
    MEASURES_MICRO_BATCHES = True

    small_batch_size: PositiveInt | None = None  # examples of the small batch; unset: the micro-batch
    every_steps: PositiveInt = 5
    smoothing: Fraction = 0.99  # what the averages keep of themselves at each measured step
    _asked_by: str = pydantic.PrivateAttr(KEY)

    @classmethod
    def asked(cls, run: Run) -> Method | None:
        """A ramp that adapts to it need not say so twice."""
        stated = super().asked(run)
        if stated is not None or not follows(run):
            return stated
        found = cls()
        found._asked_by = "batch.ramp.rule = adaptive"
        return found

    @property
    def where(self) -> str:
        return self._asked_by

    @property
    def remembers(self) -> float:
        """As many steps at most its averages are worth."""
        return (1 + self.smoothing) / (1 - self.smoothing)

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        if run.data.repeats > 1:
            yield (
                f"{self.where} takes the examples of a batch for independent ones, and data.repeats = "
                f"{run.data.repeats} puts the same into several micro-batches; valid: data.repeats = 1, or no "
                f"{self.where}"
            )

    def micro_batch(self, run: Run, world_size: int) -> MicroBatchWish | None:
        if not follows(run):
            return None
        part = self.part_in_every_world(run)
        return MicroBatchWish(f"parts of record.noise_scale.small_batch_size = {part} (batch.ramp)", within=part)

    def part_in_every_world(self, run: Run) -> int:
        """b where a ramp follows what is measured: as stated, else an eighth of the first batch or less."""
        if stated := self.small_batch_size or run.batch.stated_micro_batch_size:
            return stated
        unit = math.lcm(run.batch.bn_batch_size or 1, PAIR if run.data.mix is not None else 1)
        whole, rest = divmod(run.batch.global_batch_size, unit)
        return unit if rest else unit * largest_divisor(whole, max(1, whole // PARTS))

    def decide(self, run: Run, plan: BatchPlan, largest_micro_batch: int) -> DecidedNoiseScale:
        return DecidedNoiseScale(self, tuple(self.small_batch(run, stage, plan.world_size) for stage in plan.stages))

    def small_batch(self, run: Run, stage: Stage, world_size: int) -> int:
        """b: examples of the small batch in a stage of the run."""
        size, micro, share = stage.global_batch_size, stage.micro_batch_size, stage.global_batch_size // world_size
        key, stated = "record.noise_scale.small_batch_size", self.small_batch_size
        measured = next((part for other in run.methods.values() if (part := other.gradient_part)), None)
        small = stated or measured or (self.part_in_every_world(run) if follows(run) else micro)
        if small == size and stated is None:
            raise UserError(
                f"record.noise_scale needs gradients of two batch sizes, and here the global batch of {size} is one "
                f"micro-batch; set batch.micro_batch_size to a part of it, such as {largest_divisor(size, size // 2)}"
                if size > 1
                else "record.noise_scale needs gradients of two batch sizes; batch.global_batch_size = 1 has one"
            )
        if small >= size:
            raise UserError(f"{key} = {small} must be smaller than batch.global_batch_size = {size}")
        if measured and small != measured:
            raise UserError(
                f"{key} = {small} must be lr.reference_batch_size = {measured} with lr.scaling = {run.lr.scaling}, "
                "which measures the same parts; leave it out"
            )
        if small % micro or share % small:
            raise UserError(
                f"{key} = {small} must divide a rank's {share} examples of a step and be a multiple of the micro-batch "
                f"of {micro}; set batch.micro_batch_size = {small}, or leave it out to take the micro-batch"
            )
        return small


def follows(run: Run) -> bool:
    """Whether the batch of the run grows as its noise scale has it."""
    return run.batch.ramp is not None and run.batch.ramp.rule == "adaptive"


@dataclasses.dataclass(frozen=True)
class DecidedNoiseScale(Decision):
    method: NoiseScale
    small_batches: tuple[int, ...]  # of each stage

    @property
    def gradient_part(self) -> int:
        return self.small_batches[0]

    def grown(self, plan: BatchPlan) -> DecidedNoiseScale:
        return dataclasses.replace(self, small_batches=self.small_batches[:1] * len(plan.stages))

    def first_difference(self, now: DecidedNoiseScale, steps: int) -> str | None:
        return None  # it looks on; of phases to come it has a small batch each

    def part(self, job: Built) -> NoiseOfRun:
        return NoiseOfRun(self, job)


class Waiting(NamedTuple):
    step: int  # done when it was measured
    squares: Tensor  # as the engine gives them


class NoiseOfRun(Part):
    """The averages of :mod:`largebatch.diagnostics.noise` over the steps of a run."""

    def __init__(self, decision: DecidedNoiseScale, job: Built) -> None:
        from largebatch.diagnostics.noise import Averages

        self.job, self.engine, self.task, self.every = job, job.engine, job.task, decision.method.every_steps
        self.averages = Averages(decision.method.smoothing)
        self.waiting: list[Waiting] = []
        self.last: tuple[int, Squares] | None = None
        self.always = job.decided.clock is not None  # whose gains need every step measured

    def small_at(self, step: int) -> int:
        """b in this step; the batch may have grown since the run began."""
        decision: Any = self.job.decided.methods[NAME]
        return decision.small_batches[self.job.plan.number_at(step)]

    def before(self, step: Step) -> None:
        parts = self.engine.parts
        assert parts is not None
        parts.active = self.always or due(step.number, self.every)
        if parts.active:
            parts.examples = self.small_at(step.number)

    def with_gradient(self, turn: Step) -> None:
        if turn.squares is None or not due(turn.number, self.every):
            return
        squares = turn.squares
        if self.task.units_vary:  # Σ (uᵢ/U)·‖gᵢ‖², as a mean over parts
            assert turn.units is not None
            squares[0] *= turn.units
            squares[0] *= self.small_at(turn.number) / self.job.plan.at(turn.number).global_batch_size
        self.waiting.append(Waiting(turn.number + 1, squares))

    def settle(self) -> None:
        """Complete what is waiting over ranks, and average it. Collective."""
        from largebatch.diagnostics.noise import Squares
        from largebatch.engines import ddp

        if not self.waiting:
            return
        of_steps = ddp.over_ranks([waiting.squares for waiting in self.waiting])
        for (step, _), of_step in zip(self.waiting, of_steps, strict=True):
            size = self.job.plan.at(step - 1).global_batch_size
            squares = Squares.of_parts(self.small_at(step - 1), size, *of_step)
            self.averages.add(squares)
            self.last = step, squares
        self.waiting.clear()

    def estimate(self) -> tuple[Estimate, float]:
        """Of the steps so far, and as many independent ones would be as certain. Collective."""
        self.settle()
        return self.averages.estimate(), self.averages.count

    def read(self, recorder: PartRecorder) -> None:
        """The newest measured step and the averages up to it."""
        self.settle()
        if self.last is None:
            return
        (step, squares), self.last = self.last, None
        estimate = self.averages.estimate()
        recorder.event(
            "noise_scale",
            **self.job.plan.when(step),
            small_batch_size=squares.small_batch_size,
            big_batch_size=squares.big_batch_size,
            noise_scale=estimate.noise_scale,
            noise_scale_low=estimate.low,
            noise_scale_high=estimate.high,
            gradient_square=estimate.gradient_square,
            variance_trace=estimate.variance_trace,
        )

    def save(self) -> State:
        self.settle()
        return self.averages.state_dict()

    def load(self, state: State, of_ranks: list[State]) -> None:
        self.averages.load_state_dict({**state, "smoothing": self.averages.smoothing})
