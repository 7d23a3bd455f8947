"""The rows of a comparison as lines in one picture, each in its row's look; what all curves share.

A run that did not finish ends in a cross, on the frame where it left the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from largebatch.report import svg
from largebatch.report.curves import CurveLine, lines
from largebatch.report.frame import Picture
from largebatch.report.looks import Look, looks
from largebatch.report.summary import Comparison, MeasuredRow

Drawn = Sequence[tuple[MeasuredRow, list[CurveLine]]]
MARKER_ROOM = 1.012  # times the longest line: half a marker


def drawn_lines(comparison: Comparison, x: str, y: str, event: str = "train", x_scale: float = 1.0) -> Drawn:
    """Rows with something to draw, in the order of the table."""
    drawn = []
    for row in comparison.rows:
        own = lines(row, x, y, event)
        if own:
            drawn.append((row, [replace(line, x=tuple(value * x_scale for value in line.x)) for line in own]))
    return drawn


def positive(drawn: Drawn) -> Drawn:
    """What a log axis can show: points that are not positive become gaps."""

    def above(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return values and tuple(value if value > 0 else math.nan for value in values)

    kept = [
        (row, [replace(line, y=above(line.y), low=above(line.low), high=above(line.high)) for line in own])
        for row, own in drawn
    ]
    return [
        (row, alive) for row, own in kept if (alive := [line for line in own if any(value > 0 for value in line.y)])
    ]


def draw_lines(axes: Axes, comparison: Comparison, drawn: Drawn) -> None:
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


def draw_edges(axes: Axes, comparison: Comparison, drawn: Drawn) -> list[str]:
    """A dotted line in a row's colour at every epoch where a phase of it begins; what that is, in a sentence."""
    style = looks(comparison)
    edges = [(row, epoch) for row, _ in drawn for epoch in row.runs[0].edges]
    for row, epoch in edges:
        axes.axvline(epoch, color=style[row.id].colour, linewidth=0.8, dashes=(1, 2), zorder=0)
    return ["Dotted lines: another phase begins."] * bool(edges)


def from_zero(axes: Axes) -> None:
    """The x axis, with room for a marker at the end of the longest line."""
    axes.set_xlim(0, MARKER_ROOM * axes.get_xlim()[1])


def _sparse(points: int, index: int) -> tuple[int, int]:
    """First marker and stride: some five a line, staggered from row to row."""
    stride = max(1, round(points / 5))
    return min(round(stride * (index % 6) / 6), points - 1), stride


def _crosses(axes: Axes, drawn: Drawn, style: dict[str, Look]) -> None:
    """Where runs ended before their time; on the frame where that is off the scale."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for row, own in drawn:
        for line in own:
            if line.broken:
                x, y = min(max(line.x[-1], left), right), min(max(_last(line), low), high)
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


def line_picture(
    comparison: Comparison,
    figure: Figure,
    name: str,
    section: str,
    title: str,
    drawn: Drawn,
    sentences: list[str],
    unit: str,
) -> Picture:
    """The finished picture: crosses, the key of its rows, and where each row ends for those who cannot see it."""
    style = looks(comparison)
    if comparison.rows[0].comparison:  # drawn once for each comparison
        name = f"{name}-{comparison.rows[0].place}"
    _crosses(figure.axes[0], drawn, style)
    ends = "; ".join(f"{row.label} ends at {_last(own[0]):.4g}{f' {unit}' if unit else ''}" for row, own in drawn)
    key = tuple((style[row.id], row.label) for row, _ in drawn)
    return Picture(name, section, title, " ".join(sentences), svg.inline(figure, name, title, ends), key)


def _last(line: CurveLine) -> float:
    return [value for value in line.y if not math.isnan(value)][-1]
