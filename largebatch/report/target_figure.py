"""Steps and examples to a target against the batch: points with their intervals, the fitted law, perfect scaling.

    S(B) = S_min·(1 + B_crit/B),    E(B) = E_min·(1 + B/B_crit),    perfect scaling S(B) = E_min/B

are McCandlish et al. 2018's (arXiv:1812.06162); the record carries their numbers and points of the fitted line.

Above the steps on two log scales, below what they cost in examples. A point that is a lower bound is an open
triangle.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from largebatch.records.curves import CurveToTarget, FittedLaw, ReachedPoint, TargetsRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.frame import HEIGHT, LEFT, WIDTH, panel
from largebatch.report.looks import look
from largebatch.report.numerals import capital, count, listing, plain, rounded, short
from largebatch.report.scales import log

LOWER, FOOT, GAP, HEAD = 190, 44, 34, 32
X_LABEL = "global batch size, examples (log scale)"
PERFECT: dict[str, Any] = {"color": svg.MUTED, "linewidth": 0.9}
CRITICAL: dict[str, Any] = {"color": svg.INK, "linewidth": 1.1, "dashes": (5, 2)}
ENDS: dict[str, Any] = {"color": svg.MUTED, "linewidth": 1.1, "dashes": (1, 2.5)}
COLUMNS = 2  # of the key


def draw(facts: TargetsRecord) -> Drawn:
    """All rows of one target; with a single one B_crit and the end of perfect scaling are marked."""
    key = list(_key(facts))
    room = 17 * math.ceil(len(key) / COLUMNS) + 4
    height = HEIGHT + LOWER + room
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    upper = panel(figure, room + FOOT + LOWER + GAP, HEIGHT - FOOT - GAP - HEAD, height)
    lower = panel(figure, room + FOOT, LOWER - HEAD + 12, height)
    for place, curve in enumerate(facts.curves):
        _rows(upper, curve, _colour(facts, place), place, steps=True, unit=1)
        _rows(lower, curve, _colour(facts, place), place, steps=False, unit=facts.epoch or 1)
    _scales(facts, upper, lower)
    _perfect(facts, upper, lower)
    law = facts.curves[0].law
    if len(facts.curves) == 1 and law is not None:
        _mark(upper, lower, law)
    figure.legend(
        handles=key, loc="lower left", bbox_to_anchor=(4 / WIDTH, 0), ncols=COLUMNS, frameon=False, fontsize=10.5,
        handletextpad=0.5, columnspacing=1.6, borderaxespad=0,
    )  # fmt: skip
    return Drawn(figure, f"{facts.title}: steps to {facts.target or 'the target'}", _caption(facts), _described(facts))


def _colour(facts: TargetsRecord, place: int) -> str:
    return look(place + 1).colour if len(facts.curves) > 1 else svg.ACCENT


def _rows(axes: Axes, curve: CurveToTarget, colour: str, place: int, *, steps: bool, unit: float) -> None:
    """Points, their intervals and the law; with ``steps`` all over the batch, else in units of ``unit`` examples."""

    def height(batch: float, examples: float) -> float:
        return examples / batch if steps else examples / unit

    law = curve.law
    if law is not None:
        x = [batch for batch, _ in law.line]
        fitted = [height(batch, examples) for batch, examples in law.line]
        axes.plot(x, fitted, color=colour, linewidth=1.6, dashes=look(place).dashes or (None, None), zorder=2)
    for point in curve.points:
        size, middle = point.global_batch_size, height(point.global_batch_size, point.examples)
        if point.examples_low is not None:
            ends = [height(size, end) for end in (point.examples_low, point.examples_high or point.examples)]
            axes.plot([size, size], ends, color=colour, linewidth=1.2, solid_capstyle="butt", zorder=2.5)
        axes.plot([size], [middle], linestyle="none", zorder=3, **_marker(bool(point.exact), colour, place))


def _marker(exact: bool, colour: str, place: int) -> dict[str, Any]:
    if not exact:
        return {"marker": "^", "color": colour, "markersize": 8, "markerfacecolor": svg.PAGE, "markeredgewidth": 1.5}
    return {
        "marker": look(place).marker, "color": colour, "markersize": 6.5, "markeredgecolor": svg.PAGE,
        "markeredgewidth": 0.8,
    }  # fmt: skip


def _scales(facts: TargetsRecord, upper: Axes, lower: Axes) -> None:
    points = [point for curve in facts.curves for point in curve.points]
    laws = [curve.law for curve in facts.curves if curve.law is not None]
    sizes = [batch for law in laws for batch, _ in law.line] or [point.global_batch_size for point in points]
    unit = facts.epoch or 1
    ends = [end for point in points for end in (point.examples_low, point.examples_high) if end is not None]
    examples = [point.examples for point in points] + ends + [law.least_examples for law in laws if law.least_examples]
    steps = [point.steps for point in points] + [examples / batch for law in laws for batch, examples in law.line]
    for axes in (upper, lower):
        log(axes, "x", sizes, count, margin=1.0 if laws else 1.6)
    log(upper, "y", steps, count)
    log(lower, "y", [value / unit for value in examples], _short_count)
    lower.set_xlabel(X_LABEL, color=svg.MUTED, labelpad=6)
    upper.tick_params(axis="x", labelbottom=False)
    for axes, text in (
        (upper, "steps to the target (log scale)"),
        (lower, f"{'epochs' if facts.epoch else facts.unit} to the target (log scale)"),
    ):
        axes.annotate(
            text, (0, 1), (8 - LEFT, 12), xycoords="axes fraction", textcoords="offset points", color=svg.MUTED
        )


def _short_count(value: float) -> str:
    """``200k``, ``5M``: what stands beside an axis has little room."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / min(size, 1e3 if sign == 'k' else size):g}{sign}"
    return count(value) if value >= 1000 else plain(value)


