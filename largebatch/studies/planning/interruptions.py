"""What failures and saves add to a point, saved as is best for its length (studies/cluster/failures.py).

A run that is over before a save would pay saves nothing. Steps count alike: those of phases as their mean.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from largebatch.records.plan import PlannedInterruptions, PlannedPoint
from largebatch.studies.cluster.failures import ENDLESS, CheckpointTimes, best_saves, between_failures


@dataclass(frozen=True)
class Failures:
    """A device fails once in so many seconds; the run saves, and begins anew."""

    device_seconds: float
    saves: CheckpointTimes


def with_failures(point: PlannedPoint, failures: Failures) -> PlannedPoint:
    mean, times = between_failures(failures.device_seconds, point.devices), failures.saves
    steps = sum(phase.steps for phase in point.phases)
    step = 3600 * point.hours / steps
    best = best_saves(times, mean, step, steps)

    def of(hours: float | None) -> float | None:
        """Of a run whose steps are longer or shorter, saved after as many; None where it comes to no end."""
        if hours is None:
            return None
        seconds = best.seconds(times, mean, 3600 * hours / steps)
        return seconds / 3600 if seconds <= 3600 * ENDLESS * hours else None

    hours = of(point.hours)
    made = PlannedInterruptions(
        hours=hours, hours_low=of(point.hours_low), hours_high=of(point.hours_high),
        device_hours=None if hours is None else hours * point.devices,
        cost=None if hours is None or point.cost is None else point.cost * hours / point.hours,
        lost=1.0 if hours is None else 1 - point.hours / hours, saves=best.saves,
        minutes_between_saves=best.every * step / 60 if best.saves else None,
        failures=None if hours is None else 3600 * hours / mean,
    )  # fmt: skip
    return dataclasses.replace(point, interrupted=made)
