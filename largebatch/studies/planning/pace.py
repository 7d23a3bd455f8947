"""Which pace of a machine a recipe has, and how sure the time of its step is.

Where the machine says how many floating-point operations the pace was measured with, seconds follow those of the
recipe, and its floor stays. The interval of a step adds up, in squares, what each number's own interval moves it by,
and twice the root mean square by which the fit misses its rows; that the numbers were fitted together is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.studies.cluster.machine import Machine, Pace

SAME = 0.02
"""Of operations, up to which a recipe counts as what was measured."""
COMPUTING, LINKS = ("per_example", "floor", "fixed"), ("bandwidth", "latency")


@dataclass(frozen=True)
class Interval95:
    """Of seconds; None where no number of the machine has an interval."""

    low: float | None
    high: float | None


def workload_names(run: config.Run) -> list[str]:
    """What a machine may call it, the more exact first: ``bert-128``, ``bert``."""
    size = run.data.length or run.data.side
    return [*([] if size is None else [f"{run.model.name}-{size}"]), run.model.name]


def pace_name(machine: Machine, run: config.Run, stated: str | None) -> str:
    if stated is not None:
        machine.pace(stated)
        return stated
    names = workload_names(run)
    for name in names:
        if name in machine.workloads:
            return name
    known = ", ".join(sorted(machine.workloads)) or "none"
    raise UserError(
        f"machine {machine.name} has no pace of {names[-1]}; it has: {known}; --workload NAME takes one of them, "
        f"largebatch plan fit ROWS.csv makes one of measured rows"
    )


def pace_for(machine: Machine, name: str, flops: float) -> tuple[Pace, float | None]:
    """The pace for examples of so many operations, and how often those of the pace they are; None: not known."""
    pace = machine.pace(name)
    if not pace.flops or not flops:
        return pace, None
    ratio = flops / pace.flops
    if abs(ratio - 1) <= SAME:
        return pace, 1.0
    scaled = dict(pace.intervals)
    if "per_example" in scaled:
        low, high = scaled["per_example"]
        scaled["per_example"] = (low * ratio, high * ratio)
    return pace.model_copy(update={"per_example": pace.per_example * ratio, "intervals": scaled}), ratio


def interval_of(machine: Machine, pace: Pace, seconds: Callable[[Machine, Pace], float]) -> Interval95:
    """Of ``seconds`` of the machine and the pace."""
    middle = seconds(machine, pace)
    below = above = 0.0
    moved = False
    for changed in _moved(machine, pace):
        moved = True
        difference = seconds(*changed) - middle
        below, above = below + min(0.0, difference) ** 2, above + max(0.0, difference) ** 2
    if machine.fit is not None:
        moved = True
        below, above = (square + (2 * machine.fit.rms_error * middle) ** 2 for square in (below, above))
    if not moved:
        return Interval95(None, None)
    return Interval95(max(0.0, middle - math.sqrt(below)), middle + math.sqrt(above))


def _moved(machine: Machine, pace: Pace) -> Iterator[tuple[Machine, Pace]]:
    """One number at an end of its interval each."""
    for key in COMPUTING:
        for end in pace.intervals.get(key, ()):
            yield machine, pace.model_copy(update={key: end})
    for name in ("inside", "between"):
        link = getattr(machine, name)
        for key in LINKS:
            for end in link.intervals.get(key, ()):
                yield machine.model_copy(update={name: link.model_copy(update={key: end})}), pace
