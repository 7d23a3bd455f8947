"""How large examples are, step by step: the side of the images (progressive resizing), the length of sequences.

Small images first, large ones later: most epochs cost less, and the last ones see what the test set looks like (Howard
2018, fast.ai's DAWNBench entry; Touvron et al. 2019, arXiv:1906.06423, on why tests want the larger side). The side
grows linearly with the examples seen, to the nearest multiple: a run has a handful of shapes, each compiled once.
Or every phase of the run has a side of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.plan.batch import BatchPlan

CENTRE = 0.875  # of the short side is seen where nothing is drawn: 224 of 256


@dataclass(frozen=True)
class Sizes:
    """``first`` up to ``from_epoch``, ``last`` from ``until_epoch`` on (None: when the budget ends)."""

    first: int
    last: int
    evaluate: int
    from_epoch: float = 0.0
    until_epoch: float | None = None
    multiple_of: int = 32
    of_phases: tuple[int, ...] = ()  # instead: a side for each stage of the plan, of which ``first`` is the smallest

    def at(self, step: int, plan: BatchPlan) -> int:
        """The side of the training images of ``step``, in pixels."""
        if self.of_phases:
            return self.of_phases[plan.number_at(step)]
        begin = self.from_epoch * plan.dataset_size
        end = plan.budget_examples if self.until_epoch is None else self.until_epoch * plan.dataset_size
        seen = plan.examples_before(step)
        if seen <= begin:
            return self.first
        if seen >= end:
            return self.last
        side = self.first + (self.last - self.first) * (seen - begin) / (end - begin)
        return min(max(math.floor(side / self.multiple_of + 0.5) * self.multiple_of, self.first), self.last)

    @property
    def by_phase(self) -> tuple[int, ...]:
        """Where it does not grow: of each phase; one of a run that has none."""
        return self.of_phases or (self.first,)

    @property
    def all(self) -> list[int]:
        """Every side that training may have, ascending."""
        if self.of_phases:
            return sorted(set(self.of_phases))
        between = range(-(-self.first // self.multiple_of) * self.multiple_of, self.last, self.multiple_of)
        return sorted({self.first, *between, self.last})


def sizes_of_phases(sides: tuple[int, ...], evaluate: int) -> Sizes:
    """``sides`` of the training images, phase by phase; of a run without phases, whose batch may ramp, one."""
    return Sizes(min(sides), max(sides), evaluate, of_phases=sides if len(sides) > 1 else ())


def constant(side: int) -> Sizes:
    return Sizes(side, side, side)
