"""Curves: accuracy against epochs, steps and time; learning rate, loss and gradient norm against epochs.

Accuracy scales are chosen for where the rows end; logarithmic ones for what finished runs recorded. A run
that did not finish ends in a cross, on the frame where it left the scale.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from largebatch.report import svg
from largebatch.report.curves import Line, lines
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.looks import Look, looks
from largebatch.report.numerals import count
from largebatch.report.read import finite
from largebatch.report.scales import focus, log
from largebatch.report.summary import Comparison, Row


def accuracy(
    comparison: Comparison, x: str, name: str, x_label: str, *, log_x: bool = False, scale: float = 1.0
) -> Picture | None:
    drawn = _drawn(comparison, x, "accuracy_percent", evaluations=True, x_scale=1 / scale)
    if not drawn:
        return None
    figure, axes = empty_axes(f"{comparison.accuracy_name}, %", x_label)
    _draw(axes, comparison, drawn)
    sentences = focus(axes, {row.label: [line for line in own if not line.broken] or own for row, own in drawn})
    if log_x:
        log(axes, "x", [value for _, own in drawn for line in own for value in line.x if value > 0], count)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "epoch"))
    what = x_label.removesuffix(" (log scale)").split(",")[0]
    title = f"{comparison.accuracy_name.capitalize()} against {what}"
    return _picture(comparison, figure, name, "Curves", title, drawn, sentences, "%")


def accuracy_in_time(comparison: Comparison) -> Picture | None:
    longest = max(
        (finite(record.get("seconds")) or 0 for run in comparison.runs for record in run.evaluations),
        default=0,
    )
    unit, scale = ("s", 1) if longest < 300 else ("min", 60) if longest < 3 * 3600 else ("h", 3600)
    return accuracy(comparison, "seconds", "accuracy-time", f"time spent training, {unit}", scale=scale)


def learning_rate(comparison: Comparison) -> Picture | None:
    drawn = _positive(_drawn(comparison, "epoch", "lr", evaluations=False))
    if not drawn:
        return None
    figure, axes = empty_axes("learning rate (log scale)", "epochs")
    _draw(axes, comparison, drawn)
    peaks = [max(line.y) for _, own in drawn for line in own]
    floor = min(peaks) / 100
    log(axes, "y", [floor, *peaks])
    cut = (
        ["The last fall towards zero leaves the scale."]
        if any(line.y[-1] < floor for _, own in drawn for line in own)
        else []
    )
    axes.set_xlim(left=0)
    return _picture(comparison, figure, "learning-rate", "Curves", "Learning rate against epochs", drawn, cut, "")


def training(comparison: Comparison, key: str, name: str, title: str, y_label: str) -> Picture | None:
    drawn = _positive(_drawn(comparison, "epoch", key, evaluations=False))
    if not drawn:
        return None
    figure, axes = empty_axes(f"{y_label} (log scale)", "epochs")
    _draw(axes, comparison, drawn)
    steady = [value for _, own in drawn for line in own if not line.broken for value in line.y]
    log(axes, "y", steady or [value for _, own in drawn for line in own for value in line.y])
    axes.set_xlim(left=0)
    return _picture(comparison, figure, name, "Curves", f"{title} against epochs", drawn, [], "")


def _drawn(
    comparison: Comparison, x: str, y: str, *, evaluations: bool, x_scale: float = 1.0
) -> list[tuple[Row, list[Line]]]:
    drawn = []
    for row in comparison.rows:
        own = lines(row, x, y, evaluations=evaluations)
        if x_scale != 1:
            own = [
                Line(tuple(value * x_scale for value in line.x), line.y, line.low, line.high, line.broken)
                for line in own
            ]
        if own:
            drawn.append((row, own))
    return drawn


def _positive(drawn: list[tuple[Row, list[Line]]]) -> list[tuple[Row, list[Line]]]:
    """What a log axis can show: points that are not positive become gaps."""

    def above(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(value if value > 0 else math.nan for value in values)

    kept = [
        (
            row,
            [
                Line(
                    line.x,
                    above(line.y),
                    line.low and above(line.low),
                    line.high and above(line.high),
                    line.broken,
                )
                for line in own
            ],
        )
        for row, own in drawn
    ]
    return [
        (row, alive) for row, own in kept if (alive := [line for line in own if any(value > 0 for value in line.y)])
    ]


def _draw(axes: Axes, comparison: Comparison, drawn: Sequence[tuple[Row, list[Line]]]) -> None:
    """Baseline last, so that it lies on top; markers sparse and staggered, so that they rarely meet."""
    style = looks(comparison)
    for row, own in sorted(drawn, key=lambda pair: pair[0].is_baseline):
        look = style[row.id]
        for line in own:
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.16, linewidth=0)
            axes.plot(
                line.x,
                line.y,
                color=look.colour,
                dashes=look.dashes or (None, None),
                linewidth=1 if line.broken else 1.7,
                marker=look.marker,
                markersize=6.5,
                markeredgecolor=svg.PAGE,
                markeredgewidth=0.8,
                markevery=_sparse(len(line.x), look.index),
            )


def _sparse(points: int, index: int) -> tuple[int, int]:
    """First marker and stride: some five a line, staggered from row to row."""
    stride = max(1, round(points / 5))
    return round(stride * (index % 6) / 6), stride


def _crosses(axes: Axes, drawn: Sequence[tuple[Row, list[Line]]], style: dict[str, Look]) -> None:
    """Where runs ended before their time; on the frame where that is off the scale."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for row, own in drawn:
        for line in own:
            if line.broken:
                known = [value for value in line.y if not math.isnan(value)][-1]
                x, y = min(max(line.x[-1], left), right), min(max(known, low), high)
                axes.plot(
                    [x],
                    [y],
                    color=style[row.id].colour,
                    marker="x",
                    markersize=8,
                    markeredgewidth=2,
                    clip_on=False,
                    scalex=False,
                    scaley=False,
                )


def _picture(
    comparison: Comparison,
    figure: Figure,
    name: str,
    section: str,
    title: str,
    drawn: Sequence[tuple[Row, list[Line]]],
    sentences: list[str],
    unit: str,
) -> Picture:
    style = looks(comparison)
    _crosses(figure.axes[0], drawn, style)
    ends = "; ".join(f"{row.label} ends at {own[0].y[-1]:.4g}{f' {unit}' if unit else ''}" for row, own in drawn)
    key = tuple((style[row.id], row.label) for row, _ in drawn)
    return Picture(name, section, title, " ".join(sentences), svg.inline(figure, name, title, ends), key)
