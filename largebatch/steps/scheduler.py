"""A schedule over examples as one of torch's: the clock is the examples seen before the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from largebatch.errors import UserError
from largebatch.plan.batch import BatchPlan

CLOCK = "examples_seen"


class ExamplesLR(LRScheduler):
    """lr of step t = ``schedule(plan.examples_before(t))``; call ``step()`` once after each of the optimizer's.

    ``schedule`` is any function of the examples seen, such as :func:`largebatch.recipes.rates.schedule`'s. The lr that
    the optimizer was made with is replaced; groups that were given smaller ones keep their share of the largest.
    """

    def __init__(
        self, optimizer: Optimizer, plan: BatchPlan, schedule: Callable[[float], float], last_epoch: int = -1
    ) -> None:
        self.plan, self.schedule = plan, schedule
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        lr, highest = self.schedule(self.plan.examples_before(self.last_epoch)), max(map(float, self.base_lrs))
        return [lr * (float(base) / highest if highest else 1.0) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Numbers alone: plan and schedule are made anew, for whatever world goes on."""
        numbers = {key: value for key, value in super().state_dict().items() if key not in ("plan", "schedule")}
        return {**numbers, CLOCK: self.plan.examples_before(self.last_epoch)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        step, seen = state_dict["last_epoch"], state_dict[CLOCK]
        if (now := self.plan.examples_before(step)) != seen:
            raise UserError(
                f"the schedule's state had seen {seen} examples after {step} steps, and here they are {now}; valid: "
                "the global batch that it was saved with"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != CLOCK})
