"""One mark a row or a trial: time per step and epoch, the learning-rate search."""

import math

from matplotlib.axes import Axes

from largebatch.report import svg
from largebatch.report.curves import CurveLine
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.looks import looks
from largebatch.report.numerals import axis, decimals, short
from largebatch.report.scales import focus, log, worst_end
from largebatch.report.strips import Strip, strip_figure
from largebatch.report.summary import Comparison, MeasuredRow

Trials = list[tuple[float, float | None]]  # peak learning rate, score: None where the trial failed


def bars(comparison: Comparison, key: str, name: str, title: str) -> Picture | None:
    values = [(row, estimate.mean) for row in comparison.rows if (estimate := getattr(row, key))]
    if not values:
        return None
    digits = decimals(value for _, value in values)
    strips = [
        Strip(short(row.label), value, f"{value:,.{digits}f} s", colour=svg.INK if row.is_baseline else svg.ACCENT)
        for row, value in values
    ]
    figure = strip_figure(f"{title.lower()}, s", strips)
    described = "; ".join(f"{row.label}: {value:,.{digits}f} s" for row, value in values)
    return Picture(name, "Time", title, "Mean over the finished seeds.", svg.inline(figure, name, title, described), ())


def learning_rate_search(comparison: Comparison) -> Picture | None:
    style = looks(comparison)
    tuned = [(row, sorted(trials, key=lambda trial: trial[0])) for row in comparison.rows if (trials := _trials(row))]
    if not tuned or not comparison.one_score:
        return None
    held_out = comparison.named("held-out")
    figure, axes = empty_axes(axis(held_out), "peak learning rate (log scale)")
    shown = {
        row.label: [CurveLine(tuple(x for x, _ in good), tuple(y for _, y in good))]
        for row, trials in tuned
        if (good := [(x, y) for x, y in trials if y is not None])
    }
    sentences = ["A ring marks the learning rate that was chosen."] + (
        focus(axes, shown, held_out, ends=False, room=0.6) if shown else []
    )
    for place, (row, trials) in enumerate(tuned):
        look = style[row.id]
        for line in shown.get(row.label, []):
            axes.plot(
                line.x, line.y, color=look.colour, dashes=look.dashes or (None, None), marker=look.marker,
                markersize=6.5, markeredgecolor=svg.PAGE, markeredgewidth=0.8,
            )  # fmt: skip
        _ring(axes, trials, row.search and row.search.chosen, look.colour)
        _crosses(axes, trials, worst_end(held_out, 0.03 + place * min(0.04, 0.25 / len(tuned))), look.colour)
    log(axes, "x", [x for _, trials in tuned for x, _ in trials], margin=1.3)
    if failed := sum(y is None for _, trials in tuned for _, y in trials):
        end, inward = ("foot", "below") if held_out.more_is_better else ("top", "above")
        sentences.append(
            f"Crosses at the {end} are trials that failed ({failed}), from {inward} in the order of the rows."
        )
    title = "Learning-rate search"
    described = "; ".join(
        f"{row.label}: chosen {row.search.chosen if row.search else None} of {len(trials)} trials"
        for row, trials in tuned
    )
    key = tuple((style[row.id], row.label) for row, _ in tuned)
    return Picture("search", "Tuning", title, " ".join(sentences), svg.inline(figure, "search", title, described), key)


def _ring(axes: Axes, trials: Trials, chosen: float | None, colour: str) -> None:
    """Round the trial that was chosen, where it is among those that have a score."""
    xs, ys = zip(*[(x, y) for x, y in trials if y is not None and x == chosen] or [(math.nan, math.nan)], strict=True)
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


def _trials(row: MeasuredRow) -> Trials:
    trials = (row.search and row.search.trials) or ()
    return [(lr, trial.number(row.score.key)) for trial in trials if (lr := trial.peak_lr) and lr > 0]
