"""Comparison folders and run folders on disk -> the rows of a report; nothing is computed here."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.plan.score import ACCURACY, Score
from largebatch.records.comparison import ComparedRow, ComparisonRecord, SearchRecord
from largebatch.records.names import COMPARISON, PLAN
from largebatch.records.run import RecipeRecord
from largebatch.records.typed import finite
from largebatch.records.typed import read as read_as
from largebatch.report.files import json_of
from largebatch.report.run import RecordedRun, read_run


@dataclass(frozen=True)
class Group:
    """One row of a comparison before anything is computed: the same recipe at several seeds."""

    id: str
    label: str
    recipe: str
    """The label before it was told apart from others of the same recipe."""
    config: str | None
    overrides: tuple[str, ...]
    runs: tuple[RecordedRun, ...]
    search: SearchRecord | None
    expect: Mapping[str, object] | None
    published: Mapping[int, float]
    """Batch size -> the score that the recipe cites for it."""
    comparison: str = ""
    """The comparison it stands in, where there are several."""


@dataclass(frozen=True)
class ReportSource:
    """Everything read for one report."""

    name: str
    folder: Path
    commands: tuple[str, ...]
    created: str | None
    baseline: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def read(paths: Sequence[Path]) -> ReportSource:
    """Comparison folders, or run folders of which the first is the baseline."""
    if not paths:
        raise UserError("report needs a comparison folder or at least one run folder, and got none")
    comparisons = [path for path in paths if is_comparison(path)]
    if comparisons and len(comparisons) < len(paths):
        other = next(path for path in paths if path not in comparisons)
        raise UserError(f"{comparisons[0]} is a comparison and {other} is none: report takes comparisons, or runs")
    if not comparisons:
        return read_runs(paths)
    return read_comparison(paths[0]) if len(paths) == 1 else read_comparisons(paths)


def is_comparison(path: Path) -> bool:
    return (path / COMPARISON).is_file()


def read_comparisons(paths: Sequence[Path]) -> ReportSource:
    """Several comparisons as one: rows, labels and runs begin with their comparison's folder; the first's baseline."""
    folder, names = _names(paths, "comparison")
    sources = [read_comparison(path) for path in paths]
    groups = tuple(
        replace(
            group,
            id=f"{name}/{group.id}",
            label=_label(name, group, source.groups),
            runs=tuple(replace(run, name=f"{name}/{run.name}") for run in group.runs),
            comparison=name,
        )
        for name, source in zip(names, sources, strict=True)
        for group in source.groups
    )
    everywhere = set.intersection(*(set(source.notes) for source in sources))
    notes = [note for note in sources[0].notes if note in everywhere]
    notes += [
        f"{name}: {note}"
        for name, source in zip(names, sources, strict=True)
        for note in source.notes
        if note not in everywhere
    ]
    return ReportSource(
        name=folder.name,
        folder=folder,
        commands=tuple(dict.fromkeys(command for source in sources for command in source.commands)),
        created=sources[0].created,
        baseline=f"{names[0]}/{sources[0].baseline}",
        groups=groups,
        notes=tuple(notes),
    )


def read_comparison(folder: Path) -> ReportSource:
    """The folder's ``comparison.json`` and every run it lists."""
    file = folder / COMPARISON
    record = read_as(ComparisonRecord, json_of(file), file)
    groups = _told_apart([_group(folder, row, file) for row in record.rows])
    if not groups:
        raise UserError(f"{file}: rows is empty; a report needs at least one row")
    baseline = record.baseline or groups[0].id
    ids = [group.id for group in groups]
    if len(set(ids)) != len(ids):
        raise UserError(f"{file}: two rows have the same id; ids are {', '.join(ids)}")
    if baseline not in ids:
        raise UserError(f"{file}: baseline {baseline!r} is no row; rows are {', '.join(ids)}")
    return ReportSource(
        name=record.name or folder.resolve().name,
        folder=folder,
        commands=(record.command,) if record.command else (),
        created=record.created,
        baseline=baseline,
        groups=tuple(groups),
        notes=tuple(record.notes or ()),
    )


