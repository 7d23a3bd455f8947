"""One workload on clusters of rising size, simulated beside the closed forms: steps, then runs with failures.

The closed form of a slowed step is that of step.py for devices that all compute as long as the slowest of so many does
on average (stragglers.py). Steps are simulated on several clusters, each with its own devices; the error of their mean
is that of the clusters' means. Runs with failures are made of steps drawn from the simulated ones; their closed form is
that of failures.py with the mean of these steps. A run of a stated number of steps is saved as is best for its length,
and not at its end; one of so many hours of work is a whole number of the best intervals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.errors import UserError
from largebatch.records.simulation import SimulatedCluster, SimulatedFailures, SimulatedRun, SimulationRecord
from largebatch.report.numerals import ABSENT, TimeUnit, common_time_unit, count, listing, measured, plain, rounded
from largebatch.studies.cluster.failures import (
    ENDLESS,
    CheckpointTimes,
    best_saves,
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
from largebatch.terminal.columns import RankedColumn, RankedTable

MOST_DEVICES, MOST_SAVES, MOST_DRAWS = 100_000, 100_000, 1e9
CLUSTERS = 10
FEW = 10
"""Failures in all runs of a size, with fewer of which their mean says little."""
HOUR = 3600.0
ROUNDING = 1e-12


@dataclass(frozen=True)
class ClusterSize:
    """So many devices, and what each does in a step."""

    devices: int
    share: float
    accumulation: int = 1


@dataclass(frozen=True)
class FailingRuns:
    """On devices of which each fails once in ``device_seconds``. Of so many seconds of ``work``; of the run's steps
    where they are stated."""

    device_seconds: float
    times: CheckpointTimes
    work: float
    runs: int = 200


@dataclass(frozen=True)
class RunLength:
    """Steps of a run, and what a device-hour costs."""

    steps: int | None = None
    price: float | None = None


def simulation(
    machine: Machine, workload: Workload, words: str, sizes: Sequence[ClusterSize], stragglers: Stragglers,
    failing: FailingRuns | None = None, steps: int = 40, seed: int = 0, sources: str | None = None,
    command: str | None = None, length: RunLength = RunLength(),
) -> SimulationRecord:  # fmt: skip
    """The facts; ``steps`` are drawn on each cluster. Each size has random numbers of its own, whatever the others."""
    for size in sizes:
        if not 1 <= size.devices <= MOST_DEVICES:
            raise UserError(f"{size.devices:,} devices are not simulated; valid: 1 to {MOST_DEVICES:,}")
        if size.devices * steps > MOST_DRAWS / CLUSTERS:
            raise UserError(
                f"{steps:,} steps of {size.devices:,} devices on each of {CLUSTERS} clusters are too many draws; "
                f"valid: at most {MOST_DRAWS / CLUSTERS / size.devices:,.0f} steps"
            )
    times = failing.times if failing else None
    return SimulationRecord(
        machine=machine.name, workload=words, step_deviation=stragglers.of_steps,
        device_deviation=stragglers.of_devices, measured_on_devices=stragglers.measured_on,
        device_hours=failing.device_seconds / HOUR if failing else None,
        standing_seconds=times and times.standing, lag_seconds=times and times.lag,
        restart_seconds=times and times.restart, steps=steps, runs=failing.runs if failing else 0,
        run_hours=failing.work / HOUR if failing and not length.steps else None, run_steps=length.steps,
        price=length.price, seed=seed, sources=sources, command=command,
        clusters=[
            _cluster(machine, workload, size, stragglers, failing, steps, length, seed)
            for size in sorted(sizes, key=lambda size: size.devices)
        ],
    )  # fmt: skip


def _cluster(
    machine: Machine, workload: Workload, size: ClusterSize, stragglers: Stragglers, failing: FailingRuns | None,
    steps: int, length: RunLength, seed: int,
) -> SimulatedCluster:  # fmt: skip
    random = np.random.default_rng([seed, size.devices])
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
    failures = _failures(made, size.devices, failing, length.steps, random) if failing else None
    error = _error(np.mean(of_clusters, axis=1))
    run = _run(failures, length, size.devices, slowed.total, float(made.mean()), error)
    low, high = (float(end) for end in np.quantile(made, (0.05, 0.95)))
    return SimulatedCluster(
        devices=size.devices, share=size.share, accumulation_steps=size.accumulation, step_seconds=closed.total,
        exposed_seconds=closed.exposed, slowest=slowest, slowed_step_seconds=slowed.total,
        simulated_step_seconds=float(made.mean()), simulated_step_error=error,
        simulated_step_low=low, simulated_step_high=high, failures=failures, seconds=time.perf_counter() - began,
        run=run,
    )  # fmt: skip


def _slower(workload: Workload, factor: float) -> Workload:
    pace = workload.pace
    slower = pace.model_copy(update={"per_example": factor * pace.per_example, "floor": factor * pace.floor})
    return Workload(slower, workload.transfers, workload.buckets)


def _run(
    failures: SimulatedFailures | None, length: RunLength, devices: int, closed: float, simulated: float, error: float
) -> SimulatedRun | None:
    """Of the stated steps, or of the hours of work of the runs with failures; seconds are those of a step."""
    steps = length.steps or (failures and failures.steps)
    if not steps:
        return None
    hours, relative = steps * simulated / HOUR, error / simulated
    low = high = None
    slowdown = slowed = 1.0
    if failures is not None:
        slowdown, slowed = failures.slowdown, failures.simulated_slowdown
        relative = math.hypot(relative, failures.simulated_slowdown_error / slowed)
        low, high = hours * failures.simulated_slowdown_low, hours * failures.simulated_slowdown_high
    mean = hours * slowed
    return SimulatedRun(
        steps=steps, hours=steps * closed * slowdown / HOUR, simulated_hours=mean,
        simulated_hours_error=mean * relative, simulated_hours_low=low, simulated_hours_high=high,
        device_hours=mean * devices, cost=None if length.price is None else length.price * mean * devices,
    )  # fmt: skip


def _failures(
    step_seconds: np.ndarray, devices: int, failing: FailingRuns, steps: int | None, random: np.random.Generator
) -> SimulatedFailures:
    """Runs of so many steps, or of a whole number of intervals, so that the closed form is of the same work."""
    mean, step = between_failures(failing.device_seconds, devices), float(step_seconds.mean())
    if steps is not None:
        saves = best_saves(failing.times, mean, step, steps)
        every, pieces, stated = saves.every, saves.saves + 1, f"{steps:,} steps"
        expected = saves.seconds(failing.times, mean, step)
    else:
        every = best_steps(failing.times, mean, step)
        pieces, stated = max(1, round(failing.work / (every * step))), f"{failing.work / HOUR:g} hours of work"
        expected = expected_seconds(failing.times, mean, every * step, pieces)
    whole = steps or pieces * every
    if pieces > MOST_SAVES:
        raise UserError(
            f"{stated} are {pieces:,} times {every:,} steps and a save; valid: at most {MOST_SAVES:,}, so a shorter run"
        )
    if expected > ENDLESS * whole * step:
        raise UserError(
            f"{devices:,} devices fail once in {mean:.3g} s, and a save and a restart take "
            f"{failing.times.standing + failing.times.restart:.3g} s: such a run comes to no end; valid: fewer devices"
        )
    saved = steps is None
    cut = every if saved or pieces > 1 else whole
    runs = [interrupted_run(step_seconds, whole, cut, failing.times, mean, random, saved) for _ in range(failing.runs)]
    slowdowns = np.array([run.seconds / run.working for run in runs])
    low, high = (float(end) for end in np.quantile(slowdowns, (0.05, 0.95)))
    working, saving = whole * step / expected, (pieces - (not saved)) * failing.times.standing / expected
    if saved:
        lost = time_lost(failing.times, mean, every * step)
        working, saving = lost.working, lost.saving
    restarting = -math.expm1(-failing.times.restart / mean)
    return SimulatedFailures(
        between_failures=mean, steps_between_saves=cut, saves=pieces if saved else pieces - 1, working=working,
        saving=saving, repeating=max(0.0, 1 - working - saving - restarting), restarting=restarting,
        slowdown=expected / (whole * step), simulated_slowdown=float(slowdowns.mean()),
        simulated_slowdown_error=_error(slowdowns), simulated_slowdown_low=low, simulated_slowdown_high=high,
        failures=float(np.mean([run.failures for run in runs])), steps=whole,
    )  # fmt: skip


def _error(values: np.ndarray) -> float:
    """Of their mean; 0 of values that differ by rounding alone."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return error if error > ROUNDING * abs(float(values.mean())) else 0.0


