"""data: get a data set, pack images or text for speed, look at a pack, check it. Needs no CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import rich.console
import rich.progress
import typer

from largebatch.cli import pack_words as words
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
    with told_where_it_stopped(console):
        pack_with_progress(source, dest, None if jpeg else size or 256, workers, val, skip_unreadable, console)


@app.command()
def tokenize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="plain text, JSON lines, parquet, a Hugging Face folder, or a folder of them",
            show_default=False,
        ),
    ],
    dest: Annotated[
        Path, typer.Argument(metavar="DEST", help="folder of the pack", show_default=False, parser=local_path)
    ],
    vocabulary: Annotated[
        str,
        typer.Option(metavar="N|FILE", help="train one of so many tokens, or take a vocab.txt", show_default=False),
    ],
    cased: Annotated[bool, typer.Option("--cased", help="keep capitals and accents")] = False,
    hold_out: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=0.5, help="of the documents, to evaluate on")
    ] = 0.01,
    text_key: Annotated[str, typer.Option(metavar="KEY", help="of the text, in JSON lines and tables")] = "text",
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="processes (0: this one); else one per processor")
    ] = None,
) -> None:  # fmt: skip
    """Text as few large files of numbers that are mapped into memory. Goes on where it was interrupted."""
    console = wide_console()
    with told_where_it_stopped(console):
        tokenize_with_progress(source, dest, vocabulary, cased, hold_out, text_key, workers, console)


@contextmanager
def told_where_it_stopped(console: rich.console.Console) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        tell(
            console,
            f"stopped: {stop}" if str(stop) else "stopped: nothing new is whole, and the same command begins anew",
        )
        raise typer.Exit(130) from None


def outside(given: str, dest: Path) -> None:
    """Refuse a pack inside of what it is made from."""
    if "://" not in given and dest.resolve().is_relative_to(Path(paths.expanded("SRC", given)).resolve()):
        raise UserError(f"{dest} lies in {given}, which it would be a part of the next time; choose another folder")


@contextmanager
def progress_of(console: rich.console.Console, doing: str, unit: str, of_unit: int = 1) -> Iterator[Callable]:
    """What is to hear how far it is, and of how much: a bar on a terminal, elsewhere lines."""
    lines = ProgressLines(console, unit)
    with bar(console, unit) as progress:
        task: list[rich.progress.TaskID] = []

        def report(done: int, total: int) -> None:
            if not task:  # what an earlier command made is not this one's speed
                task.append(progress.add_task(doing, total=total / of_unit))
            progress.update(task[0], completed=done / of_unit)
            lines.tell(done // of_unit, total // of_unit)

        yield report


def pack_with_progress(
    given: str, dest: Path, size: int | None, workers: int | None, val: str | None, skip_unreadable: float,
    console: rich.console.Console,
) -> None:  # fmt: skip
    from largebatch.data.packs import packing
    from largebatch.data.packs.manifest import read_facts
    from largebatch.data.packs.origins import origins

    begin = time.perf_counter()
    outside(given, dest)
    with progress_of(console, "packing", "images") as report:
        facts = packing.pack(
            origins(given, val), dest, size=size, skip_unreadable=skip_unreadable, workers=workers,
            say=lambda text: tell(console, text), report=report,
        )  # fmt: skip
    if facts is None:
        tell(console, f"{dest} is there already: {words.in_short(read_facts(dest))}")
        return
    tell(console, f"{dest}: {words.in_short(facts)}, {time.perf_counter() - begin:,.1f} s")
    for line in words.notes(facts):
        tell(console, line)


def tokenize_with_progress(
    given: str, dest: Path, vocabulary: str, cased: bool, hold_out: float, key: str, workers: int | None,
    console: rich.console.Console,
) -> None:  # fmt: skip
    from largebatch.data.text import tokenizing, wordpiece
    from largebatch.data.text.pack import read_facts
    from largebatch.data.text.sources import text_source

    begin = time.perf_counter()
    outside(given, dest)
    wanted = tokenizing.Wanted(wordpiece.vocabulary_asked(vocabulary), cased, hold_out)
    with progress_of(console, "tokenizing", "MB", 10**6) as report:
        facts = tokenizing.tokenize(
            text_source(given, key), dest, wanted, workers=workers, say=lambda text: tell(console, text), report=report
        )
    if facts is None:
        tell(console, f"{dest} is there already: {words.in_short(read_facts(dest))}")
        return
    tell(console, f"{dest}: {words.in_short(facts)}, {time.perf_counter() - begin:,.1f} s")


@app.command()
def verify(root: Folder) -> None:
    """Every byte of a pack against the checksums it was written with; exit code 2 and the file if one is damaged."""
    from largebatch.data.packs import pack as images
    from largebatch.data.text import pack as text

    console = wide_console()
    check = text.verify if text.is_pack(root) else images.verify
    with progress_of(console, "reading", "MB", 10**6) as report:
        facts = check(root, report)
    tell(console, f"{root} is whole: {words.in_short(facts)}")


@app.command()
def show(root: Folder) -> None:
    """What a pack holds; only the sizes of its files are checked (verify reads every byte)."""
    from largebatch.data.packs import pack as images
    from largebatch.data.text import pack as text

    facts = (text.open_pack if text.is_pack(root) else images.open_pack)(root).facts
    console = wide_console()
    tell(console, f"{root}: {words.in_short(facts)}")
    tell(console, f"of {facts.source.given} ({facts.source.kind}), made by largebatch {facts.largebatch}")
    for line in words.notes(facts):
        tell(console, line)


def bar(console: rich.console.Console, unit: str) -> rich.progress.Progress:
    """On a terminal alone; gone when it is done."""

    class Rate(rich.progress.ProgressColumn):
        def render(self, task: rich.progress.Task) -> Any:
            return rich.progress.Text("" if task.speed is None else f"{in_digits(task.speed)} {unit}/s")

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
        left = f", {(total - done) / rate:,.0f} s left" if rate else ""
        tell(self.console, f"{done:,} of {total:,} {self.unit}, {in_digits(rate)} {self.unit}/s{left}")


def in_digits(rate: float) -> str:
    return f"{rate:,.{0 if rate >= 10 else 1}f}"
