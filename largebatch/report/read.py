"""Run directories and comparison folders on disk -> frozen records; nothing is judged here.

A run is ``run.yaml`` (what was asked), ``plan.json`` (what was decided), ``metrics.jsonl`` (what happened)
and ``result.json`` (how it ended). After a resume a step may be recorded twice: the last line counts. A run
without ``result.json`` was killed or is still going: it is kept, as "unfinished". Whatever cannot be
read is a ``UserError`` that names the file.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from largebatch.errors import UserError

SPLITS = ("test", "held_out")


@dataclass(frozen=True)
class Run:
    """One run as it lies on disk. ``train`` and ``evaluations`` are records in the order of their steps."""

    path: Path
    name: str
    """The folder as the reader of the report will know it: relative to what was reported on."""
    config: Mapping[str, Any]
    config_text: str
    plan: Mapping[str, Any]
    result: Mapping[str, Any]
    train: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped`` or ``unfinished``."""
        return str(self.result["status"])

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def reason(self) -> str:
        return str(self.result.get("reason") or self.status)

    @property
    def seed(self) -> int:
        return int(self.plan["seed"])

    @property
    def evaluated_on(self) -> str:
        """The split the final accuracy was measured on: ``test`` or ``held_out``."""
        return str(self.result.get("evaluated_on") or "test")

    @property
    def steps(self) -> float:
        """Those taken, where the run is finished: some methods stop early, or add some; else those planned."""
        taken = self.measured("steps") if self.finished else None
        return taken if taken is not None else self.plan["steps"]

    @property
    def examples(self) -> float | None:
        """Those trained on; the budget where it was merely filled up to a whole batch."""
        budget = finite(self.plan.get("budget_examples"))
        seen = self.measured("examples_seen") if self.finished else None
        if seen is None or budget is None:
            return budget
        largest = max([self.plan["global_batch_size"], *(size for _, size in self.plan.get("ramp") or [])])
        return budget if abs(seen - budget) < largest else seen

    @property
    def epochs(self) -> float | None:
        planned, budget = finite(self.plan.get("epochs")), finite(self.plan.get("budget_examples"))
        if planned is None or not budget or self.examples == budget:
            return planned
        return round(planned * (self.examples or budget) / budget, 1)

    def measured(self, key: str) -> float | None:
        """A number of ``result.json``, or None where the run has none."""
        return finite(self.result.get(key))


@dataclass(frozen=True)
class Group:
    """One row of a comparison before anything is computed: the same recipe at several seeds."""

    id: str
    label: str
    config: str | None
    overrides: tuple[str, ...]
    runs: tuple[Run, ...]
    search: Mapping[str, Any] | None
    expect: Mapping[str, Any] | None


@dataclass(frozen=True)
class Source:
    """Everything read for one report."""

    name: str
    folder: Path
    command: str | None
    created: str | None
    baseline: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def finite(value: Any) -> float | None:
    """The number, or None for what is absent, no number or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def read(paths: Sequence[Path]) -> Source:
    """One comparison folder, or any number of run folders of which the first is the baseline."""
    if not paths:
        raise UserError("report needs a comparison folder or at least one run folder, and got none")
    comparisons = [path for path in paths if (path / "comparison.json").is_file()]
    if comparisons and len(paths) > 1:
        raise UserError(f"{comparisons[0]} is a comparison: report takes one comparison folder or several run folders")
    return read_comparison(comparisons[0]) if comparisons else read_runs(paths)


def read_comparison(folder: Path) -> Source:
    """The folder's ``comparison.json`` and every run it lists."""
    file = folder / "comparison.json"
    data = _mapping(_json(file), file)
    groups = []
    for index, row in enumerate(_need(data, "rows", list, file)):
        row = _mapping(row, f"{file}: rows[{index}]")
        label = str(row.get("label") or _need(row, "id", str, file))
        names = [str(name) for name in _need(row, "runs", list, f"{file}: rows[{index}]")]
        for name in names:
            if not (folder / name / "plan.json").is_file():
                raise UserError(f"{file}: run {name} has not started; run the comparison again to finish it")
        if not names:
            raise UserError(f"{file}: row {label!r} lists no runs; run the comparison again to finish it")
        runs = tuple(read_run(folder / name, name) for name in names)
        groups.append(
            Group(
                id=_need(row, "id", str, file),
                label=label,
                config=row.get("config"),
                overrides=tuple(str(word) for word in row.get("overrides") or ()),
                runs=runs,
                search=row.get("learning_rate_search"),
                expect=expected(row.get("expect") or runs[0].config.get("expect"), runs[0].config),
            )
        )
    labels = [group.label for group in groups]
    groups = [
        replace(group, label=f"{group.label} ({group.id})") if labels.count(group.label) > 1 else group
        for group in groups
    ]
    if not groups:
        raise UserError(f"{file}: rows is empty; a report needs at least one row")
    baseline = str(data.get("baseline") or groups[0].id)
    ids = [group.id for group in groups]
    if len(set(ids)) != len(ids):
        raise UserError(f"{file}: two rows have the same id; ids are {', '.join(ids)}")
    if baseline not in ids:
        raise UserError(f"{file}: baseline {baseline!r} is no row; rows are {', '.join(ids)}")
    return Source(
        name=str(data.get("name") or folder.resolve().name),
        folder=folder,
        command=data.get("command"),
        created=data.get("created"),
        baseline=baseline,
        groups=tuple(groups),
        notes=tuple(str(note) for note in data.get("notes") or ()),
    )


