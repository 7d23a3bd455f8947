"""What was planned for a recipe on a cluster, and the traces of its step that are kept between plans.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from largebatch.records.typed import Amount, Count, FileRecord, Flag, Name, Number, Size, Text, part


@dataclass(frozen=True, kw_only=True)
class TracedCollective:
    """Calls of one size in a step, in the order of their first."""

    collective: Name
    what_for: Name
    ranks: Size
    bytes: Count  # of the whole that is summed, gathered or scattered
    calls: Count
    repeated: Flag  # whether it comes once for each micro-batch but the last


@dataclass(frozen=True, kw_only=True)
class KeptTrace(FileRecord):
    """A step of a dry run, of one rank."""

    kind: Name = "kept_trace"
    micro_batch_size: Size  # [examples]
    accumulation_steps: Size
    world_size: Size
    bytes_by_part: Mapping[str, Count]  # [bytes]
    evaluation_bytes: Count  # [bytes] of activations in an evaluation
    evaluation_batch_size: Size  # [examples] of a rank and a forward pass, at most
    test_examples: Size  # [examples] that all ranks evaluate together
    flops: Number  # of an example
    convolutions: Number  # [share] of these that are convolutions'
    collectives: Sequence[Annotated[TracedCollective, part(TracedCollective)]]


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """Steps of one batch within a point; a recipe without phases has one."""

    global_batch_size: Size  # [examples]
    micro_batch_size: Size  # [examples]
    accumulation_steps: Size
    steps: Count
    examples: Number  # [examples]
    memory_gib: Number  # [GiB] of a device
    compute_seconds: Number  # [s] of a step
    fixed_seconds: Number  # [s]
    communication_seconds: Number  # [s] all that is sent
    exposed_seconds: Number  # [s] of it, what nothing hides
    data_seconds: Number  # [s]
    step_seconds: Number  # [s]
    step_seconds_low: Amount  # [s] of its 95 % interval; null: the machine states no interval
    step_seconds_high: Amount  # [s]
    work: Amount  # operations of an example over those that the pace was measured with; null: not known
    borrowed: Flag  # whether the pace is of another model, by --workload; its interval says nothing then
    basis: Name  # what the examples rest on: measured, between, beyond, law, at most, budget
    precision: Name  # the recipe's
    precision_ratio: Number  # seconds of an example in it over those in the pace's
    precision_basis: Name  # what that rests on: same, measured, at most and at least (of peaks), not said


@dataclass(frozen=True, kw_only=True)
class PlannedInterruptions:
    """A point whose devices fail now and then, saved at the best interval; on average."""

    hours: Amount  # null: failures come so often that the run comes to no end
    hours_low: Amount  # of its 95 % interval; null: not known
    hours_high: Amount
    device_hours: Amount
    cost: Amount  # null: no price was given
    lost: Number  # [share] of these hours, to saves, repeated work and restarts
    saves: Count  # in the run, before its end
    minutes_between_saves: Amount  # null: it is over before a save would pay
    failures: Amount  # of the run


@dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """One batch on one number of devices."""

    devices: Size
    nodes: Size
    global_batch_size: Size  # [examples] of the first phase
    phases: Sequence[Annotated[PlannedPhase, part(PlannedPhase)]]
    examples: Number  # [examples] to the target
    examples_low: Amount  # [examples] of its 95 % interval; null: not known
    examples_high: Amount  # [examples]
    epochs: Number
    hours: Number
    hours_low: Amount
    hours_high: Amount
    device_hours: Number
    cost: Amount  # null: no price was given
    efficiency: Number  # examples per device and second, over the most of any point
    strong: Amount  # efficiency over that on the fewest devices that have a place for this batch
    weak: Amount  # the same with this share of a device
    reported: Amount = None  # what the recipe's source reports at this batch, of the plan's ``reported_number``
    short: Flag = None  # whether that is below the target; null: not known
    interrupted: Annotated[PlannedInterruptions | None, part(PlannedInterruptions)] = None  # null: nothing was said

    @property
    def expected_hours(self) -> float:
        """Failures included, where they were told; infinite where the run comes to no end."""
        return self.hours if self.interrupted is None else _or_infinite(self.interrupted.hours)

    @property
    def expected_device_hours(self) -> float:
        return self.device_hours if self.interrupted is None else _or_infinite(self.interrupted.device_hours)

    @property
    def expected_cost(self) -> float:
        """Of points with a price."""
        return _or_infinite(self.cost if self.interrupted is None else self.interrupted.cost)

    @property
    def expected_between(self) -> tuple[float | None, float | None]:
        own = self.interrupted or self
        return own.hours_low, own.hours_high


def _or_infinite(number: float | None) -> float:
    return math.inf if number is None else number


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What is no point, and why."""

    devices: Size
    global_batch_size: Size  # [examples]
    reason: Name


@dataclass(frozen=True, kw_only=True)
class ClusterPlanRecord(FileRecord):
    """What ``plan`` writes."""

    kind: Name = "cluster_plan"
    recipe: Name
    title: Text
    machine: Name
    machine_title: Text
    workload: Name  # whose pace was taken
    engine: Name
    target: Name  # where the examples come from, in words
    unit: Name  # the plural of an example
    dataset_size: Size  # [examples]
    critical_batch_size: Amount  # [examples] null: not known
    optimizer: Name  # the recipe's
    target_optimizer: Text  # whose examples those are; null: not said
    target_score: Amount  # the target as a number of an evaluation; null: not said
    reported_number: Text  # the key of that number, or of what the recipe's source reports
    reported_by: Text  # the recipe's source
    unchecked: Sequence[Name]  # what of the target could not be held against the recipe, a sentence each
    price: Amount  # of a device-hour
    points: Sequence[Annotated[PlannedPoint, part(PlannedPoint)]]
    left_out: Sequence[Annotated[LeftOut, part(LeftOut)]]
    fastest: Count  # place in points
    cheapest: Count
    knee: Count
    chosen: Count
    chosen_as: Name  # knee, within, budget
    sure: Sequence[Name]  # how sure each number is, a sentence each
    lines: Sequence[Name]  # to type for the chosen point
    command: Text
    versions: Mapping[str, str]
    commit: Text
