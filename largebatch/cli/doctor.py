"""doctor: what a run would meet here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import rich.console
import typer

from largebatch.cli.frame import JsonFile, Overrides, With, check_folder, command, local_path, write_numbers
from largebatch.terminal.console import Console, tell

OptionalRecipe = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", help="a recipe file, checked too", show_default=False, parser=local_path),
]


def doctor(
    recipe: OptionalRecipe = None, overrides: Overrides = None, json_file: JsonFile = None, parts: With = None
) -> None:
    """What a run would meet here, and what would go wrong; alone, or on all ranks of a launcher."""
    from largebatch.recipes import config

    run = config.load(recipe, overrides or []) if recipe else None
    check_folder(json_file)
    from largebatch.machine import distributed
    from largebatch.studies import doctor

    try:
        with doctor.together():
            facts = doctor.examine(run, command())
            console = Console(quiet=not distributed.is_first())
            for key, text in doctor.lines(facts).items():
                tell(console, f"{key:>11}  {text}")
            show_findings(facts["findings"], console)
            write_numbers(json_file, facts, console)
    except doctor.NotTogether as problem:
        print(f"largebatch: {problem}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None
    if facts["findings"]:
        raise typer.Exit(1)


def show_findings(findings: list[str], console: rich.console.Console) -> None:
    count = {0: "nothing would go wrong", 1: "one thing would go wrong:"}
    console.print(count.get(len(findings), f"{len(findings)} things would go wrong:"), highlight=False)
    for sentence in findings:
        tell(console, f"  - {sentence}")
