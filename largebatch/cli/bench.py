"""bench: where the time goes."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer

from largebatch.cli.frame import (
    JsonFile,
    Overrides,
    PictureFile,
    Recipe,
    With,
    check_folder,
    check_picture,
    command,
    group,
    local_path,
    wide_console,
    write_numbers,
    write_picture,
)
from largebatch.errors import UserError
from largebatch.terminal.console import Console, tell

app = typer.Typer(help="Where the time goes.", no_args_is_help=True, rich_markup_mode=None)


@app.command("throughput")
def throughput(
    recipe: Recipe,
    overrides: Overrides = None,
    pairs: Annotated[int, typer.Option(min=1, help="rounds in which every contestant has a turn")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="steps timed in each turn")] = 60,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="the trainer itself with this key, and nobody else")
    ] = None,
    dataloader: Annotated[
        bool | None,
        typer.Option("--dataloader/--no-dataloader", help="a DataLoader loop; else where the set is in memory"),
    ] = None,
    compile_timm: Annotated[
        bool | None,
        typer.Option("--compile-timm/--eager-timm", help="torch.compile for timm's model; else on CUDA or as ours"),
    ] = None,
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """Examples per second of the trainer beside the same on ready batches, a bare PyTorch loop and timm's loop,
    alternating; what a step is made of, and what bounds it."""
    from largebatch.recipes import config

    run = config.load(recipe, overrides or [])
    check_folder(json_file)
    with group(run.device, alone=run.engine.name != "ddp") as console:
        from largebatch.studies.bench.throughput import measure as throughput
        from largebatch.studies.bench.throughput import show

        facts = throughput.measure(run, pairs, steps, command(), beside, dataloader, compile_timm)
        for table in show.tables(facts):
            console.print(table)
        for sentence in show.notes(facts):
            tell(console, sentence)
        write_numbers(json_file, facts, console)


@app.command("scaling")
def scaling(
    recipe: Recipe,
    overrides: Overrides = None,
    ranks: Annotated[str, typer.Option(metavar="A,B,...", help="worlds, by their ranks")] = "1,2",
    steps: Annotated[int, typer.Option(min=1, help="steps timed in each world")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="times that each world is started")] = 3,
    launcher: Annotated[str, typer.Option(metavar="torchrun", help="who starts them")] = "torchrun",
    json_file: JsonFile = None,
    parts: With = None,
) -> None:
    """Weak and strong scaling over worlds started here, beside the all-reduce alone; under a launcher of its world."""
    from largebatch.machine import launched
    from largebatch.recipes import config

    run = config.load(recipe, overrides or [])
    check_folder(json_file)
    from largebatch.studies.bench.scaling import measure as scaling

    worlds = scaling.parse_ranks(ranks)
    if launched.place_of(os.environ) is None:
        console = wide_console()
        facts = scaling.measure(
            run, recipe, overrides or [], worlds, steps, rounds, launcher, command(),
            lambda text: tell(console, text),
        )  # fmt: skip
        show_scaling(facts, json_file, console)
    else:
        with group(run.device, alone=run.engine.name != "ddp") as console:
            show_scaling(scaling.measure_here(run, worlds, steps, command()), json_file, console)


def show_scaling(facts: dict[str, Any], json_file: Path | None, console: rich.console.Console) -> None:
    """On rank zero. Collective."""
    from largebatch.studies.bench.scaling import measure as scaling

    for table in scaling.tables(facts):
        console.print(table)
    for sentence in scaling.notes(facts):
        tell(console, sentence)
    write_numbers(json_file, facts, console)


@app.command("batch")
def batch(
    recipe: Recipe,
    overrides: Overrides = None,
    sizes: Annotated[str, typer.Option(metavar="A,B,...", help="batch sizes")] = "1,10,100,1000,10000",
    seconds: Annotated[float, typer.Option(metavar="S", help="timed for each size")] = 3.0,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="windows these are cut into")] = 5,
    eager: Annotated[bool, typer.Option(help="on CUDA: no graphs")] = False,
    json_file: JsonFile = None,
    picture: PictureFile = None,
    parts: With = None,
) -> None:
    """Seconds of an update and an epoch at each batch size, beside the lecture's."""
    from largebatch.recipes import config

    run = config.load(recipe, overrides or [])
    check_folder(json_file)
    check_picture(picture)
    with group(run.device, alone=run.engine.name != "ddp") as console:
        from largebatch.studies.bench import batch

        facts = batch.measure(run, batch.parse_sizes(sizes), seconds, repeats, command(), eager)
        console.print(batch.table(facts))
        for sentence in batch.notes(facts):
            tell(console, sentence)
        write_numbers(json_file, facts, console)
        write_picture(picture, facts, console)


