"""What `plan` may be asked for, an option each, to be understood alone: with a unit and an example."""

from __future__ import annotations

from typing import Annotated

import typer

Devices = Annotated[
    str, typer.Option(metavar="8..1024", help="how many devices: doublings 8..1024, or numbers 8,48,64")
]
OnMachine = Annotated[
    str, typer.Option(metavar="NAME", help="of which machines: dgx-h100 of the package, or a file MACHINE.yaml")
]
Batches = Annotated[
    str | None,
    typer.Option(metavar="1024..65536", help="global batches, in examples; else those that the target makes sensible"),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="how many examples are needed, to what: mlperf/resnet50, points.yaml, a study, a run's diagnosis",
    ),
]
Row = Annotated[str | None, typer.Option(metavar="LABEL", help="which row of the study that --target names: lars")]
CriticalBatch = Annotated[
    float | None,
    typer.Option(metavar="N", help="critical batch, in examples, at which twice the least are needed: 20000"),
]
SmallEpochs = Annotated[
    float | None,
    typer.Option(metavar="N", help="epochs that small batches need, beside --critical-batch; else the recipe's: 35"),
]
Price = Annotated[float | None, typer.Option(metavar="P", help="what a device costs in an hour, in any currency: 2.5")]
Within = Annotated[
    str | None,
    typer.Option(metavar="1h", help="choose the cheapest that takes no longer, in s, min, h or d: 45min"),
]
Budget = Annotated[
    float | None,
    typer.Option(metavar="P", help="choose the fastest that costs no more, in the currency of --price: 500"),
]
Lent = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="take the machine's pace of another model, without an interval: resnet50"),
]
Examples = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="size of a training set that is not on this machine: 1281167"),
]
Classes = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="classes, or tokens, of a data set that does not say: 30522")
]
