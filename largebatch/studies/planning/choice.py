"""Which point is the fastest, the cheapest, the knee; and the one for a time or a budget.

A number of devices is worth its fastest point. The knee is the most devices at which a device-hour still buys KNEE of
what it buys on the fewest: D(n₀)/D(n) ≥ 0.8, with D(n) the device-hours of the whole training on n of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.errors import UserError
from largebatch.records.plan import PlannedPoint
from largebatch.report.numerals import count, duration, rounded

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
    """``within`` [h]: the cheapest that takes no longer; ``budget``: the fastest that costs no more."""
    places = range(len(points))
    fastest = min(places, key=lambda place: (points[place].hours, points[place].device_hours))
    cheapest = min(places, key=lambda place: (points[place].device_hours, points[place].hours))
    knee = knee_of(points)
    if within is None and budget is None:
        return NamedPlaces(fastest, cheapest, knee, knee, "knee")
    in_time = [place for place in places if within is None or points[place].hours <= within]
    if within is not None and not in_time:
        best = points[fastest]
        raise UserError(
            f"--within {duration(3600 * within)}: the fastest takes {duration(3600 * best.hours)}, batch "
            f"{count(best.global_batch_size)} on {count(best.devices)} devices"
        )
    paid = [place for place in in_time if budget is None or cost_of(points[place]) <= budget]
    if not paid:
        best = points[min(in_time, key=lambda place: cost_of(points[place]))]
        which = "the cheapest" if within is None else f"the cheapest within {duration(3600 * within)}"
        raise UserError(
            f"--budget {rounded(budget)}: {which} costs {rounded(best.cost)}, batch {count(best.global_batch_size)} "
            f"on {count(best.devices)} devices"
        )
    if budget is None:
        return NamedPlaces(fastest, cheapest, knee, min(paid, key=lambda place: points[place].device_hours), "within")
    return NamedPlaces(fastest, cheapest, knee, min(paid, key=lambda place: points[place].hours), "budget")


def cost_of(point: PlannedPoint) -> float:
    assert point.cost is not None
    return point.cost


def knee_of(points: Sequence[PlannedPoint]) -> int:
    best = fastest_by_devices(points)
    first = points[best[min(best)]].device_hours
    return best[max(devices for devices, place in best.items() if first / points[place].device_hours >= KNEE)]


def fastest_by_devices(points: Sequence[PlannedPoint]) -> dict[int, int]:
    """Number of devices -> the place of its fastest point."""
    best: dict[int, int] = {}
    for place, point in enumerate(points):
        if point.devices not in best or point.hours < points[best[point.devices]].hours:
            best[point.devices] = place
    return best


def hours_in(text: str) -> float:
    """``90min``, ``1h``, ``2d``."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(s|min|m|h|d)", text)
    if not found or not float(found[1]):
        raise UserError(f"--within {text[:60]} is no time; write it with a unit, as in 45min, 1h or 2d")
    return float(found[1]) * UNITS[found[2]] / 3600
