"""Recorded runs -> the lines of a picture: the mean over the seeds of a row with its lowest and highest seed.

A mean is taken at the steps that every finished seed recorded. Runs that did not finish stay lines of their
own, so that a diverging seed is seen and does not drag the mean. No line has more than ``POINTS`` points: of
evaluations and learning rates every k-th is kept; of the noisy training records k neighbours are averaged to
``AVERAGED_POINTS`` (the loss of a record is a mean over its examples already).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.report.read import Run, finite
from largebatch.report.summary import Row

POINTS = 300
AVERAGED_POINTS = 100

Points = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """``low`` and ``high`` are None for a single run; ``broken`` marks a run that did not finish."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    broken: bool = False


def lines(row: Row, x: str, y: str, *, evaluations: bool) -> list[Line]:
    """The lines of ``y`` against ``x`` for one row: the mean first, then each run that did not finish."""
    noisy = y in ("loss", "grad_norm") and not evaluations
    finished = [points for run in row.finished if (points := recorded(run, x, y, evaluations=evaluations))]
    common = sorted(set.intersection(*(set(points) for points in finished))) if finished else []
    drawn = []
    if common:
        drawn.append(_mean([[points[step] for step in common] for points in finished], noisy))
    elif finished:
        drawn += [_mean([list(points.values())], noisy) for points in finished]
    for run in row.broken:
        if points := recorded(run, x, y, evaluations=evaluations):
            line = _mean([list(points.values())], noisy)
            drawn.append(Line(line.x, line.y, broken=True))
    return drawn


def recorded(run: Run, x: str, y: str, *, evaluations: bool) -> Points:
    """Step -> (x, y) where both are finite; evaluations are those of the split the run is judged on."""
    records = run.train
    if evaluations:
        records = [record for record in run.evaluations if record.get("split") == run.evaluated_on]
    pairs = ((record["step"], finite(record.get(x)), finite(record.get(y))) for record in records)
    return {step: (a, b) for step, a, b in pairs if a is not None and b is not None}


def _mean(runs: list[list[tuple[float, float]]], noisy: bool) -> Line:
    reduce = _averaged if noisy else _thinned
    x = _over([[a for a, _ in run] for run in runs])
    kept = _kept(len(x), AVERAGED_POINTS if noisy else POINTS)
    values = [reduce([b for _, b in run], kept) for run in runs]
    several = len(runs) > 1
    return Line(
        x=tuple(_thinned(x, kept)),
        y=tuple(_over(values)),
        low=tuple(min(column) for column in zip(*values, strict=True)) if several else None,
        high=tuple(max(column) for column in zip(*values, strict=True)) if several else None,
    )


def _over(runs: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*runs, strict=True)]


def _kept(n: int, most: int) -> list[int]:
    """At most ``most`` indices of n, first and last among them."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def _thinned(values: Sequence[float], kept: Sequence[int]) -> list[float]:
    return [values[index] for index in kept]


def _averaged(values: Sequence[float], kept: Sequence[int]) -> list[float]:
    """The mean of each kept value and of those left out before it."""
    starts = [0, *(index + 1 for index in kept[:-1])]
    return [sum(values[a : b + 1]) / (b + 1 - a) for a, b in zip(starts, kept, strict=True)]
