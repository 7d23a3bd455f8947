"""Scales of the pictures: chosen for the differences that matter, labelled with plain numbers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from largebatch.plan.score import Score
from largebatch.report.curves import CurveLine
from largebatch.report.numerals import listing, of_score

FOCUS = 15.0
"""Rows that end more than this many points worse than the best do not stretch the scale of a score in percent."""


def focus(
    axes: Axes, shown: Mapping[str, Sequence[CurveLine]], score: Score, *, ends: bool = True, room: float = 1.6
) -> list[str]:
    """Scale the axis of a score to where lines end (or, without ``ends``, to their best); says what is cut.

    Of a score that is not in percent, the scale of the differences that matter is the best number itself.
    """
    worth = score.worth
    tops = {
        label: max(worth(line.y[-1]) if ends else max(map(worth, line.y)) for line in own)
        for label, own in shown.items()
    }
    bounds = [bound for own in shown.values() for line in own for bound in (_best_bound(line, score) or line.y)]
    top, several = max(map(worth, bounds)), len(tops) > 1
    if score.unit == "%":
        far, least = FOCUS, 1.0 if several else 10.0
    else:
        far, least = abs(top) or math.inf, (0.02 if several else 0.2) * (abs(top) or 1.0)
    low = min((value for value in tops.values() if value >= top - far), default=top)
    lowest = low - room * max(top - low, least)
    lost = {label: worth(value) for label, value in tops.items() if value < lowest}
    values = [value for own in shown.values() for line in own for value in line.y]
    return limits(axes, score, worth(lowest), worth(top), values, lost)  # worth is its own inverse


def limits(
    axes: Axes, score: Score, worst: float, best: float, shown: Iterable[float], lost: Mapping[str, float]
) -> list[str]:
    """The ends of a score's axis, with some room beyond the best; says where it ends and who is beyond.

    Percents stay between 0 and 100, and no axis goes below 0 unless ``shown`` values do.
    """
    shown, percent = list(shown), score.unit == "%"
    least = 0.0 if percent or min(shown, default=0.0) >= 0 else -math.inf
    most = 100.0 if percent else math.inf
    worst = min(most, max(least, worst))
    low, high = sorted((worst, min(most, max(least, best + 0.06 * (best - worst)))))
    axes.set_ylim(low, high if high > low else low + 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    end = f"{worst:.0f} %" if percent else f"{worst:.3g} {score.unit}".rstrip()
    if score.more_is_better:
        said = [f"The axis starts at {end}."] * (low > 0.5 if percent else low != 0)
    else:
        said = [f"The axis ends at {end}."] * (max(shown, default=high) > high)
    named = [f"{label} ({of_score(value, score)})" for label, value in lost.items()]
    return said + [f"{'Below' if score.more_is_better else 'Above'} it: {listing(named)}."] * bool(named)


def worst_end(score: Score, distance: float) -> float:
    """Where on the axis, of 0 at its foot to 1, what has no score is marked."""
    return distance if score.more_is_better else 1 - distance


def name_of_worst_end(score: Score) -> str:
    return "foot" if score.more_is_better else "top"


def _best_bound(line: CurveLine, score: Score) -> tuple[float, ...] | None:
    """Of the seeds, the best ones'."""
    return line.high if score.more_is_better else line.low


def log(
    axes: Axes,
    which: str,
    values: Iterable[float],
    write: Callable[[float], str] | None = None,
    margin: float = 1.12,
) -> None:
    """A log axis over ``values``, labelled in 1-2-5 steps where it spans less than some two decades."""
    values = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = min(values), max(values)
    if high / low < 5:
        low, high = _round_125(low, math.floor), _round_125(high, math.ceil)
    axis, decades = (axes.xaxis, axes.yaxis)[which == "y"], math.log10(high / low)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / margin, high * margin)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if decades < 2.2 else (1,), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: (write or _decimal)(value)))


def _round_125(value: float, towards: Callable[[float], int]) -> float:
    steps = [math.log10(step) for step in (1, 2, 5, 10)]
    whole = math.floor(math.log10(value))
    part = math.log10(value) - whole
    near = [step for step in steps if (step <= part + 1e-9 if towards is math.floor else step >= part - 1e-9)]
    return 10 ** (whole + (max(near) if towards is math.floor else min(near)))


def _decimal(value: float) -> str:
    """``0.001``, ``1,000``, ``10⁻⁶``."""
    power = math.log10(value)
    if -4 < power < 5:
        return f"{value:,.10f}".rstrip("0").rstrip(".")
    digits = str(math.floor(power + 1e-9)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = round(value / 10 ** math.floor(power + 1e-9))
    return f"10{digits}" if factor == 1 else f"{factor}·10{digits}"
