"""One workload on clusters of rising size, simulated beside the closed forms: steps, then runs with failures.

The closed form of a slowed step is that of step.py for devices that all compute as long as the slowest of so many does
on average (stragglers.py). Steps are simulated on several clusters, each with its own devices; the error of their mean
is that of the clusters' means. Runs with failures are made of steps drawn from the simulated ones; their closed form is
that of failures.py with the mean of these steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import rich.table

from largebatch.errors import UserError
from largebatch.records.simulation import SimulatedCluster, SimulatedFailures, SimulationRecord
from largebatch.report.numerals import count, plain, rounded
from largebatch.studies.cluster.failures import (
    ENDLESS,
    CheckpointTimes,
    best_steps,
    between_failures,
    expected_seconds,
    time_lost,
)
from largebatch.studies.cluster.interrupted import interrupted_run
from largebatch.studies.cluster.machine import Machine
from largebatch.studies.cluster.simulate import simulated_steps
from largebatch.studies.cluster.step import step_time
from largebatch.studies.cluster.stragglers import Stragglers
from largebatch.studies.cluster.workload import Workload

MOST_DEVICES, MOST_SAVES = 1_000_000, 100_000
CLUSTERS = 10
HOUR = 3600.0


@dataclass(frozen=True)
class ClusterSize:
    """So many devices, and what each does in a step."""

    devices: int
    share: float
    accumulation: int = 1


@dataclass(frozen=True)
class FailingRuns:
    """Runs of so many seconds of work on devices of which each fails once in ``device_seconds``."""

    device_seconds: float
    times: CheckpointTimes
    work: float
    runs: int = 200


def simulation(
    machine: Machine, workload: Workload, words: str, sizes: Sequence[ClusterSize], stragglers: Stragglers,
    failing: FailingRuns | None = None, steps: int = 40, seed: int = 0, sources: str | None = None,
    command: str | None = None,
) -> SimulationRecord:  # fmt: skip
    """The facts; each size has random numbers of its own, whatever the others are."""
    times = failing.times if failing else None
    return SimulationRecord(
        machine=machine.name, workload=words, step_deviation=stragglers.of_steps,
        device_deviation=stragglers.of_devices, measured_on_devices=stragglers.measured_on,
        device_hours=failing.device_seconds / HOUR if failing else None,
        standing_seconds=times and times.standing, lag_seconds=times and times.lag,
        restart_seconds=times and times.restart, steps=steps, runs=failing.runs if failing else 0,
        run_hours=failing.work / HOUR if failing else None, seed=seed, sources=sources, command=command,
        clusters=[
            _cluster(machine, workload, size, stragglers, failing, steps, np.random.default_rng([seed, size.devices]))
            for size in sorted(sizes, key=lambda size: size.devices)
        ],
    )  # fmt: skip


def _cluster(
    machine: Machine, workload: Workload, size: ClusterSize, stragglers: Stragglers, failing: FailingRuns | None,
    steps: int, random: np.random.Generator,
) -> SimulatedCluster:  # fmt: skip
    if not 1 <= size.devices <= MOST_DEVICES:
        raise UserError(f"{size.devices:,} devices are not simulated; valid: 1 to {MOST_DEVICES:,}")
    began = time.perf_counter()
    closed = step_time(machine, workload, size.devices, size.share, size.accumulation)
    slowest = stragglers.expected(size.devices)
    slowed = step_time(machine, _slower(workload, slowest), size.devices, size.share, size.accumulation)
    of_clusters = [
        simulated_steps(
            machine, workload, size.devices, size.share, size.accumulation, stragglers, steps, random
        ).seconds
        for _ in range(CLUSTERS)
    ]
    made = np.concatenate(of_clusters)
    failures = _failures(made, size.devices, failing, random) if failing else None
    low, high = (float(end) for end in np.quantile(made, (0.05, 0.95)))
    return SimulatedCluster(
        devices=size.devices, share=size.share, accumulation_steps=size.accumulation, step_seconds=closed.total,
        exposed_seconds=closed.exposed, slowest=slowest, slowed_step_seconds=slowed.total,
        simulated_step_seconds=float(made.mean()), simulated_step_error=_error(np.mean(of_clusters, axis=1)),
        simulated_step_low=low, simulated_step_high=high, failures=failures, seconds=time.perf_counter() - began,
    )  # fmt: skip


def _slower(workload: Workload, factor: float) -> Workload:
    pace = workload.pace
    slower = pace.model_copy(update={"per_example": factor * pace.per_example, "floor": factor * pace.floor})
    return Workload(slower, workload.transfers, workload.buckets)


def _failures(
    step_seconds: np.ndarray, devices: int, failing: FailingRuns, random: np.random.Generator
) -> SimulatedFailures:
    """Runs of a whole number of intervals, so that the closed form is of the same work."""
    mean, step = between_failures(failing.device_seconds, devices), float(step_seconds.mean())
    every = best_steps(failing.times, mean, step)
    pieces = max(1, round(failing.work / (every * step)))
    if pieces > MOST_SAVES:
        raise UserError(
            f"{failing.work / HOUR:g} hours of work are {pieces:,} times {every:,} steps and a save; valid: at most "
            f"{MOST_SAVES:,}, so fewer hours"
        )
    expected = expected_seconds(failing.times, mean, every * step, pieces)
    if expected > ENDLESS * pieces * every * step:
        raise UserError(
            f"{devices:,} devices fail once in {mean:.3g} s, and a save and a restart take "
            f"{failing.times.standing + failing.times.restart:.3g} s: such a run comes to no end; valid: fewer devices"
        )
    runs = [
        interrupted_run(step_seconds, pieces * every, every, failing.times, mean, random) for _ in range(failing.runs)
    ]
    slowdowns = np.array([run.seconds / run.working for run in runs])
    low, high = (float(end) for end in np.quantile(slowdowns, (0.05, 0.95)))
    lost = time_lost(failing.times, mean, every * step)
    return SimulatedFailures(
        between_failures=mean, steps_between_saves=every, working=lost.working, saving=lost.saving,
        repeating=lost.repeating, restarting=lost.restarting, slowdown=expected / (pieces * every * step),
        simulated_slowdown=float(slowdowns.mean()), simulated_slowdown_error=_error(slowdowns),
        simulated_slowdown_low=low, simulated_slowdown_high=high,
        failures=float(np.mean([run.failures for run in runs])), steps=pieces * every,
    )  # fmt: skip


def _error(values: np.ndarray) -> float:
    """Of their mean."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def tables(facts: SimulationRecord) -> Iterator[rich.table.Table]:
    """A line for each size: of the steps, and of the runs with failures where there are some."""
    words = f"{facts.workload} on {facts.machine}"
    made = _table(f"{words}: a step, ms", "devices", "examples", "alike", "slowed", "simulated", "5 to 95 %")
    for one in facts.clusters:
        times = f"{one.accumulation_steps} × " if one.accumulation_steps > 1 else ""
        made.add_row(
            count(one.devices),
            times + plain(one.share),
            *(f"{1000 * seconds:.2f}" for seconds in (one.step_seconds, one.slowed_step_seconds)),
            f"{1000 * one.simulated_step_seconds:.2f} ± {1000 * one.simulated_step_error:.2f}",
            f"{1000 * one.simulated_step_low:.2f} to {1000 * one.simulated_step_high:.2f}",
        )
    yield made
    if facts.device_hours is None:
        return
    columns = ("devices", "fails once in, h", "saves after", "slowdown", "simulated", "5 to 95 %", "failures")
    made = _table(f"{words}: a run with failures", *columns)
    for one in facts.clusters:
        if (failures := one.failures) is not None:
            made.add_row(
                count(one.devices),
                rounded(failures.between_failures / HOUR),
                f"{count(failures.steps_between_saves)} steps",
                f"{failures.slowdown:.4f}",
                f"{failures.simulated_slowdown:.4f}",
                f"{failures.simulated_slowdown_low:.4f} to {failures.simulated_slowdown_high:.4f}",
                rounded(failures.failures),
            )
    yield made


def _table(title: str, *columns: str) -> rich.table.Table:
    made = rich.table.Table(*columns, title=title)
    for column in made.columns:
        column.justify, column.no_wrap = "right", True
    return made


def notes(facts: SimulationRecord) -> Iterator[str]:
    """What the columns are, a sentence each."""
    yield (
        f"alike: closed form, all devices alike; slowed: with devices as slow as the slowest is on average; simulated: "
        f"mean of {CLUSTERS} clusters, {count(facts.steps)} steps each; a device's seconds are lognormal, deviation "
        f"{plain(facts.step_deviation)} from step to step and {plain(facts.device_deviation)} from device to device; "
        f"the pace is taken to hold the wait for the slowest of {count(facts.measured_on_devices)}"
    )
    if facts.device_hours is not None:
        yield (
            f"a device fails once in {count(facts.device_hours)} h; a save lets the run stand still for "
            f"{plain(facts.standing_seconds)} s and can be read {plain(facts.lag_seconds)} s later, a restart takes "
            f"{plain(facts.restart_seconds)} s; slowdown: seconds for each without saves and failures, simulated over "
            f"{count(facts.runs)} runs of {plain(facts.run_hours)} h of work, with so many failures each"
        )
    if facts.sources:
        yield facts.sources