def read_runs(paths: Sequence[Path]) -> Source:
    """Each folder its own row, labelled by the run's name, or by its folder where names repeat."""
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    names = [str(path.resolve().relative_to(folder)) for path in paths]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise UserError(f"run {twice} is given twice; give each run folder once")
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    titles = [str(run.plan.get("name") or run.name) for run in runs]
    groups = tuple(
        Group(
            id=run.name,
            label=title if titles.count(title) == 1 else f"{title} ({run.name})",
            config=None,
            overrides=(),
            runs=(run,),
            search=None,
            expect=expected(run.config.get("expect"), run.config),
        )
        for run, title in zip(runs, titles, strict=True)
    )
    name = titles[0] if len(runs) == 1 else folder.name
    return Source(name, folder, None, None, groups[0].id, groups, ())


def read_run(path: Path, name: str) -> Run:
    """One run directory; ``name`` is what the report will call it."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a run folder, which holds plan.json, or a comparison folder")
    if not (path / "plan.json").is_file():
        raise UserError(f"{path} is no run: it has no plan.json (nor a comparison.json)")
    plan = _mapping(_json(path / "plan.json"), path / "plan.json")
    for key in ("global_batch_size", "steps", "seed"):
        _need(plan, key, int, path / "plan.json")
    config_text = _text(path / "run.yaml")
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        raise UserError(f"{path / 'run.yaml'} is not valid YAML: {' '.join(str(error).split())}") from None
    result = _result(path / "result.json")
    train, evaluations = _metrics(path / "metrics.jsonl", required=result["status"] == "finished")
    return Run(path, name, _mapping(config, path / "run.yaml"), config_text, plan, result, train, evaluations)


def _result(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        return {"status": "unfinished", "reason": "no result.json: the run was killed or is still going"}
    result = _mapping(_json(file), file)
    status = _need(result, "status", str, file)
    if status not in ("finished", "failed", "stopped"):
        raise UserError(f"{file}: status is {status!r}; valid: finished, failed, stopped")
    if result.get("evaluated_on") not in (None, *SPLITS):
        raise UserError(f"{file}: evaluated_on is {result['evaluated_on']!r}; valid: {', '.join(SPLITS)}")
    return result


def _metrics(file: Path, *, required: bool) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    """Training and evaluation records by step; a torn last line (a run killed while writing) is left out."""
    if not file.exists() and not required:
        return (), ()
    last: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    lines = _text(file).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=lambda _: None)
        except json.JSONDecodeError:
            if number == len(lines):
                continue
            raise UserError(f"{file}: line {number} is not valid JSON") from None
        record = _mapping(record, f"{file}: line {number}")
        if record.get("event") in ("train", "evaluate"):
            step = _need(record, "step", int, f"{file}: line {number}")
            last[record["event"], str(record.get("split", "")), step] = record
    ordered = [last[key] for key in sorted(last, key=lambda key: key[2])]
    return (
        tuple(record for record in ordered if record["event"] == "train"),
        tuple(record for record in ordered if record["event"] == "evaluate"),
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a run folder holds run.yaml, plan.json and metrics.jsonl") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file), parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error.msg} at line {error.lineno}") from None


def _mapping(value: Any, where: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {type(value).__name__}; valid: a mapping of names to values")
    return value


def _need(data: Mapping[str, Any], key: str, kind: type, where: object) -> Any:
    if key not in data:
        raise UserError(f"{where} has no {key!r}")
    if not isinstance(data[key], kind) or isinstance(data[key], bool):
        raise UserError(f"{where}: {key} is {data[key]!r}; valid: {kind.__name__}")
    return data[key]


def expected(expect: Any, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the recipe says was published, at the batch that this run has: its row, where there are rows."""
    if not isinstance(expect, Mapping):
        return None
    rows = expect.get("by_batch_size") or {}
    batch = config.get("batch")
    size = batch.get("global_batch_size") if isinstance(batch, Mapping) else None
    row = rows.get(size, rows.get(str(size)))
    found = (row or {}) if rows else {key: expect.get(key) for key in ("top1", "steps")}
    known = {key: value for key, value in found.items() if value is not None}
    return {**known, "source": str(expect.get("source") or "")}