def tables(facts: SimulationRecord) -> Iterator[RankedTable]:
    """A line for each size: of the steps, of the failures where there are some, and of the run in hours and money."""
    words = f"{facts.workload} on {facts.machine}"
    rows = []
    for one in facts.clusters:
        times = f"{one.accumulation_steps} × " if one.accumulation_steps > 1 else ""
        rows.append([
            count(one.devices),
            times + plain(one.share),
            *(f"{1000 * seconds:.2f}" for seconds in (one.step_seconds, one.slowed_step_seconds)),
            f"{1000 * one.simulated_step_seconds:.2f} ± {1000 * one.simulated_step_error:.2f}",
            f"{1000 * one.simulated_step_low:.2f} to {1000 * one.simulated_step_high:.2f}",
        ])  # fmt: skip
    yield _table(f"{words}: a step, ms", STEPS, rows)
    if rows := [_failed(one, one.failures) for one in facts.clusters if one.failures is not None]:
        yield _table(f"{words}: failures and saves", FAILURES, rows)
    runs = [(one.devices, one.run) for one in facts.clusters if one.run is not None]
    if not runs:
        return
    unit = common_time_unit(run.simulated_hours for _, run in runs)
    dropped = [*([] if facts.device_hours is not None else ["5 to 95 %"]), *(["cost"] * (facts.price is None))]
    columns = {name.format(unit.sign): rank for name, rank in RUN.items() if name not in dropped}
    rows = [[text for name, text in _ran(devices, run, unit).items() if name not in dropped] for devices, run in runs]
    failing = " with failures" if facts.device_hours is not None else ""
    yield _table(f"{words}: a run of {_length(facts)}{failing}", columns, rows)