def _least(facts: TargetsRecord) -> float | None:
    """The smallest E_min of the rows; None where no row has one."""
    return min(
        (curve.law.least_examples for curve in facts.curves if curve.law and curve.law.least_examples), default=None
    )


def _perfect(facts: TargetsRecord, upper: Axes, lower: Axes) -> None:
    """What the row that needs the fewest examples would need if no batch cost any."""
    if (least := _least(facts)) is not None:
        ends = lower.get_xlim()
        upper.plot(ends, [least / batch for batch in ends], zorder=1.5, scalex=False, scaley=False, **PERFECT)
        lower.plot(ends, [least / (facts.epoch or 1)] * 2, zorder=1.5, scalex=False, scaley=False, **PERFECT)


def _mark(upper: Axes, lower: Axes, law: FittedLaw) -> None:
    """The interval of B_crit as a band, B_crit and the end of perfect scaling as lines, where they have a place."""
    first, last = lower.get_xlim()
    low, high = law.critical_batch_size_low or first, law.critical_batch_size_high or last
    bounded = law.critical_batch_size_low is not None or law.critical_batch_size_high is not None
    for axes in (upper, lower):
        if bounded and low < last and high > first:
            axes.axvspan(max(first, low), min(last, high), color=svg.MUTED, alpha=0.14, linewidth=0)
        for batch, style in ((law.critical_batch_size, CRITICAL), (law.perfect_until, ENDS)):
            if batch is not None and first < batch < last:
                axes.axvline(batch, zorder=1.2, **style)


def _key(facts: TargetsRecord) -> Iterator[Line2D]:
    points = [point for curve in facts.curves for point in curve.points]
    for place, curve in enumerate(facts.curves):
        colour, several = _colour(facts, place), len(facts.curves) > 1
        line = Line2D([], [], label=short(curve.label) if several else f"{facts.middle}, fit", linewidth=1.6,
                      **_marker(True, colour, place))  # fmt: skip
        if dashes := look(place).dashes:
            line.set_dashes(dashes)
        yield line
    if _least(facts) is not None:
        yield Line2D([], [], label="perfect scaling, E_min/B", **PERFECT)
    law = facts.curves[0].law
    if len(facts.curves) == 1 and law is not None and law.critical_batch_size:
        yield Line2D([], [], label=f"B_crit: {rounded(law.critical_batch_size)}", **CRITICAL)
        yield Line2D([], [], label=f"perfect scaling ends: {rounded(law.perfect_until)}", **ENDS)
    if any(not point.exact for point in points):
        colour = svg.MUTED if len(facts.curves) > 1 else svg.ACCENT
        yield Line2D([], [], label="a lower bound", linestyle="none", **_marker(False, colour, 0))


def _caption(facts: TargetsRecord) -> str:
    points = [point for curve in facts.curves for point in curve.points]
    said = [f"Each point is the {facts.middle} over {_runs(points)}, with its bootstrap interval."]
    if any(not point.exact for point in points):
        said.append("Open triangles are lower bounds: too many runs did not reach the target.")
    said.append("Fit: E(B) = E_min·(1 + B/B_crit), McCandlish et al. 2018.")
    if len(facts.curves) > 1 and _least(facts) is not None:
        said.append("Perfect scaling is that of the smallest E_min.")
    law = facts.curves[0].law
    if len(facts.curves) == 1 and law is not None and law.unknown is None:
        ends = [
            None if end is None else rounded(end) for end in (law.critical_batch_size_low, law.critical_batch_size_high)
        ]
        if ends != [None, None]:
            said.append(
                f"The band is the 95 % interval of B_crit, {ends[0] or 'unbounded'} to {ends[1] or 'unbounded'}."
            )
        else:
            said.append("These points do not bound B_crit.")
    if facts.source:
        said.append(f"Points: {facts.source}.")
    return " ".join(said)


def _runs(points: Sequence[ReachedPoint]) -> str:
    numbers = sorted({point.runs for point in points})
    return f"{numbers[0]} to {numbers[-1]} runs" if len(numbers) > 1 else f"{numbers[0]} run{'s' * (numbers[0] > 1)}"


def _described(facts: TargetsRecord) -> str:
    rows = []
    for curve in facts.curves:
        seen = listing(
            f"{'' if point.exact else 'more than '}{count(point.steps)} at {count(point.global_batch_size)}"
            for point in curve.points
        )
        critical = rounded(curve.law.critical_batch_size) if curve.law else "not known"
        rows.append(f"{capital(curve.label)}: steps {seen}; critical batch size {critical}.")
    return " ".join(rows)
