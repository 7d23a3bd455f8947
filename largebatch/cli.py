"""The front door: parses, calls, prints. No science.

Exit codes: 0 success; 1 a failure of its own, a diverged run among them; 2 a user's mistake, told in one
sentence; 130 and 143 after SIGINT and SIGTERM, with a checkpoint saved. Under a launcher only rank zero speaks.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer

from largebatch.errors import LocalError, UserError

app = typer.Typer(
    name="largebatch",
    help="Train image classifiers with large batches, beside the small-batch momentum baseline.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True, rich_markup_mode=None)
bench_app = typer.Typer(help="Where the time goes.", no_args_is_help=True, rich_markup_mode=None)
recipe_app = typer.Typer(help="Recipes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(recipe_app, name="recipe")

Recipe = Annotated[Path, typer.Argument(metavar="CONFIG", help="a recipe file", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="override keys of the recipe", show_default=False),
]


@app.command()
def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """One run; alone, or one rank of many under torchrun."""
    from largebatch import config

    run = config.load(recipe, overrides or [])
    with _group(run.device, alone=run.engine.name != "ddp") as console:
        from largebatch.train import train

        result = train(run, command=_command(), console=console)
        _end_of_run(result, console)


@app.command()
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
    with _group(config.load(recipes[0], overrides).device, alone=True) as console:
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
                command=_command(),
                console=console,
            )
        except Interrupted as stop:
            console.print(f"stopped: {stop}", markup=False, soft_wrap=True)
            raise typer.Exit(128 + (stop.result.signal or 0)) from None
        if distributed.is_first():
            _report([out], None, console)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, or one comparison")],
    out: Annotated[Path | None, typer.Option(help="folder for report.html and report.md")] = None,
) -> None:
    """The table and the page again, from finished runs."""
    _report(runs, out, rich.console.Console())


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


@bench_app.command("throughput")
def throughput(
    recipe: Recipe,
    overrides: Overrides = None,
    pairs: Annotated[int, typer.Option(min=1, help="alternating pairs of trainer and bare loop")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="steps timed in each half of a pair")] = 60,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the numbers")] = None,
) -> None:
    """Examples per second of the trainer beside a bare PyTorch loop, alternating in one process."""
    from largebatch import config

    run = config.load(recipe, overrides or [])
    _check_folder(json_file)
    with _group(run.device, alone=run.engine.name != "ddp") as console:
        from largebatch.bench import throughput

        facts = throughput.measure(run, pairs, steps, _command())
        console.print(throughput.table(facts))
        _write_numbers(json_file, facts, console)


@bench_app.command("optimizer")
def optimizer(
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="whose weights; again for more; else resnet50 and vit_large"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="where")] = "auto",
    repeats: Annotated[int, typer.Option(metavar="N", help="rounds that count, at least 3")] = 11,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the numbers")] = None,
) -> None:
    """One step of ours, torch's and timm's optimizers in turn, beside each other and the memory's bandwidth."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is not known; valid: auto, cpu, cuda")
    _check_folder(json_file)
    from largebatch import distributed
    from largebatch.bench import optimizer

    chosen = distributed.choose_device(device)
    waiting = optimizer.built(model or list(optimizer.DEFAULT_MODELS), repeats)
    facts = optimizer.circumstances(chosen, repeats, _command())
    console = rich.console.Console()
    while waiting:  # one model's memory at a time
        measured = optimizer.measure(*waiting.pop(0), chosen, repeats)
        facts["models"].append(measured)
        if measured["contestants"]:
            console.print(optimizer.table(measured))
        for sentence in optimizer.notes(measured):
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    _write_numbers(json_file, facts, console)


@recipe_app.command("list")
def list_recipes(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="else ./configs")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the rows")] = None,
) -> None:
    """Recipe files: their papers, workloads, batch sizes and published results."""
    _check_folder(json_file)
    from largebatch import recipes

    rows = recipes.listing(recipes.folder_of(folder))
    console = _wide_console()
    console.print(recipes.table_of(rows))
    _write_numbers(json_file, {"recipes": rows}, console)


@recipe_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a recipe file, or a name of recipe list")],
    overrides: Overrides = None,
    batch: Annotated[int | None, typer.Option(metavar="B", min=1, help="global batch size")] = None,
    devices: Annotated[int, typer.Option(metavar="N", min=1, help="ranks")] = 1,
    examples: Annotated[int | None, typer.Option(metavar="N", min=1, help="training set, if not a named one")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the numbers")] = None,
) -> None:
    """What follows from a recipe at a batch size, with its rules, and the schedule as a plot. Trains nothing."""
    _check_folder(json_file)
    from largebatch import recipes

    facts = recipes.derived(recipes.located(name), overrides or [], batch, devices, examples)
    console = _wide_console()
    cited = f"{facts['paper']}; " if facts["paper"] else ""
    heading = f"{facts['title'] or facts['path']}\n{cited}{facts['model']} on {facts['data']}\n"
    console.print(heading, markup=False, highlight=False)
    console.print(recipes.rows_as_table(facts))
    console.print(f"\n{recipes.published_words(facts)}", markup=False, highlight=False)
    width = max(30, min(60, console.width - 12))
    console.print(f"\n{recipes.as_plot(facts, width)}", markup=False, highlight=False, soft_wrap=True)
    _write_numbers(json_file, facts, console)


@recipe_app.command("schema")
def schema() -> None:
    """The JSON schema of recipe files, for editors that complete and check them."""
    import json

    from largebatch.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


class _group:
    """Inside: the device chosen, the process group joined, the console of this rank (silent but on rank 0).

    ``alone``: without a launcher a group of one, which the engines other than ddp need.
    """

    def __init__(self, device: str, alone: bool = False) -> None:
        from largebatch import distributed

        self.group = distributed.group(distributed.choose_device(device), alone=alone)

    def __enter__(self) -> rich.console.Console:
        from largebatch import distributed

        self.group.__enter__()
        return rich.console.Console(quiet=not distributed.is_first())

    def __exit__(self, *problem: Any) -> None:
        self.group.__exit__(*problem)


def _end_of_run(result: Any, console: rich.console.Console) -> None:
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


def _check_folder(json_file: Path | None) -> None:
    if json_file and not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: the folder {json_file.parent} does not exist")


def _write_numbers(json_file: Path | None, facts: dict[str, Any], console: rich.console.Console) -> None:
    if json_file:
        from largebatch.record import write_json

        write_json(json_file, facts)
        console.print(f"numbers: {json_file}", markup=False)


def _wide_console() -> rich.console.Console:
    """In a pipe 100 columns, unless $COLUMNS says otherwise."""
    console = rich.console.Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else rich.console.Console(width=100)


def _report(paths: list[Path], out: Path | None, console: rich.console.Console) -> None:
    from largebatch import report

    written = report.write(paths, out)
    console.print(written.table)
    console.print(written.verdict, markup=False, highlight=False)
    console.print(f"report: {written.html}", markup=False, highlight=False, soft_wrap=True)


def _command() -> str:
    return shlex.join(["largebatch", *sys.argv[1:]])


def main() -> None:
    """The program, with its exit codes. ``--local_rank``, which some launchers append, is dropped."""
    rank = int(os.environ.get("RANK", "0"))
    arguments = [text for text in sys.argv[1:] if not text.startswith(("--local_rank=", "--local-rank="))]
    sys.argv[1:] = arguments
    try:
        app(args=arguments)
    except UserError as error:
        if rank == 0 or isinstance(error, LocalError):
            whose = f"rank {rank}: " if rank else ""
            print(f"largebatch: {whose}{error}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
