"""The space of a search: one axis for each key, on which every point has a place from 0 to 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from largebatch.recipes.config.search import Searched

EDGE = 0.1  # share of what was tried that counts as its edge
CLOSE = 0.02  # shares of every axis within which two points count as one
DIGITS = 6  # of a value, significant

Values = Mapping[str, Any]  # by key
Allowed = Callable[[str, Any], bool]  # whether the recipe takes a value


@dataclasses.dataclass(frozen=True)
class Axis:
    """A key; ``low`` and ``high`` are in the measure that it is even in: ln x, x, or ln(1 − x)."""

    key: str
    scale: str  # log, linear, one_minus_log
    low: float
    high: float
    whole: bool = False  # the key takes whole numbers alone

    @classmethod
    def between(cls, key: str, scale: str, ends: Sequence[float]) -> Axis:
        axis = cls(key, scale, 0.0, 1.0)
        low, high = sorted(map(axis.measure, ends))
        return dataclasses.replace(axis, low=low, high=high)

    def measure(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return -math.inf
        if self.scale == "one_minus_log":
            return math.log1p(-value) if value < 1 else -math.inf
        if self.scale == "log":
            return math.log(value) if value > 0 else -math.inf
        return value

    def value(self, place: float) -> float:
        at = self.low + place * (self.high - self.low)
        if self.whole:
            return round(math.exp(at) if self.scale == "log" else at)
        if self.scale == "one_minus_log":
            return 1.0 - rounded(math.exp(at))
        return rounded(math.exp(at) if self.scale == "log" else at)

    def place(self, value: float) -> float:
        return (self.measure(value) - self.low) / (self.high - self.low)

    def at_edge(self, value: float, tried: Sequence[float]) -> bool:
        """Whether it lies within a tenth of an end of what was tried: better values may lie beyond."""
        if not math.isfinite(self.measure(value)):
            return True
        measures = [measure for one in tried if math.isfinite(measure := self.measure(one))]
        low, high = min(measures), max(measures)
        return not low + EDGE * (high - low) <= self.measure(value) <= high - EDGE * (high - low)

    def moved(self, value: float) -> Axis:
        """As wide, ``value`` in the middle."""
        shift = self.measure(value) - (self.low + self.high) / 2
        return dataclasses.replace(self, low=self.low + shift, high=self.high + shift)

    def narrowed(self, value: float) -> Axis:
        """Half as wide, inside, ``value`` as near to the middle as that allows."""
        half = (self.high - self.low) / 2
        low = min(max(self.measure(value) - half / 2, self.low), self.high - half)
        return dataclasses.replace(self, low=low, high=low + half)

    def lowered(self) -> Axis:
        """Where everything failed: the next decades down, for steps that were too large."""
        width = self.high - self.low
        return dataclasses.replace(self, low=self.low - width, high=self.low) if self.scale == "log" else self

    def around(self, value: float, tried: Sequence[float], allowed: Allowed) -> Axis:
        """Where the next trials lie: moved if the best lies at an edge that the recipe lets pass, else narrowed."""
        if not math.isfinite(self.measure(value)):
            return self  # such as a recipe's own 0 on an axis of logarithms: it has no place there
        if self.at_edge(value, tried):
            moved = self.moved(value)
            if allowed(self.key, moved.value(0.0)) and allowed(self.key, moved.value(1.0)):
                return moved
        return self.narrowed(value)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A key with a few values, in no order that would mean anything."""

    key: str
    values: tuple[Any, ...]

    def value(self, place: float) -> Any:
        return self.values[min(int(place * len(self.values)), len(self.values) - 1)]

    def place(self, value: Any) -> float:
        return (self.values.index(value) + 0.5) / len(self.values) if value in self.values else -1.0

    def at_edge(self, value: Any, tried: Sequence[Any]) -> bool:
        return False

    def around(self, value: Any, tried: Sequence[Any], allowed: Allowed) -> Choice:
        return self

    def lowered(self) -> Choice:
        return self


@dataclasses.dataclass(frozen=True)
class Space:
    axes: tuple[Axis | Choice, ...]

    @classmethod
    def of(cls, search: Mapping[str, Searched]) -> Space:
        return cls(tuple(_axis(key, searched) for key, searched in search.items()))

    def values(self, point: Sequence[float]) -> dict[str, Any]:
        return {axis.key: axis.value(place) for axis, place in zip(self.axes, point, strict=True)}

    def point(self, values: Values) -> list[float] | None:
        """Where these are; None if outside."""
        places = [axis.place(values[axis.key]) for axis in self.axes]
        return places if all(0 <= place <= 1 for place in places) else None

    def close(self, one: Values, other: Values) -> bool:
        """Whether to try both would teach little."""
        return all(abs(axis.place(one[axis.key]) - axis.place(other[axis.key])) < CLOSE for axis in self.axes)

    def around(self, best: Values, tried: Sequence[Values], allowed: Allowed) -> Space:
        return Space(tuple(axis.around(best[axis.key], column(tried, axis.key), allowed) for axis in self.axes))

    def lowered(self) -> Space:
        return Space(tuple(axis.lowered() for axis in self.axes))

    def edges(self, best: Values, tried: Sequence[Values]) -> tuple[str, ...]:
        """The keys at an edge of which it lies."""
        return tuple(axis.key for axis in self.axes if axis.at_edge(best[axis.key], column(tried, axis.key)))

    def outside(self, values: Values) -> list[str]:
        """The keys whose value is none of these: a space that was moved tries such."""
        return [axis.key for axis in self.axes if not -CLOSE <= axis.place(values[axis.key]) <= 1 + CLOSE]

    def ends(self) -> list[tuple[str, Any]]:
        """Every key with the extremes that it takes, or all its values."""
        pairs = []
        for axis in self.axes:
            extremes = axis.values if isinstance(axis, Choice) else (axis.value(0.0), axis.value(1.0))
            pairs += [(axis.key, value) for value in extremes]
        return pairs


def _axis(key: str, searched: Searched) -> Axis | Choice:
    values = getattr(searched, searched.scale)
    return Choice(key, values) if searched.scale == "choice" else Axis.between(key, searched.scale, values)


def column(tried: Sequence[Values], key: str) -> list[Any]:
    return [values[key] for values in tried]


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
