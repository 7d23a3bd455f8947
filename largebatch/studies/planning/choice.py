"""Which point is the fastest, the cheapest, the knee; and the one for a time or a budget.

A number of devices is worth its fastest point. The knee is the most devices at which a device-hour still buys KNEE of
what it buys on the fewest: D(n₀)/D(n) ≥ 0.8, with D(n) the device-hours of the whole training on n of them. Where
failures were told, hours and costs are those with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.errors import UserError
from largebatch.records.plan import PlannedPoint
from largebatch.report.numerals import count, rounded, time_unit

KNEE = 0.8
UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class NamedPlaces:
    """Places in the points."""

    fastest: int
    cheapest: int
    knee: int
    chosen: int
    chosen_as: str


def choice_of(points: Sequence[PlannedPoint], within: float | None = None, budget: float | None = None) -> NamedPlaces:
    """``within`` [h]: the cheapest that takes no longer; ``budget``: the fastest that costs no more, of these."""
    places = range(len(points))
    if all(point.expected_hours == math.inf for point in points):
        raise UserError(nothing_ends(points))
    fastest = min(places, key=lambda place: (points[place].expected_hours, points[place].device_hours))
    cheapest = min(places, key=lambda place: (points[place].expected_device_hours, points[place].hours))
    knee = knee_of(points)
    if within is None and budget is None:
        return NamedPlaces(fastest, cheapest, knee, knee, "knee")
    fitting = [
        place
        for place in places
        if (within is None or points[place].expected_hours <= within)
        and (budget is None or points[place].expected_cost <= budget)
    ]
    if not fitting:
        raise UserError(nothing_within(points, within, budget))
    if budget is None:
        chosen = min(fitting, key=lambda place: points[place].expected_device_hours)
        return NamedPlaces(fastest, cheapest, knee, chosen, "within")
    chosen = min(fitting, key=lambda place: points[place].expected_hours)
    return NamedPlaces(fastest, cheapest, knee, chosen, "budget")


def nothing_ends(points: Sequence[PlannedPoint]) -> str:
    shortest = min(points, key=lambda point: point.hours * point.devices)
    unit = time_unit(shortest.hours)
    return (
        f"--device-hours: failures come so often that no run comes to its end, not even that of "
        f"{_where(shortest)} with {unit.of(shortest.hours)} "
        f"{unit.sign} of training; a shorter --restart or --standing, or fewer devices, may help"
    )


def nothing_within(points: Sequence[PlannedPoint], within: float | None, budget: float | None) -> str:
    """Which limit fails, and by how much; of two that hold one at a time, both."""
    in_time = [point for point in points if within is not None and point.expected_hours <= within]
    paid = [point for point in points if budget is not None and point.expected_cost <= budget]
    each = bool(in_time and paid)
    said = []
    if within is not None and (each or not in_time):
        best = min(paid if each else points, key=lambda point: point.expected_hours)
        unit = time_unit(within)
        which = f"the fastest for {rounded(budget)}" if each else "the fastest"
        takes = _more(unit.of(best.expected_hours), unit.of(best.expected_hours - within), unit.sign)
        said.append(f"--within {unit.of(within)} {unit.sign}: {which} takes {takes}, {_where(best)}")
    if budget is not None and (each or not paid):
        best = min(in_time if each else points, key=lambda point: point.expected_cost)
        which = "the cheapest in that time" if each else "the cheapest"
        costs = _more(rounded(best.expected_cost), rounded(best.expected_cost - budget), "")
        said.append(f"--budget {rounded(budget)}: {which} costs {costs}, {_where(best)}")
    return "; ".join(said)


def _more(number: str, over: str, unit: str) -> str:
    return f"{number} {unit}".rstrip() + f" ({over} {unit}".rstrip() + " more)"


def _where(point: PlannedPoint) -> str:
    return f"batch {count(point.global_batch_size)} on {count(point.devices)} devices"


def knee_of(points: Sequence[PlannedPoint]) -> int:
    """Of the runs that come to their end."""
    best = {n: place for n, place in fastest_by_devices(points).items() if points[place].expected_hours < math.inf}
    first = points[best[min(best)]].expected_device_hours
    return best[max(n for n, place in best.items() if first / points[place].expected_device_hours >= KNEE)]


def fastest_by_devices(points: Sequence[PlannedPoint]) -> dict[int, int]:
    """Number of devices -> the place of its fastest point."""
    best: dict[int, int] = {}
    for place, point in enumerate(points):
        if point.devices not in best or point.expected_hours < points[best[point.devices]].expected_hours:
            best[point.devices] = place
    return best


def hours_in(text: str) -> float:
    """``90min``, ``1h``, ``2d``."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(s|min|m|h|d)", text)
    if not found or not float(found[1]):
        raise UserError(f"--within {text[:60]} is no time; write it with a unit, as in 45min, 1h or 2d")
    return float(found[1]) * UNITS[found[2]] / 3600
