"""surface: the lecture's small surfaces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from largebatch.cli.frame import command, local_path, write_numbers, write_picture
from largebatch.errors import UserError
from largebatch.terminal.console import Console, tell


def surface(
    name: Annotated[str, typer.Argument(metavar="NAME", help="saddle, ravine, double_well", show_default=False)],
    method: Annotated[list[str] | None, typer.Option(metavar="NAME", help="again for more; else the lecture's")] = None,
    lr: Annotated[float | None, typer.Option(help="η of every method")] = None,
    momentum: Annotated[float | None, typer.Option(help="λ of the methods that have one")] = None,
    updates: Annotated[int | None, typer.Option(metavar="N", help="how many")] = None,
    start: Annotated[str | None, typer.Option(metavar="X,Y", help="where; else the lecture's")] = None,
    out: Annotated[Path, typer.Option(help="folder of the numbers and the picture", parser=local_path)] = Path(
        "surfaces"
    ),
) -> None:
    """The lecture's small surfaces: where each method walks, its numbers, a picture."""
    from largebatch.studies import surface

    point = coordinates(start) if start is not None else None
    facts = surface.measure(name, method, lr, momentum, updates, point, command())
    console = Console()
    console.print(surface.table(facts))
    for sentence in facts["notes"]:
        tell(console, sentence)
    if (terms := surface.momentum_table(facts)) is not None:
        console.print(terms)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
    write_numbers(out / f"{facts['name']}.json", facts, console)
    write_picture(out / f"{facts['name']}.svg", facts, console)


def coordinates(text: str) -> list[float]:
    """``-120,-4``"""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--start {text} should be numbers with commas between, such as -120,-4") from None
