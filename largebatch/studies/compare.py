"""Many runs, fairly: the same seeds, the same tuning effort, one table, failed runs counted.

Rows are recipes × varied keys; every row is run once per seed, one after another in the same process group. With
``tune``, keys of every row are first searched with the same budget (:mod:`largebatch.studies.search`). What an
interrupted comparison finished is not run again.

    OUT/comparison.json            rows, seeds, searches
    OUT/<row>/seed-<n>/            run directories
    OUT/<row>/search/trial-<n>/    the trials of the search
    OUT/<row>/search/best-<n>/seed-<m>/     the best of them under more seeds
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.console

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.plan.score import Score
from largebatch.recipes import config, refusals
from largebatch.recipes.decide import decide, precision_of
from largebatch.records import names
from largebatch.records.comparison import (
    ComparedRow,
    ComparisonRecord,
    FinalistRecord,
    SearchRecord,
    TrialRecord,
    Tuning,
)
from largebatch.records.facts import write_json
from largebatch.records.run import ResultRecord
from largebatch.records.typed import content, read
from largebatch.run import record
from largebatch.run.assemble import data_facts, dataset_of, task_of
from largebatch.run.train import Result, science_of_file, train
from largebatch.studies.rows import ComparedRecipe, rows_of
from largebatch.studies.search.finals import SEEDS, champion, finalists
from largebatch.studies.search.of_row import RowSearch, judged, of_trial, settings
from largebatch.studies.search.rounds import edges, rounds
from largebatch.studies.search.trial import Trial, worth_of
from largebatch.terminal.console import Console, tell


class Interrupted(Exception):
    """A run was stopped, by a signal or by a failure of the machine, and the comparison with it."""

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__(result.reason)


def compare(
    recipes: Sequence[Path | config.Run],
    out: Path,
    *,
    vary: list[str] = [],  # noqa: B006
    overrides: list[str] = [],  # noqa: B006
    seeds: int = 1,
    tuning: Tuning | None = None,
    baseline: str | None = None,
    command: str = "",
    console: rich.console.Console | None = None,
) -> Path:
    """Run what is missing and keep ``OUT/comparison.json`` up to date; its folder is returned.

    The baseline is the row with the smallest global batch unless named. Every recipe is read before the first
    run starts.
    """
    console = console or Console()
    rows = rows_of(recipes, vary, overrides)
    runs = {row.id: row.run() for row in rows}
    if tuning is not None and tuning.hold_out is None:
        size = min(len(dataset_of(run).train) for run in runs.values())
        tuning = dataclasses.replace(tuning, hold_out=size // 6)
    begun = distributed.gather(existing(out))[0]
    if tuning is not None and begun is not None and begun.tuning is not None:
        tuning = dataclasses.replace(tuning, seed=begun.tuning.seed)  # before November 2026 it was the first row's, 0
    scores = {check(row, tuning) for row in rows}
    if baseline is None:
        baseline = min(rows, key=lambda row: config.of_phases(runs[row.id])[0].batch.global_batch_size).id
    elif baseline not in runs:
        raise UserError(f"--baseline {baseline} is no row of this comparison; rows: {', '.join(runs)}")
    comparison = ComparisonRecord(
        name=out.name,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seeds=list(range(seeds)),
        tuning=tuning,
        baseline=baseline,
        rows=[recorded(row, runs[row.id], seeds) for row in rows],
        notes=notes(seeds, tuning, scores),
    )
    if begun is not None:
        comparison = gone_on(out, begun, comparison)
    keep(out, comparison)
    for index, row in enumerate(rows):
        if tuning is not None and comparison.rows[index].search is None:
            comparison = with_search(comparison, index, searched(row, out, tuning, command, console))
            keep(out, comparison)
        described = comparison.rows[index]
        chosen = chosen_values(described.search)
        for seed, folder in enumerate(described.runs):
            run_once(row, (*chosen, f"seed={seed}"), out / folder, command, console)
    return out


def check(row: ComparedRecipe, tuning: Tuning | None) -> Score:
    """Find the mistakes of every row before the first one trains; what it is judged by."""
    run = row.run(*judged(tuning) if tuning else ())
    device = distributed.choose_device(run.device)
    refusals.check(run, precision_of(run.precision, device.type))
    dataset = dataset_of(run)
    task_of(run, dataset)
    try:
        decide(run, data_facts(dataset), distributed.world_size(), device.type)
    except UserError as error:
        if tuning is None:
            raise
        raise UserError(
            f"{row.id}: {error} (--tune searches on {len(dataset.train)} examples and holds out {tuning.hold_out})"
        ) from None
    if tuning is not None:
        RowSearch(row, tuning, dataset)
    return task_of(run, dataset).score


def existing(out: Path) -> ComparisonRecord | None:
    file = out / names.COMPARISON
    try:
        return read(ComparisonRecord, json.loads(file.read_text(encoding="utf-8")), file.name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{out / names.COMPARISON} cannot be read ({error}); choose another --out") from None


def gone_on(out: Path, begun: ComparisonRecord, comparison: ComparisonRecord) -> ComparisonRecord:
    """With what was searched; refuses a folder that holds another comparison. More seeds may be added."""
    if different := record.differences(asked(begun), asked(comparison)):
        raise UserError(f"--out {out} holds another comparison ({'; '.join(different)}); choose another --out")
    for index, row in enumerate(begun.rows):
        comparison = with_search(comparison, index, row.search)
    return comparison


def asked(comparison: ComparisonRecord) -> dict[str, object]:
    """What two comparisons must share to go on in one folder."""
    return {
        "baseline": comparison.baseline,
        "tuning": dataclasses.asdict(comparison.tuning) if comparison.tuning else None,
        "rows": {row.id: ", ".join(row.overrides or ()) or "as in its file" for row in comparison.rows},
    }


def with_search(comparison: ComparisonRecord, index: int, search: SearchRecord | None) -> ComparisonRecord:
    rows = list(comparison.rows)
    rows[index] = dataclasses.replace(rows[index], search=search)
    return dataclasses.replace(comparison, rows=rows)


def chosen_values(search: SearchRecord | None) -> tuple[str, ...]:
    """The overrides of the best trial; none where there was none."""
    return settings(search.chosen) if search and search.chosen is not None else ()


def recorded(row: ComparedRecipe, run: config.Run, seeds: int) -> ComparedRow:
    return ComparedRow(
        id=row.id,
        label=run.title or row.id,
        config=str(row.recipe),
        overrides=row.overrides,
        runs=[f"{row.id}/seed-{seed}" for seed in range(seeds)],
        search=None,
        expect=run.expect.model_dump(exclude_none=True) if run.expect else None,
    )


def notes(seeds: int, tuning: Tuning | None, scores: set[Score]) -> list[str]:
    """The sentences that say what is fair here and what is not."""
    if tuning is not None:
        found = [
            f"{'The learning rate' if tuning.space == 'lr' else 'Hyper-parameters'} of every row "
            f"{'was' if tuning.space == 'lr' else 'were'} searched with the same budget: {tuning.trials} trials on "
            f"{tuning.hold_out:,} held-out training examples, never on the test set."
        ]
        if tuning.finalists > 1:
            found.append(
                f"The best {tuning.finalists} trials of a row were run under {SEEDS} seeds, and the best mean chosen."
            )
    else:
        found = ["Learning rates are those of the files; no search was part of this comparison."]
    if seeds == 1:
        in_percent = all(score.unit == "%" for score in scores)
        small = "differences of a few tenths of a point" if in_percent else "small differences"
        found.append(f"One seed: {small} may be chance.")
    return found


def searched(
    row: ComparedRecipe, out: Path, tuning: Tuning, command: str, console: rich.console.Console
) -> SearchRecord:
    dataset = dataset_of(row.run(*judged(tuning)))
    score = task_of(row.run(), dataset).score
    search = RowSearch(row, tuning, dataset)
    trials: dict[int, Trial] = {}
    tried: list[TrialRecord] = []
    for one in rounds(search.plan, trials):
        for number, values in enumerate(one.values, start=one.first):
            folder, status, reached, worth = out / row.id / names.SEARCH / f"trial-{number:02}", "failed", None, None
            if search.takes(values):
                result = run_once(row, of_trial(row, values, tuning), folder, command, console)
                status, reached = result.status, result.reached
                worth = result.record and worth_of(result.record, score)
            trials[number] = Trial(values, worth)
            tried.append(TrialRecord(values=values, round=one.number, numbers={score.key: reached}, status=status))
    worths, finals = _finals(row, out, tuning, trials, score, command, console)
    chosen = champion(list(trials.values()), worths)
    return SearchRecord(
        space=search.written,
        budget=tuning.trials,
        metric=f"held-out {score.name}" if "target" not in row.run().methods else "held-out examples to the target",
        score=score,
        hold_out=tuning.hold_out,
        chosen=chosen and chosen.values,
        at_edge=edges(search.plan.space, list(trials.values())),
        trials=tried,
        finals=finals or None,
    )


def _finals(
    row: ComparedRecipe, out: Path, tuning: Tuning, trials: Mapping[int, Trial], score: Score, command: str,
    console: rich.console.Console,
) -> tuple[dict[int, list[tuple[float, ...] | None]], list[FinalistRecord]]:  # fmt: skip
    """What each seed of the finalists was worth, by the trial's number; without finalists none."""
    if tuning.finalists == 1:
        return {}, []
    numbers, found = finalists(list(trials.values()), tuning.finalists), []
    worths = {number: [trials[number].worth] for number in numbers}
    for number in numbers:
        for seed in range(tuning.seed + 1, tuning.seed + SEEDS):
            folder = out / row.id / names.SEARCH / f"best-{number:02}" / f"seed-{seed}"
            result = run_once(row, of_trial(row, trials[number].values, tuning, seed), folder, command, console)
            worths[number].append(result.record and worth_of(result.record, score))
            reached = {score.key: result.reached}
            found.append(FinalistRecord(trial=number, seed=seed, numbers=reached, status=result.status))
    return worths, found


