"""What comes out of a study, from the runs that ended: each row's curve, its best values along it, and the rows paired.

OUT/curves.json    points, fits, where they end (records/curves.py)
OUT/curves.svg     the picture of them
OUT/study.md       the page: tables and sentences
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import rich.console
import rich.table

from largebatch.records.curves import CurveToTarget, TargetsRecord
from largebatch.records.facts import write_json
from largebatch.records.files import write_text
from largebatch.records.run import ResultRecord
from largebatch.records.typed import content, finite
from largebatch.report.alone import write_picture
from largebatch.report.numerals import ABSENT, count, listing, plain
from largebatch.studies.curves import shown
from largebatch.studies.curves.measured import TargetCurve, TargetPoint, TargetRun
from largebatch.studies.curves.pairs import PairedStatement, statements
from largebatch.studies.curves.rules import GoodRange, TriedSetting, good_region, rule_of
from largebatch.studies.search.rounds import edges
from largebatch.studies.search.trial import Trial, best
from largebatch.studies.study.file import StudyFile
from largebatch.studies.study.folder import StudyFolder
from largebatch.studies.study.jobs import Cell, Outcomes, chosen, tried

CURVES, PICTURE, PAGE = "curves.json", "curves.svg", "study.md"
GOOD = 0.1  # trials whose examples to the target are at most so much above the best's are good
MANY_STATEMENTS = 6  # pairs that one of a batch needs to be decided; with fewer seeds the pairs are batches


@dataclasses.dataclass(frozen=True)
class RowFindings:
    """A recipe: its curve, and its cells with their trials, by ascending batch."""

    label: str
    curve: TargetCurve | None  # None: no run of it ended
    cells: tuple[tuple[Cell, dict[int, Trial]], ...]


def findings_of(folder: StudyFolder) -> list[RowFindings]:
    cells = folder.cells()
    outcomes = folder.outcomes(cells)
    found = []
    for row in dict.fromkeys(cell.row for cell in cells):
        own = tuple((cell, tried(cell, outcomes)) for cell in cells if cell.row == row)
        points = tuple(point for cell, trials in own if (point := point_of(cell, trials, outcomes)) is not None)
        found.append(RowFindings(row, TargetCurve(row, points) if points else None, own))
    return found


def point_of(cell: Cell, trials: dict[int, Trial], outcomes: Outcomes) -> TargetPoint | None:
    """Over the seeds whose runs ended. Values of a trial that did not reach the target are none of the curve's."""
    if (number := chosen(cell, outcomes)) is None:
        return None
    results = {
        seed: result
        for seed in range(cell.seeds)
        if (result := outcomes.get(cell.seed_folder(number, seed))) is not None
    }
    if not results:
        return None
    runs = tuple(run_of(cell, seed, result) for seed, result in results.items())
    reached = reached_by(trials[number])
    values = trials[number].values if reached else {}
    return TargetPoint(
        cell.batch, runs, {key: at for key, value in values.items() if (at := finite(value)) is not None}
    )


def reached_by(trial: Trial) -> bool:
    return trial.worth is not None and trial.worth[0] > 0


def run_of(cell: Cell, seed: int, result: ResultRecord) -> TargetRun:
    """One that failed would not have reached the target by its budget either."""
    target = result.target
    if target is not None and target.interpolated is not None:
        return TargetRun(seed, target.interpolated.examples, True, target.interpolated.seconds)
    budget = (cell.recipe.run().epochs or 0.0) * whole_size(cell)
    return TargetRun(seed, budget, False, result.seconds_training if result.status == "finished" else None)


def whole_size(cell: Cell) -> int:
    """[examples] of the training set."""
    return len(cell.dataset.train) + (cell.tuning.hold_out or 0)


def write(folder: StudyFolder, command: str, console: rich.console.Console) -> list[Path]:
    """Files, whose paths are returned, and the same on the console."""
    study, rows = folder.study, findings_of(folder)
    facts = record_of(folder, study, rows, command)
    page(study, facts, rows, console)
    text = io.StringIO()
    page(study, facts, rows, rich.console.Console(file=text, width=120))
    write_text(folder.out / PAGE, f"# {study.name}\n\n```\n{text.getvalue()}```\n")
    if facts is None:
        return [folder.out / PAGE]
    write_json(folder.out / CURVES, content(facts))
    write_picture(content(facts), folder.out / PICTURE)
    return [folder.out / PAGE, folder.out / PICTURE, folder.out / CURVES]


def record_of(folder: StudyFolder, study: StudyFile, rows: Sequence[RowFindings], command: str) -> TargetsRecord | None:
    """None where no run of any row ended."""
    curves = [shown.curve_record(row.curve) for row in rows if row.curve is not None]
    if not curves:
        return None
    cell = folder.cells()[0]
    return TargetsRecord(
        name=study.name,
        title=study.name,
        source=None,
        target=f"{cell.score.name} {cell.score.of(study.target.score)}",
        unit="examples",
        epoch=float(whole_size(cell)),
        middle="median",
        command=command,
        curves=curves,
    )


