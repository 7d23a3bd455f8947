"""The model's seconds of a step over the measured ones, against the devices (facts of kind ``machine_fit``)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.numerals import count
from largebatch.report.scales import log

WIDTH, HEIGHT = 700, 360
LEFT, RIGHT, TOP, FOOT = 52, 12, 30, 74  # points
RATIOS = (0.25, 0.5, 0.7, 0.85, 1, 1.15, 1.4, 2, 4)
BESIDE, WIDEST = 0.035, 0.4
"""Of ln devices, between rows of the same number, and between the first and the last of them."""


def draw(facts: Mapping[str, Any]) -> Drawn:
    rows = sorted(facts["rows"], key=lambda row: row["devices"])
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes((LEFT / WIDTH, FOOT / HEIGHT, 1 - (LEFT + RIGHT) / WIDTH, 1 - (FOOT + TOP) / HEIGHT))
    axes.axhspan(0.85, 1.15, color=svg.RULE, zorder=0, linewidth=0)
    axes.axhline(1, color=svg.MUTED, linewidth=1)
    for row, x in zip(rows, _apart([row["devices"] for row in rows]), strict=True):
        ends = [row[f"model_seconds_{end}"] / row["seconds"] for end in ("low", "high")]
        colour = svg.INK if row["fitted"] else svg.ACCENT
        axes.plot([x, x], ends, color=colour, linewidth=1, alpha=0.7)
        axes.plot([x], [row["model_seconds"] / row["seconds"]], linestyle="none", **_mark(row["fitted"]))
    log(axes, "x", [row["devices"] for row in rows], count, margin=1.4)
    ratios = [row[key] / row["seconds"] for row in rows for key in ("model_seconds_low", "model_seconds_high")]
    axes.set_yscale("log")
    axes.set_ylim(min(0.8, 0.95 * min(ratios)), max(1.25, 1.05 * max(ratios)))
    axes.yaxis.set_major_locator(FixedLocator(RATIOS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("devices (log scale)", color=svg.MUTED, labelpad=6)
    axes.annotate(
        "model / measured (log scale)", (0, 1), (-40, 10), xycoords="axes fraction", textcoords="offset points",
        color=svg.MUTED,
    )  # fmt: skip
    handles = [
        Line2D([], [], label=label, linestyle="none", **_mark(fitted))
        for label, fitted in (("fitted", True), ("predicted", False))
        if any(row["fitted"] == fitted for row in rows)
    ]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(4 / WIDTH, 0), ncols=2, frameon=False, fontsize=10.5,
        borderaxespad=0,
    )  # fmt: skip
    described = "; ".join(f"{count(row['devices'])} devices: {100 * row['error']:+.1f} %" for row in rows)
    caption = "Bars are 95 % intervals of the model; the band is 15 % about what was measured."
    return Drawn(figure, facts["title"], caption, f"{described}.")


def _mark(fitted: bool) -> dict[str, Any]:
    colour = svg.INK if fitted else svg.ACCENT
    return {
        "color": colour, "marker": "o", "markersize": 5, "markeredgewidth": 1.3,
        "markerfacecolor": svg.PAGE if fitted else colour,
    }  # fmt: skip


def _apart(devices: Sequence[int]) -> list[float]:
    """Rows of the same number beside one another."""
    places, seen = [], dict.fromkeys(devices, 0)
    for number in devices:
        rows = devices.count(number)
        places.append(number * math.exp((seen[number] - (rows - 1) / 2) * min(BESIDE, WIDEST / rows)))
        seen[number] += 1
    return places
