"""What comes out of a study, from the runs that ended: each row's curve, its search, its best values along the batch,
and the rows in pairs. The page is made of these facts (report/study.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from largebatch.recipes import config
from largebatch.records.curves import (
    CurveToTarget,
    RegionOfKey,
    RowsInPairs,
    RuleCandidate,
    RuleOfKey,
    SearchedBatch,
    TargetsRecord,
)
from largebatch.records.run import ResultRecord
from largebatch.records.typed import finite
from largebatch.studies.curves.measured import CurveParts, TargetCurve, TargetPoint, TargetRun
from largebatch.studies.curves.pairs import PairedStatement, can_be_decided, statements
from largebatch.studies.curves.recorded import curve_record
from largebatch.studies.curves.rules import TriedSetting, good_region, rule_of
from largebatch.studies.search.rounds import edges
from largebatch.studies.search.space import Axis, Values
from largebatch.studies.search.trial import Trial, best
from largebatch.studies.study.folder import StudyFolder
from largebatch.studies.study.jobs import Cell, Outcomes, chosen, tried

GOOD = 0.1  # trials whose examples to the target are at most so much above the best's are good


def findings(folder: StudyFolder, command: str) -> TargetsRecord | None:
    """The facts; None where no trial of any row ended."""
    cells, study = folder.cells(), folder.study
    outcomes = folder.outcomes(cells)
    rows = [row for row in _rows(cells, outcomes) if any(trials for _, trials in row.cells)]
    if not rows:
        return None
    first = cells[0]
    return TargetsRecord(
        name=study.name,
        title=study.name,
        source=None,
        target=f"{first.score.name} {first.score.of(study.target.score)}",
        score=first.score.key,
        score_target=study.target.score,
        unit="examples",
        epoch=float(whole_size(first)),
        middle="median",
        command=command,
        curves=[_recorded(row) for row in rows],
        pairs=_pairs([row.curve for row in rows], study.seeds),
        seeds=study.seeds,
        trials=first.trials,
    )


@dataclasses.dataclass(frozen=True)
class RowFindings:
    """A recipe: its curve, and its cells with their trials, by ascending batch."""

    curve: TargetCurve
    cells: tuple[tuple[Cell, dict[int, Trial]], ...]


def _rows(cells: Sequence[Cell], outcomes: Outcomes) -> Iterator[RowFindings]:
    for row in dict.fromkeys(cell.row for cell in cells):
        own = tuple((cell, tried(cell, outcomes)) for cell in cells if cell.row == row)
        points = tuple(point for cell, trials in own if (point := point_of(cell, trials, outcomes)) is not None)
        yield RowFindings(TargetCurve(row, points), own)


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
    return TargetPoint(cell.batch, runs, numbers_of(trials[number].values) if reached else {})


def numbers_of(values: Values) -> dict[str, float]:
    return {key: number for key, value in values.items() if (number := finite(value)) is not None}


def reached_by(trial: Trial) -> bool:
    return trial.worth is not None and trial.worth[0] > 0


def run_of(cell: Cell, seed: int, result: ResultRecord) -> TargetRun:
    """One that failed would not have reached the target by its budget either."""
    target, run = result.target, cell.recipe.run()
    grows = run.batch.ramp is not None or run.phases is not None
    if target is not None and (at := target.interpolated) is not None:
        return TargetRun(seed, at.examples, True, at.seconds, at.steps if grows else None)
    budget = (run.epochs or 0.0) * whole_size(cell)
    finished = result.status == "finished"
    steps = target.last.steps if grows and finished and target is not None and target.last is not None else None
    return TargetRun(seed, budget, False, result.seconds_training if finished else None, steps)


def whole_size(cell: Cell) -> int:
    """[examples] of the training set."""
    return len(cell.dataset.train) + (cell.tuning.hold_out or 0)


def _recorded(row: RowFindings) -> CurveToTarget:
    return dataclasses.replace(
        curve_record(row.curve, parts_of(row.cells[0][0].recipe.run())),
        searched=[_searched(cell, trials) for cell, trials in row.cells],
        rules=list(_rules(row)),
    )


def parts_of(run: config.Run) -> CurveParts:
    model = {key: value for key, value in run.as_written()["model"].items() if value not in (None, [])}
    return CurveParts(model, run.data.name, run.optimizer.name)


def _searched(cell: Cell, trials: dict[int, Trial]) -> SearchedBatch:
    in_order = [trials[number] for number in sorted(trials)]
    top = best(in_order)
    return SearchedBatch(
        global_batch_size=cell.batch,
        trials=len(in_order),
        refused=sum(not cell.search.takes(trial.values) for trial in in_order if trial.worth is None),
        reached=sum(map(reached_by, in_order)),
        chosen=top and top.values,
        at_edge=edges(cell.search.plan.space, in_order),
        outside=[] if top is None else cell.search.plan.space.outside(top.values),
        good=_good(in_order),
    )


def _good(trials: Sequence[Trial]) -> list[RegionOfKey]:
    """Of the trials that reached the target, by the numbers among their values."""
    settings = [
        TriedSetting(
            numbers_of(trial.values), trial.worth[1] if trial.worth is not None and reached_by(trial) else None
        )
        for trial in trials
    ]
    least = min((-one.worth for one in settings if one.worth is not None), default=None)
    if least is None:
        return []
    return [RegionOfKey(**dataclasses.asdict(one)) for one in good_region(settings, GOOD * least)]


def _rules(row: RowFindings) -> Iterator[RuleOfKey]:
    """How each key's best value follows the batch; that of 1 − value where the search is even in its logarithm."""
    points = row.curve.points
    axes = [axis for cell, _ in row.cells for axis in cell.search.plan.space.axes if isinstance(axis, Axis)]
    complements = {axis.key for axis in axes if axis.scale == "one_minus_log"}
    for key in dict.fromkeys(key for point in points for key in point.settings):
        values = [
            (point.batch, 1 - value if key in complements else value)
            for point in points
            if (value := point.settings.get(key)) is not None
        ]
        positive = [(batch, value) for batch, value in values if value > 0]
        if len(positive) < 2 or (rule := rule_of(*zip(*positive, strict=True))) is None:
            continue
        yield RuleOfKey(
            key=key,
            complement=key in complements,
            decided=rule.decided and rule.decided.name,
            power_low=rule.power and rule.power.low,
            power_high=rule.power and rule.power.high,
            candidates=[
                RuleCandidate(name=one.name, constants=one.constants, deviation=one.deviation, aicc=one.aicc)
                for one in rule.rules
            ],
        )


def _pairs(curves: Sequence[TargetCurve], seeds: int) -> list[RowsInPairs]:
    """At each batch, where so many seeds can decide so many statements; else over the whole curves."""
    begun = [curve for curve in curves if curve.points]
    made = statements(begun)
    whole = not can_be_decided(seeds, len(made))
    return [_in_pairs(one) for one in (statements(begun, whole=True) if whole else made)]


def _in_pairs(one: PairedStatement) -> RowsInPairs:
    return RowsInPairs(
        first=one.first,
        second=one.second,
        global_batch_size=one.batch,
        pairs=one.pairs,
        ratio=one.ratio,
        ratio_low=one.interval and one.interval.low,
        ratio_high=one.interval and one.interval.high,
        p=one.p,
        corrected=one.corrected,
        decided=one.decided,
        least_p=one.smallest if one.pairs else None,
    )
