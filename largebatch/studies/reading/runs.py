"""The runs that lie in a folder, read from their records; and whether some of them may stand in one table. No torch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rich.markup
import rich.table

from largebatch.errors import UserError
from largebatch.records import names
from largebatch.records.run import EvaluateLine
from largebatch.report.run import SPLITS, RecordedRun, read_run

COLUMNS = ("run", "recipe", "state", "epochs", "batch", "score", "seed", "begun")


def is_run(path: Path) -> bool:
    return all(os.path.isfile(path / name) for name in (names.RECIPE, names.PLAN))  # of any text: it never raises


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """A row for each, those begun last first."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; runs lie in runs/, unless record.dir says otherwise")
    found = [row_of(path, folder) for path in _below(folder)]
    return sorted(found, key=lambda row: (str(row["begun"] or ""), row["run"]), reverse=True)


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(folder):
        if is_run(Path(place)):
            yield Path(place)
            folders.clear()  # nothing of a run is another one
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def row_of(path: Path, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(path.relative_to(folder)) if path != folder else str(path)}
    try:
        run = read_run(path, row["run"])
    except UserError as problem:
        return row | dict.fromkeys(COLUMNS[1:]) | {"state": "unreadable", "reason": str(problem)}
    evaluations = [line for line in run.lines_of(EvaluateLine) if line.split in SPLITS]
    last = evaluations[-1].number(run.score.key) if evaluations else None
    reached = run.reached() if run.finished else last
    steps = run.lines[-1].step if run.lines else 0
    share = steps / run.plan.steps if run.plan.steps else 0.0
    return row | {
        "recipe": run.plan.name,
        "state": "running" if _is_trained_in(path) else run.status,
        "epochs": run.epochs if run.finished else share * (run.plan.epochs or 0.0),
        "of_epochs": run.plan.epochs,
        "batch": run.plan.global_batch_size,
        "score": reached,
        "score_key": run.score.key,
        "score_words": None if reached is None else run.score.of(reached),
        "seed": run.seed,
        "begun": run.plan.started,
        "reason": None if run.finished else run.reason,
    }


def _is_trained_in(path: Path) -> bool:
    """Whether another process holds it, as far as this host knows.

    A lock is the only thing that a killed process leaves nothing of, and to try it is the only way to see it: flock
    has no question (/proc/locks knows neither file systems in layers nor other containers). So it is taken, shared, and
    let go at once; two that look do not meet, and a run that begins in that instant tries again (run/record.py).
    """
    try:
        with open(path / names.METRICS, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def table_of_runs(rows: Sequence[dict[str, Any]]) -> rich.table.Table:
    table = rich.table.Table(box=None, padding=(0, 2), pad_edge=False)
    for column in COLUMNS:
        right = column in ("epochs", "batch", "score", "seed")
        table.add_column(column, justify="right" if right else "left", no_wrap=True, min_width=len(column))
    for row in rows:
        table.add_row(*map(rich.markup.escape, _cells(row)))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    if row["state"] == "unreadable":
        return [row["run"], "", "unreadable", "", "", "", "", ""]
    epochs = f"{row['epochs']:.4g}" if row["epochs"] is not None else ""
    if row["state"] != "finished" and row["of_epochs"]:
        epochs += f" of {row['of_epochs']:.4g}"
    begun = str(row["begun"] or "").partition("+")[0].replace("T", " ")[:16]
    score = row["score_words"] or ""
    return [row["run"], row["recipe"] or "", row["state"], epochs, f"{row['batch']:,}", score, str(row["seed"]), begun]


def in_order(paths: Sequence[Path], baseline: Path | None) -> list[Path]:
    """The baseline first: as stated, else the smallest batch, of equal ones the first that is given. Refused where two
    were judged by other examples or another number."""
    runs = {path: read_run(path, str(path)) for path in paths}
    if baseline is not None and baseline.resolve() not in {path.resolve() for path in paths}:
        raise UserError(f"--baseline {baseline} is none of the runs; valid: {', '.join(map(str, paths))}")
    check_comparable(runs)
    if baseline is None:
        first = min(paths, key=lambda path: runs[path].plan.global_batch_size)
    else:
        first = next(path for path in paths if path.resolve() == baseline.resolve())
    return [first, *(path for path in paths if path != first)]


def check_comparable(runs: dict[Path, RecordedRun]) -> None:
    (first, one), *others = runs.items()
    for path, other in others:
        for what, wanted, found in (
            ("task", one.plan.task, other.plan.task),
            ("data", one.plan.dataset, other.plan.dataset),
            ("score", one.score.name, other.score.name),
            ("split that it is judged on", one.known_split, other.known_split),
            ("number of examples that it is judged on", one.plan.test_size, other.plan.test_size),
        ):
            if wanted != found and None not in (wanted, found):  # what a run has not said yet is no difference
                raise UserError(
                    f"{first} and {path} cannot be compared: the {what} of the one is {wanted}, of the other {found}"
                )
