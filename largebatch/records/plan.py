"""What was planned for a recipe on a cluster, and the traces of its step that are kept between plans.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

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
    basis: Name  # what the examples rest on: measured, between, beyond, law, at most, budget
    precision: Name  # the recipe's
    precision_ratio: Number  # seconds of an example in it over those in the pace's
    precision_basis: Name  # what that rests on: same, measured, at most and at least (of peaks), not said


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
    lost_share: Amount = None  # of the time with failures, to saves, repeated work and restarts
    checkpoint_minutes: Amount = None  # between checkpoints, the best by Young and Daly


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
