"""Which pace of a machine a recipe has, and how sure the time of its step is.

Where the machine says how many floating-point operations the pace was measured with, the seconds of an example follow
those of the recipe (:meth:`Pace.of_flops`). The interval of a step is the fit's own (studies/cluster/fit.py); of a
machine whose numbers were stated with intervals, what each of them moves the step by, added up in squares.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from largebatch.errors import UserError
from largebatch.recipes import config
from largebatch.studies.cluster import fit
from largebatch.studies.cluster.machine import Machine, Pace
from largebatch.studies.cluster.rows import PRECISIONS

SAME = 0.02
"""Of operations, up to which a recipe counts as what was measured."""


@dataclass(frozen=True)
class SecondsBetween:
    """95 %; None where no number of the machine has an interval."""

    low: float | None
    high: float | None

    def reaching(self, seconds: float, middle: float) -> SecondsBetween:
        """As far as a bound lies from the middle."""
        low, high = self.low, self.high
        if seconds < middle:
            low = seconds if low is None else min(low, seconds)
        else:
            high = seconds if high is None else max(high, seconds)
        return SecondsBetween(low, high)


def workload_names(run: config.Run) -> list[str]:
    """What a machine may call it, the more exact first: ``bert_large_128``, ``bert_large``, ``bert``."""
    size, shape = run.model.arguments.get("size"), run.data.length or run.data.side
    parts = [run.model.name, *[str(part) for part in (size, shape) if part is not None]]
    return ["_".join(parts[:end]) for end in range(len(parts), 0, -1)]


def is_pace_of(run: config.Run, name: str) -> bool:
    """Whether a machine's pace of this name is of the recipe's model: ``resnet50``, and ``resnet50_fp32`` beside it."""
    bare, _, last = name.rpartition("_")
    return name in workload_names(run) or (last in PRECISIONS and bare in workload_names(run))


def pace_name(machine: Machine, run: config.Run, stated: str | None) -> str:
    if stated is not None:
        machine.pace(stated)
        return stated
    names = workload_names(run)
    for name in names:
        if name in machine.workloads:
            return name
    known = sorted(machine.workloads)
    near = closest(names[-1], known)
    takes = f"--workload {near} takes the closest" if near else "--workload NAME takes one of them"
    raise UserError(
        f"machine {machine.name} has no pace of {names[-1]}; it has: {', '.join(known) or 'none'}; {takes}, "
        "largebatch plan fit ROWS.csv makes one of measured rows, plan fit --skeleton shows a MACHINE.yaml"
    )


def closest(name: str, known: list[str]) -> str | None:
    """``resnet50`` to ``timm/resnet50``; else the one that is spelled most like it."""
    bare = name.rpartition("/")[2].lower()
    return bare if bare in known else next(iter(difflib.get_close_matches(bare, known, n=1, cutoff=0.5)), None)


def pace_for(machine: Machine, name: str, flops: float) -> Pace:
    """For examples of so many operations."""
    pace = machine.pace(name)
    ratio = ratio_of(pace, flops)
    return pace if ratio is None or abs(ratio - 1) <= SAME else pace.of_flops(flops)


def ratio_of(pace: Pace, flops: float) -> float | None:
    """How many times the operations of the pace; None where either is not known."""
    return flops / pace.flops if pace.flops and flops else None


def seconds_between(machine: Machine, name: str, devices: int, seconds: Callable[[Machine], float]) -> SecondsBetween:
    """Of a step's ``seconds`` on a machine like this one."""
    fitted = fit.interval_of(machine, seconds, devices, name)
    if fitted is not None:
        return SecondsBetween(*fitted)
    middle = seconds(machine)
    differences = [seconds(changed) - middle for changed in _moved(machine, name)]
    if not differences:
        return SecondsBetween(None, None)
    below, above = (math.hypot(*(sign * max(0.0, sign * one) for one in differences)) for sign in (-1, 1))
    return SecondsBetween(max(0.0, middle - below), middle + above)


def _moved(machine: Machine, name: str) -> Iterator[Machine]:
    """One number at an end of its interval each."""
    pace = machine.pace(name)
    for key, ends in pace.intervals.items():
        for end in ends:
            changed = pace.model_copy(update={key: end})
            yield machine.model_copy(update={"workloads": {**machine.workloads, name: changed}})
    for where in ("inside", "between"):
        link = getattr(machine, where)
        for key, ends in link.intervals.items():
            for end in ends:
                yield machine.model_copy(update={where: link.model_copy(update={key: end})})
