"""Rows, seeds, differences: the numbers of a comparison, once, for the page, the Markdown and the terminal.

Over the n finished seeds of a row: mean and sample standard deviation, s² = Σ(x − m)² / (n − 1). The
difference from the baseline is m − m₀ with Welch's standard error, √(s²/n + s₀²/n₀), and a 95 % interval
from Student's t at the Welch–Satterthwaite degrees of freedom (Welch 1947). Seeds are not paired: the same
seed at another batch is another sequence of gradients. One seed gives no interval. Failed, stopped and
unfinished runs enter no mean; they are counted.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.special import stdtrit

from largebatch.errors import UserError
from largebatch.plan.score import Score
from largebatch.records.comparison import SearchRecord
from largebatch.report.read import Group, ReportSource, read
from largebatch.report.run import RecordedRun


@dataclass(frozen=True)
class SeedMean:
    """A mean over ``n`` seeds; ``std`` is the sample standard deviation, None for one seed."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """How much more than the baseline, in the score's unit; the rest is None unless both have two seeds or more."""

    amount: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class MeasuredRow:
    """One recipe at one batch over its seeds, measured; what no finished seed measured is None."""

    id: str
    label: str
    recipe: str
    place: int
    """Its look: 0 for the baseline, then in the order of the rows."""
    config: str | None
    overrides: tuple[str, ...]
    runs: tuple[RecordedRun, ...]
    global_batch_size: int
    steps: int
    epochs: float | None
    peak_lr: float | None
    score: Score
    evaluated_on: str
    reached_in_training: SeedMean | None
    """The score on the training set."""
    reached: SeedMean | None
    """The score that the row is judged by."""
    averages: Mapping[str, SeedMean]
    """The same of averages of its weights that were evaluated beside them, by their names: ema, lawa."""
    seconds_per_step: SeedMean | None
    seconds_per_epoch: SeedMean | None
    seconds_total: SeedMean | None
    difference: Difference | None
    fewer_steps: float
    """Steps of the baseline / steps of this row."""
    search: SearchRecord | None
    expect: Mapping[str, object] | None
    published: Mapping[int, float]
    comparison: str

    @property
    def is_baseline(self) -> bool:
        return self.place == 0

    @property
    def finished(self) -> tuple[RecordedRun, ...]:
        return tuple(run for run in self.runs if run.finished)

    @property
    def broken(self) -> tuple[RecordedRun, ...]:
        """Runs that failed, were stopped or never ended."""
        return tuple(run for run in self.runs if not run.finished)

    @property
    def trouble(self) -> str | None:
        """``2 failed, 1 stopped: <the first reason>``, or None where every seed finished."""
        if not self.broken:
            return None
        statuses = [run.status for run in self.broken]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        return f"{counts}: {self.broken[0].reason}"


