"""The tables as text: the page, the Markdown and the terminal print these cells and no others."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from largebatch.plan.score import Score, words_of
from largebatch.records.comparison import SearchRecord
from largebatch.records.typed import finite
from largebatch.report.numerals import ABSENT, count, decimals, interval, plain, ratio, scored, signed
from largebatch.report.run import RecordedRun
from largebatch.report.summary import Comparison, MeasuredRow, SeedMean, estimate
from largebatch.report.verdict import best_large_batch
from largebatch.terminal.columns import kept, widest

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

MOST_BESIDE = 3  # columns
GAP, LONGEST_WORD = 2, 24  # characters
AT_EDGE = "(at an edge)"
AT_EDGE_MEANS = "the best that was tried lies within a tenth of an end of what was tried, and a better may lie beyond"


@dataclass(frozen=True)
class Column:
    """A narrow terminal leaves ``wide`` columns out, and where that is not enough others, those of the highest ``rank``
    first; the page sets ``under`` ones below their neighbour."""

    title: str
    unit: str = ""
    number: bool = True
    wide: bool = False
    under: bool = False
    rank: int = 0

    @property
    def in_lines(self) -> str:
        """A word below the other, keys cut at their dots."""
        if not self.number:
            return self.title
        return "\n".join([*self.title.replace(".", ".\n").split(" "), *self.unit.split(" ")]).rstrip()

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


TO_TARGET = (Column("target"), Column("steps to it"), Column("training to it", "s"))


@dataclass(frozen=True)
class TableLine:
    """``mark`` is a word such as "baseline"; ``trouble`` says what went wrong with the row's runs."""

    id: str
    cells: tuple[str, ...]
    mark: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class TextTable:
    """Prints itself in a terminal with rich; elsewhere ``columns`` and ``lines`` are plain data."""

    caption: str
    columns: tuple[Column, ...]
    lines: tuple[TableLine, ...]

    @property
    def placed(self) -> list[tuple[int, Column, Column | None]]:
        """On the page: each column's index, the column, and the one set below it."""
        following = [*self.columns[1:], None]
        return [
            (index, column, below if below and below.under else None)
            for index, (column, below) in enumerate(zip(self.columns, following, strict=True))
            if not column.under
        ]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """All columns from 130 characters on, the essential ones below, of these as many as have room: none is cut."""
        from rich.table import Table as RichTable
        from rich.text import Text

        asked = [index for index, column in enumerate(self.columns) if options.max_width >= 130 or not column.wide]
        widths, ranks = [self._least(index) for index in asked], [self.columns[index].rank for index in asked]
        shown = [asked[place] for place in kept(widths, ranks, options.max_width, GAP)]
        table = RichTable(box=None, padding=(0, GAP, 0, 0), show_edge=False, pad_edge=False)
        for place, index in enumerate(shown):
            column = self.columns[index]
            table.add_column(
                column.in_lines,
                justify="right" if column.number else "left",
                vertical="bottom",
                no_wrap=column.number,
                overflow="fold",
                min_width=self._least(index) if place or column.number else None,
            )
        for line in self.lines:
            cells = [Text(line.cells[index]) for index in shown]
            if line.mark:
                cells[0].append(f" ({line.mark})", style="dim")
            table.add_row(*cells)
        yield table
        if absent := [self.columns[index].heading for index in asked if index not in shown]:
            yield Text(f"no room for: {'; '.join(absent)}", style="dim")
        for line in self.lines:
            if line.trouble:
                yield Text(f"{line.cells[0]}: {line.trouble}", style="red")

    def _least(self, index: int) -> int:
        """Characters that a column of numbers needs, or the longest word of a text, which may be folded where it is
        longer than LONGEST_WORD."""
        column, cells = self.columns[index], [line.cells[index] for line in self.lines]
        if column.number:
            return max(map(widest, [column.in_lines, *cells]))
        words = " ".join([column.title, *cells]).split()
        return min(LONGEST_WORD, max(map(widest, words), default=0))


