"""What `plan simulate` may be asked for, an option each, to be understood alone: with a unit and an example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from largebatch.cli.frame import local_path

Cluster = Annotated[
    str, typer.Option(metavar="NAME", help="the cluster's devices and links: dgx-h100, or a file MACHINE.yaml")
]
PaceOf = Annotated[str, typer.Option(metavar="NAME", help="the model, as the machine's file calls its pace: resnet50")]
Share = Annotated[float, typer.Option(metavar="N", help="examples of a device in a micro-batch: 40")]
Sizes = Annotated[
    str, typer.Option(metavar="8..4096", help="sizes of the cluster: doublings 8..4096, or numbers 8,48,64")
]
Accumulation = Annotated[int, typer.Option(metavar="N", min=1, help="micro-batches of a device in a step: 4; else one")]
StepDeviation = Annotated[
    float, typer.Option(metavar="D", help="how far a device's steps differ, the deviation of ln seconds: 0.02")
]
DeviceDeviation = Annotated[
    float, typer.Option(metavar="D", help="how far devices differ from one another, of ln seconds: 0.01")
]
Hours = Annotated[
    float | None,
    typer.Option(metavar="H", help="length of a run with failures, in hours of work, where no --steps is said: 24"),
]
Runs = Annotated[int, typer.Option(metavar="N", min=2, help="how many runs with failures are simulated for each size")]
Draws = Annotated[
    int, typer.Option(metavar="N", min=2, help="how many steps are simulated on each of ten clusters of a size")
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="of the random numbers")]
OfRanks = Annotated[
    Path | None,
    typer.Option(
        "--stragglers",
        metavar="RUN",
        help="take the deviation of steps from a run with record.ranks_every_steps",
        parser=local_path,
    ),
]
Saves = Annotated[
    Path | None,
    typer.Option(
        "--saves",
        metavar="RUN",
        help="take --standing and --lag from the checkpoints of a run, or from a file of kind checkpoint_pause",
        parser=local_path,
    ),
]
MeasuredOn = Annotated[
    int | None,
    typer.Option(
        "--measured-on",
        metavar="N",
        min=1,
        help="devices whose slowest one the machine's pace waited for: 1; else those of a node",
    ),
]
OfRun = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="length of the run, of which hours and cost are told: 27450, as a plan says it"
    ),
]
Megabytes = Annotated[
    float | None,
    typer.Option(
        "--megabytes", metavar="N", help="size of a checkpoint, where it is not that of the run of --saves: 205"
    ),
]
