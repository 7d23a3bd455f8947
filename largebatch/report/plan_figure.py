"""A plan: time and device-hours against the number of devices, a line for each batch.

Where a line of the upper panel is straight and falls as 1/devices, nothing is lost; the thin line is that from the
fastest point of the fewest devices. Named points are ringed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from largebatch.records.plan import ClusterPlanRecord, PlannedPoint
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.frame import HEIGHT, LEFT, WIDTH, panel
from largebatch.report.looks import look
from largebatch.report.numerals import TimeUnit, capital, common_time_unit, count, plain, rounded
from largebatch.report.scales import log

LOWER, FOOT, GAP, HEAD = 210, 44, 34, 32
COLUMNS = 3  # of the key
NAMED = ("fastest", "cheapest", "knee", "chosen")
PERFECT: dict[str, Any] = {"color": svg.MUTED, "linewidth": 0.9}
RING: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": svg.INK,
    "markeredgewidth": 1.2,
}  # fmt: skip


def draw(facts: ClusterPlanRecord) -> Drawn:
    key = list(_key(facts))
    room = 17 * math.ceil(len(key) / COLUMNS) + 4
    height = HEIGHT + LOWER + room
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    upper = panel(figure, room + FOOT + LOWER + GAP, HEIGHT - FOOT - GAP - HEAD, height)
    lower = panel(figure, room + FOOT, LOWER - HEAD + 12, height)
    unit = common_time_unit(_hours(facts))
    for place, batch in enumerate(_batches(facts)):
        _line(upper, facts, batch, place, [point.expected_hours / unit.hours for point in _points(facts, batch)])
        _line(lower, facts, batch, place, [_worth(facts, point) for point in _points(facts, batch)])
    _perfect(facts, upper, unit)
    _scales(facts, upper, lower, unit)
    _rings(facts, upper, lower, unit)
    figure.legend(
        handles=key, loc="lower left", bbox_to_anchor=(4 / WIDTH, 0), ncols=COLUMNS, frameon=False, fontsize=10.5,
        handletextpad=0.5, columnspacing=1.6, borderaxespad=0,
    )  # fmt: skip
    return Drawn(figure, f"{facts.title or facts.recipe}: time and cost", _caption(facts), _described(facts, unit))


def _batches(facts: ClusterPlanRecord) -> list[int]:
    return sorted({point.global_batch_size for point in facts.points})


def _points(facts: ClusterPlanRecord, batch: int) -> list[PlannedPoint]:
    return [point for point in facts.points if point.global_batch_size == batch]


def _hours(facts: ClusterPlanRecord) -> list[float]:
    """Of all points that come to their end, or without failures where none does."""
    ended = [point.expected_hours for point in facts.points if math.isfinite(point.expected_hours)]
    return ended or [point.hours for point in facts.points]


def _worth(facts: ClusterPlanRecord, point: PlannedPoint) -> float:
    """Infinite, and so nowhere, where failures let it come to no end."""
    return point.expected_device_hours if point.cost is None else point.expected_cost


def _line(axes: Axes, facts: ClusterPlanRecord, batch: int, place: int, heights: Sequence[float]) -> None:
    devices = [point.devices for point in _points(facts, batch)]
    axes.plot(devices, heights, zorder=2, **_style(place))


def _style(place: int) -> dict[str, Any]:
    row = look(place + 1)
    return {
        "color": row.colour, "linewidth": 1.5, "dashes": row.dashes or (None, None), "marker": row.marker,
        "markersize": 5, "markeredgecolor": svg.PAGE, "markeredgewidth": 0.6,
    }  # fmt: skip


def _first(facts: ClusterPlanRecord) -> PlannedPoint:
    """The fastest on the fewest devices."""
    fewest = min(point.devices for point in facts.points)
    return min((point for point in facts.points if point.devices == fewest), key=lambda point: point.expected_hours)


def _perfect(facts: ClusterPlanRecord, upper: Axes, unit: TimeUnit) -> None:
    first, most = _first(facts), max(point.devices for point in facts.points)
    ends = [first.devices, most]
    hours = first.expected_hours / unit.hours
    upper.plot(ends, [hours * first.devices / devices for devices in ends], zorder=1, **PERFECT)


def _scales(facts: ClusterPlanRecord, upper: Axes, lower: Axes, unit: TimeUnit) -> None:
    devices = sorted({point.devices for point in facts.points})
    first = _first(facts)
    times = [hours / unit.hours for hours in _hours(facts)]
    if math.isfinite(first.expected_hours):
        times.append(first.expected_hours / unit.hours * first.devices / devices[-1])
    worth = [value for point in facts.points if math.isfinite(value := _worth(facts, point))]
    log(upper, "y", times, plain, margin=1.25)
    log(lower, "y", worth or [1.0], _short, margin=1.6)
    for axes in (upper, lower):
        log(axes, "x", devices, count, margin=1.25)
        axes.set_xticks(devices if len(devices) <= 9 else devices[:: -(-len(devices) // 9)])
    lower.set_xlabel("devices (log scale)", color=svg.MUTED, labelpad=6)
    upper.tick_params(axis="x", labelbottom=False)
    words = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}[unit.sign]
    cost = "device-hours" if facts.price is None else f"cost at {plain(facts.price)} a device-hour"
    for axes, text in ((upper, f"{words} to the target (log scale)"), (lower, f"{cost} (log scale)")):
        axes.annotate(
            text, (0, 1), (8 - LEFT, 12), xycoords="axes fraction", textcoords="offset points", color=svg.MUTED
        )


def _short(value: float) -> str:
    return count(value) if value >= 1000 else plain(value)


def _rings(facts: ClusterPlanRecord, upper: Axes, lower: Axes, unit: TimeUnit) -> None:
    """With their names in the lower panel, where nothing lies below them; one point may have several."""
    names: dict[int, list[str]] = {}
    for name in NAMED:
        place, word = getattr(facts, name), facts.chosen_as if name == "chosen" else name
        if word not in names.setdefault(place, []):
            names[place].append(word)
    devices = [point.devices for point in facts.points]
    most, sides = max(devices), {max(devices): "right", min(devices): "left"}
    for place, words in names.items():
        point = facts.points[place]
        height = point.expected_hours / unit.hours
        if not math.isfinite(height):
            continue
        upper.plot([point.devices], [height], zorder=3, **RING)
        lower.plot([point.devices], [_worth(facts, point)], zorder=3, **RING)
        lower.annotate(
            ", ".join(words), (point.devices, _worth(facts, point)), (5 if point.devices == most else 0, -20),
            textcoords="offset points", color=svg.INK, ha=sides.get(point.devices, "center"), fontsize=10.5,
        )  # fmt: skip


def _key(facts: ClusterPlanRecord) -> Iterator[Line2D]:
    for place, batch in enumerate(_batches(facts)):
        style = _style(place)
        line = Line2D([], [], label=f"batch {count(batch)}", **{k: v for k, v in style.items() if k != "dashes"})
        if look(place + 1).dashes:
            line.set_dashes(look(place + 1).dashes)
        yield line
    yield Line2D([], [], label="perfect scaling", **PERFECT)


def _caption(facts: ClusterPlanRecord) -> str:
    machine = facts.machine_title or facts.machine
    alone = "Training steps alone: no evaluations, checkpoints or starts."
    if any(point.interrupted for point in facts.points):
        alone = "Training steps, saves and restarts: no evaluations or starts."
    return (
        f"On {machine}, engine {facts.engine}; examples to the target: {facts.target}. {alone} The knee is the most "
        "devices at which a device-hour buys at least 80 % of what it buys on the fewest."
    )


def _described(facts: ClusterPlanRecord, unit: TimeUnit) -> str:
    said = []
    for name in ("fastest", "cheapest", "knee"):
        point = facts.points[getattr(facts, name)]
        said.append(
            f"{capital(name)}: batch {count(point.global_batch_size)} on {count(point.devices)} devices, "
            f"{unit.of(point.expected_hours)} {unit.sign}, {rounded(point.expected_device_hours)} device-hours."
        )
    return " ".join(said)
