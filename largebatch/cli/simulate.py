"""plan simulate: steps and failures of a workload on clusters of rising size, past what can be measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch.cli.frame import (
    DeviceHours,
    JsonFile,
    Lag,
    PictureFile,
    Restart,
    Standing,
    check_folder,
    check_most,
    check_picture,
    check_positive,
    command,
    wide_console,
    write_numbers,
    write_picture,
)
from largebatch.cli.plan_options import Price
from largebatch.cli.simulate_options import (
    Accumulation,
    Cluster,
    DeviceDeviation,
    Draws,
    Hours,
    MeasuredOn,
    Megabytes,
    OfRanks,
    OfRun,
    PaceOf,
    Runs,
    Saves,
    Seed,
    Share,
    Sizes,
    StepDeviation,
)
from largebatch.errors import UserError
from largebatch.terminal.console import tell

if TYPE_CHECKING:
    from largebatch.studies.cluster.failures import CheckpointTimes
    from largebatch.studies.cluster.machine import Machine
    from largebatch.studies.cluster.simulation import FailingRuns
    from largebatch.studies.cluster.stragglers import Stragglers
    from largebatch.studies.cluster.workload import Workload

HOUR = 3600.0
SEVERAL_HOURS = 24.0
MOST = {  # of options; devices and draws together have limits of their own
    "share": 1e6, "accumulation": 4096, "hours": 1e6, "steps": 1e9, "draws": 1e5, "runs": 1e5, "device-hours": 1e12,
    "restart": 1e7, "standing": 1e7, "lag": 1e7, "megabytes": 1e9, "price": 1e9, "measured-on": 1e6, "seed": 2**63 - 1,
}  # fmt: skip


def simulate(
    machine: Cluster,
    workload: PaceOf,
    share: Share,
    devices: Sizes,
    accumulation: Accumulation = 1,
    steps: OfRun = None,
    price: Price = None,
    step_deviation: StepDeviation = 0.0,
    device_deviation: DeviceDeviation = 0.0,
    stragglers: OfRanks = None,
    measured_on: MeasuredOn = None,
    device_hours: DeviceHours = None,
    restart: Restart = None,
    standing: Standing = None,
    lag: Lag = 0.0,
    saves: Saves = None,
    megabytes: Megabytes = None,
    hours: Hours = None,
    runs: Runs = 200,
    draws: Draws = 40,
    seed: Seed = 0,
    json_file: JsonFile = None,
    picture: PictureFile = None,
) -> None:
    """Steps with stragglers and runs with failures on up to 100,000 devices, beside their closed forms."""
    check_folder(json_file)
    check_picture(picture)
    from largebatch.records.typed import content
    from largebatch.studies.cluster import machine as machines
    from largebatch.studies.cluster.simulation import ClusterSize, RunLength, notes, simulation, tables
    from largebatch.studies.planning.devices import devices_of

    _check_numbers(
        {
            "share": share, "accumulation": accumulation, "hours": hours, "steps": steps, "draws": draws, "runs": runs,
            "device-hours": device_hours, "megabytes": megabytes, "price": price, "measured-on": measured_on,
        },
        {"restart": restart, "standing": standing, "lag": lag or None, "seed": seed, "saves": saves},
    )  # fmt: skip
    cluster = machines.find(machine)
    sent = _workload(cluster, workload)
    sizes = [ClusterSize(number, share, accumulation) for number in devices_of(devices, cluster)]
    law, said = _stragglers(step_deviation, device_deviation, stragglers, measured_on or cluster.devices_per_node)
    failing = None
    if device_hours is not None:
        times, of_saves = _times(restart, standing, lag, saves, megabytes)
        failing, said = _failing(device_hours, times, hours or SEVERAL_HOURS, runs), said + of_saves
    console = wide_console()
    sources, length = " ".join(said) or None, RunLength(steps, price)
    facts = simulation(cluster, sent, workload, sizes, law, failing, draws, seed, sources, command(), length)
    for made in tables(facts):
        console.print(made, crop=False)
        console.print()
    for sentence in notes(facts):
        tell(console, sentence)
    write_numbers(json_file, content(facts), console)
    write_picture(picture, content(facts), console)


def _check_numbers(positive: dict[str, float | None], others: dict[str, Any]) -> None:
    """Each alone, and which go together."""
    from largebatch.studies.cluster.rows import LEAST_SHARE

    check_positive(positive)
    if (share := positive["share"]) is not None and share < LEAST_SHARE:
        raise UserError(
            f"--share {share:g} is less than an example in {1 / LEAST_SHARE:,.0f} micro-batches; valid: "
            f"{LEAST_SHARE:g} or more"
        )
    check_most({**positive, **others, "saves": None}, MOST)
    steps, hours, price, device_hours = (positive[name] for name in ("steps", "hours", "price", "device-hours"))
    if steps is not None and hours is not None:
        raise UserError(f"--steps {steps:g} and --hours {hours:g} both say how long the run is; give one of them")
    if price is not None and steps is None and device_hours is None:
        raise UserError(f"--price {price:g} is of a run, and needs --steps N, how many it has")
    given = {**others, "megabytes": positive["megabytes"], "hours": hours}
    kinds = ("restart", "standing", "lag", "saves", "megabytes", "hours")
    of_failures = [name for name in kinds if given[name] is not None]
    if device_hours is None and of_failures:
        raise UserError(f"--{of_failures[0]} is of runs that fail, and needs --device-hours H beside it")


def _workload(machine: Machine, name: str) -> Workload:
    from largebatch.studies.cluster.workload import data_parallel

    pace = machine.pace(name)
    if not pace.gradient_bytes:
        raise UserError(f"{machine.name} says no gradient_bytes of {name}: nothing would be sent between devices")
    return data_parallel(pace)


def _stragglers(of_steps: float, of_devices: float, run: Path | None, measured_on: int) -> tuple[Stragglers, list[str]]:
    from largebatch.studies.cluster.observed import stragglers_of_run
    from largebatch.studies.cluster.stragglers import Stragglers

    if run is None:
        return Stragglers(of_steps, of_devices, measured_on), []
    if of_steps or of_devices:
        raise UserError(f"--stragglers {run} has the deviation: leave out --step-deviation and --device-deviation")
    law = dataclasses.replace(stragglers_of_run(run), measured_on=measured_on)
    return law, [f"Deviation: of the ranks of {run}."]


def _times(
    restart: float | None, standing: float | None, lag: float, run: Path | None, megabytes: float | None
) -> tuple[CheckpointTimes, list[str]]:
    from largebatch.studies.cluster.failures import CheckpointTimes
    from largebatch.studies.cluster.observed import saves_of

    if restart is None:
        raise UserError("--device-hours needs --restart S, the seconds from a failure until the run works again")
    if (standing is None) == (run is None):
        raise UserError(
            "--device-hours needs --standing S, seconds that a save halts the run, or --saves RUN; one of them"
        )
    if run is None:
        if megabytes is not None:
            raise UserError(f"--megabytes {megabytes:g} goes with --saves RUN")
        return CheckpointTimes(standing or 0.0, lag, restart), []
    if lag:
        raise UserError(f"--lag {lag:g} is in --saves {run}; leave it out")
    seen = saves_of(run)
    size = megabytes or seen.megabytes
    return seen.times(size, restart), [f"Saves: {seen.saves} of {run}, {seen.megabytes:.0f} MB, as for {size:.0f} MB."]


def _failing(device_hours: float, times: CheckpointTimes, hours: float, runs: int) -> FailingRuns:
    from largebatch.studies.cluster.simulation import FailingRuns

    return FailingRuns(device_hours * HOUR, times, hours * HOUR, runs)
