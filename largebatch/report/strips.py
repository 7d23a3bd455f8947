"""Pictures of named numbers: each a name with its bar, or its point and interval, below; no axis to be looked up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from largebatch.report import svg
from largebatch.report.frame import WIDTH

SLOT, NAME, LANE, BELOW = 38.0, 13.7, 27.4, 40.0
"""A strip's height and where its name, its mark and its reference lie in it, in points."""
CHARACTER = 7.4
"""The width of one at the font size of a narrow screen, in points."""


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
    slot = SLOT + (14 if any(strip.reference is not None for strip in strips) else 0)
    height = slot * len(strips) + 30
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    room = max(74, CHARACTER * max(len(strip.text) for strip in strips) + 8)
    axes = figure.add_axes((2 / WIDTH, 6 / height, 1 - (room + 2) / WIDTH, 1 - 32 / height))
    axes.set_title(heading, loc="left", x=0, fontsize=11.5, color=svg.MUTED, pad=10)
    axes.axis("off")
    axes.set_ylim(slot * len(strips), 0)
    _scale(axes, strips, log)
    for place, strip in enumerate(strips):
        top = slot * place
        axes.text(0, top + NAME, strip.name, va="center", transform=axes.get_yaxis_transform())
        (_point if points else _bar)(axes, top + LANE, strip)
        if strip.reference is not None:
            _refer(axes, top + BELOW, strip.reference, strip.reference_text)
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
    axes.barh(y, strip.value - (left if axes.get_xscale() == "log" else 0), left=left if left > 0 else 0, height=7.6,
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


def _refer(axes: Axes, y: float, x: float, text: str) -> None:
    """Below the mark, with its name where there is room."""
    across, _ = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    axes.plot([x], [y], color=svg.MUTED, marker="^", markersize=5, clip_on=False)
    before = across > 0.5
    axes.annotate(text, (x, y), (-7 if before else 7, 0), textcoords="offset points", ha="right" if before else "left",
                  va="center_baseline", fontsize=9.5, color=svg.MUTED, annotation_clip=False)  # fmt: skip


def _write(axes: Axes, x: float, y: float, text: str, gap: float = 5) -> None:
    axes.annotate(text, (x, y), (gap, 0), textcoords="offset points", va="center_baseline", annotation_clip=False)
