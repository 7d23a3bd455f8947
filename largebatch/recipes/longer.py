"""Whether a run may go on as another one: every step that it took is one that the other would have taken.

What differs may be the budget and what is planned over it: then both are decided, and their steps compared one by one,
in batch, learning rate, settings of the optimizer, decay and size of examples, and in what each method does at them.
Examples and their augmentation depend on the step alone. Where all are the same, the other run's weights at this step
are these, bit by bit. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from largebatch.recipes.decided import Decided

MAY_DIFFER = {"epochs", "steps", "phases", "lr"}  # sections of a recipe
OF_TENSORS = ("scales", "layer_decay")  # of the section lr: what each tensor has of it, which no step says
SideAt = Callable[[int], int | None]  # of a step's training images


def may_go_on(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the two differ in nothing but what is planned over the budget; both as :meth:`Run.science` gives them."""
    rates = [[science.get("lr", {}).get(key) for key in OF_TENSORS] for science in (before, now)]
    others = {key for key in {*before, *now} if before.get(key) != now.get(key)}
    return others <= MAY_DIFFER and rates[0] == rates[1]


def first_difference(before: Decided, now: Decided, steps: int, sides: tuple[SideAt, SideAt]) -> str | None:
    """Why the first ``steps`` of ``before`` are none of ``now``, in words; None where they are."""
    if steps > now.plan.steps:
        return f"it has made {steps:,} steps, and would end after {now.plan.steps:,}"
    if before.clock is not None or now.clock is not None:
        return "its schedule follows gains, which end with the plan"
    for name, decision in before.methods.items():
        if name in now.methods and (why := decision.first_difference(now.methods[name], steps)):
            return f"{name} {why}"  # those of one run alone look on, or set the lr
    marks = now.evaluating.at.steps()
    if "target" in now.methods and steps not in marks and steps in before.evaluating.at.steps():
        return f"evaluate.stop_at has counted the evaluation after step {steps:,}, which the longer run would not have"
    for step in range(steps):
        old, new = at_step(before, step, sides[0]), at_step(now, step, sides[1])
        for what in old:
            if old[what] != new[what]:
                return f"the {what} of step {step + 1:,} was {in_digits(old[what])} and would be {in_digits(new[what])}"
    return None


def at_step(decided: Decided, step: int, side: SideAt) -> dict[str, Any]:
    """What decides a step beside the weights before it."""
    plan = decided.plan
    seen = plan.examples_before(step)
    phase = decided.phases[decided.phase_at(seen)]
    lr, settings = decided.rates_at(seen)
    return {
        "examples seen before": seen,
        "global batch": plan.at(step).global_batch_size,
        "lr": lr,
        "optimizer": (phase.optimizer, settings),
        "weight decay": phase.weight_decay,
        "size of the examples": (phase.side, phase.length, side(step)),
    }


def in_digits(value: Any) -> str:
    """A number with all its digits: two that print alike are no difference that anybody sees."""
    return repr(value) if isinstance(value, (int, float)) else "another"