@dataclass(frozen=True)
class Comparison:
    """All that a report says in numbers. The baseline is one of ``rows``."""

    name: str
    folder: Path
    commands: tuple[str, ...]
    created: str | None
    rows: tuple[MeasuredRow, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> MeasuredRow:
        return next(row for row in self.rows if row.is_baseline)

    @property
    def runs(self) -> tuple[RecordedRun, ...]:
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def score(self) -> Score:
        """The first row's, which is every row's where there is :attr:`one_score`."""
        return self.rows[0].score

    @property
    def one_score(self) -> bool:
        """Whether the rows are judged by the same; else nothing can be drawn on one axis."""
        return all(row.score.same_measure(self.score) for row in self.rows)

    @property
    def score_names(self) -> list[str]:
        return sorted({row.score.name for row in self.rows})

    def named(self, before: str) -> Score:
        """The score with a word before its name, for an axis or a column; without name and unit where rows differ."""
        if self.one_score:
            return self.score._replace(name=f"{before} {self.score.name}")
        return self.score._replace(name=f"{before} score", unit="")

    @property
    def reached(self) -> Score:
        """``test accuracy``, ``held-out accuracy`` or, where rows differ in the split, ``final accuracy``."""
        splits = sorted({row.evaluated_on for row in self.rows})
        return self.named("final" if len(splits) > 1 else {"test": "test", "held_out": "held-out"}[splits[0]])


def summarize(paths: Path | Sequence[Path]) -> Comparison:
    """The numbers of comparison folders, or of run folders with the first as the baseline."""
    return measure(read([paths] if isinstance(paths, Path) else paths))


def measure(source: ReportSource) -> Comparison:
    """Means, differences and ratios of what was read."""
    reference = next(group for group in source.groups if group.id == source.baseline)
    places = {
        group.id: place for place, group in enumerate(sorted(source.groups, key=lambda group: group is not reference))
    }
    rows = tuple(_row(group, reference, places[group.id]) for group in source.groups)
    return Comparison(source.name, source.folder, source.commands, source.created, rows, source.notes)


def estimate(values: Iterable[float | None]) -> SeedMean | None:
    """Mean and sample standard deviation of the values that are there; None where none is."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    n = len(numbers)
    mean = math.fsum(numbers) / n
    std = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (n - 1)) if n > 1 else None
    return SeedMean(mean, std, n)


def difference(row: SeedMean, baseline: SeedMean) -> Difference:
    """``row`` − ``baseline`` with Welch's 95 % interval where both have a standard deviation."""
    amount = row.mean - baseline.mean
    if row.std is None or baseline.std is None:
        return Difference(amount)
    a, b = row.std**2 / row.n, baseline.std**2 / baseline.n
    error = math.sqrt(a + b)
    if error == 0:
        return Difference(amount, 0.0, amount, amount)
    freedom = (a + b) ** 2 / (a**2 / (row.n - 1) + b**2 / (baseline.n - 1))
    half = float(stdtrit(freedom, 0.975)) * error
    return Difference(amount, error, amount - half, amount + half)


def _row(group: Group, reference: Group, place: int) -> MeasuredRow:
    plan = group.runs[0].plan
    own_steps, other_steps = (_mean(run.steps for run in g.runs) or 0 for g in (group, reference))
    for key, of in (
        ("global_batch_size", lambda run: run.plan.global_batch_size),
        ("steps", lambda run: run.plan.steps),
        ("score", lambda run: run.score.key),
    ):
        values = sorted({of(run) for run in group.runs})
        if len(values) > 1:
            raise UserError(f"row {group.label!r} mixes {key} {', '.join(map(str, values))}; seeds alone may differ")
    score, other = group.runs[0].score, reference.runs[0].score
    alike = score.same_measure(other)
    score = other if alike else score  # the baseline's tolerance is every row's
    reached, baseline = (_over_seeds(g, lambda run: run.reached()) for g in (group, reference))
    comparable = alike and group is not reference and _split(group) == _split(reference)
    return MeasuredRow(
        id=group.id,
        label=group.label,
        recipe=group.recipe,
        place=place,
        config=group.config,
        overrides=group.overrides,
        runs=group.runs,
        global_batch_size=plan.global_batch_size,
        steps=round(own_steps),
        epochs=_mean(run.epochs for run in group.runs),
        peak_lr=_peak_lr(group.runs[0]),
        score=score,
        evaluated_on=_split(group),
        reached_in_training=_over_seeds(group, lambda run: run.result.number(f"train_{score.key}")),
        reached=reached,
        averages=_averages(group, score.key),
        seconds_per_step=_over_seeds(group, lambda run: run.result.seconds_per_step),
        seconds_per_epoch=_over_seeds(group, lambda run: run.result.seconds_per_epoch),
        seconds_total=_over_seeds(group, lambda run: run.result.seconds_total),
        difference=difference(reached, baseline) if reached and baseline and comparable else None,
        fewer_steps=other_steps / own_steps if own_steps else math.nan,
        search=group.search,
        expect=group.expect,
        published=group.published,
        comparison=group.comparison,
    )


def _averages(group: Group, key: str) -> dict[str, SeedMean]:
    of_average = re.compile(rf"([a-z0-9]{{1,20}})_test_{re.escape(key)}")
    matches = map(of_average.fullmatch, group.runs[0].result.numbers)
    names = [match[1] for match in matches if match]
    means = {name: _over_seeds(group, lambda run, name=name: run.reached(f"{name}_test")) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    found = estimate(values)
    return found.mean if found else None


def _over_seeds(group: Group, number: Callable[[RecordedRun], float | None]) -> SeedMean | None:
    return estimate(number(run) for run in group.runs if run.finished)


def _split(group: Group) -> str:
    return next((run.evaluated_on for run in group.runs if run.finished), group.runs[0].evaluated_on)


def _peak_lr(run: RecordedRun) -> float | None:
    """The one reached, where the run is finished, for a rule may not say it beforehand; else the one planned."""
    peak = run.plan.lr.peak if run.plan.lr else None
    reached = run.result.peak_lr
    return reached if reached is not None and (run.finished or peak is None) else peak
