"""surface: the lecture's small surfaces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import rich.console
import typer

from largebatch.cli.frame import check_folder, command, write_numbers, write_picture


def surface(
    name: Annotated[str, typer.Argument(metavar="NAME", help="saddle, ravine, valley", show_default=False)],
    method: Annotated[list[str] | None, typer.Option(metavar="NAME", help="again for more; else the lecture's")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate of every method")] = None,
    momentum: Annotated[float | None, typer.Option(help="of the methods that have one")] = None,
    updates: Annotated[int | None, typer.Option(metavar="N", help="how many")] = None,
    start: Annotated[str | None, typer.Option(metavar="X,Y", help="where; else the lecture's")] = None,
    out: Annotated[Path, typer.Option(help="folder of the numbers and the picture")] = Path("surfaces"),
) -> None:
    """The lecture's small surfaces: where each method walks, its numbers, a picture."""
    from largebatch import surface

    facts = surface.measure(name, method, lr, momentum, updates, surface.parse_start(start), command())
    console = rich.console.Console()
    console.print(surface.table(facts))
    for sentence in facts["notes"]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if (terms := surface.momentum_table(facts)) is not None:
        console.print(terms)
    check_folder(out)
    out.mkdir(exist_ok=True)
    write_numbers(out / f"{facts['name']}.json", facts, console)
    write_picture(out / f"{facts['name']}.svg", facts, console)
