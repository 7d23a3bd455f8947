"""train, compare, report, data: what makes run directories, and what is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer

from largebatch.cli.frame import Overrides, Recipe, command, group
from largebatch.errors import UserError

data_app = typer.Typer(help="Data sets.", no_args_is_help=True, rich_markup_mode=None)


def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """One run; alone, or one rank of many under torchrun."""
    from largebatch import config

    run = config.load(recipe, overrides or [])
    with group(run.device, alone=run.engine.name != "ddp") as console:
        from largebatch.train import train

        result = train(run, command=command(), console=console)
        end_of_run(result, console)


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="recipe files, and overrides for all of them"),
    ],
    vary: Annotated[list[str] | None, typer.Option(metavar="KEY=A,B,C", help="a row for each value")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs per row, with seeds 0, 1, ...")] = 1,
    tune: Annotated[str | None, typer.Option(metavar="lr", help="search every row's peak lr first")] = None,
    trials: Annotated[int, typer.Option(min=1, help="trials of the search, the same for every row")] = 7,
    hold_out: Annotated[
        int | None, typer.Option(min=1, help="training examples the search is judged on; else a sixth")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="the row compared with; else the smallest batch")] = None,
    out: Annotated[Path, typer.Option(help="folder of the comparison")] = Path("comparisons/comparison"),
) -> None:
    """Many runs, one table, one report. What an interrupted comparison finished is kept."""
    from largebatch import config

    recipes = [Path(text) for text in arguments if "=" not in text or Path(text).exists()]
    overrides = [text for text in arguments if Path(text) not in recipes]
    if not recipes:
        raise UserError("compare needs at least one recipe file")
    if tune not in (None, "lr"):
        raise UserError(f"--tune {tune} is not known; valid: lr")
    with group(config.load(recipes[0], overrides).device, alone=True) as console:
        from largebatch import distributed
        from largebatch.compare import Interrupted, Tuning, compare

        try:
            compare(
                recipes,
                out,
                vary=vary or [],
                overrides=overrides,
                seeds=seeds,
                tuning=Tuning(trials, hold_out) if tune else None,
                baseline=baseline,
                command=command(),
                console=console,
            )
        except Interrupted as stop:
            console.print(f"stopped: {stop}", markup=False, soft_wrap=True)
            raise typer.Exit(128 + (stop.result.signal or 0)) from None
        if distributed.is_first():
            show_report([out], None, console)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, or comparisons")],
    out: Annotated[Path | None, typer.Option(help="folder for report.html and report.md")] = None,
) -> None:
    """The table and the page again, from finished runs."""
    show_report(runs, out, rich.console.Console())


@data_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="fashion_mnist, mnist, cifar10, cifar100, ...")],
    root: Annotated[Path | None, typer.Option(help="folder to keep it in; else the data folder")] = None,
) -> None:
    """Find a data set, or get it: data folder, system package, public mirrors, Debian's package."""
    from largebatch.data.fetch import fetch

    def say(text: str) -> None:
        print(text, flush=True)

    print(fetch(name, str(root) if root else None, report=say))


def end_of_run(result: Any, console: rich.console.Console) -> None:
    if result.status == "finished":
        numbers = result.numbers
        console.print(
            f"{numbers['test_accuracy_percent']:.2f} % on {numbers['evaluated_on'].replace('_', '-')} after "
            f"{numbers['steps']:,} steps, {numbers['seconds_training']:.1f} s of training; {result.directory}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        return
    console.print(f"{result.status}: {result.reason}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if result.status == "failed" else 128 + (result.signal or 0))


def show_report(paths: list[Path], out: Path | None, console: rich.console.Console) -> None:
    from largebatch import report

    written = report.write(paths, out)
    console.print(written.table)
    console.print(written.verdict, markup=False, highlight=False)
    console.print(f"report: {written.html}", markup=False, highlight=False, soft_wrap=True)
