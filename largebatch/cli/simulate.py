"""plan simulate: steps and failures of a workload on clusters of rising size, past what can be measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from largebatch.cli.frame import (
    JsonFile,
    PictureFile,
    check_folder,
    check_picture,
    check_positive,
    command,
    local_path,
    wide_console,
    write_numbers,
    write_picture,
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


OfRanks = Annotated[
    Path | None, typer.Option("--stragglers", metavar="RUN", help="deviation of a run with record.ranks_every_steps",
                              parser=local_path)
]  # fmt: skip
Saves = Annotated[
    Path | None, typer.Option("--saves", metavar="RUN", help="both, of the checkpoints of a run; or facts of kind "
                              "checkpoint_pause", parser=local_path)
]  # fmt: skip
MeasuredOn = Annotated[
    int | None, typer.Option("--measured-on", metavar="N", min=1, help="devices whose slowest one the pace waited for; "
                             "else those of a node")
]  # fmt: skip
Megabytes = Annotated[
    float | None, typer.Option("--megabytes", metavar="N", help="of a checkpoint, where it is not as large as those of "
                               "RUN")
]  # fmt: skip


def simulate(
    machine: Annotated[str, typer.Option(metavar="NAME", help="of the package, or a file MACHINE.yaml")],
    workload: Annotated[str, typer.Option(metavar="NAME", help="a pace of the machine")],
    share: Annotated[float, typer.Option(metavar="N", help="examples of a device in a micro-batch")],
    devices: Annotated[str, typer.Option(metavar="8..4096", help="a range by doublings, or numbers: 8,48,64")],
    accumulation: Annotated[int, typer.Option(metavar="N", min=1, help="micro-batches of a step")] = 1,
    step_deviation: Annotated[float, typer.Option(metavar="D", help="of ln seconds, from step to step")] = 0.0,
    device_deviation: Annotated[float, typer.Option(metavar="D", help="the same, from device to device")] = 0.0,
    stragglers: OfRanks = None,
    measured_on: MeasuredOn = None,
    device_hours: Annotated[float | None, typer.Option(metavar="H", help="in which a device fails once")] = None,
    restart: Annotated[float | None, typer.Option(metavar="S", help="seconds from a failure to work")] = None,
    standing: Annotated[float | None, typer.Option(metavar="S", help="seconds that a save halts the run")] = None,
    lag: Annotated[float, typer.Option(metavar="S", help="seconds from then on until it can be read")] = 0.0,
    saves: Saves = None,
    megabytes: Megabytes = None,
    hours: Annotated[float, typer.Option(metavar="H", help="of work in a run with failures")] = SEVERAL_HOURS,
    runs: Annotated[int, typer.Option(metavar="N", min=2, help="with failures, of each size")] = 200,
    steps: Annotated[int, typer.Option(metavar="N", min=2, help="on each of ten clusters of a size")] = 40,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    json_file: JsonFile = None,
    picture: PictureFile = None,
) -> None:
    """Steps with stragglers and runs with failures on up to a million devices, beside their closed forms."""
    check_folder(json_file)
    check_picture(picture)
    from largebatch.records.typed import content
    from largebatch.studies.cluster import machine as machines
    from largebatch.studies.cluster.simulation import ClusterSize, notes, simulation, tables
    from largebatch.studies.planning.devices import devices_of

    check_positive({"share": share, "hours": hours, "device-hours": device_hours, "megabytes": megabytes})
    of_failures = {"restart": restart, "standing": standing, "lag": lag or None, "saves": saves, "megabytes": megabytes}
    given = [option for option, value in of_failures.items() if value is not None]
    if device_hours is None and given:
        raise UserError(f"--{given[0]} is of runs that fail, and needs --device-hours H beside it")
    cluster = machines.find(machine)
    sent = _workload(cluster, workload)
    sizes = [ClusterSize(number, share, accumulation) for number in devices_of(devices, cluster)]
    law, said = _stragglers(step_deviation, device_deviation, stragglers, measured_on or cluster.devices_per_node)
    failing = None
    if device_hours is not None:
        times, of_saves = _times(restart, standing, lag, saves, megabytes)
        failing, said = _failing(device_hours, times, hours, runs), said + of_saves
    console = wide_console()
    facts = simulation(cluster, sent, workload, sizes, law, failing, steps, seed, " ".join(said) or None, command())
    for made in tables(facts):
        console.print(made)
    for sentence in notes(facts):
        tell(console, sentence)
    write_numbers(json_file, content(facts), console)
    write_picture(picture, content(facts), console)


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
