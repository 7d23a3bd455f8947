"""Images per second of every way to get training batches: ours, our peers', and decoding alone.

All ways run in one process with one thread and no workers, turn by turn; the order is reversed every other round. The
seconds of a window are those that the processor worked for this process (and for its children, where a way has any),
so that other work on the machine counts little and the figure is images per second of one core. A ratio is the median
of the ratios to timm's loader within each round.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import rich.box
import rich.table
import torch

from largebatch.data.places import data_folder
from largebatch.errors import UserError
from largebatch.machine import launched
from largebatch.records.circumstances import circumstances_of
from largebatch.studies.bench.loading import own_sets
from largebatch.studies.bench.loading.ours import ours, with_workers
from largebatch.studies.bench.loading.peers import TIMM, peers, timm_way
from largebatch.studies.bench.loading.ways import Candidate, PhotoFolder, Way, decoders

KINDS = {"decoding": "decoding alone", "ours": "largebatch", "peer": "peers"}


class ReadingTime(NamedTuple):
    images: int
    processor_seconds: float
    wall_seconds: float

    @property
    def per_core(self) -> float:
        return self.images / self.processor_seconds

    @property
    def by_the_clock(self) -> float:
        return self.images / self.wall_seconds


ReadingTimes = dict[str, list[ReadingTime]]  # of each way by its name, one for each round


def default_source() -> Path:
    """The sample photographs beside the data sets."""
    found = data_folder() / "imagenet_samples"
    if not found.is_dir():
        raise UserError(f"{found} is missing: name a folder of JPEG images, or an image folder with train/<class>/")
    return found


def measure(
    sample: PhotoFolder,
    seconds: float,
    repeats: int,
    command: str,
    workers: int = 0,
    only: list[Candidate] | None = None,
) -> dict[str, Any]:
    """The numbers of every way that can run here, each with its unit in its name; the others under ``left_out``.

    ``workers``: two ways, ours and timm's, are measured by the clock with so many worker processes as well.
    """
    if launched.number(os.environ, "WORLD_SIZE", 1) > 1:
        raise UserError("bench data measures one process; start it without a launcher")
    if not 0 < seconds < float("inf"):
        raise UserError(f"--seconds {seconds:g} leave nothing to time; give some for each way, such as 5")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        own = [*own_sets.of_ours(sample), *own_sets.of_torch(sample)]
        candidates = only or [*decoders(sample), *ours(sample), *peers(sample), *own]
        ways, left_out = _open(candidates)
        windows = _rounds(ways, seconds, repeats)
        facts = {
            "source": str(sample.source),
            "photographs": len(sample.distinct),
            "images": sample.images,
            "megabytes": sample.megabytes,
            "kilobytes_per_image": sample.megabytes / sample.images * 1e3,
            "image_size": sample.size,
            "batch": sample.batch,
            "repeats": repeats,
            "seconds_per_way": seconds,
            "ways": [_row(way, windows) for way in ways],
            "wanted": _wanted(ways, windows),
            "left_out": left_out,
        }
        if workers:
            facts["workers"] = workers
            facts["with_workers"], wanted = _with_workers(sample, workers, seconds, repeats)
            facts["wanted"] += wanted
    finally:
        torch.set_num_threads(threads)
    return facts | {
        **circumstances_of(command, torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }


def _open(candidates: list[Candidate]) -> tuple[list[Way], list[str]]:
    """Those that give a first batch, and a sentence for each of the others."""
    ways, left_out = [], []
    for candidate in candidates:
        try:
            way = candidate.opened()
            _window(way, 0.0)
        except Exception as reason:  # packages of others, missing or of another version, fail in any way
            told = str(reason).strip().split("\n")[0] or type(reason).__name__
            left_out.append(f"{candidate.name} was not measured: {told}")
        else:
            ways.append(way)
    return ways, left_out


def _rounds(ways: list[Way], seconds: float, repeats: int) -> ReadingTimes:
    windows: ReadingTimes = {way.name: [] for way in ways}
    for number in range(repeats):
        for way in reversed(ways) if number % 2 else ways:
            windows[way.name].append(_window(way, seconds / repeats))
    return windows


def _window(way: Way, seconds: float) -> ReadingTime:
    """At least one batch; the first, for which files are listed and workers started, is not timed."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers, about themselves
        batches = way.batches()
        try:
            next(batches)
            return _timed(batches, seconds)
        finally:
            getattr(batches, "close", lambda: None)()


def _timed(batches: Iterator[int], seconds: float) -> ReadingTime:
    images = 0
    begun, worked = time.perf_counter(), _processor_seconds()
    while True:
        images += next(batches)
        if time.perf_counter() - begun >= seconds:
            break
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return ReadingTime(images, _processor_seconds() - worked, time.perf_counter() - begun)


