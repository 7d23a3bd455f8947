"""How a number is written, the same on the page, in the Markdown and in the terminal.

A real minus sign, thousands set off by commas, percents and points to a hundredth (one image in 10,000), other
scores to four digits or two of their spread, a dash for what was not measured. Learning rates keep a plain hyphen in
their exponent, to be pasted into a recipe.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from largebatch.plan.score import Score
from largebatch.report.summary import Difference, SeedMean

ABSENT = "–"


def count(number: float | None) -> str:
    """``2,048``."""
    return ABSENT if number is None else f"{number:,.0f}"


def plain(number: float | None) -> str:
    """Up to four significant digits without trailing zeros: ``10``, ``0.341``, ``3e-5``."""
    if number is None:
        return ABSENT
    return f"{number:.4g}".replace("e-0", "e-").replace("e+0", "e")


def percent(value: SeedMean | None) -> str:
    """``91.20 ± 0.11``, or ``91.20`` for one seed."""
    if value is None:
        return ABSENT
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def scored(value: SeedMean | None, score: Score) -> str:
    """As :func:`percent`, or ``0.4987`` and ``0.499 ± 0.012``; without the unit."""
    if value is None or score.unit == "%":
        return percent(value)
    return measured(value.mean, value.std) if value.std else _minus(f"{value.mean:,.{_digits(value.mean, 4)}f}")


def of_score(value: float, score: Score) -> str:
    """``91.20 %``, ``0.4987``, ``2.104 °C``."""
    return f"{scored(SeedMean(value, None, 1), score)} {score.unit}".rstrip()


def axis(score: Score) -> str:
    """``test accuracy, %``."""
    unit = f", {score.unit}" if score.unit else ""
    return f"{score.name}{unit}{'' if score.more_is_better else ' (less is better)'}"


def slug(score: Score) -> str:
    """Its name in the id of a picture."""
    return re.sub(r"[^a-z0-9]+", "-", score.name.lower()).strip("-") or "score"


def signed(value: Difference, score: Score) -> str:
    """``−0.30``, ``+0.12``, ``0.00``; without the unit."""
    return _signed(value.amount, _places(value, score))


def unsigned(value: Difference, score: Score) -> str:
    """``0.30 points``, ``0.0136``."""
    return f"{abs(value.amount):,.{_places(value, score)}f} {score.differences_in}".rstrip()


def interval(value: Difference | None, score: Score) -> str:
    """``−0.90 to +0.30``, or nothing where no interval is known."""
    if value is None or value.low is None or value.high is None:
        return ""
    return " to ".join(_signed(end, _places(value, score)) for end in (value.low, value.high))


def _places(value: Difference, score: Score) -> int:
    """Two digits of the standard error, or of a difference without one; hundredths of a percent."""
    return 2 if score.unit == "%" else _digits(value.standard_error or value.amount, 2)


def _signed(number: float, places: int) -> str:
    text = f"{abs(number):,.{places}f}"
    zero = not text.strip("0.,")
    return text if zero else f"{'−' if number < 0 else '+'}{text}"


def rounded(number: float | None) -> str:
    """Three significant digits, thousands set off: ``46,900``, ``84``, ``0.013``."""
    if number is None or math.isnan(number):
        return ABSENT
    if not number or math.isinf(number):
        return "0" if not number else "∞"
    return count(round(number, 2 - math.floor(math.log10(abs(number))))) if abs(number) >= 100 else f"{number:.3g}"


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


class TimeUnit(NamedTuple):
    """In which numbers of hours are written."""

    sign: str
    hours: float

    def of(self, hours: float) -> str:
        """Three digits, without the sign."""
        return rounded(hours / self.hours)

    def between(self, low: float | None, high: float | None) -> str:
        """``1.9 to 2.3``, ``from 1.9``, or a dash."""
        if low is None:
            return ABSENT if high is None else f"up to {self.of(high)}"
        return f"from {self.of(low)}" if high is None else f"{self.of(low)} to {self.of(high)}"


def time_unit(hours: float) -> TimeUnit:
    """That suits a time: up to 90 seconds, 90 minutes, 3 days, or more."""
    for sign, size in (("s", 1 / 3600), ("min", 1 / 60)):
        if hours < 90 * size:
            return TimeUnit(sign, size)
    return TimeUnit("h", 1.0) if hours < 72 else TimeUnit("d", 24.0)


def common_time_unit(hours: Iterable[float]) -> TimeUnit:
    """Of several times: that of the middle one."""
    times = sorted(hours)
    return time_unit(times[len(times) // 2])


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


def capital(words: str) -> str:
    """The first letter alone: ``R²`` and ``mAP`` stay what they are."""
    return words[:1].upper() + words[1:]


def plural(name: str) -> str:
    """``accuracies``, ``squared errors``."""
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def counted(number: int, name: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count(number)} {name if number == 1 else plural(name)}"


def one(name: str) -> str:
    """``an accuracy``, ``a squared error``."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def listing(words: Iterable[object]) -> str:
    """``a, b and c``."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
