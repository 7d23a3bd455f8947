"""A recipe at a batch, as stretches of one batch each: the run itself, or its phases.

With phases the batch of a plan is the first one's, and the others keep their ratio to it. Each phase takes the
examples that the recipe gives it, or with a critical batch B_crit, n·(1 + B/B_crit)/(1 + B₀/B_crit) of them at the
batch B in the place of B₀.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.errors import UserError
from largebatch.recipes import config, derive
from largebatch.studies.curves.law import ScalingLaw
from largebatch.studies.planning.target import BudgetTarget, ExamplesToTarget, LawTarget

PLENTY = 1 << 62


@dataclass(frozen=True)
class Leg:
    """A stretch of the run with one batch, as a run of its own without phases."""

    number: int  # of the phase; 0: the recipe has none
    run: config.Run
    target: ExamplesToTarget

    @property
    def batch(self) -> int:
        return self.run.batch.global_batch_size

    @property
    def key(self) -> str:
        """What an override of this leg begins with."""
        return f"phases.{self.number}." if self.number else ""


class PlannedRecipe:
    """A file with its overrides, at any batch."""

    def __init__(self, path: Path, overrides: Sequence[str], dataset_size: int | None) -> None:
        self.path, self.overrides = path, list(overrides)
        self.run = config.load(path, self.overrides)
        self.phased = self.run.phases is not None
        self.first_batch = config.of_phases(self.run)[0].batch.global_batch_size
        self.dataset_size = dataset_size
        if self.run.batch.ramp is not None:
            raise UserError("batch.ramp changes the batch during the run; a plan takes one batch: set batch.ramp=null")

    @property
    def table(self) -> list[int]:
        """Batches that the recipe has a row for; empty where it has no table."""
        written = config.read(self.path)
        return sorted(config.rows_of(written["table"])) if "table" in written else []

    def overrides_at(self, batch: int) -> list[str]:
        """What is typed for this batch; UserError where it is no whole multiple of what a phase needs."""
        if not self.phased:
            return [] if batch == self.first_batch else [f"batch.global_batch_size={batch}"]
        settings = []
        for number, laid in enumerate(config.of_phases(self.run), start=1):
            size, rest = divmod(laid.batch.global_batch_size * batch, self.first_batch)
            if rest:
                raise UserError(
                    f"batch {batch:,} of the first phase leaves phase {number} no whole batch: its "
                    f"{laid.batch.global_batch_size:,} stand beside {self.first_batch:,}"
                )
            if batch != self.first_batch:
                settings.append(f"phases.{number}.batch.global_batch_size={size}")
        return settings

    def at(self, batch: int, target: ExamplesToTarget | None, critical: float | None) -> list[Leg]:
        """The legs at this batch; UserError where the recipe refuses it."""
        run = config.load(self.path, [*self.overrides, *self.overrides_at(batch)])
        if not self.phased:
            return [Leg(0, run, target or self._budget(run))]
        legs = []
        plan = derive.plan_of(run, self.size, 1, PLENTY)
        before = derive.plan_of(self.run, self.size, 1, PLENTY)
        for number, (laid, span, stage) in enumerate(
            zip(config.of_phases(run), _examples(before), plan.stages, strict=True), start=1
        ):
            assert laid.batch.global_batch_size == stage.global_batch_size
            legs.append(Leg(number, laid, self._of_phase(*span, critical)))
        return legs

    @property
    def size(self) -> int:
        assert self.dataset_size is not None
        return self.dataset_size

    def _budget(self, run: config.Run) -> BudgetTarget:
        if derive.clock_of(run) is not None:
            raise UserError(
                "the recipe's steps follow a clock that is measured as it trains, so its examples are not known "
                "before; say them: --target or --critical-batch N --epochs N"
            )
        return BudgetTarget("the recipe's own budget", derive.plan_of(run, self.size, 1, PLENTY).budget_examples)

    def _of_phase(self, examples: int, batch: int, critical: float | None) -> ExamplesToTarget:
        if critical is None:
            return BudgetTarget("the recipe's own budget", examples)
        least = examples / (1 + batch / critical)
        return LawTarget("a stated critical batch", ScalingLaw(least, least / critical))


def _examples(plan: derive.BatchPlan) -> list[tuple[int, int]]:
    """Of each stage the examples and the batch."""
    ends = [stage.first_example for stage in plan.stages[1:]] + [plan.examples]
    return [(end - stage.first_example, stage.global_batch_size) for stage, end in zip(plan.stages, ends, strict=True)]
