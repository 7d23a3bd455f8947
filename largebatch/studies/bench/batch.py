"""Time against the batch size: one update and one epoch, beside the lecture's slides 21 and 22.

Whole updates as training makes them are timed: gather from the device's memory, normalise, forward, backward, step;
nothing is recorded. Batches that do not go through at once are accumulated, as in training. All sizes are measured in
turn, window after window, the order reversed every other time, so that whatever else the machine does meets all alike.
A window is as many updates as fill its share of the seconds, at least one; the host waits for the device at both ends.

The lecture (H. Lee, NTU Machine Learning 2021, small-gradient, slides 21 and 22): an update takes no longer with a
larger batch unless it is too large, and an epoch of a small batch takes longer.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any, NamedTuple

import rich.box
import rich.table
import torch

from largebatch.data import Splits
from largebatch.data.resident import TensorSplit
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config, derive
from largebatch.records.circumstances import circumstances_of
from largebatch.report.numerals import count, decimals, listing, plain
from largebatch.run.assemble import assemble, dataset_of
from largebatch.studies.bench.updates import WARM_UP, Updates, capture


class OfLecture(NamedTuple):
    seconds_per_update: float | None  # slide 21, ± 0.02; None where it only shows that it is below 0.02
    seconds_per_epoch: float  # slide 22, ± 0.7


LECTURE_EXAMPLES = 60_000
LECTURE = {  # MNIST on one Tesla V100; network and framework are not given
    1: OfLecture(None, 363.9),
    10: OfLecture(None, 43.4),
    100: OfLecture(0.02, 14.2),
    1_000: OfLecture(0.15, 8.8),
    10_000: OfLecture(1.54, 8.8),
    60_000: OfLecture(9.46, 8.8),
}


@dataclasses.dataclass
class TimedBatchSize:
    """One batch size; ``calls`` of its updates fill a window."""

    size: int
    updates: Updates
    eager_because: str | None  # on CUDA, where no graph was captured
    calls: int = 1
    seconds_per_update: list[float] = dataclasses.field(default_factory=list)

    @property
    def updates_of_window(self) -> int:
        return self.calls * self.updates.per_call


def parse_sizes(text: str) -> list[int]:
    """``1,10,100`` as numbers, in the order given."""
    sizes: list[int] = []
    for word in text.split(","):
        try:
            size = int(word)
        except ValueError:
            raise UserError(f"--sizes {text}: {word!r} is no whole number; write 1,10,100") from None
        if size < 1:
            raise UserError(f"--sizes {text}: {size} is no batch; at least 1")
        if size in sizes:
            raise UserError(f"--sizes {text} has {size} twice; once is enough")
        sizes.append(size)
    return sizes


def measure(
    run: config.Run, sizes: list[int], seconds: float = 3.0, repeats: int = 5, command: str = "", eager: bool = False
) -> dict[str, Any]:
    """Facts of kind ``batch_time``: some ``seconds`` for each size, in ``repeats`` windows."""
    if distributed.world_size() > 1:
        raise UserError("bench batch measures one process; start it without a launcher")
    if not seconds > 0 or repeats < 1:
        raise UserError(f"--seconds {seconds:g} in {repeats} windows leave nothing to time; give more of them")
    if beside := [method.where for method in run.methods.values() if method.ALONE or method.saved(0)]:
        raise UserError(f"bench batch measures updates of one set of weights; leave {' and '.join(beside)} out")
    if augmenting := derive.words_of_augmentation(run):
        raise UserError(f"bench batch measures updates that do not augment; leave {' and '.join(augmenting)} out")
    device = distributed.choose_device(run.device)
    dataset = dataset_of(run)
    if not isinstance(dataset.train, TensorSplit):
        raise UserError(f"bench batch measures sets that live on the device; {run.data.name} is read from files")
    if dataset.train.augment != "none":
        raise UserError("bench batch measures updates that do not augment; add data.augment=none")
    if too_large := [size for size in sizes if size > len(dataset.train)]:
        raise UserError(
            f"--sizes: {too_large[0]} is larger than the training set of {run.data.name}; at most {len(dataset.train)} "
            "examples can be one batch"
        )
    contestants = [_entered(run, size, device, dataset, eager) for size in sizes]
    for contestant in contestants:
        contestant.calls = _calls_that_fill(contestant, seconds / repeats)
    for number in range(repeats):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            spent = _seconds_of(contestant, contestant.calls)
            contestant.seconds_per_update.append(spent / contestant.updates_of_window)
    return {
        "kind": "batch_time",
        "recipe": run.name,
        "model": run.model.name,
        "data": run.data.name,
        "dataset_size": len(dataset.train),
        "device": device.type,
        "precision": contestants[0].updates.job.decided.precision,
        "sizes": [_row(contestant, len(dataset.train)) for contestant in contestants],
        "eager_because": {str(c.size): c.eager_because for c in contestants if c.eager_because},
        **circumstances_of(command, device),
    }


def table(facts: dict[str, Any]) -> rich.table.Table:
    title = f"{facts['recipe']}: {facts['model']} on {facts['data']}, {facts['device']}, {facts['precision']}"
    shown = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    compared = any(row["lecture_seconds_per_epoch"] for row in facts["sizes"])
    headings = ("batch", "made of", "ms", "low–high", "updates", "s/epoch")
    for heading in (*headings, *(("V100's", "its/ours") if compared else ())):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in facts["sizes"]:
        median, low, high = (_digits(1e3 * row[f"seconds_per_update{end}"]) for end in ("", "_low", "_high"))
        parts, ratio = row["accumulation_steps"], row["lecture_epoch_over_ours"]
        cells = [
            count(row["global_batch_size"]),
            f"{parts} × {count(row['micro_batch_size'])}" if parts > 1 else "",
            median,
            f"{low}–{high}",
            count(row["updates_per_epoch"]),
            ("≈" if row["extrapolated"] else "") + _digits(row["seconds_per_epoch"]),
        ]
        if compared:
            cells += ["–", "–"] if ratio is None else [plain(row["lecture_seconds_per_epoch"]), _digits(ratio)]
        shown.add_row(*cells)
    return shown


def notes(facts: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    rows = facts["sizes"]
    said = ["ms: per update, median over the windows; an epoch is its updates times that; the lr is fixed"]
    if reckoned := [row for row in rows if row["extrapolated"]]:
        timed = [f"batch {count(row['global_batch_size'])} from {count(row['updates_timed'])}" for row in reckoned]
        said.append(f"≈: fewer updates than an epoch has were timed; {listing(timed)}")
    if graphs := [count(row["global_batch_size"]) for row in rows if row["how"] == "cuda graph"]:
        said.append(f"replayed as CUDA graphs: batch {listing(graphs)}")
    said += [f"batch {count(int(size))} without a CUDA graph: {why}" for size, why in facts["eager_because"].items()]
    if any(row["lecture_seconds_per_epoch"] for row in rows):
        said.append("V100: seconds per epoch on the lecture's slide 22, MNIST on one Tesla V100, read off it (± 0.7)")
    return said


def _entered(run: config.Run, size: int, device: torch.device, dataset: Splits, eager: bool) -> TimedBatchSize:
    """Assembled, and warm."""
    stated = run.batch.stated_micro_batch_size
    micro = stated if stated is not None and size % stated == 0 else None  # of a smaller batch its own
    timed = run.model_copy(
        update={
            "epochs": 1.0,
            "steps": None,
            "batch": run.batch.model_copy(update={"global_batch_size": size, "micro_batch_size": micro, "ramp": None}),
            "phases": None,
            "regime_adaptation": None,
            "lr": config.LearningRate(base=1e-4),  # the time of an update does not depend on it, divergence does
            "record": type(run.record)(),
        }
    )
    job = dataclasses.replace(assemble(timed, device), dataset=dataset)
    contestant = TimedBatchSize(size, Updates(job), None)
    try:
        if device.type == "cuda":
            contestant.eager_because = "asked for" if eager else capture(contestant.updates)
        started = time.perf_counter()
        for _ in range(WARM_UP):
            _seconds_of(contestant, 1)
            if time.perf_counter() - started > 1:
                break
    except ValueError as error:  # such as batch norm of one value
        raise UserError(
            f"--sizes: model.name = {run.model.name} does not take a batch of {size}: {str(error).splitlines()[0]}"
        ) from error
    return contestant


def _calls_that_fill(contestant: TimedBatchSize, seconds: float) -> int:
    """From a quarter of a window at least, so that one call's jitter does not decide."""
    calls = 1
    while (spent := _seconds_of(contestant, calls)) < seconds / 4:
        calls *= 2
    return max(1, round(calls * seconds / spent))


