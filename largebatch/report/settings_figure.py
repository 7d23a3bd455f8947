"""The best value of each key at every batch of a study, and the region around it that is as good."""

import dataclasses
from collections.abc import Iterator

from matplotlib.axes import Axes

from largebatch.records.curves import CurveToTarget, SearchedBatch, TargetsRecord
from largebatch.records.typed import finite
from largebatch.report import svg
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.looks import Look, look
from largebatch.report.numerals import count, listing, plain, short
from largebatch.report.scales import log

Placed = list[tuple[SearchedBatch, float]]  # the best value, where it reached the target


def pictures(facts: TargetsRecord) -> Iterator[Picture]:
    """One for each key whose best values are positive numbers; of 1 − value where the search was even in it."""
    keys = dict.fromkeys((rule.key, bool(rule.complement)) for curve in facts.curves for rule in curve.rules or ())
    for number, (key, complement) in enumerate(keys):
        drawn = {
            place: placed
            for place, curve in enumerate(facts.curves)
            if any((rule.key, bool(rule.complement)) == (key, complement) for rule in curve.rules or ())
            and len(placed := _placed(curve, key, complement)) > 1
        }
        if drawn:
            yield _picture(facts, drawn, key, complement, f"settings-{number}")


def _picture(facts: TargetsRecord, drawn: dict[int, Placed], key: str, complement: bool, name: str) -> Picture:
    shown = f"1 − {key}" if complement else key
    figure, axes = empty_axes(f"{shown} (log scale)", "global batch size, examples (log scale)")
    values: list[float] = []
    for place, placed in drawn.items():
        values += _row(axes, placed, key, complement, _style(place))
    log(axes, "x", [one.global_batch_size for placed in drawn.values() for one, _ in placed], count)
    log(axes, "y", values, margin=1.3)
    style = tuple((_style(place), short(facts.curves[place].label)) for place in drawn)
    caption = "Thin bars: trials that needed at most a tenth more examples than the best."
    if any(key in one.at_edge for placed in drawn.values() for one, _ in placed):
        caption += " A ring: at an edge of what was tried, a better value may lie beyond."
    described = "; ".join(
        f"{facts.curves[place].label}: "
        + listing(f"{plain(value)} at {count(one.global_batch_size)}" for one, value in placed)
        for place, placed in drawn.items()
    )
    title = f"Best {shown}"
    return Picture(name, "Settings", title, caption, svg.inline(figure, name, title, described), style)


def _style(place: int) -> Look:
    """As the picture of the curves has it."""
    return dataclasses.replace(look(place), colour=look(place + 1).colour, variable=look(place + 1).variable)


def _row(axes: Axes, placed: Placed, key: str, complement: bool, style: Look) -> list[float]:
    """All values that were drawn."""
    drawn = [value for _, value in placed]
    axes.plot(
        [one.global_batch_size for one, _ in placed], drawn, color=style.colour, dashes=style.dashes or (None, None),
        linewidth=1.4, marker=style.marker, markersize=6.5, markeredgecolor=svg.PAGE, markeredgewidth=0.8, zorder=3,
    )  # fmt: skip
    for one, value in placed:
        for region in one.good:
            if region.key == key:
                ends = sorted(_shown(end, complement) for end in (region.low, region.high))
                axes.plot([one.global_batch_size] * 2, ends, color=style.colour, linewidth=0.9, alpha=0.55, zorder=2)
                drawn += ends
        if key in one.at_edge:
            axes.plot(
                [one.global_batch_size], [value], marker="o", markersize=13, markerfacecolor="none",
                markeredgewidth=1.2, color=style.colour, linestyle="none", zorder=3,
            )  # fmt: skip
    return [value for value in drawn if value > 0]


def _placed(curve: CurveToTarget, key: str, complement: bool) -> Placed:
    return [
        (one, _shown(value, complement))
        for one in curve.searched or ()
        if one.reached and (value := finite((one.chosen or {}).get(key))) is not None and _shown(value, complement) > 0
    ]


def _shown(value: float, complement: bool) -> float:
    return 1 - value if complement else value
