"""Every batch on every number of devices: what a step needs and takes, how many there are, hours.

Of the micro-batches that divide a device's share, that the recipe's methods allow and that fit its memory the largest
is taken, for a step of many small ones pays its floor and its traffic more often. What has none is left out, with the
reason. Hours are those of training steps: steps = ⌈E(B)/B⌉ times the time of a step; evaluations, checkpoints and the
start of the run are not in them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from largebatch.errors import UserError
from largebatch.recipes import derive
from largebatch.records.plan import LeftOut, PlannedPhase, PlannedPoint
from largebatch.studies.cluster.machine import Machine, Precision
from largebatch.studies.cluster.step import StepTime, step_time
from largebatch.studies.planning.legs import PLENTY, Leg
from largebatch.studies.planning.memory import GIB, StepMemory, StepNeeds
from largebatch.studies.planning.pace import SecondsBetween, is_pace_of, pace_for, ratio_of, seconds_between
from largebatch.studies.planning.precision import precision_on, precision_ratio
from largebatch.studies.planning.sent import workload_of
from largebatch.studies.planning.target import ExamplesNeeded


class Unplanned(Exception):
    """A batch has no place on so many devices; its text says why."""


@dataclass(frozen=True)
class Cut:
    """How a device's share of a batch is taken."""

    micro: int
    accumulation: int


