"""What the commands share: their common arguments, the process group around them, where their numbers go."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer

from largebatch.errors import UserError
from largebatch.recipes import paths
from largebatch.terminal.console import Console, tell

MOST = 1e15
"""Of a number that is an option."""


def local_path(text: str) -> Path:
    """An argument or option that names a file or folder of this machine."""
    try:
        return Path(paths.local("path", str(text)))
    except UserError as error:
        raise typer.BadParameter(str(error)) from None


def recipe_file(text: str) -> Path:
    """A file, or that of a name of ``recipe list``; what is neither stays what was typed."""
    path = local_path(text)
    if path.exists():
        return path
    from largebatch.studies.reading import listed_as

    return listed_as(str(text)) or path


Recipe = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="a recipe file, or a name of recipe list", show_default=False, parser=recipe_file
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="override keys of the recipe", show_default=False),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the numbers", parser=local_path)]
PictureFile = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE", help="a picture: .svg, .png", parser=local_path)
]
Weights = Annotated[
    str, typer.Option(metavar="trained|ema|lawa", help="which: ema, their moving average; lawa, of latest snapshots")
]

DeviceHours = Annotated[
    float | None, typer.Option(metavar="H", help="hours in which a device fails once, on average: 50000")
]
Restart = Annotated[
    float | None, typer.Option(metavar="S", help="seconds from a failure until the run works again: 300")
]
Standing = Annotated[
    float | None, typer.Option(metavar="S", help="seconds for which a save lets the run stand still: 10")
]
Lag = Annotated[
    float, typer.Option(metavar="S", help="seconds more until a save can be read: 60; 0 where the run waits for it")
]


def load_parts(context: typer.Context, files: list[Path] | None) -> None:
    """Import the files of ``--with``, before anything of the command looks at a recipe."""
    from largebatch.recipes import registry

    for file in files or ():
        registry.load_file(file)
    if told := registry.in_words():
        context.command.epilog = f"Registered parts: {told}."


With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        metavar="FILE.py",
        help="import this file, which registers parts that a recipe may name",
        parser=local_path,
        callback=load_parts,
        is_eager=True,
        expose_value=False,
    ),
]


class group:
    """Inside: the device chosen, the process group joined, the console of this rank (silent but on rank 0).

    ``alone``: without a launcher a group of one, which the engines other than ddp need.
    """

    def __init__(self, device: str, alone: bool = False, timeout_minutes: float = 10.0) -> None:
        from largebatch.machine import distributed

        chosen = distributed.choose_device(device)
        self.group = distributed.group(chosen, timeout_minutes, alone)

    def __enter__(self) -> rich.console.Console:
        from largebatch.machine import distributed

        self.group.__enter__()
        return Console(quiet=not distributed.is_first())

    def __exit__(self, *problem: Any) -> None:
        self.group.__exit__(*problem)


def check_positive(numbers: Mapping[str, float | None]) -> None:
    """Of options, by their names."""
    for option, value in numbers.items():
        if value is not None and not 0 < value < MOST:
            raise UserError(f"--{option} {value:g} must be above 0{f' and below {MOST:g}' if value >= MOST else ''}")


def check_most(numbers: Mapping[str, float | None], most: Mapping[str, float]) -> None:
    """Of options, by their names."""
    for option, value in numbers.items():
        if value is not None and value > most.get(option, MOST):
            raise UserError(f"--{option} {value:g} is beyond what can be simulated; valid: at most {most[option]:,.0f}")


def check_folder(json_file: Path | None) -> None:
    if json_file and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: the folder {json_file.parent} does not exist")


def write_numbers(json_file: Path | None, facts: dict[str, Any], console: rich.console.Console) -> None:
    """On rank zero. Collective."""
    if json_file:
        from largebatch.records.facts import write_json
        from largebatch.run.record import on_first_rank

        on_first_rank(lambda: write_json(json_file, facts), f"--json {json_file}")
        tell(console, f"numbers: {json_file}")


def check_picture(picture: Path | None) -> None:
    if picture is None:
        return
    if picture.suffix not in (".svg", ".png"):
        raise UserError(f"--picture {picture} should end in .svg or .png")
    if not picture.parent.is_dir():
        raise UserError(f"--picture {picture}: the folder {picture.parent} does not exist")


def write_picture(picture: Path | None, facts: dict[str, Any], console: rich.console.Console) -> None:
    """On rank zero. Collective."""
    if picture:
        from largebatch.report.alone import write_picture
        from largebatch.run.record import on_first_rank

        on_first_rank(lambda: write_picture(facts, picture), f"--picture {picture}")
        tell(console, f"picture: {picture}")


def wide_console() -> rich.console.Console:
    """In a pipe 100 columns, unless $COLUMNS says otherwise."""
    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=100)


def command() -> str:
    return shlex.join(["largebatch", *sys.argv[1:]])
