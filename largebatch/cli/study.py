"""study: steps and time to a target against the batch.

``show`` draws points that are there. A first word that names no command of this group is where a study's file will
stand: :meth:`StudyGroup.resolve_command` is the place that hands it on, and refuses it as long as no command takes one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from largebatch.cli.frame import JsonFile, check_folder, command, local_path, wide_console, write_numbers, write_picture
from largebatch.errors import UserError, suggestion
from largebatch.terminal.console import tell


class StudyGroup(typer.core.TyperGroup):
    """Its commands, and files of studies in their place."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise UserError(f"study {args[0]} is not known{suggestion(args[0], known)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=StudyGroup, help="Steps and time to a target against the batch.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def show(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="mlperf/resnet50, ..., or a file of points", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="a picture and the numbers of each", parser=local_path)
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Published points: steps to the target against batch, fitted and drawn; without a name, which there are."""
    from largebatch.records.typed import content
    from largebatch.studies.curves import published, shown

    console = wide_console()
    if not names:
        console.print(shown.listing_of(published.names()))
        return
    if json_file and len(names) > 1:
        raise UserError(f"--json {json_file} takes one name; --out FOLDER writes the numbers of each")
    check_folder(json_file)
    measured = [shown.measure(name, command()) for name in names]
    for facts in measured:
        for curve in facts.curves:
            console.print(shown.table(facts, curve))
            for sentence in shown.notes(facts, curve):
                tell(console, sentence)
        if out:
            place = made(out / facts.name)
            write_picture(place.with_name(f"{place.name}.svg"), content(facts), console)
            write_numbers(place.with_name(f"{place.name}.json"), content(facts), console)
        write_numbers(json_file, content(facts), console)


def made(place: Path) -> Path:
    """The same, below a folder that is there."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: the folder {place.parent} cannot be made: {error.strerror or error}") from None
    return place