def results(comparison: Comparison) -> TextTable:
    """The main table. Seconds share the decimals of their column."""
    rows, best = comparison.rows, best_large_batch(comparison)
    averages = _averages(comparison)
    score = comparison.score if comparison.one_score else Score("score", "score")
    columns = (
        Column("recipe", number=False),
        Column("global batch"),
        Column("steps"),
        Column("peak lr", wide=True),
        _scored(comparison.named("train"), wide=True),
        _scored(comparison.reached),
        *(_scored(_of_average(name, comparison.reached), wide=True) for name in averages),
        Column("difference", score.differences_in),
        Column("95\u00a0% interval", score.differences_in, wide=True, under=True),
        Column("seeds"),
        Column("fewer steps", "times"),
        Column("per step", "s", wide=True),
        Column("per epoch", "s", wide=True),
        Column("in total", "s", wide=True),
    )
    cell = _cells(comparison)
    seconds = [_seconds(rows, key) for key in ("seconds_per_step", "seconds_per_epoch", "seconds_total")]
    return TextTable(
        f"Each {score.name} is the mean over the finished seeds ± their sample standard deviation"
        f"{'' if any(len(row.finished) > 1 for row in rows) else '; one seed: no interval'}.",
        columns,
        tuple(
            TableLine(
                row.id,
                (
                    row.label,
                    count(row.global_batch_size),
                    count(row.steps),
                    plain(row.peak_lr),
                    cell(row.reached_in_training, row.score),
                    cell(row.reached, row.score) if row.reached else row.runs[0].status,
                    *(cell(row.averages.get(name), row.score) for name in averages),
                    signed(row.difference, row.score) if row.difference else ABSENT,
                    interval(row.difference, row.score) or ABSENT,
                    str(len(row.runs)) if not row.broken else f"{len(row.finished)} of {len(row.runs)}",
                    ratio(row.fewer_steps),
                    *(text(row) for text in seconds),
                ),
                mark=""
                if len(rows) == 1
                else "baseline"
                if row.is_baseline
                else "best large batch"
                if row is best
                else "",
                trouble=row.trouble or "",
            )
            for row in rows
        ),
    )


def searches(comparison: Comparison) -> TextTable | None:
    """What tuning each row got; None where none was tuned."""
    tuned = [(row, row.search) for row in comparison.rows if row.search]
    if not tuned:
        return None
    columns = (
        Column("recipe", number=False),
        Column("trials"),
        Column("failed trials"),
        Column("chosen", number=False),
        Column("best at the chosen", comparison.score.unit if comparison.one_score else ""),
        Column("held-out examples"),
    )
    lines = []
    for row, search in tuned:
        score, trials = search.judged_by, search.trials or ()
        failed = sum(trial.number(score.key) is None for trial in trials)
        lines.append(
            TableLine(
                row.id,
                (
                    row.label,
                    str(search.budget or len(trials)),
                    str(failed),
                    chosen(search),
                    scored(at_chosen(search), score),
                    count(search.hold_out),
                ),
            )
        )
    return TextTable(
        "Searched on a held-out part of the training set, never on the test set."
        + (f" At an edge: {AT_EDGE_MEANS}." if any(search.at_edge for _, search in tuned) else ""),
        columns,
        tuple(lines),
    )


def at_chosen(search: SearchRecord) -> SeedMean | None:
    """What the chosen trial reached; of a finalist over its seeds."""
    score = search.judged_by
    of_trials = {
        number: value
        for number, trial in enumerate(search.trials or ())
        if trial.values == search.chosen and (value := trial.number(score.key)) is not None
    }
    if not of_trials:
        return None
    number = max(of_trials, key=lambda number: score.worth(of_trials[number]))
    more = [final.number(score.key) for final in search.finals or () if final.trial == number]
    return estimate([of_trials[number], *more])


def chosen(search: SearchRecord) -> str:
    """The values of the best trial by key; those at an edge of what was tried are marked."""
    marks = dict.fromkeys(search.at_edge or (), f" {AT_EDGE}")
    values = (search.chosen or {}).items()
    return ", ".join(f"{key} {written(value)}{marks.get(key, '')}" for key, value in values) or ABSENT


def written(value: object) -> str:
    return plain(value) if isinstance(value, float) else str(value)