def page(
    study: StudyFile, facts: TargetsRecord | None, rows: Sequence[RowFindings], console: rich.console.Console
) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    by_label = {curve.label: curve for curve in facts.curves} if facts else {}
    for row in rows:
        curve = by_label.get(row.label)
        if facts is not None and curve is not None:
            console.print(shown.table(dataclasses.replace(facts, title=row.label), curve))
            for sentence in shown.notes(facts, curve):
                say(sentence)
        console.print(searched(row))
        for sentence in (*rules(row), *unplaced(row, curve)):
            say(sentence)
        say("")
    for sentence in compared(study, rows):
        say(sentence)


def searched(row: RowFindings) -> rich.table.Table:
    """The best values at each batch, and how wide the region around them is that is as good."""
    made = rich.table.Table("batch", "trials", "reached", "best values", "as good", title=f"{row.label}: its search")
    for cell, trials in row.cells:
        tried_here = [trials[number] for number in sorted(trials)]
        top = best(tried_here)
        reached = sum(map(reached_by, tried_here))
        refused = sum(not cell.search.takes(trial.values) for trial in tried_here if trial.worth is None)
        at_edge = edges(cell.search.plan.space, tried_here)
        values = ", ".join(
            f"{key} {plain(value) if isinstance(value, float) else value}{' (at an edge)' * (key in at_edge)}"
            for key, value in (top.values if top else {}).items()
        )
        made.add_row(
            count(cell.batch),
            f"{len(trials)}{f', {refused} refused' * (refused > 0)}",
            str(reached),
            values or ABSENT,
            region(tried_here),
        )
    return made


def region(trials: Sequence[Trial]) -> str:
    """Of the trials that reached the target, by the numbers among their values."""
    settings = [
        TriedSetting(
            {key: number for key, value in trial.values.items() if (number := finite(value)) is not None},
            trial.worth[1] if trial.worth is not None and reached_by(trial) else None,
        )
        for trial in trials
    ]
    least = min((-one.worth for one in settings if one.worth is not None), default=None)
    if least is None:
        return ABSENT
    return ", ".join(f"{one.key} {_range(one)}" for one in good_region(settings, GOOD * least))


def _range(one: GoodRange) -> str:
    """``≤ 0.1 to 0.3``: open below, no trial there was worse."""
    low, high = f"{'≤ ' * one.open_below}{plain(one.low)}", f"{plain(one.high)}{' ≤' * one.open_above}"
    return f"{low} to {high}" if one.low < one.high else f"{'≤ ' * one.open_below}{high}"


def rules(row: RowFindings) -> Iterator[str]:
    """How each key's best value follows the batch."""
    points = row.curve.points if row.curve else ()
    for key in dict.fromkeys(key for point in points for key in point.settings):
        pairs = [(point.batch, point.settings[key]) for point in points if point.settings.get(key, 0.0) > 0]
        rule = rule_of(*zip(*pairs, strict=True)) if len(pairs) > 1 else None
        if rule is None:
            continue
        decided, power = rule.decided, rule.power
        words = "its power is not bounded"
        if power is not None and power.low is not None and power.high is not None:
            words = f"a power of {power.low:.2f} to {power.high:.2f}"
        fits = f"the rule {decided.name} fits best" if decided else "no rule is decided"
        yield f"best {key} along the batch: {fits}; {words}"


def unplaced(row: RowFindings, curve: CurveToTarget | None) -> Iterator[str]:
    """Batches that the study cannot place."""
    placed = {point.global_batch_size for point in curve.points if point.reached} if curve else set()
    if missing := [count(cell.batch) for cell, _ in row.cells if cell.batch not in placed]:
        yield f"at batch {listing(missing)} no run reached the target: the study cannot place this row there"


def compared(study: StudyFile, rows: Sequence[RowFindings]) -> Iterator[str]:
    """Every two rows; "not decided" where the test does not."""
    curves = [row.curve for row in rows if row.curve is not None]
    if len(curves) < 2:
        return
    whole = study.seeds < MANY_STATEMENTS
    made = statements(curves, whole=whole)
    paired = "batches" if whole else "seeds at a batch"
    yield f"rows in pairs ({paired}; exact sign flips, Holm's correction for {len(made)} statements):"
    for one in made:
        yield f"  {in_words(one)}"


def in_words(one: PairedStatement) -> str:
    where = f"at batch {one.batch:,}" if one.batch is not None else "over their batches"
    if one.ratio is None or one.p is None:
        return f"{one.first} and {one.second} {where}: nothing to pair"
    ratio = f"{one.first} needs {one.ratio:.2f} times the examples of {one.second} {where}"
    p = f"p {one.corrected:.3f} of {one.pairs} pairs" if one.corrected is not None else f"{one.pairs} pairs"
    return (
        f"{ratio} ({p})"
        if one.decided
        else f"{ratio}: not decided ({p}; {one.smallest:.3f} is the least they can have)"
    )
