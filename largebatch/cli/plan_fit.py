"""plan fit: a machine from measured steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

Rows = Annotated[
    list[Path] | None,
    typer.Argument(metavar="ROWS.csv", help="devices,batch,ms; or JSON of a bench", parser=local_path),
]


def fit(
    files: Rows = None,
    machine: Annotated[str | None, typer.Option(metavar="NAME", help="its nodes and links; or MACHINE.yaml")] = None,
    family: Annotated[str | None, typer.Option(metavar="NAME", help="rows of this one alone")] = None,
    workload: Annotated[str | None, typer.Option(metavar="NAME", help="of rows that do not say it: resnet50")] = None,
    gradients: Annotated[float | None, typer.Option(metavar="BYTES", help="that the devices sum in a step")] = None,
    most: Annotated[int | None, typer.Option(metavar="N", min=1, help="devices; larger rows are predicted")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="of what is found; else as --out is called")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="MACHINE.yaml", help="for plan --machine", parser=local_path)
    ] = None,
    allow_error: Annotated[
        float, typer.Option(metavar="SHARE", help="rms error of the rows, above which nothing is written to --out")
    ] = 0.1,
    skeleton: Annotated[bool, typer.Option("--skeleton", help="print a MACHINE.yaml to fill in, and end")] = False,
    json_file: JsonFile = None,
    picture: PictureFile = None,
) -> None:
    """A machine fitted to measured steps, with intervals; rows of more devices predicted from those of few."""
    check_folder(json_file)
    check_picture(picture)
    if skeleton:
        from largebatch.studies.cluster.skeleton import SKELETON

        typer.echo(SKELETON, nl=False)
        return
    if not files:
        raise UserError("plan fit needs ROWS.csv, whose first line is like devices,batch,ms; or the JSON of a bench")
    check_positive({"gradients": gradients, "allow-error": allow_error})
    if out is not None and (out.suffix not in (".yaml", ".yml") or not out.parent.is_dir()):
        raise UserError(f"--out {out} should be a file MACHINE.yaml in a folder that is there")
    from largebatch.records.files import write_text
    from largebatch.studies.cluster import fitted
    from largebatch.studies.cluster import machine as machines

    found, facts = fitted.machine_fit(
        files, machine, family, workload, gradients, most, name or (out and out.stem), command()
    )
    console = wide_console()
    for table in fitted.tables(facts):
        console.print(table)
    for sentence in fitted.notes(facts):
        tell(console, sentence)
    write_numbers(json_file, facts, console)
    write_picture(picture, facts, console)
    if out is not None:
        if said := fitted.refused(facts, allow_error):
            raise UserError(f"{out} is not written: {said}")
        write_text(out, machines.written(found))
        tell(console, f"machine: {out}")
