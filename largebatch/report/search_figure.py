"""One mark a trial: what each searched value came to, a picture for each key."""

import math
from collections.abc import Iterator

from matplotlib.axes import Axes

from largebatch.records.typed import finite
from largebatch.report import svg
from largebatch.report.curves import CurveLine
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.looks import looks
from largebatch.report.numerals import axis
from largebatch.report.scales import focus, log, worst_end
from largebatch.report.summary import Comparison, MeasuredRow
from largebatch.report.table import chosen

Trials = list[tuple[float, float | None]]  # the key's value, the score: None where the trial failed
Searched = list[tuple[MeasuredRow, Trials]]


def pictures(comparison: Comparison) -> Iterator[Picture]:
    """One for each key whose values are numbers."""
    if not comparison.one_score:
        return
    keys = dict.fromkeys(key for row in comparison.rows if row.search for key in row.search.space)
    for number, key in enumerate(keys):
        searched = [(row, sorted(trials)) for row in comparison.rows if (trials := _trials(row, key))]
        if searched:
            yield _picture(comparison, searched, key, "search" if number == 0 else f"search-{number}")


def _picture(comparison: Comparison, searched: Searched, key: str, name: str) -> Picture:
    style, held_out = looks(comparison), comparison.named("held-out")
    scale = _scale(searched[0][0], key)
    shown_key = f"1 − {key}" if scale == "one_minus_log" else key
    figure, axes = empty_axes(axis(held_out), shown_key if scale == "linear" else f"{shown_key} (log scale)")
    shown = {
        row.label: [CurveLine(tuple(x for x, _ in good), tuple(y for _, y in good))]
        for row, trials in searched
        if (good := [(x, y) for x, y in trials if y is not None])
    }
    several = any(row.search and len(row.search.space) > 1 for row, _ in searched)
    sentences = [f"A ring marks the {key} of the trial that was chosen."]
    if shown and not several:
        sentences += focus(axes, shown, held_out, ends=False, room=0.6)
    for place, (row, trials) in enumerate(searched):
        look, alone = style[row.id], row.search is not None and len(row.search.space) == 1
        for line in shown.get(row.label, []):
            (drawn,) = axes.plot(
                line.x, line.y, color=look.colour, dashes=look.dashes or (None, None), marker=look.marker,
                markersize=6.5, markeredgecolor=svg.PAGE, markeredgewidth=0.8,
            )  # fmt: skip
            if not alone:
                drawn.set_linestyle("none")
        best = row.search and _mark((row.search.chosen or {}).get(key), scale)
        _ring(axes, trials, best, row, look.colour)
        _crosses(axes, trials, worst_end(held_out, 0.03 + place * min(0.04, 0.25 / len(searched))), look.colour)
    if scale != "linear":
        log(axes, "x", [x for _, trials in searched for x, _ in trials], margin=1.3)
    if failed := sum(y is None for _, trials in searched for _, y in trials):
        end, inward = ("foot", "below") if held_out.more_is_better else ("top", "above")
        sentences.append(
            f"Crosses at the {end} are trials that failed ({failed}), from {inward} in the order of the rows."
        )
    if several:
        sentences.append("The trials differ in the other keys, too.")
    title = f"Search: {key}"
    described = "; ".join(
        f"{row.label}: chosen {chosen(row.search) if row.search else None} of {len(trials)} trials"
        for row, trials in searched
    )
    looked = tuple((style[row.id], row.label) for row, _ in searched)
    return Picture(name, "Tuning", title, " ".join(sentences), svg.inline(figure, name, title, described), looked)


def _ring(axes: Axes, trials: Trials, best: float | None, row: MeasuredRow, colour: str) -> None:
    """Round the trial that was chosen, where it is among those that have a score."""
    there = [(x, y) for x, y in trials if y is not None and x == best]
    marked = [max(there, key=lambda trial: row.score.worth(trial[1]))] if there else [(math.nan, math.nan)]
    xs, ys = zip(*marked, strict=True)
    axes.plot(
        xs, ys, color=colour, marker="o", markersize=13, markerfacecolor="none", markeredgewidth=1.3, linestyle="none"
    )


def _crosses(axes: Axes, trials: Trials, height: float, colour: str) -> None:
    """At the trials that failed; ``height`` as a share of the picture's."""
    lost = [x for x, y in trials if y is None]
    axes.plot(
        lost, [height] * len(lost), color=colour, marker="x", markersize=6, markeredgewidth=1.5, linestyle="none",
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip


def _trials(row: MeasuredRow, key: str) -> Trials:
    trials, scale = (row.search and row.search.trials) or (), _scale(row, key)
    return [
        (mark, trial.number(row.score.key))
        for trial in trials
        if (mark := _mark(trial.values.get(key), scale)) is not None and (scale == "linear" or mark > 0)
    ]


def _scale(row: MeasuredRow, key: str) -> str:
    """``log``, ``one_minus_log``, else ``linear``."""
    space = row.search.space.get(key) if row.search else None
    return next((scale for scale in ("log", "one_minus_log") if isinstance(space, dict) and scale in space), "linear")


def _mark(value: object, scale: str) -> float | None:
    number = finite(value)
    return number if number is None or scale != "one_minus_log" else 1.0 - number
