"""A row's points and its law as facts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from largebatch.records.curves import PERFECT, CurveToTarget, FittedLaw, ReachedPoint, TargetsRecord
from largebatch.studies.curves import published
from largebatch.studies.curves.law import Bounds, LawFit, fit
from largebatch.studies.curves.measured import CurveParts, MiddleOfRuns, TargetCurve
from largebatch.studies.curves.scaling import (
    NOTHING_LOST,
    helps_until,
    helps_until_measured,
    scales_until,
    scales_until_measured,
)

LINE, BEYOND = 61, 1.35
"""Points of the line that is drawn, and how far it goes beyond the batches."""


def measure(name: str, command: str) -> TargetsRecord:
    """The facts of the points of that name."""
    points = published.load(published.located(name))
    return TargetsRecord(
        name=published.short_name(name), title=points.title, source=points.source, target=points.target,
        score=points.goal and points.goal[0], score_target=points.goal and points.goal[1],
        unit=points.unit, epoch=points.epoch, middle=points.middle, command=command,
        curves=[curve_record(points.curve(), points.of)],
    )  # fmt: skip


def curve_record(curve: TargetCurve, of: CurveParts | None = None) -> CurveToTarget:
    """A row with its law; what it is ``of``, where that is known."""
    middles = curve.middles()
    fitted = fit(middles)
    return CurveToTarget(
        label=curve.label,
        points=[
            _point(middle, dict(point.settings), fitted) for middle, point in zip(middles, curve.points, strict=True)
        ],
        law=_law(fitted, [middle.batch for middle in middles]) if fitted else None,
        perfect_until=scales_until_measured(middles),
        helps_until=helps_until_measured(middles),
        **dataclasses.asdict(of or CurveParts()),
    )


def _point(middle: MiddleOfRuns, settings: dict[str, float], fitted: LawFit | None) -> ReachedPoint:
    expected, seconds = fitted.law.examples(middle.batch) if fitted else None, middle.seconds
    return ReachedPoint(
        global_batch_size=middle.batch, settings=settings, runs=middle.runs, reached=middle.reached,
        examples=middle.examples, exact=middle.exact, examples_low=middle.needed.low, examples_high=middle.needed.high,
        level=middle.level, steps=middle.steps, fitted_examples=expected,
        error=expected / middle.examples - 1 if expected and middle.exact else None,
        seconds=seconds and seconds.value, seconds_low=seconds and seconds.low, seconds_high=seconds and seconds.high,
        seconds_exact=seconds and seconds.exact,
    )  # fmt: skip


def _law(fitted: LawFit, batches: Sequence[int]) -> FittedLaw:
    law, unbounded = fitted.law, Bounds(None, None)
    examples, steps = fitted.least_examples or unbounded, fitted.least_steps or unbounded
    critical = fitted.critical or unbounded
    sizes = np.geomspace(batches[0] / BEYOND, batches[-1] * BEYOND, LINE)
    return FittedLaw(
        least_examples=law.least_examples, least_examples_low=examples.low, least_examples_high=examples.high,
        least_steps=law.least_steps, least_steps_low=steps.low, least_steps_high=steps.high,
        critical_batch_size=_finite(law.critical), critical_batch_size_low=critical.low,
        critical_batch_size_high=critical.high, rms_error=fitted.rms_error, largest_error=fitted.largest_error,
        points=fitted.points, lower_bounds=fitted.lower_bounds, unknown=fitted.unknown,
        nothing_lost_until=_finite(scales_until(law, NOTHING_LOST)), perfect_until=_finite(scales_until(law, PERFECT)),
        helps_until=_finite(helps_until(law)),
        line=[(float(size), law.examples(float(size))) for size in sizes],
    )  # fmt: skip


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