def run_once(
    row: ComparedRecipe, more: tuple[str, ...], directory: Path, command: str, console: rich.console.Console,
    of: str | None = None,
) -> Result:  # fmt: skip
    """Train, or read what was trained before; a diverged run is a result like another. ``of``: the row in words."""
    run = row.run(*more, config.setting("record.dir", str(directory)))
    done = distributed.gather(finished_before(run, directory))[0]
    if done is not None:
        return Result(done.status, done.reason, directory, done, score=record.score_of_run(directory))
    result = train(run, command=command, console=console, quiet=True)
    if result.status == "stopped":
        raise Interrupted(result)
    if distributed.is_first():
        tell(console, one_line(of or row.id, directory, result))
    return result


def finished_before(run: config.Run, directory: Path) -> ResultRecord | None:
    result = record.read_result(directory)
    if result is None or result.status == "stopped":
        return None
    try:
        there = science_of_file(directory / names.RECIPE)
    except UserError:
        return None  # train looks again, and says what is wrong
    return None if record.differences(there, run.science()) else result


def one_line(of: str, directory: Path, result: Result) -> str:
    ended = result.record
    name = f"{of}, {_which(directory)}"
    if result.status == "failed" or ended is None:
        return f"{name:<40} {result.status}: {result.reason}"
    on = str(ended.evaluated_on).replace("_", "-")
    told = "" if result.reached is None else result.score.of(result.reached)
    return (
        f"{name:<40} {told:>8} {on}  peak lr {ended.peak_lr:<8.4g} {ended.steps:>6} steps  {ended.seconds_total:6.1f} s"
    )


def _which(directory: Path) -> str:
    """``trial 3``, ``seed 0``, ``seed 0 of trial 3's values``: by what its folder is called."""
    above, (what, _, number) = directory.parts[-2], directory.name.rpartition("-")
    best, _, trial = above.rpartition("-")
    return f"{what} {int(number)}" + (f" of trial {int(trial)}'s values" if best == "best" else "")


def keep(out: Path, comparison: ComparisonRecord) -> None:
    problem = None
    if distributed.is_first():
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / names.COMPARISON, content(comparison))
        except OSError as error:
            problem = f"--out {out} cannot be written: {error.strerror or error}"
    problem = distributed.gather(problem)[0]
    if problem:
        raise UserError(problem)
