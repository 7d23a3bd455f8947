"""One bar a row: time per step and epoch."""

from largebatch.report import svg
from largebatch.report.frame import Picture
from largebatch.report.numerals import decimals, short
from largebatch.report.strips import Strip, strip_figure
from largebatch.report.summary import Comparison


def bars(comparison: Comparison, key: str, name: str, title: str) -> Picture | None:
    values = [(row, estimate.mean) for row in comparison.rows if (estimate := getattr(row, key))]
    if not values:
        return None
    digits = decimals(value for _, value in values)
    strips = [
        Strip(short(row.label), value, f"{value:,.{digits}f} s", colour=svg.INK if row.is_baseline else svg.ACCENT)
        for row, value in values
    ]
    figure = strip_figure(f"{title.lower()}, s", strips)
    described = "; ".join(f"{row.label}: {value:,.{digits}f} s" for row, value in values)
    return Picture(name, "Time", title, "Mean over the finished seeds.", svg.inline(figure, name, title, described), ())