def _processor_seconds() -> float:
    """Of all threads of this process, and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _row(way: Way, windows: ReadingTimes) -> dict[str, Any]:
    mine = windows[way.name]
    row: dict[str, Any] = {
        "name": way.name,
        "kind": way.kind,
        "gives": way.gives,
        "how": way.how,
        "images_per_second_per_core": [window.per_core for window in mine],
        "images_per_second_per_core_median": statistics.median(window.per_core for window in mine),
        "images_per_second_median": statistics.median(window.by_the_clock for window in mine),
    }
    if TIMM in windows:
        ratios = [window.per_core / timm.per_core for window, timm in zip(mine, windows[TIMM], strict=True)]
        row |= {"over_timm": ratios, "over_timm_median": statistics.median(ratios)}
    return row


def _wanted(ways: list[Way], windows: ReadingTimes) -> list[dict[str, Any]]:
    """What the project wants of its ways, beside what was measured: facts, nobody fails by them."""
    return [
        _wish(
            way, [window.per_core for window in windows[way.name]], [w.per_core for w in windows[way.over]], "per core"
        )
        for way in ways
        if way.wanted is not None and way.over in windows
    ]


def _wish(way: Way, speeds: list[float], others: list[float], of_what: str) -> dict[str, Any]:
    """The median of the ratios within each round."""
    ratio = statistics.median(speed / other for speed, other in zip(speeds, others, strict=True))
    return {"what": f"{way.name}: times {way.over}'s images/s {of_what}", "measured": ratio, "at_least": way.wanted}


def _with_workers(
    sample: PhotoFolder, workers: int, seconds: float, repeats: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """By the clock: how ours and others' scale over processes; and what is wanted of it."""
    own = [*own_sets.of_ours(sample, workers), *own_sets.of_torch(sample, workers)]
    timm = Candidate("timm", lambda: timm_way(sample, workers))
    ways, _ = _open([*with_workers(sample, workers), timm, *own])
    windows = _rounds(ways, seconds, repeats)
    rows = []
    for way in ways:
        speeds = [window.by_the_clock for window in windows[way.name]]
        rows.append(
            {"name": way.name, "images_per_second": speeds, "images_per_second_median": statistics.median(speeds)}
        )
    speeds = {name: [window.by_the_clock for window in mine] for name, mine in windows.items()}
    told = f"with {workers} workers, by the clock"
    wanted = [_wish(way, speeds[way.name], speeds[way.over], told) for way in ways if way.wanted and way.over in speeds]
    return rows, wanted


def tables(facts: dict[str, Any]) -> list[rich.table.Table]:
    made = [_table(facts)]
    if rows := facts.get("with_workers"):
        made.append(_workers_table(facts, rows))
    return made


def _table(facts: dict[str, Any]) -> rich.table.Table:
    title = (
        f"{facts['images']:,} images, {facts['kilobytes_per_image']:,.0f} KB each, as batches of {facts['batch']} at "
        f"{facts['image_size']}: {facts['repeats']} windows"
    )
    shown = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "gives", "images/s a core", "least", "most", "× timm's"):
        shown.add_column(heading, justify="left" if heading in ("", "gives") else "right", no_wrap=True)
    for kind, label in KINDS.items():
        rows = [row for row in facts["ways"] if row["kind"] == kind]
        if rows:
            shown.add_row(f"[bold]{label}[/bold]")
        for row in rows:
            speeds = row["images_per_second_per_core"]
            cells = (row["images_per_second_per_core_median"], min(speeds), max(speeds))
            ratio = f"{row['over_timm_median']:.2f}" if "over_timm_median" in row else "–"
            shown.add_row(f"  {row['name']}", row["gives"], *(f"{value:,.0f}" for value in cells), ratio)
    return shown


def _workers_table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> rich.table.Table:
    shown = rich.table.Table(
        title=f"{facts['workers']} workers, by the clock", box=rich.box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in ("", "images/s", "least", "most"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        speeds = row["images_per_second"]
        cells = (row["images_per_second_median"], min(speeds), max(speeds))
        shown.add_row(row["name"], *(f"{value:,.0f}" for value in cells))
    return shown


def notes(facts: dict[str, Any]) -> list[str]:
    """What each way does, what was wanted and came out, what could not be measured."""
    sentences = [f"{row['name']}: {row['how']}" for row in facts["ways"]]
    for row in facts["wanted"]:
        met = "met" if row["measured"] >= row["at_least"] else "not met"
        sentences.append(f"{row['what']}: {row['measured']:.2f}, wanted at least {row['at_least']:g}: {met}")
    return sentences + facts["left_out"]
