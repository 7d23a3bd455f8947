"""bench: where the time goes."""

from __future__ import annotations

from typing import Annotated

import rich.console
import typer

from largebatch.cli.frame import (
    JsonFile,
    Overrides,
    PictureFile,
    Recipe,
    check_folder,
    check_picture,
    command,
    group,
    write_numbers,
    write_picture,
)
from largebatch.errors import UserError

app = typer.Typer(help="Where the time goes.", no_args_is_help=True, rich_markup_mode=None)


@app.command("throughput")
def throughput(
    recipe: Recipe,
    overrides: Overrides = None,
    pairs: Annotated[int, typer.Option(min=1, help="alternating pairs of trainer and bare loop")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="steps timed in each half of a pair")] = 60,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="the trainer itself with this key, not the bare loop")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Examples per second of the trainer beside a bare PyTorch loop, or itself under other keys, alternating."""
    from largebatch import config

    run = config.load(recipe, overrides or [])
    check_folder(json_file)
    with group(run.device, alone=run.engine.name != "ddp") as console:
        from largebatch.bench import throughput

        facts = throughput.measure(run, pairs, steps, command(), beside)
        console.print(throughput.table(facts))
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
) -> None:
    """Seconds of an update and an epoch at each batch size, beside the lecture's."""
    from largebatch import config

    run = config.load(recipe, overrides or [])
    check_folder(json_file)
    check_picture(picture)
    with group(run.device, alone=run.engine.name != "ddp") as console:
        from largebatch.bench import batch

        facts = batch.measure(run, batch.parse_sizes(sizes), seconds, repeats, command(), eager)
        console.print(batch.table(facts))
        for sentence in batch.notes(facts):
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
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
    json_file: JsonFile = None,
) -> None:
    """One step of ours, torch's and timm's optimizers in turn, beside each other and the memory's bandwidth."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} is not known; valid: auto, cpu, cuda")
    check_folder(json_file)
    from largebatch import distributed
    from largebatch.bench import optimizer

    chosen = distributed.choose_device(device)
    waiting = optimizer.built(model or list(optimizer.DEFAULT_MODELS), repeats)
    facts = optimizer.circumstances(chosen, repeats, command())
    console = rich.console.Console()
    while waiting:  # one model's memory at a time
        measured = optimizer.measure(*waiting.pop(0), chosen, repeats)
        facts["models"].append(measured)
        if measured["contestants"]:
            console.print(optimizer.table(measured))
        for sentence in optimizer.notes(measured):
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    write_numbers(json_file, facts, console)
