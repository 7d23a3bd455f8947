"""Pictures of named numbers: each a name with its bar, or its point and interval, below; no axis to be looked up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from largebatch.report import svg
from largebatch.report.frame import WIDTH

SLOT = 38
CHARACTER = 6.3  # points, at the page's font size


@dataclass(frozen=True)
class Strip:
    """``value`` None: there is only the text. An infinite ``high`` is an arrow; ``reference`` is marked and named."""

    name: str
    value: float | None
    text: str
    low: float | None = None
    high: float | None = None
    colour: str = svg.ACCENT
    reference: float | None = None
    reference_text: str = ""


def strip_figure(heading: str, strips: Sequence[Strip], *, log: bool = False, points: bool = False) -> Figure:
    """Top to bottom; on a log scale bars begin at the frame, and only their ends mean something."""
    height = SLOT * len(strips) + 30
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    room = max(74, CHARACTER * max(len(strip.text) for strip in strips) + 12)
    axes = figure.add_axes((2 / WIDTH, 6 / height, 1 - (room + 2) / WIDTH, 1 - 32 / height))
    axes.set_title(heading, loc="left", x=0, fontsize=11.5, color=svg.MUTED, pad=10)
    axes.axis("off")
    axes.set_ylim(len(strips), 0)
    _scale(axes, strips, log)
    for place, strip in enumerate(strips):
        axes.text(0, place + 0.36, strip.name, va="center", transform=axes.get_yaxis_transform())
        if strip.reference_text:
            axes.annotate(
                strip.reference_text,
                (1, place + 0.36),
                (room - 4, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9.5,
                color=svg.MUTED,
            )
        (_point if points else _bar)(axes, place + 0.72, strip)
        if strip.reference is not None:
            axes.plot([strip.reference], [place + 0.97], color=svg.MUTED, marker="^", markersize=5, clip_on=False)
    return figure


def _scale(axes: Axes, strips: Sequence[Strip], log: bool) -> None:
    numbers = [number for strip in strips for number in (strip.value, strip.low, strip.high, strip.reference)]
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if log and (above := [number for number in known if number > 0]):
        axes.set_xscale("log")
        axes.set_xlim(min(above) / 1.6, max(above) * 1.02)
    else:
        axes.set_xlim(0, max(known, default=1) or 1)


def _bar(axes: Axes, y: float, strip: Strip) -> None:
    left, right = axes.get_xlim()
    if strip.value is None or strip.value <= 0:
        return _write(axes, left, y, strip.text)
    axes.barh(y, strip.value - (left if axes.get_xscale() == "log" else 0), left=left if left > 0 else 0, height=0.2,
              color=strip.colour, linewidth=0)  # fmt: skip
    if strip.high is not None and strip.low is not None:
        for colour, width in ((svg.PAGE, 3), (svg.MUTED, 1.2)):
            axes.plot([max(left, strip.low), min(right, strip.high)], [y, y], color=colour, linewidth=width)
    return _write(axes, max(strip.value, strip.high or 0), y, strip.text)


def _point(axes: Axes, y: float, strip: Strip) -> None:
    left, right = axes.get_xlim()
    low, high = strip.low or left, right if strip.high is None else min(right, strip.high)
    if strip.low is not None:
        axes.plot([low, high], [y, y], color=strip.colour, linewidth=1.4, solid_capstyle="butt")
    if strip.high is not None and math.isinf(strip.high):
        axes.plot([right], [y], color=strip.colour, marker=">", markersize=6, clip_on=False)
    if strip.value is not None:
        axes.plot([strip.value], [y], color=strip.colour, marker="o", markersize=7, markeredgecolor=svg.PAGE)
    _write(axes, right, y, strip.text, 9)


def _write(axes: Axes, x: float, y: float, text: str, gap: float = 5) -> None:
    axes.annotate(text, (x, y), (gap, 0), textcoords="offset points", va="center_baseline", annotation_clip=False)