def published(comparison: Comparison) -> TextTable | None:
    """What the papers report, beside what was measured here; None where no recipe cites a result."""
    cited, cell = [row for row in comparison.rows if row.expect], _cells(comparison)
    if not cited:
        return None
    columns = (
        Column("recipe", number=False),
        Column("published", comparison.score.unit),
        Column("source", number=False),
        Column("measured here", comparison.score.unit if comparison.one_score else ""),
    )
    return TextTable(
        "Published results belong to the paper's own workload (its data, model and budget);"
        " they are to be expected here only where the workload is the same.",
        columns,
        tuple(
            TableLine(
                row.id,
                (
                    row.label,
                    ", ".join(
                        f"{words_of(key)[0]} {_cited(value)}"
                        for key, value in (row.expect or {}).items()
                        if key != "source"
                    )
                    or ABSENT,
                    str((row.expect or {}).get("source") or ABSENT),
                    cell(row.reached, row.score),
                ),
            )
            for row in cited
        ),
    )


def every_run(comparison: Comparison) -> TextTable:
    """One line a run, so that no seed is lost in a mean; what its task measures beside the score, too."""
    beside, cell, averages = _beside(comparison), _cells(comparison), _averages(comparison)
    to_target = any(run.result.target for run in comparison.runs)
    columns = (
        Column("run", number=False),
        Column("seed"),
        Column("status", number=False),
        Column("steps done"),
        _scored(comparison.named("train")),
        _scored(comparison.reached),
        *(_scored(_of_average(name, comparison.reached)) for name in averages),
        *(Column(*words_of(key)) for key in beside),
        *(TO_TARGET if to_target else ()),
        Column("in total", "s"),
    )
    total = decimals(run.result.seconds_total for run in comparison.runs)
    return TextTable(
        "Every run, with its folder.",
        columns,
        tuple(
            TableLine(
                run.name,
                (
                    run.name,
                    str(run.seed),
                    run.status
                    if run.finished
                    else f"{run.status}: {run.reason}"
                    if run.reason != run.status
                    else run.status,
                    count(run.result.steps),
                    cell(_alone(run.reached("train")), run.score),
                    cell(_alone(run.reached()), run.score),
                    *(cell(_alone(run.reached(f"{name}_test")), run.score) for name in averages),
                    *(scored(_alone(run.result.number(f"test_{key}")), Score(key, *words_of(key))) for key in beside),
                    *(_to_target(run) if to_target else ()),
                    ABSENT if (seconds := run.result.seconds_total) is None else f"{seconds:,.{total}f}",
                ),
            )
            for run in comparison.runs
        ),
    )


def _to_target(run: RecordedRun) -> tuple[str, ...]:
    """The cells of ``TO_TARGET``, interpolated between evaluations."""
    target = run.result.target
    if target is None:
        return (ABSENT,) * len(TO_TARGET)
    at = target.interpolated
    taken = ("not reached", ABSENT) if at is None else (f"{at.steps:,.0f}", f"{at.seconds:,.1f}")
    return run.score.of(target.score), *taken


def _scored(score: Score, *, wide: bool = False) -> Column:
    return Column(score.name, score.unit, wide=wide)


def _cells(comparison: Comparison) -> Callable[[SeedMean | None, Score], str]:
    """A score as a cell; with its unit where the column has none, since rows have others."""
    if comparison.one_score:
        return scored
    return lambda value, score: f"{scored(value, score)} {score.unit}".rstrip() if value else ABSENT


def _averages(comparison: Comparison) -> list[str]:
    """Which averages of weights were evaluated, by name."""
    return list(dict.fromkeys(name for row in comparison.rows for name in row.averages))[:MOST_BESIDE]


def _of_average(name: str, score: Score) -> Score:
    return score._replace(name=f"{name.upper()}: {score.name}")


def _beside(comparison: Comparison) -> list[str]:
    """What runs measured on the test set beside the loss and the score, by key: top-5, R²."""
    if not comparison.one_score:
        return []
    keys = dict.fromkeys(key for run in comparison.runs for key in run.result.numbers)
    known = [key.removeprefix("test_") for key in keys if re.fullmatch(r"test_[a-z0-9_]{1,40}", key)]
    return [key for key in known if key not in ("loss", comparison.score.key)][:MOST_BESIDE]


def _cited(value: object) -> str:
    number = finite(value)
    return str(value) if number is None else f"{number:g}"


def _alone(value: float | None) -> SeedMean | None:
    return None if value is None else SeedMean(value, None, 1)


def _seconds(rows: tuple[MeasuredRow, ...], key: str) -> Callable[[MeasuredRow], str]:
    means = {row.id: estimate.mean for row in rows if (estimate := getattr(row, key))}
    digits = decimals(means.values())
    return lambda row: f"{means[row.id]:,.{digits}f}" if row.id in means else ABSENT
