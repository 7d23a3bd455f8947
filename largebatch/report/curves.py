"""Recorded runs -> the lines of a picture: the mean over the seeds of a row with its lowest and highest seed.

A mean is taken at the steps that every finished seed recorded. Runs that did not finish stay lines of their
own, so that a diverging seed is seen and does not drag the mean. No line has more than ``POINTS`` points: of
evaluations and learning rates every k-th is kept; of what is noisy from step to step k neighbours are averaged
to ``AVERAGED_POINTS`` (the loss of a record is a mean over its examples already).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.records.run import EvaluateLine, LineRecord
from largebatch.report.run import RecordedRun
from largebatch.report.summary import MeasuredRow

POINTS = 300
AVERAGED_POINTS = 100
NOISY = ("loss", "grad_norm", "relative_update", "gradient_alignment")

Points = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class CurveLine:
    """``low`` and ``high`` are None for a single run; ``broken`` marks a run that did not finish."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    broken: bool = False


def lines(row: MeasuredRow, x: str, y: str, event: str = "train") -> list[CurveLine]:
    """The lines of ``y`` against ``x`` for one row: the mean first, then each run that did not finish."""
    noisy = y in NOISY and event != "evaluate"
    finished = [points for run in row.finished if (points := recorded(run, x, y, event))]
    common = sorted(set.intersection(*(set(points) for points in finished))) if finished else []
    drawn = []
    if common:
        drawn.append(_mean([[points[step] for step in common] for points in finished], noisy))
    elif finished:
        drawn += [_mean([list(points.values())], noisy) for points in finished]
    for run in row.broken:
        if points := recorded(run, x, y, event):
            line = _mean([list(points.values())], noisy)
            drawn.append(CurveLine(line.x, line.y, broken=True))
    return drawn


def interval_lines(row: MeasuredRow, x: str, y: str) -> list[CurveLine]:
    """As ``lines``, of the event named ``y``, whose records hold an interval as ``y``_low and ``y``_high.

    Bands reach over the intervals of all seeds. A number that is not known is a gap; a bound that is not
    known is 0 below and infinite above.
    """
    made = []
    for runs, broken in [(row.finished, False), *(((run,), True) for run in row.broken)]:
        of_runs = [{line.step: line for line in _of_kind(run, y)} for run in runs]
        of_runs = [records for records in of_runs if records]
        steps = sorted(set.intersection(*map(set, of_runs))) if of_runs else []
        steps = [steps[index] for index in _kept(len(steps), POINTS)]
        known = [[_numbers(records[step], x, y) for records in of_runs] for step in steps]
        if steps:
            made.append(
                CurveLine(
                    x=tuple(found[0][0] for found in known),
                    y=tuple(sum(number for _, number, _, _ in found) / len(found) for found in known),
                    low=None if broken else tuple(min(low for *_, low, _ in found) for found in known),
                    high=None if broken else tuple(max(high for *_, high in found) for found in known),
                    broken=broken,
                )
            )
    return [line for line in made if any(value == value for value in line.y)]


def _of_kind(run: RecordedRun, event: str) -> list[LineRecord]:
    return [line for line in run.lines if event == line.EVENT]


def _numbers(line: LineRecord, x: str, y: str) -> tuple[float, float, float, float]:
    known = [line.number(key) for key in (x, y, f"{y}_low", f"{y}_high")]
    instead = (math.nan, math.nan, 0.0, math.inf)
    at, number, low, high = (other if value is None else value for value, other in zip(known, instead, strict=True))
    return at, number, low, high


def recorded(run: RecordedRun, x: str, y: str, event: str = "train") -> Points:
    """Step -> (x, y) where both are finite; evaluations are those of the split the run is judged on."""
    lines = _of_kind(run, event)
    if event == "evaluate":
        lines = [line for line in run.lines_of(EvaluateLine) if line.split == run.evaluated_on]
    pairs = ((line.step, line.number(x), line.number(y)) for line in lines)
    return {step: (a, b) for step, a, b in pairs if a is not None and b is not None}


def _mean(runs: list[list[tuple[float, float]]], noisy: bool) -> CurveLine:
    reduce = _averaged if noisy else _thinned
    x = _over([[a for a, _ in run] for run in runs])
    kept = _kept(len(x), AVERAGED_POINTS if noisy else POINTS)
    values = [reduce([b for _, b in run], kept) for run in runs]
    several = len(runs) > 1
    return CurveLine(
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
