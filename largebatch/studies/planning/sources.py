"""Where the examples to the target come from, by what is named: a study, published points, a diagnosis, numbers."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largebatch.errors import UserError, suggestion
from largebatch.recipes import config
from largebatch.records import names
from largebatch.records.curves import CurveToTarget, ReachedPoint, TargetsRecord
from largebatch.records.diagnoses import CriticalRecord, NoiseRecord
from largebatch.records.typed import read
from largebatch.report.numerals import count, rounded
from largebatch.studies.curves import published
from largebatch.studies.curves.law import ScalingLaw
from largebatch.studies.curves.measured import CurveParts, MiddleOfRuns, MiddleValue
from largebatch.studies.planning.agreement import ScoreGoal, SourceParts, check
from largebatch.studies.planning.target import BoundTarget, ExamplesToTarget, LawTarget, points_target

CURVES = "curves.json"  # of a study


@dataclass(frozen=True)
class RecipeBudget:
    """What the recipe takes where it stands: of which a bound is a multiple."""

    batch: int
    examples: float


@dataclass(frozen=True)
class NamedSource:
    """What a plan's examples rest on, and the plural of an example."""

    target: ExamplesToTarget
    unit: str = "examples"
    name: str = ""
    parts: SourceParts = field(default_factory=SourceParts)
    unchecked: tuple[str, ...] = ()  # what of it could not be held against the recipe


def source_named(name: str, row: str | None, budget: RecipeBudget) -> NamedSource:
    """Of a study's folder or its curves.json, a run's folder, a diagnosis, published points, or a file of points."""
    path = Path(name)
    if path.is_dir():
        path = _within_folder(path)
    if path.suffix == ".json":
        return _of_json(path, row, budget)
    if row is not None:
        raise UserError(f"--row {row} chooses a row of a study, and {name} has one curve; leave it out")
    points = published.load(published.located(name))
    words = f"{published.short_name(name)}: {points.title}{f', {points.target}' if points.target else ''}"
    parts = SourceParts(points.of, points.goal and ScoreGoal(*points.goal))
    return NamedSource(points_target(words, points.curve().middles(), name), points.unit, name, parts)


def agreed(source: NamedSource, run: config.Run) -> NamedSource:
    """UserError where it is of another model or other data than the recipe."""
    return dataclasses.replace(source, unchecked=tuple(check(source.name, source.parts.of, run)))


def _within_folder(folder: Path) -> Path:
    diagnostics = folder / names.DIAGNOSTICS
    for file in (folder / CURVES, diagnostics / "critical.json", diagnostics / "noise.json"):
        if file.is_file():
            return file
    raise UserError(
        f"--target {folder} holds neither a study's {CURVES} nor what diagnose critical or diagnose noise wrote; make "
        "one of them, or say --critical-batch N --epochs N"
    )


def _of_json(path: Path, row: str | None, budget: RecipeBudget) -> NamedSource:
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--target {path} cannot be read: {str(error)[:120]}") from None
    kind = facts.get("kind") if isinstance(facts, dict) else None
    if kind == TargetsRecord.kind:
        return _of_study(read(TargetsRecord, facts, path), row, path)
    if kind == CriticalRecord.kind:
        critical = read(CriticalRecord, facts, path)
        return _diagnosed(critical, critical.optimizer, _of_branches(critical, budget, path), path)
    if kind == NoiseRecord.kind:
        noise = read(NoiseRecord, facts, path)
        return _diagnosed(noise, None, _of_noise(noise, budget, path), path)
    raise UserError(f"--target {path} is of kind {str(kind)[:40]!r}; valid: targets, critical, noise")


def _diagnosed(
    record: CriticalRecord | NoiseRecord, optimizer: str | None, target: ExamplesToTarget, path: Path
) -> NamedSource:
    model = {"name": record.model} if record.model else None
    return NamedSource(target, name=str(path), parts=SourceParts(CurveParts(model, record.data, optimizer)))


def _of_study(record: TargetsRecord, row: str | None, path: Path) -> NamedSource:
    curve = _row_of(record, row, path)
    points = [_middle(point) for point in curve.points]
    words = f"{record.name}: {curve.label}{f', {record.target}' if record.target else ''}"
    parts = SourceParts(CurveParts(curve.model, curve.data, curve.optimizer), _goal_of(record))
    name = f"{path}, row {curve.label},"
    return NamedSource(points_target(words, points, name), record.unit, name.removesuffix(","), parts)


def _goal_of(record: TargetsRecord) -> ScoreGoal | None:
    if record.score is None or record.score_target is None:
        return None
    return ScoreGoal(record.score, record.score_target)


def _row_of(record: TargetsRecord, row: str | None, path: Path) -> CurveToTarget:
    labels = [curve.label for curve in record.curves]
    if row is None:
        if len(labels) > 1:
            raise UserError(f"--target {path} has several rows; choose one: --row {' | --row '.join(labels)}")
        return record.curves[0]
    if row not in labels:
        raise UserError(f"--row {row} is no row of {path}{suggestion(row, labels)}")
    return record.curves[labels.index(row)]


def _middle(point: ReachedPoint) -> MiddleOfRuns:
    value = MiddleValue(point.examples, bool(point.exact), point.examples_low, point.examples_high)
    return MiddleOfRuns(point.global_batch_size, value, None, point.level, point.runs, point.reached)


def _of_branches(record: CriticalRecord, budget: RecipeBudget, path: Path) -> BoundTarget:
    """Of the last checkpoint whose critical batch is known, or bounded below."""
    known = [
        (point.step, point.critical_batch_size, point.verdict)
        for point in record.points
        if point.critical_batch_size and point.verdict in ("critical", "at least")
    ]
    if not known:
        raise UserError(
            f"--target {path}: at no checkpoint the critical batch is known from below; branch at more factors"
        )
    step, critical, verdict = known[-1]
    how = f"{'at least ' * (verdict == 'at least')}{rounded(critical)}, by branches at step {count(step)}"
    return BoundTarget(
        f"a critical batch of {how}: at most, as if it were the law's B_crit", critical, budget.batch, budget.examples
    )


def _of_noise(record: NoiseRecord, budget: RecipeBudget, path: Path) -> BoundTarget:
    """The lower end of its interval: a smaller critical batch costs more examples."""
    scale = record.noise_scale if record.noise_scale_low is None else record.noise_scale_low
    if not scale or scale <= 0:
        raise UserError(f"--target {path}: the noise scale is not bounded, so nothing follows from it")
    return BoundTarget(
        f"a noise scale of {rounded(scale)} or more: at most, for critical batches that were measured lie above it "
        "(Merrill 2025)",
        scale, budget.batch, budget.examples,
    )  # fmt: skip


def stated_law(critical: float, least: float | None, budget: RecipeBudget) -> LawTarget:
    """``least`` examples of small batches; else what makes the recipe's budget right at its batch."""
    if least is None:
        least = budget.examples / (1 + budget.batch / critical)
        words = (
            f"a stated critical batch of {rounded(critical)}, and the recipe's budget at batch {count(budget.batch)}"
        )
    else:
        words = f"a stated critical batch of {rounded(critical)}, and {rounded(least)} examples of small batches"
    return LawTarget(words, ScalingLaw(least, least / critical))
