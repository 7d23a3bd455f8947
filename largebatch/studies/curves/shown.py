"""A row's facts, its table and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import rich.table

from largebatch.records.curves import CurveToTarget, FittedLaw, ReachedPoint, TargetsRecord
from largebatch.report.numerals import ABSENT, count, listing, plain, rounded
from largebatch.studies.curves import published
from largebatch.studies.curves.law import Bounds, LawFit, fit
from largebatch.studies.curves.measured import FEWEST, MiddleOfRuns, TargetCurve
from largebatch.studies.curves.scaling import (
    NOTHING_LOST,
    PERFECT,
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
        unit=points.unit, epoch=points.epoch, middle=points.middle, command=command,
        curves=[curve_record(points.curve())],
    )  # fmt: skip


def curve_record(curve: TargetCurve) -> CurveToTarget:
    """A row with its law."""
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


def listing_of(names: Sequence[str]) -> rich.table.Table:
    """What there is, with its batches and its critical batch."""
    made = rich.table.Table("name", "title", "batches", "B_crit", "points of")
    for name in names:
        facts = measure(name, "")
        (curve,) = facts.curves
        ends = [count(curve.points[place].global_batch_size) for place in (0, -1)]
        critical = critical_words(curve.law) if curve.law else ABSENT
        made.add_row(name, facts.title, " … ".join(ends), critical, facts.source or ABSENT)
    return made


def table(facts: TargetsRecord, curve: CurveToTarget) -> rich.table.Table:
    """A line for each batch."""
    points, epoch = curve.points, facts.epoch
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    timed = any(point.seconds is not None for point in points)
    columns = ["batch", *keys, "runs", "epochs" if epoch else facts.unit, "95 %", "steps", "fit", "error"]
    columns += ["seconds"] * timed
    made = rich.table.Table(*columns, title=f"{facts.title}: to {facts.target or 'the target'}")
    for column in made.columns:
        column.justify, column.no_wrap = "right", True
    scale = epoch or 1
    for point in points:
        bound = "" if point.exact else "> "
        made.add_row(
            count(point.global_batch_size),
            *(plain(point.settings.get(key)) for key in keys),
            str(point.runs) if point.reached == point.runs else f"{point.reached} of {point.runs}",
            bound + amount(point.examples / scale),
            between(point.examples_low, point.examples_high, scale),
            bound + count(point.steps),
            amount(point.fitted_examples / scale) if point.fitted_examples else ABSENT,
            f"{100 * point.error:+.1f} %".replace("-", "−") if point.error is not None else ABSENT,
            *[_seconds(point)] * timed,
        )
    return made


def _seconds(point: ReachedPoint) -> str:
    return ABSENT if point.seconds is None else ("" if point.seconds_exact else "> ") + rounded(point.seconds)


def notes(facts: TargetsRecord, curve: CurveToTarget) -> Iterator[str]:
    """What the points and the law say, a sentence each."""
    few = [point for point in curve.points if point.runs < FEWEST]
    yield f"points: the {facts.middle} of their runs with a bootstrap interval; fit: E(B) = E_min·(1 + B/B_crit)"
    if few:
        sizes = listing(count(point.global_batch_size) for point in few)
        level = max(100 * (point.level or 0) for point in few)
        yield f"fewer than {FEWEST} runs at batch {sizes}: intervals hold at most {level:.0f} %, one run has none"
    if any(not point.exact for point in curve.points):
        yield "> is a lower bound: so many runs did not reach the target that the middle is not known"
    law = curve.law
    if law is None:
        yield "nothing is fitted: fewer than two batches reached the target"
        return
    scale, unit = (facts.epoch, "epochs") if facts.epoch else (1.0, facts.unit)
    critical = _interval(law.critical_batch_size_low, law.critical_batch_size_high, law)
    examples = _interval(law.least_examples_low, law.least_examples_high, law, scale)
    steps = _interval(law.least_steps_low, law.least_steps_high, law)
    yield (
        f"B_crit {critical_words(law)} {facts.unit}{critical}, E_min {rounded(law.least_examples / scale)} {unit}"
        f"{examples}, S_min {rounded(law.least_steps)} steps{steps}; error {100 * law.rms_error:.1f} % rms, "
        f"{100 * law.largest_error:.1f} % at most"
    )
    if law.unknown:
        yield law.unknown
    yield from _ends(curve, law)


def _ends(curve: CurveToTarget, law: FittedLaw) -> Iterator[str]:
    if law.critical_batch_size is None:
        yield "no batch of these costs examples: perfect scaling did not end"
    else:
        nothing, perfect, helps = (
            _placed(batch, curve) for batch in (law.nothing_lost_until, law.perfect_until, law.helps_until)
        )
        yield (
            f"by the fit nothing is lost (5 % more examples than E_min) up to batch {nothing}, perfect scaling (20 %) "
            f"ends at {perfect}, and from {helps} on a doubling saves less than a tenth of the steps"
        )
    perfect, helps = curve.perfect_until, curve.helps_until
    if perfect and perfect.high is None:
        yield f"by the points perfect scaling holds up to {count(perfect.low)} at least"
    elif perfect:
        where = f"ends near {count(perfect.batch)}, " if perfect.batch else "ends "
        yield (
            f"by the points perfect scaling {where}between {count(perfect.low)} and {count(perfect.high)}, "
            "against the best smaller batches"
        )
    if helps and helps.high is not None:
        yield f"by the points no batch beyond {count(helps.low)} saved a tenth of the steps per doubling"


def _placed(batch: float | None, curve: CurveToTarget) -> str:
    """``9,380``, and whether it lies outside of what was measured."""
    first, last = (curve.points[place].global_batch_size for place in (0, -1))
    outside = "" if batch is None or first <= batch <= last else " (below" if batch < first else " (beyond"
    return rounded(batch) + (f"{outside} what was measured)" if outside else "")


def critical_words(law: FittedLaw) -> str:
    return "without bound" if law.critical_batch_size is None else rounded(law.critical_batch_size)


def amount(number: float) -> str:
    """``35.1``, ``161,590``, ``7,235,200``: all before the point, or three digits."""
    return count(number) if number >= 1000 else f"{number:#.3g}".rstrip(".")


def between(low: float | None, high: float | None, scale: float = 1.0) -> str:
    """``34.6 to 35.5``, ``from 34.6``, or a dash."""
    if low is None:
        return ABSENT if high is None else f"up to {amount(high / scale)}"
    return f"{amount(low / scale)} to {amount(high / scale)}" if high is not None else f"from {amount(low / scale)}"


def _interval(low: float | None, high: float | None, law: FittedLaw, scale: float = 1.0) -> str:
    """`` (39,237 to 53,764)``; that points bound it on neither side is said, that it was not asked for is not."""
    if law.unknown:
        return ""
    ends = [None if end is None else rounded(end / scale) for end in (low, high)]
    if ends == [None, None]:
        return " (not bounded)"
    return f" ({ends[0] or 'not bounded below'} to {ends[1] or 'without bound'})"