class LegOnMachine:
    """One leg, whose memory is known. A pace of another model is borrowed."""

    def __init__(self, leg: Leg, machine: Machine, workload: str, memory: StepMemory, size: int) -> None:
        self.leg, self.machine, self.workload, self.memory, self.size = leg, machine, workload, memory, size
        self.borrowed = not is_pace_of(leg.run, workload)
        self.precision: Precision = precision_on(leg.run, memory.traces.device)

    def cut(self, devices: int) -> Cut:
        """The largest micro-batch that fits; Unplanned says why there is none."""
        run, batch = self.leg.run, self.leg.batch
        try:
            micro = derive.micro_batch_of(run, devices, PLENTY)
            plan = derive.plan_of(run, self.size, devices, PLENTY)
        except UserError as error:
            raise Unplanned(str(error)) from None
        share = batch // devices
        allowed = micro.all_of(share)[::-1]
        limit = self.machine.memory
        for part in allowed or [plan.micro_batch_size]:
            cut = Cut(part, share // part)
            if limit is None or self.needs(devices, cut).fits(limit, self.machine.reserve):
                return cut
        least, beside = self.needs(devices, cut).bytes, self.machine.reserve
        raise Unplanned(
            f"micro-batch {cut.micro:,} needs {least / GIB:.1f} GiB and {beside / GIB:.1f} beside it, and a device of "
            f"{self.machine.name} has {(limit or 0) / GIB:.1f}"
        )

    def needs(self, devices: int, cut: Cut) -> StepNeeds:
        try:
            return self.memory.needs(devices, cut.micro, cut.accumulation)
        except UserError as error:
            raise Unplanned(str(error)) from None

    def planned(self, devices: int) -> tuple[PlannedPhase, ExamplesNeeded]:
        cut = self.cut(devices)
        needs = self.needs(devices, cut)
        expected = self.leg.target.needed(self.leg.batch)
        engine = self.leg.run.engine.name

        precise = precision_ratio(self.machine, self.workload, self.precision, needs.convolutions)

        def timed(machine: Machine, ratio: float = precise.ratio) -> StepTime:
            pace = pace_for(machine, self.workload, needs.flops).slower(ratio)
            workload = workload_of(machine, pace, engine, needs.collectives, cut.accumulation, devices)
            return step_time(machine, workload, devices, cut.micro, cut.accumulation)

        time = timed(self.machine)
        sure = SecondsBetween(None, None)
        if not self.borrowed:
            sure = seconds_between(self.machine, self.workload, devices, lambda machine: timed(machine).total)
            if precise.bound:
                sure = sure.reaching(timed(self.machine, 1.0).total, time.total)
        return PlannedPhase(
            global_batch_size=self.leg.batch, micro_batch_size=cut.micro, accumulation_steps=cut.accumulation,
            steps=max(1, math.ceil(expected.examples / self.leg.batch - 1e-9)), examples=expected.examples,
            memory_gib=needs.bytes / GIB, compute_seconds=time.compute, fixed_seconds=time.fixed,
            communication_seconds=time.communication, exposed_seconds=time.exposed, data_seconds=time.data,
            step_seconds=time.total, step_seconds_low=sure.low, step_seconds_high=sure.high, basis=expected.basis,
            borrowed=self.borrowed, work=ratio_of(self.machine.pace(self.workload), needs.flops),
            precision=self.precision, precision_ratio=precise.ratio, precision_basis=precise.basis,
        ), expected  # fmt: skip


def point_of(legs: Sequence[LegOnMachine], devices: int, size: int, price: float | None) -> PlannedPoint:
    """Unplanned where a leg has no place."""
    planned = [leg.planned(devices) for leg in legs]
    phases = [phase for phase, _ in planned]
    hours = math.fsum(phase.steps * phase.step_seconds for phase in phases) / 3600
    low, high = hours_between(planned, hours)
    examples, examples_low, examples_high = (
        total(getattr(needed, end) for _, needed in planned) for end in ("examples", "low", "high")
    )
    assert examples is not None
    machine = legs[0].machine
    return PlannedPoint(
        devices=devices, nodes=machine.nodes(devices), global_batch_size=phases[0].global_batch_size, phases=phases,
        examples=examples, examples_low=examples_low, examples_high=examples_high, epochs=examples / size,
        hours=hours, hours_low=low, hours_high=high, device_hours=hours * devices,
        cost=None if price is None else price * hours * devices,
        efficiency=examples / (hours * devices), strong=None, weak=None,
    )  # fmt: skip


def total(values: Iterable[float | None]) -> float | None:
    """None where one of them is not known."""
    known = list(values)
    return None if None in known else math.fsum(value for value in known if value is not None)


def hours_between(
    planned: Sequence[tuple[PlannedPhase, ExamplesNeeded]], hours: float
) -> tuple[float | None, float | None]:
    """What steps and examples move the hours by.

    Phases share the machine's fit and the source of their examples, so that all of their steps are long, or all of
    their examples many, together (correlation 1): within each of the two kinds the phases' distances add up. Steps
    and examples have nothing in common, and their sums add in squares: √((Σ h_p·s_p)² + (Σ h_p·e_p)²), with h_p the
    hours of phase p and s_p, e_p relative distances of an end. A kind of which nothing has an interval counts as sure;
    with a borrowed pace the hours have none.
    """
    if any(phase.borrowed for phase, _ in planned):
        return None, None
    ends: list[float | None] = []
    for side, sign in (("low", -1), ("high", 1)):
        steps = [(phase, getattr(phase, f"step_seconds_{side}"), phase.step_seconds) for phase, _ in planned]
        examples = [(phase, getattr(needed, side), needed.examples) for phase, needed in planned]
        moved = [_moved(kind) for kind in (steps, examples)]
        known = [one for one in moved if one is not None]
        ends.append(hours + sign * math.hypot(*known) if known else None)
    low, high = ends
    return low if low is None else max(0.0, low), high


def _moved(kind: Sequence[tuple[PlannedPhase, float | None, float]]) -> float | None:
    """Hours that an end, of as many as are known, lies away from the middle; None where none is."""
    moved = [
        phase.steps * phase.step_seconds / 3600 * abs(end / middle - 1)
        for phase, end, middle in kind
        if end is not None
    ]
    return math.fsum(moved) if moved else None


def compared(points: Sequence[PlannedPoint]) -> list[PlannedPoint]:
    """With their efficiencies: over the best, strong scaling of a batch, weak scaling of a share."""
    best = max((point.efficiency for point in points), default=1.0)
    return [
        dataclasses.replace(
            point,
            efficiency=point.efficiency / best,
            strong=over_first(point, [other for other in points if other.global_batch_size == point.global_batch_size]),
            weak=over_first(point, [other for other in points if share_of(other) == share_of(point)]),
        )
        for point in points
    ]


def share_of(point: PlannedPoint) -> float:
    return point.global_batch_size / point.devices


def over_first(point: PlannedPoint, others: Sequence[PlannedPoint]) -> float:
    """Examples per device and second, over those on the fewest devices."""
    return point.efficiency / min(others, key=lambda other: other.devices).efficiency


def left_out(devices: int, batch: int, reason: str) -> LeftOut:
    return LeftOut(devices=devices, global_batch_size=batch, reason=reason)
