"""study: steps and time to a target against the batch.

``largebatch study STUDY.yaml`` is ``study run STUDY.yaml``: a first word that names no command of the group is a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from largebatch.cli.frame import (
    JsonFile,
    With,
    check_folder,
    command,
    group,
    local_path,
    wide_console,
    write_numbers,
    write_picture,
)
from largebatch.errors import UserError, suggestion
from largebatch.terminal.console import Console, tell


class StudyGroup(typer.core.TyperGroup):
    """Its commands, and files of studies in their place."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            if not Path(args[0]).exists():
                raise UserError(f"study {args[0]} is neither a file nor known{suggestion(args[0], known)}")
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=StudyGroup, help="Steps and time to a target against the batch.", no_args_is_help=True, rich_markup_mode=None
)


Out = Annotated[Path, typer.Argument(metavar="FOLDER", help="of the study", parser=local_path)]


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="recipes, batches, a target", parser=local_path)],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="of the study; else studies/NAME", parser=local_path)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that share the study, a device each")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="make runs; leave it to others to tell what came out")] = False,
    parts: With = None,
) -> None:
    """Make the runs of a study that are left, beside whoever else is at it, and tell what came out."""
    from largebatch.studies.study import file as files
    from largebatch.studies.study.folder import StudyFolder

    study = files.load(file)
    folder = StudyFolder(out or Path("studies") / study.name)
    folder.begin(study, files.recipes_of(study, file.resolve().parent))
    if not quiet:
        tell_few_trials(folder)
    if workers > 1:
        from largebatch.studies.study.work import work_beside

        work_beside(workers, [*sys.argv[1:], "--workers", "1", "--quiet"])  # the last number counts
        tell_findings(folder)
        return
    with group("auto", alone=True) as console:
        from largebatch.cli.runs import end_of_run
        from largebatch.studies.compare import Interrupted
        from largebatch.studies.study.work import work

        try:
            work(folder, command(), console)
        except Interrupted as stop:
            end_of_run(stop.result, console)
    if not quiet:
        tell_findings(folder)


def tell_few_trials(folder: Any) -> None:
    from largebatch.report import targets

    cells = folder.cells()
    keys = max(len(cell.search.plan.space.axes) for cell in cells)
    if cells[0].trials < targets.FEW_TRIALS:
        tell(wide_console(), targets.few_trials_in_words(cells[0].trials, keys))


def tell_findings(folder: Any) -> None:
    from largebatch.cli.runs import show_study
    from largebatch.studies.study.findings import findings

    console = wide_console()
    with folder.claimed("findings", wait=True):
        if (facts := findings(folder, command())) is None:
            tell(console, f"{folder.out}: no trial has ended yet")
            return
        show_study(facts, folder.out, console)


@app.command()
def status(folder: Out) -> None:
    """What of a study is done, running and left."""
    from largebatch.studies.study import status as of_study
    from largebatch.studies.study.folder import StudyFolder

    console, begun = wide_console(), StudyFolder(folder)
    console.print(of_study.table(begun))
    for sentence in of_study.sentences(begun):
        tell(console, sentence)


@app.command()
def add(
    folder: Out,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="one more; several times for several")] = None,
    recipe: Annotated[list[Path] | None, typer.Option(metavar="CONFIG", help="one more row", parser=local_path)] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="so many more, for every row and batch")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="so many in all")] = None,
) -> None:
    """More of a study: workers that are at it take it up, others by the same command as before."""
    from largebatch.studies.study.folder import StudyFolder

    if not (batch or recipe or trials or seeds):
        raise UserError("study add needs --batch, --recipe, --trials or --seeds")
    study = StudyFolder(folder).add(batch or [], recipe or [], trials, seeds)
    cells = StudyFolder(folder).cells()
    sizes = ", ".join(map(str, study.batches))
    effort = f"{cells[0].trials} trials and {study.seeds} seeds of each"
    tell(Console(), f"{study.name}: {len(study.recipes)} recipes at batches {sizes}, {effort}")


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
    from largebatch.report import targets
    from largebatch.studies.curves import published
    from largebatch.studies.curves.recorded import measure

    console = wide_console()
    if not names:
        console.print(targets.published([measure(name, "") for name in published.names()]))
        return
    if json_file and len(names) > 1:
        raise UserError(f"--json {json_file} takes one name; --out FOLDER writes the numbers of each")
    check_folder(json_file)
    for facts in [measure(name, command()) for name in names]:
        for curve in facts.curves:
            table = targets.points(facts, curve)
            tell(console, table.caption)
            console.print(table)
            for sentence in (targets.meaning(facts), *targets.notes(facts, curve)):
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