def _length(facts: SimulationRecord) -> str:
    return f"{count(facts.run_steps)} steps" if facts.run_steps else f"{plain(facts.run_hours)} h of work"


STEPS = {"devices": 0, "examples": 3, "alike": 2, "slowed": 1, "simulated": 0, "5 to 95 %": 4}
FAILURES = {
    "devices": 0, "fails once in, h": 3, "saves after": 1, "or, min": 4, "slowdown": 0, "simulated": 2,
    "5 to 95 %": 5, "failures": 6,
}  # fmt: skip
RUN = {"devices": 0, "steps": 4, "closed form, {}": 2, "simulated": 0, "5 to 95 %": 5, "device-hours": 1, "cost": 0}


def _table(title: str, ranks: dict[str, int], rows: Sequence[Sequence[str]]) -> RankedTable:
    return RankedTable([RankedColumn(name, rank) for name, rank in ranks.items()], rows, title, "--json FILE has them")


def _failed(one: SimulatedCluster, failures: SimulatedFailures) -> list[str]:
    saved = failures.saves != 0
    return [
        count(one.devices),
        rounded(failures.between_failures / HOUR),
        f"{count(failures.steps_between_saves)} steps" if saved else "no save",
        rounded(failures.steps_between_saves * one.simulated_step_seconds / 60) if saved else ABSENT,
        f"{failures.slowdown:.4f}",
        f"{failures.simulated_slowdown:.4f}",
        f"{failures.simulated_slowdown_low:.4f} to {failures.simulated_slowdown_high:.4f}",
        rounded(failures.failures),
    ]


def _ran(devices: int, run: SimulatedRun, unit: TimeUnit) -> dict[str, str]:
    size = unit.hours
    return dict(zip(RUN, [
        count(devices),
        count(run.steps),
        unit.of(run.hours),
        measured(run.simulated_hours / size, run.simulated_hours_error / size),
        unit.between(run.simulated_hours_low, run.simulated_hours_high),
        rounded(run.device_hours),
        rounded(run.cost),
    ], strict=True))  # fmt: skip


def notes(facts: SimulationRecord) -> Iterator[str]:
    """What the columns are, a sentence each."""
    yield (
        f"alike: closed form, all devices alike; slowed: with devices as slow as the slowest is on average; simulated: "
        f"mean of {CLUSTERS} clusters, {count(facts.steps)} steps each; a device's seconds are lognormal, deviation "
        f"{plain(facts.step_deviation)} from step to step and {plain(facts.device_deviation)} from device to device; "
        f"the pace is taken to hold the wait for the slowest of {count(facts.measured_on_devices)}"
    )
    if facts.run_steps is not None or facts.device_hours is not None:
        yield (
            "run: closed form with the slowest device's mean, simulated ± the standard error of its mean; device-hours "
            "and cost are of the simulated one"
        )
    else:
        yield "how long a run takes: --steps N; what it costs: --price P beside it"
    if facts.device_hours is not None:
        yield (
            f"a device fails once in {count(facts.device_hours)} h; a save lets the run stand still for "
            f"{plain(facts.standing_seconds)} s and can be read {plain(facts.lag_seconds)} s later, a restart takes "
            f"{plain(facts.restart_seconds)} s; slowdown: seconds for each without saves and failures, simulated over "
            f"{count(facts.runs)} runs of {_length(facts)}, with so many failures each"
        )
        if few := [one.devices for one in facts.clusters if one.failures and one.failures.failures * facts.runs < FEW]:
            yield (
                f"on {listing(map(count, few))} devices fewer than {FEW} failures were drawn in all runs together: "
                "there the closed form says more than the simulated mean and its error"
            )
    if facts.sources:
        yield facts.sources
