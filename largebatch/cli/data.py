"""data: get a data set, pack it for speed, look at a pack, check it. Needs no CUDA."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import rich.console
import rich.progress
import typer

from largebatch.cli.frame import local_path, wide_console
from largebatch.errors import UserError
from largebatch.recipes import paths
from largebatch.terminal.console import Console, tell

app = typer.Typer(help="Data sets: fetch, pack, check.", no_args_is_help=True, rich_markup_mode=None)

EVERY_SECONDS = 30.0  # between lines of progress where there is no terminal
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a pack", show_default=False, parser=local_path)]


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="fashion_mnist, mnist, cifar10, cifar100, ...")],
    root: Annotated[
        Path | None, typer.Option(help="folder to keep it in; else the data folder", parser=local_path)
    ] = None,
) -> None:
    """Find a data set, or get it: data folder, system package, public mirrors, Debian's package."""
    from largebatch.data.fetch import fetch

    console = Console()
    tell(console, str(fetch(name, str(root) if root else None, report=lambda text: tell(console, text))))


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="image folder, WebDataset shards or parquet folder", show_default=False)
    ],
    dest: Annotated[
        Path, typer.Argument(metavar="DEST", help="folder of the pack", show_default=False, parser=local_path)
    ],
    size: Annotated[
        int | None, typer.Option(min=1, max=8192, help="side of the packed pixels [default: 256]", show_default=False)
    ] = None,
    jpeg: Annotated[bool, typer.Option("--jpeg", help="keep the encoded images as they are")] = False,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="processes; else one per processor")] = None,
    val: Annotated[
        str | None, typer.Option(metavar="NAME", help="folder or split of the test images; else val or test")
    ] = None,
    skip_unreadable: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="of the training images may be left out")
    ] = 0.0,
) -> None:
    """Images of any size as a few large files that are mapped into memory. Goes on where it was interrupted."""
    if jpeg and size is not None:
        raise UserError(f"--size {size} does not go with --jpeg, which keeps the images as they are")
    console = wide_console()
    try:
        pack_with_progress(source, dest, None if jpeg else size or 256, workers, val, skip_unreadable, console)
    except KeyboardInterrupt as stop:
        tell(
            console,
            f"stopped: {stop}" if str(stop) else "stopped: nothing new is whole, and the same command begins anew",
        )
        raise typer.Exit(130) from None


def pack_with_progress(
    given: str, dest: Path, size: int | None, workers: int | None, val: str | None, skip_unreadable: float,
    console: rich.console.Console,
) -> None:  # fmt: skip
    from largebatch.data.packs import packing
    from largebatch.data.packs.manifest import read_facts
    from largebatch.data.packs.origins import origins

    begin = time.perf_counter()
    if "://" not in given and dest.resolve().is_relative_to(Path(paths.expanded("SRC", given)).resolve()):
        raise UserError(f"{dest} lies in {given}, which it would be a part of the next time; choose another folder")
    lines = ProgressLines(console, "images")
    with bar(console, "images") as progress:
        task: list[rich.progress.TaskID] = []

        def report(made: int, images: int) -> None:
            if not task:  # what an earlier command made is not this one's speed
                task.append(progress.add_task("packing", total=images, completed=made))
            progress.update(task[0], completed=made)
            lines.tell(made, images)

        facts = packing.pack(
            origins(given, val), dest, size=size, skip_unreadable=skip_unreadable, workers=workers,
            say=lambda text: tell(console, text), report=report,
        )  # fmt: skip
    if facts is None:
        tell(console, f"{dest} is there already: {in_short(read_facts(dest))}")
        return
    tell(console, f"{dest}: {in_short(facts)}, {time.perf_counter() - begin:,.1f} s")
    for line in notes(facts):
        tell(console, line)


@app.command()
def verify(root: Folder) -> None:
    """Every byte of a pack against the checksums it was written with; exit code 2 and the file if one is damaged."""
    from largebatch.data.packs import pack

    console = wide_console()
    lines = ProgressLines(console, "MB")
    with bar(console, "MB") as progress:
        task = progress.add_task("reading", total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done / 1e6, total=total / 1e6)
            lines.tell(done // 10**6, total // 10**6)

        facts = pack.verify(root, report)
    tell(console, f"{root} is whole: {in_short(facts)}")


@app.command()
def show(root: Folder) -> None:
    """What a pack holds; of its pixels only the sizes are checked (verify reads every byte)."""
    from largebatch.data.packs.pack import open_pack

    facts = open_pack(root).facts
    console = wide_console()
    tell(console, f"{root}: {in_short(facts)}")
    tell(console, f"of {facts.source.given} ({facts.source.kind}), made by largebatch {facts.largebatch}")
    for line in notes(facts):
        tell(console, line)


def bar(console: rich.console.Console, unit: str) -> rich.progress.Progress:
    """On a terminal alone; gone when it is done."""
    rate = f"{{task.speed:,.0f}} {unit}/s"

    class Rate(rich.progress.ProgressColumn):
        def render(self, task: rich.progress.Task) -> Any:
            return rich.progress.Text("" if task.speed is None else rate.format(task=task))

    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        Rate(),
        rich.progress.TimeRemainingColumn(),
        console=console if console.is_terminal else Console(quiet=True),  # rich 13 ends even a disabled one with a line
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=60,
    )


class ProgressLines:
    """What a bar is on a terminal: elsewhere a line now and then, so that a log shows that it goes on."""

    def __init__(self, console: rich.console.Console, unit: str, every_seconds: float = EVERY_SECONDS) -> None:
        self.console, self.unit, self.every = console, unit, every_seconds
        self.last_line_at = self.begun = time.monotonic()
        self.first: int | None = None

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        if self.console.is_terminal or now - self.last_line_at < self.every or done == total:
            return
        self.last_line_at = now
        rate = (done - self.first) / (now - self.begun)
        tell(self.console, f"{done:,} of {total:,} {self.unit}, {rate:,.0f} {self.unit}/s")


def in_short(facts: Any) -> str:
    images = " and ".join(f"{split.examples:,} {name}" for name, split in facts.splits.items())
    files = [file for split in facts.splits.values() for file in split.promised]
    form = "encoded as they were" if facts.size is None else f"of {facts.size} × {facts.size} pixels"
    size = sum(file.bytes for file in files)
    return f"{images} images of {len(facts.classes):,} classes, {form}, {size / 1e9:,.2f} GB in {len(files)} files"


def notes(facts: Any) -> list[str]:
    """What a user should know of the images before training on them."""
    lines = []
    for name, split in facts.splits.items():
        small = split.smallest
        if split.enlarged:
            lines.append(
                f"{split.enlarged:,} {name} image{'s were' if split.enlarged > 1 else ' was'} enlarged; the smallest, "
                f"{small.name}, is {small.width} × {small.height}"
            )
        if split.left_out:
            first, reason = next(iter(split.left_out.items()))
            lines.append(f"{len(split.left_out):,} of the {name} images left out, all in pack.json: {first} ({reason})")
    if "test" not in facts.splits:
        lines.append("no test images: no val or test was found beside train")
    return lines
