"""Clusters of rising size, simulated beside their closed forms: facts behind table and picture.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from largebatch.records.typed import Amount, Count, FileRecord, Name, Number, Size, Text, Whole, part


@dataclass(frozen=True, kw_only=True)
class SimulatedFailures:
    """A run that saves at the best interval. Shares are of all its seconds, in closed form."""

    between_failures: Number  # [s] of the whole cluster
    steps_between_saves: Size
    working: Number  # [share]
    saving: Number  # [share]
    repeating: Number  # [share] work and saves that failures undid
    restarting: Number  # [share]
    slowdown: Number  # seconds for each without failures and saves, in closed form
    simulated_slowdown: Number  # mean over the simulated runs
    simulated_slowdown_error: Number  # standard error of that mean, as these runs show it
    simulated_slowdown_low: Number  # 5 % of the runs have less
    simulated_slowdown_high: Number  # 5 % have more
    failures: Number  # of a simulated run, on average
    steps: Size  # of a simulated run
    saves: Whole = None  # in it; null: not said


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """A run of a stated length on one cluster, in hours and money; failures included where devices fail."""

    steps: Size
    hours: Number  # in closed form, with the slowest device's mean
    simulated_hours: Number  # mean
    simulated_hours_error: Number  # standard error of that mean
    simulated_hours_low: Amount  # 5 % of the runs have less; null: devices never fail
    simulated_hours_high: Amount  # 5 % have more
    device_hours: Number  # simulated
    cost: Amount  # of these; null: no price was given


@dataclass(frozen=True, kw_only=True)
class SimulatedCluster:
    """So many devices; the mean over several clusters of them."""

    devices: Size
    share: Number  # [examples] of a device in a micro-batch
    accumulation_steps: Size
    step_seconds: Number  # [s] in closed form, all devices alike
    exposed_seconds: Number  # [s] of it, of communication
    slowest: Number  # how many times as long as the pace says the slowest device computes, by its integral
    slowed_step_seconds: Number  # [s] in closed form with devices that are all as slow
    simulated_step_seconds: Number  # [s] mean
    simulated_step_error: Number  # [s] standard error of that mean, over the clusters
    simulated_step_low: Number  # [s] 5 % of the steps are shorter
    simulated_step_high: Number  # [s] 5 % are longer
    failures: Annotated[SimulatedFailures | None, part(SimulatedFailures)]  # null: devices never fail
    seconds: Number  # [s] that the simulation took
    run: Annotated[SimulatedRun | None, part(SimulatedRun)] = None  # null: no length was stated


@dataclass(frozen=True, kw_only=True)
class SimulationRecord(FileRecord):
    """What a simulation writes: one workload on clusters of rising size."""

    kind: Name = "cluster_simulation"
    machine: Name
    workload: Name  # in words
    step_deviation: Number  # of ln seconds, from step to step
    device_deviation: Number  # of ln seconds, from device to device
    measured_on_devices: Size  # whose slowest one the pace waited for
    device_hours: Amount  # [h] in which a device fails once; null: never
    standing_seconds: Amount  # [s] that a save lets the run stand still; null where devices never fail
    lag_seconds: Amount  # [s] from then on until it can be read
    restart_seconds: Amount  # [s] from a failure to work
    steps: Size  # simulated on each of ten clusters of a size
    runs: Count  # with failures, simulated for each size
    run_hours: Amount  # [h] of work in such a run; null: it has ``run_steps``
    run_steps: Whole = None  # of a run, as stated
    price: Amount = None  # of a device-hour
    seed: Whole
    sources: Text  # of what is stated
    command: Text
    clusters: Annotated[Sequence[Annotated[SimulatedCluster, part(SimulatedCluster)]], Field(min_length=1)]  # ascending