@app.command("optimizer")
def optimizer(
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="whose weights; again for more; else resnet50 and vit_large"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="where")] = "auto",
    repeats: Annotated[int, typer.Option(metavar="N", help="rounds that count, at least 3")] = 11,
    muon: Annotated[bool, typer.Option("--muon", help="torch's Muon and ours; resnet50 and bert_base")] = False,
    ranks: Annotated[
        int | None,
        typer.Option(metavar="N", help="with --muon: a world of so many beside one process", show_default=False),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """One step of ours, torch's and timm's optimizers in turn, beside each other and the memory's bandwidth."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is not known; valid: auto, cpu, cuda")
    check_folder(json_file)
    from largebatch.machine import distributed
    from largebatch.studies.bench import optimizer

    names = model or list(optimizer.OF_MUON if muon else optimizer.DEFAULT_MODELS)
    if ranks is not None:
        if not muon:
            raise UserError(f"--ranks {ranks} is about dealing Muon's matrices; add --muon")
        return dealt_muon(names, device, repeats, ranks, json_file)
    optimizer.check_alone()
    chosen = distributed.choose_device(device)
    waiting = optimizer.built(names, repeats)
    facts = optimizer.circumstances(chosen, repeats, command())
    console = Console()
    while waiting:  # one model's memory at a time
        measured = optimizer.measure(*waiting.pop(0), chosen, repeats, muon)
        facts["models"].append(measured)
        if measured["contestants"]:
            console.print(optimizer.table(measured))
        for sentence in optimizer.notes(measured):
            tell(console, sentence)
    write_numbers(json_file, facts, console)


def dealt_muon(names: list[str], device: str, repeats: int, ranks: int, json_file: Path | None) -> None:
    """Muon's step in a world that is started here, and in each of its processes."""
    from largebatch.studies.bench import dealt, optimizer

    waiting = optimizer.built(names, repeats)
    if not dealt.is_started(ranks):
        return dealt.start(ranks, sys.argv[1:])
    with group(device) as console:
        from largebatch.machine import distributed

        chosen = distributed.choose_device(device)
        facts = optimizer.circumstances(chosen, repeats, command())
        while waiting:
            name, model = waiting.pop(0)
            measured = dealt.measure(name, model, chosen, repeats)
            facts["models"].append(measured)
            console.print(dealt.table(measured))
            for sentence in dealt.notes(measured):
                tell(console, sentence)
        write_numbers(json_file, facts, console)


@app.command("data")
def data(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SRC]", help="train/<class>/*.jpg, or JPEGs alone", show_default=False, parser=local_path
        ),
    ] = None,
    size: Annotated[int, typer.Option(metavar="N", min=1, help="side of a training image")] = 224,
    seconds: Annotated[float, typer.Option(metavar="S", help="timed for each way")] = 5.0,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="windows these are cut into")] = 5,
    images: Annotated[int, typer.Option(metavar="N", min=1, help="taken of SRC; a smaller one is repeated")] = 1024,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="also ours and timm's with so many")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Images per second of one core of every way to get training batches, ours beside timm's, torchvision's, DALI's."""
    check_folder(json_file)
    from largebatch.studies.bench.loading import measure as loading
    from largebatch.studies.bench.loading.ways import sample_of

    with tempfile.TemporaryDirectory(prefix="largebatch-") as folder:
        sample = sample_of(source or loading.default_source(), Path(folder), images, size)
        facts = loading.measure(sample, seconds, repeats, command(), workers)
    console = wide_console()
    for table in loading.tables(facts):
        console.print(table)
    for sentence in loading.notes(facts):
        tell(console, sentence)
    write_numbers(json_file, facts, console)