def _seconds_of(contestant: TimedBatchSize, calls: int) -> float:
    device = contestant.updates.job.device
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        contestant.updates.call()
    _wait_for(device)
    return time.perf_counter() - start


def _digits(number: float) -> str:
    """Three, or all before the point."""
    return f"{number:,.{decimals([number / 10])}f}"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(contestant: TimedBatchSize, examples: int) -> dict[str, Any]:
    plan, times = contestant.updates.job.plan, contestant.seconds_per_update
    per_update, per_epoch = statistics.median(times), contestant.updates.per_epoch
    timed = contestant.updates_of_window * len(times)
    lecture = LECTURE.get(contestant.size) if examples == LECTURE_EXAMPLES else None
    return {
        "global_batch_size": contestant.size,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "updates_timed": timed,
        "repeats": len(times),
        "how": "eager" if contestant.updates.graph is None else "cuda graph",
        "seconds_per_update": per_update,
        "seconds_per_update_low": min(times),
        "seconds_per_update_high": max(times),
        "updates_per_epoch": per_epoch,
        "seconds_per_epoch": per_epoch * per_update,
        "extrapolated": timed < per_epoch,
        "lecture_seconds_per_update": lecture and lecture.seconds_per_update,
        "lecture_seconds_per_epoch": lecture and lecture.seconds_per_epoch,
        "lecture_epoch_over_ours": lecture and lecture.seconds_per_epoch / (per_epoch * per_update),
    }
