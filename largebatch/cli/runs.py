"""train, compare, report: what makes run directories, and what is read from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer

from largebatch.cli.frame import (
    JsonFile,
    Overrides,
    Recipe,
    With,
    check_folder,
    command,
    group,
    local_path,
    recipe_file,
    wide_console,
    write_numbers,
)
from largebatch.errors import UserError
from largebatch.records import names
from largebatch.records.comparison import SAMPLERS, SPACES, Tuning
from largebatch.report.numerals import listing
from largebatch.terminal.console import Console, tell

TRIALS = 7


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="decide, check and count; train nothing")] = False,
    world: Annotated[int | None, typer.Option(metavar="N", min=1, help="dry run: so many ranks")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cuda|cpu", help="dry run: theirs; else the recipe's, or cuda with --world")
    ] = None,
    memory: Annotated[float | None, typer.Option(metavar="GiB", help="dry run: refuse what needs more a rank")] = None,
    examples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="dry run: training images of a folder")
    ] = None,
    classes: Annotated[int | None, typer.Option(metavar="N", min=1, help="dry run: classes of a folder")] = None,
    begins_from: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN[@step]", help="begin with the weights of another run: sets start.run"),
    ] = None,
    with_optimizer: Annotated[
        bool, typer.Option("--with-optimizer", help="and with the states of its optimizer: start.optimizer=true")
    ] = False,
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """One run; alone, or one rank of many under torchrun. Or what it would be on a cluster: --dry-run."""
    from largebatch.recipes import config

    asked = {"world": world, "device": device, "memory": memory, "examples": examples, "classes": classes}
    for option, value in (asked | {"json": json_file}).items():
        if value is not None and not dry_run:
            raise UserError(f"--{option} {value} needs --dry-run")
    if device not in (None, "cuda", "cpu"):
        raise UserError(f"--device {device} is not known; valid: cuda, cpu")
    if memory is not None and not memory > 0:
        raise UserError(f"--memory {memory:g} must be above 0")
    run = config.load(recipe, [*start_of(begins_from, with_optimizer), *(overrides or [])])
    if dry_run:
        show_dry_run(run, json_file, **asked)
        return
    # a time-out of the collectives says less than the watchdog's, so it comes later
    with group(run.device, run.engine.name != "ddp", 1.5 * run.timeout_minutes) as console:
        from largebatch.run.train import train

        result = train(run, command=command(), console=console)
        end_of_run(result, console)


def start_of(begins_from: str | None, with_optimizer: bool) -> list[str]:
    """The overrides that ``--from`` stands for."""
    from largebatch.recipes import config

    if begins_from is None:
        return ["start.optimizer=true"] if with_optimizer else []
    from largebatch.recipes.paths import run_named

    directory, asked = run_named(begins_from)
    keys = {"start.run": directory, "start.checkpoint": asked}
    return [
        *(config.setting(key, value) for key, value in keys.items()),
        *(["start.optimizer=true"] if with_optimizer else []),
    ]


def show_dry_run(
    run: Any, json_file: Path | None, world: int | None, device: str | None, memory: float | None,
    examples: int | None, classes: int | None,
) -> None:  # fmt: skip
    check_folder(json_file)
    from largebatch.studies import reading as recipes
    from largebatch.studies.dry_run import Cluster, dry_run, show, usual_device

    cluster = Cluster(world or 1, device or usual_device(run.device, world), examples, classes)
    facts = dry_run(run, cluster, command(), memory)
    console = wide_console()
    for key, text in facts["decisions"].items():
        tell(console, f"{key:>10}  {text}")
    width = max(30, min(60, console.width - 12))
    console.print(f"\n{recipes.as_plot(facts, width)}\n", markup=False, highlight=False, soft_wrap=True)
    for sentence in show.sentences(facts):
        tell(console, sentence)
    for table in (show.memory_table(facts), show.collectives_table(facts)):
        console.print()
        console.print(table)
    write_numbers(json_file, facts, console)


Finalists = Annotated[
    int, typer.Option(min=1, help="best trials that are run under two more seeds before one is chosen; 1: none")
]


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... [KEY=VALUE]... | RUN...",
            help="recipe files or names of recipe list, and overrides for all of them; or run folders that are there",
        ),
    ],
    vary: Annotated[list[str] | None, typer.Option(metavar="KEY=A,B,C", help="a row for each value")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs per row, with seeds 0, 1, ...")] = 1,
    tune: Annotated[
        str | None,
        typer.Option(metavar="lr|search", help="search every row's lr.base first, or what its section search names"),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="trials of the search, the same for every row")] = TRIALS,
    sampler: Annotated[
        str | None, typer.Option(metavar="quasi_random|tpe", help="where the trials lie; else quasi_random")
    ] = None,
    finalists: Finalists = 1,
    hold_out: Annotated[
        int | None, typer.Option(min=1, help="training examples the search is judged on; else a sixth")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="the row, or the run, compared with; else the smallest batch")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the comparison; else comparisons/comparison, of runs report", parser=local_path),
    ] = None,
    parts: With = None,
) -> None:
    """Many runs, one table, one report. What an interrupted comparison finished is kept."""
    from largebatch.recipes import config

    if any(map(os.path.isdir, arguments)):
        given = {"vary": vary, "seeds": seeds if seeds > 1 else None, "tune": tune, "hold-out": hold_out}
        given |= {"sampler": sampler, "trials": trials != TRIALS and trials, "finalists": finalists > 1 and finalists}
        compare_runs(arguments, baseline, out, given)
        return
    out = out or Path("comparisons/comparison")
    of_files = [text for text in arguments if "=" not in text or os.path.exists(text)]
    recipes, overrides = list(map(recipe_file, of_files)), [text for text in arguments if text not in of_files]
    if not recipes:
        raise UserError("compare needs at least one recipe file")
    tuning = tuning_of(tune, trials, hold_out, sampler, finalists)
    first = config.load(recipes[0], overrides)
    with group(first.device, alone=True, timeout_minutes=1.5 * first.timeout_minutes) as console:
        from largebatch.machine import distributed
        from largebatch.studies.compare import Interrupted, compare

        try:
            compare(
                recipes, out, vary=vary or [], overrides=overrides, seeds=seeds, tuning=tuning, baseline=baseline,
                command=command(), console=console,
            )  # fmt: skip
        except Interrupted as stop:
            end_of_run(stop.result, console)
        if distributed.is_first():
            show_report([out], None, console)


def compare_runs(arguments: list[str], baseline: str | None, out: Path | None, given: dict[str, Any]) -> None:
    """One table of runs that were made separately."""
    from largebatch.studies.reading import runs

    for text in arguments:
        if not runs.is_run(Path(text)):
            raise UserError(f"{text} is no run folder; compare takes recipe files, or run folders alone")
    folders = [Path(text).resolve() for text in arguments]
    if twice := [text for text, folder in zip(arguments, folders, strict=True) if folders.count(folder) > 1]:
        raise UserError(f"{listing(twice)} are one run; name each once")
    for option, value in given.items():
        if value:
            raise UserError(f"--{option} is for recipes, which it trains; these runs are there")
    paths = runs.in_order([Path(text) for text in arguments], None if baseline is None else Path(baseline))
    console = Console()
    tell(console, f"baseline: {paths[0]}{'' if baseline else ', of the smallest batch'}")
    show_report(paths, out, console)


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="else runs", parser=local_path)] = Path("runs"),
    json_file: JsonFile = None,
) -> None:
    """The runs that lie in a folder: recipe, state, epochs, batch, score, when."""
    check_folder(json_file)
    from largebatch.studies.reading import runs as reading

    rows = reading.runs_in(folder)
    console = wide_console()
    if rows:
        console.print(reading.table_of_runs(rows), soft_wrap=True)
    else:
        tell(console, f"{folder} holds no runs")
    for row in rows:
        if row["state"] == "unreadable":
            tell(console, f"{row['run']}: {row['reason']}")
    write_numbers(json_file, {"folder": str(folder), "runs": rows}, console)


def tuning_of(
    tune: str | None, trials: int, hold_out: int | None, sampler: str | None, finalists: int
) -> Tuning | None:
    for option, value, valid in (("tune", tune, SPACES), ("sampler", sampler, SAMPLERS)):
        if value is not None and value not in valid:
            raise UserError(f"--{option} {value} is not known; valid: {', '.join(valid)}")
    if tune is None:
        if sampler is not None:
            raise UserError(f"--sampler {sampler} needs --tune")
        if finalists > 1:
            raise UserError(f"--finalists {finalists} needs --tune")
        return None
    if finalists > trials:
        raise UserError(f"--finalists {finalists} are more than --trials {trials}; valid: 1 to {trials}")
    return Tuning(trials, hold_out, space=tune, sampler=sampler or SAMPLERS[0], finalists=finalists)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="run folders, comparisons, or a study", parser=local_path)
    ],
    out: Annotated[
        Path | None, typer.Option(help=f"folder for {names.REPORT_PAGE} and {names.REPORT_TEXT}", parser=local_path)
    ] = None,
) -> None:
    """The table and the page again, from finished runs or from a study."""
    from largebatch.report import study

    if studies := [path for path in runs if study.is_study(path)]:
        if len(runs) > 1:
            raise UserError(f"{studies[0]} is a study, which is reported alone")
        show_study(study.read_facts(studies[0]), out or studies[0], wide_console())
        return
    show_report(runs, out, Console())


def end_of_run(result: Any, console: rich.console.Console) -> None:
    from largebatch.machine.signals import leave_exit_code, stopped_with

    if result.status == "finished":
        leave_exit_code(0)  # whatever signal came too late to stop it
    if result.status == "failed":
        leave_exit_code(1)  # started anew it would fail again
    tell(console, str(result))
    if result.status == "finished":
        return
    if result.signal is None:
        raise typer.Exit(1)  # the machine failed, which a launcher's new start may mend
    raise typer.Exit(stopped_with(result.signal))


def show_study(facts: Any, out: Path, console: rich.console.Console) -> None:
    from largebatch.report import study

    written = study.write(facts, out)
    for part in study.printed(facts):
        tell(console, part) if isinstance(part, str) else console.print(part)
    tell(console, f"report: {written}")


def show_report(paths: list[Path], out: Path | None, console: rich.console.Console) -> None:
    from largebatch import report

    written = report.write(paths, out)
    console.print(written.table)
    console.print(written.verdict, markup=False, highlight=False)
    tell(console, f"report: {written.html}")
