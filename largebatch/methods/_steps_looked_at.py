"""The steps of a run that somebody wants to look at, counted from 1, first and last included."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from largebatch.plan.batch import BatchPlan
from largebatch.recipes.keys import PositiveInt


def _in_order(steps: tuple[int, int]) -> tuple[int, int]:
    if steps[1] < steps[0]:
        raise PydanticCustomError(
            "steps", "should be the first step and the last one, such as [10, 15]; {last} is before {first}",
            {"first": steps[0], "last": steps[1]},
        )  # fmt: skip
    return steps


FirstAndLast = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_in_order)]


class StepsLookedAt(NamedTuple):
    first: int
    last: int

    def __str__(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"

    def holds(self, number: int) -> bool:
        return self.first <= number <= self.last

    def of_plan(self, plan: BatchPlan) -> str:
        """What of them the plan has, in words."""
        if self.first > plan.steps:
            return f"no step: {self} lie beyond the run's last, {plan.steps}"
        if self.last > plan.steps:
            return f"{StepsLookedAt(self.first, plan.steps)}, where the run ends, of {self.first} to {self.last}"
        return str(self)

    def of_session(self, begun: int, key: str, doing: str) -> str | None:
        """What a session whose first step is ``begun`` has to say of them; None where it makes them all."""
        if begun <= self.first:
            return None
        if begun > self.last:
            return f"{key}: {self} were made before the run went on with step {begun}; none is {doing} now"
        left = StepsLookedAt(begun, self.last)
        return f"{key}: of {self} only {left} are {doing}, for the run goes on with step {begun}"
