"""How sure the numbers of a plan are, a sentence for each kind."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.records.plan import PlannedPoint
from largebatch.report.numerals import count, counted, listing
from largebatch.studies.cluster.machine import Machine
from largebatch.studies.curves.measured import LEVEL
from largebatch.studies.planning.memory import GIB
from largebatch.studies.planning.pace import SAME
from largebatch.studies.planning.precision import said_of
from largebatch.studies.planning.target import (
    AT_MOST,
    BETWEEN,
    BEYOND,
    BUDGET,
    BY_LAW,
    MEASURED,
    ExamplesToTarget,
    PointsTarget,
)

BASES = {
    MEASURED: "measured at batch {}",
    BETWEEN: "on the line between two measured batches at {}",
    BEYOND: "by the fitted law, beyond what was measured, at {}",
    BY_LAW: "by the law as stated at {}",
    AT_MOST: "at most so many at {}",
    BUDGET: "the recipe's budget at {}",
}


def sentences(
    machine: Machine, workloads: Sequence[str], target: ExamplesToTarget | None, points: Sequence[PlannedPoint]
) -> list[str]:
    most = max(point.devices for point in points)
    return [
        *(_borrowed(machine, workloads, points) or _of_steps(machine, workloads, most)),
        *_of_work(workloads, points),
        *_of_precision(machine, workloads, points),
        *_of_examples(target, points),
        *_of_memory(machine, points),
        "hours are of training steps alone: no evaluations, checkpoints or starts"
        if points[0].interrupted is None
        else "hours are of training steps, saves and restarts: no evaluations or starts",
    ]


def _borrowed(machine: Machine, workloads: Sequence[str], points: Sequence[PlannedPoint]) -> list[str]:
    """Where --workload names the pace of another model."""
    lent = [name for name, phase in zip(workloads, points[0].phases, strict=True) if phase.borrowed]
    if not lent:
        return []
    return [
        f"step times: borrowed from {listing(dict.fromkeys(lent))} by --workload, which {machine.name} does not name "
        "after the recipe's model: neither they nor the hours have an interval"
    ]


def _of_steps(machine: Machine, workloads: Sequence[str], most: int) -> list[str]:
    if machine.fit is None:
        return [f"step times: the model with the numbers that {machine.name} states; nothing was fitted"]
    rows = [row for row in machine.fit.rows if row.workload in workloads]
    if not rows:
        return [f"step times: {machine.name} was fitted to other workloads than {listing(dict.fromkeys(workloads))}"]
    largest = max(abs(row.error) for row in rows)
    devices = sorted({row.devices for row in rows})
    said = [
        f"step times: the model, fitted to {counted(len(rows), 'row')} of {count(devices[0])} to {count(devices[-1])} "
        f"devices, which it meets within {100 * largest:.1f} %"
    ]
    if sources := list(dict.fromkeys(row.source for row in rows if row.source)):
        said.append(
            f"they are the steps of {listing(sources)}, tuned by who ran them: largebatch's own may take longer, and "
            "`largebatch plan fit` takes what you measured"
        )
    if machine.fit.doubt:
        said.append(f"the fit is doubted: {machine.fit.doubt}")
    for name in dict.fromkeys(row.workload for row in rows):
        if most > (seen := machine.fit.most_devices(name)):
            said.append(
                f"{count(most)} devices are more than the {count(seen)} that a row of {name} had at most: there the "
                "model stands alone"
            )
    return said


def _of_work(workloads: Sequence[str], points: Sequence[PlannedPoint]) -> list[str]:
    """Where a pace was measured with other examples."""
    found = []
    for name, phase in zip(workloads, points[0].phases, strict=True):
        if phase.work is None:
            found.append(
                f"{name}: nothing says how many operations its pace was measured with; it is taken as it stands"
            )
        elif abs(phase.work - 1) > SAME:
            found.append(
                f"{name}: an example here has {phase.work:.3g} times the operations of those it was measured with"
            )
    return list(dict.fromkeys(found))


def _of_precision(machine: Machine, workloads: Sequence[str], points: Sequence[PlannedPoint]) -> list[str]:
    found = [
        said_of(name, machine, phase.precision, phase.precision_ratio, phase.precision_basis)
        for name, phase in zip(workloads, points[0].phases, strict=True)
    ]
    return [said for said in dict.fromkeys(found) if said]


def _of_examples(target: ExamplesToTarget | None, points: Sequence[PlannedPoint]) -> list[str]:
    by_basis: dict[str, set[int]] = {}
    for point in points:
        for phase in point.phases:
            by_basis.setdefault(phase.basis, set()).add(point.global_batch_size)
    said = "; ".join(BASES[basis].format(listing(map(count, sorted(sizes)))) for basis, sizes in by_basis.items())
    found = [f"examples: {said}"]
    if isinstance(target, PointsTarget) and BETWEEN in by_basis and target.missed is not None:
        found.append(f"the line between neighbours misses a measured batch by {100 * target.missed:.1f} % rms")
    if isinstance(target, PointsTarget):
        asked = by_basis.get(MEASURED, set())
        levels = [one.level for one in target.reached if one.batch in asked and one.level and one.level < LEVEL]
        if levels:
            found.append(
                f"intervals of examples hold at most {100 * max(levels):.0f} % where a batch has few seeds, not "
                f"{100 * LEVEL:.0f}"
            )
    return found


def _of_memory(machine: Machine, points: Sequence[PlannedPoint]) -> list[str]:
    most = max(phase.memory_gib for point in points for phase in point.phases)
    room = "" if machine.memory is None else f" of {machine.memory / GIB:.0f} GiB"
    return [
        f"memory: a dry run's, linear in the micro-batch; at most {most:.1f} GiB{room}, "
        f"{machine.reserve / GIB:.1f} GiB left free"
    ]