def _group(folder: Path, row: ComparedRow, file: Path) -> Group:
    label = row.label or row.id
    for name in row.runs:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise UserError(f"{file}: run {name[:60]!r} does not lie in the folder of the comparison")
        if not (folder / name / PLAN).is_file():
            raise UserError(f"{file}: run {name} has not started; run the comparison again to finish it")
    if not row.runs:
        raise UserError(f"{file}: row {label!r} lists no runs; run the comparison again to finish it")
    runs = tuple(read_run(folder / name, name) for name in row.runs)
    expect = row.expect or runs[0].recipe.expect
    return Group(
        id=row.id,
        label=label,
        recipe=label,
        config=row.config,
        overrides=tuple(row.overrides or ()),
        runs=runs,
        search=row.search,
        expect=expected(expect, runs[0].recipe),
        published=published(expect, runs[0].score),
    )


def read_runs(paths: Sequence[Path]) -> ReportSource:
    """Each folder its own row, labelled by the run's name, or by its folder where names repeat."""
    folder, names = _names(paths, "run")
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    titles = [run.plan.name or run.name for run in runs]
    groups = tuple(
        Group(
            id=run.name,
            label=title if titles.count(title) == 1 else f"{title} ({run.name})",
            recipe=title,
            config=None,
            overrides=(),
            runs=(run,),
            search=None,
            expect=expected(run.recipe.expect, run.recipe),
            published=published(run.recipe.expect, run.score),
        )
        for run, title in zip(runs, titles, strict=True)
    )
    name = titles[0] if len(runs) == 1 else folder.name
    return ReportSource(name, folder, (), None, groups[0].id, groups, ())


def _names(paths: Sequence[Path], what: str) -> tuple[Path, list[str]]:
    """The folder that all lie in, and what each is called from there."""
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    names = [str(path.resolve().relative_to(folder)) for path in paths]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise UserError(f"{what} {twice} is given twice; give each {what} folder once")
    return folder, names


def _label(comparison: str, group: Group, beside: Sequence[Group]) -> str:
    """A comparison's name stands for the recipe that all of its rows share."""
    if len(beside) > 1 and all(other.recipe == group.recipe for other in beside):
        return f"{comparison}{group.label.removeprefix(group.recipe)}"
    return f"{comparison}: {group.label}"


def _told_apart(groups: list[Group]) -> list[Group]:
    """Rows of one label get their batch size behind it, or their id where that is the same."""
    of_label: dict[str, list[Group]] = {}
    for group in groups:
        of_label.setdefault(group.label, []).append(group)
    told = []
    for group in groups:
        same = of_label[group.label]
        sizes = [other.runs[0].plan.global_batch_size for other in same]
        if len(same) > 1 and len(set(sizes)) == len(sizes):
            group = replace(group, label=f"{group.label} at {group.runs[0].plan.global_batch_size:,}")
        elif len(same) > 1:
            group = replace(group, label=f"{group.label} ({group.id})")
        told.append(group)
    return told


BY_KEY = ("numbers", "downstream")  # of what a recipe cites: tables of numbers by their key


def expected(expect: Mapping[str, Any] | None, recipe: RecipeRecord) -> dict[str, object] | None:
    """What the recipe says was published, at the batch that this run has: its row, where there are rows."""
    if expect is None:
        return None
    rows = _by_size(expect)
    size = recipe.batch.global_batch_size if recipe.batch else None
    whole = {key: expect.get(key) for key in (*BY_KEY, "top1", "steps")}
    row = ((rows.get(size) if size else None) if rows else whole) or {}
    known = {key: value for key, value in row.items() if value is not None and key not in BY_KEY}
    by_key = {key: value for table in BY_KEY for key, value in _numbers(row, table).items()}
    return {**by_key, **known, "source": str(expect.get("source") or "")}


def published(expect: Mapping[str, Any] | None, score: Score) -> dict[int, float]:
    """The scores that the recipe cites by batch size."""
    cited = ((size, finite(_cited(row or {}, score))) for size, row in _by_size(expect or {}).items())
    return {size: number for size, number in sorted(cited) if number is not None}


def _by_size(expect: Mapping[str, Any]) -> dict[int, Mapping[str, Any] | None]:
    return {int(size): row for size, row in (expect.get("by_batch_size") or {}).items()}


def _cited(row: Mapping[str, Any], score: Score) -> object:
    top = row.get("top1") if score.same_measure(ACCURACY) else None
    return _numbers(row).get(score.key) if top is None else top


def _numbers(row: Mapping[str, Any], table: str = "numbers") -> Mapping[str, object]:
    """What is published by the number's key."""
    numbers = row.get(table)
    return numbers if isinstance(numbers, Mapping) else {}
