"""Scales of the pictures: chosen for the differences that matter, labelled with plain numbers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from largebatch.report.curves import Line
from largebatch.report.numerals import listing

FOCUS = 15.0
"""Rows that end more than this many points below the best do not stretch an accuracy scale."""


def focus(axes: Axes, shown: Mapping[str, Sequence[Line]], *, ends: bool = True, room: float = 1.6) -> list[str]:
    """Scale an accuracy axis to where lines end (or, without ``ends``, to their tops); says what is cut."""
    tops = {label: max(line.y[-1] if ends else max(line.y) for line in own) for label, own in shown.items()}
    top = max(value for own in shown.values() for line in own for value in (line.high or line.y))
    kept = [value for value in tops.values() if value >= top - FOCUS]
    low = min(kept, default=top)
    floor = max(0.0, low - room * max(top - low, 1.0 if len(tops) > 1 else 10.0))
    axes.set_ylim(floor, min(100.0, top + 0.06 * (top - floor)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    lost = [f"{label} ({value:.2f} %)" for label, value in tops.items() if value < floor]
    sentences = [f"The axis starts at {floor:.0f} %."] if floor > 0.5 else []
    return sentences + ([f"Below it: {listing(lost)}."] if lost else [])


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
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / margin, high * margin)
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
