"""How a number is written, the same on the page, in the Markdown and in the terminal.

A real minus sign, thousands set off by commas, accuracies and points to a hundredth (one image in 10,000),
a dash for what was not measured. Learning rates keep a plain hyphen in their exponent, to be pasted into a
recipe.
"""

import math
from collections.abc import Iterable

from largebatch.report.summary import Difference, Estimate

ABSENT = "–"


def count(number: float | None) -> str:
    """``2,048``."""
    return ABSENT if number is None else f"{number:,.0f}"


def plain(number: float | None) -> str:
    """Up to four significant digits without trailing zeros: ``10``, ``0.341``, ``3e-5``."""
    if number is None:
        return ABSENT
    return f"{number:.4g}".replace("e-0", "e-").replace("e+0", "e")


def percent(value: Estimate | None) -> str:
    """``91.20 ± 0.11``, or ``91.20`` for one seed."""
    if value is None:
        return ABSENT
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def signed(points: float) -> str:
    """``−0.30``, ``+0.12``, ``0.00``."""
    text = f"{abs(points):.2f}"
    return text if float(text) == 0 else f"{'−' if points < 0 else '+'}{text}"


def interval(value: Difference | None) -> str:
    """``−0.90 to +0.30``, or nothing where no interval is known."""
    return (
        f"{signed(value.low)} to {signed(value.high)}"
        if value and value.low is not None and value.high is not None
        else ""
    )


def ratio(number: float) -> str:
    """``32.0``, ``0.01``."""
    if not math.isfinite(number):
        return ABSENT
    return f"{number:.1f}" if number >= 0.1 or number == 0 else f"{number:.1g}"


def decimals(numbers: Iterable[float | None]) -> int:
    """Digits after the point for a whole column: two significant ones of its smallest number."""
    positive = [number for number in numbers if number is not None and number > 0]
    return max(0, min(6, 1 - math.floor(math.log10(min(positive))))) if positive else 0


def duration(seconds: float) -> str:
    """``8.4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return (
        f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds < 3600 else f"{minutes // 60} h {minutes % 60} min"
    )


def short(label: str) -> str:
    """What has room in a picture."""
    return label if len(label) <= 56 else label[:55] + "…"


def measured(mean: float, spread: float | None = None) -> str:
    """``205 ± 70``, ``1.23 ± 0.83``, ``0.0412``: two digits of the spread, or three of a number without one."""
    if not spread:
        digits = _digits(mean, 3)
        return _minus(f"{mean:,.{digits}f}")
    digits = min(_digits(spread, 2), _digits(mean, 5))
    return f"{_minus(f'{mean:,.{digits}f}')} ± {spread:,.{digits}f}"


def _digits(number: float, significant: int) -> int:
    return min(9, max(0, significant - 1 - math.floor(math.log10(abs(number))))) if number else 2


def _minus(text: str) -> str:
    return text.replace("-", "−")


def listing(words: Iterable[object]) -> str:
    """``a, b and c``."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
