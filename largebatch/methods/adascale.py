"""AdaScale: a step's learning rate follows the gain that its gradients show (Johnson et al. 2020; optim/adascale.py).

    η = base · r_t        r_t in [1, S]: the gain of the step; S: reference batches in the global batch

The clock of the schedule is τ · reference, τ the sum of gains: the run ends when it has made the steps that the small
batch would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from largebatch.errors import UserError
from largebatch.methods import Built, GainClock, Method, MicroBatchWish, Part
from largebatch.plan import batch

if TYPE_CHECKING:
    from largebatch.checkpoint.pieces import State
    from largebatch.recipes.config import LearningRate, Run
    from largebatch.recipes.decided import Decided
    from largebatch.steps.evaluate import Evaluation
    from largebatch.steps.step import Step


class AdaScale(Method):
    """The lr is ``lr.base`` times the gain of each step."""

    KEY = "lr.scaling"
    SECTION = False
    WHOLE = True
    AT_WEIGHTS = True
    ENDS_EARLY = True
    EQUAL_UNITS = True

    reference: int

    @classmethod
    def asked(cls, run: Run) -> AdaScale | None:
        if run.lr.scaling != "adascale":
            return None
        assert run.lr.reference_batch_size is not None
        return cls(reference=run.lr.reference_batch_size)

    @classmethod
    def rule(cls, lr: LearningRate, global_batch_size: int) -> str:
        reference = lr.reference_batch_size or global_batch_size
        return f"adascale: {lr.base:g} × the gain of each step, 1 to {global_batch_size / reference:g}"

    @property
    def where(self) -> str:
        return "lr.scaling = adascale"

    @property
    def gradient_part(self) -> int:
        return self.reference

    def refusals(self, run: Run, precision: str) -> Iterator[str]:
        if run.batch.ramp is not None:
            yield "lr.scaling = adascale and batch.ramp both change what a step is worth; choose one"
        for other in run.methods.values():
            if other.ALONE:
                yield f"lr.scaling = adascale needs one set of weights; {other.where} has many"
        if run.data.repeats > 1:
            yield (
                "lr.scaling = adascale takes the parts of a batch for independent ones, and data.repeats = "
                f"{run.data.repeats} puts the same examples into several; valid: data.repeats = 1"
            )
        if run.regime_adaptation is not None:
            yield "lr.scaling = adascale and regime_adaptation both lengthen the run; choose one"

    def micro_batch(self, run: Run, world_size: int) -> MicroBatchWish:
        return MicroBatchWish(f"parts of lr.reference_batch_size = {self.reference}", within=self.reference)

    def clock(self, run: Run) -> GainClock:
        size = run.batch.global_batch_size
        if size % self.reference:
            near = batch.multiples_near(size, self.reference, 1 << 62)
            raise UserError(
                f"batch.global_batch_size = {size} is no multiple of lr.reference_batch_size = {self.reference}, as "
                f"lr.scaling = adascale needs; nearest that are: {near}"
            )
        return GainClock(size // self.reference, self.reference)

    def part(self, job: Built) -> Gains:
        return Gains(job.decided)


class Gains(Part):
    """Measures the gain of every step, and sets its learning rate."""

    def __init__(self, decided: Decided) -> None:
        from largebatch.optim.adascale import AdaScaleAverages

        assert decided.clock is not None
        self.decided, self.clock = decided, decided.clock
        self.averages = AdaScaleAverages(self.clock.parts)
        self.highest_lr = 0.0  # of all steps: no rule says it beforehand

    @property
    def over(self) -> bool:
        """The clock has reached the steps that the small batch would have taken."""
        return self.averages.progress >= self.decided.plan.steps - 1e-9

    def before(self, step: Step) -> None:
        step.lr, step.settings = self.decided.rates_at(math.floor(self.averages.progress) * self.clock.reference)

    def with_gradient(self, turn: Step) -> None:
        from largebatch.machine import distributed

        assert turn.squares is not None
        turn.lap("communication")
        sums, square = distributed.sum_(turn.squares[0].clone()).item(), turn.squares[1].item()
        turn.lap("other")
        gain = self.averages.observe(sums * self.averages.parts**2, square)
        turn.lr *= gain
        self.highest_lr = max(self.highest_lr, turn.lr)
        self.averages.advance(gain)
        turn.numbers |= {"gain": gain, "progress": self.averages.progress}

    def results(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        return {"peak_lr": self.highest_lr} if self.highest_lr else {}

    def save(self) -> State:
        return {**self.averages.state_dict(), "highest_lr": self.highest_lr}

    def load(self, state: State, of_ranks: list[State]) -> None:
        self.highest_lr = state["highest_lr"]
        self.averages.load_state_dict({key: value for key, value in state.items() if key != "highest_lr"})
