"""What failures and saves add to a point, with the best interval between saves (studies/cluster/failures.py)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from largebatch.records.plan import PlannedPoint
from largebatch.studies.cluster.failures import CheckpointTimes, best_steps, between_failures, time_lost


@dataclass(frozen=True)
class Failures:
    """A device fails once in so many seconds; the run saves, and begins anew."""

    device_seconds: float
    saves: CheckpointTimes


def with_failures(point: PlannedPoint, failures: Failures) -> PlannedPoint:
    """A run shorter than the best interval saves at its end alone."""
    mean = between_failures(failures.device_seconds, point.devices)
    steps = sum(phase.steps for phase in point.phases)
    step = 3600 * point.hours / steps
    least = max(1, math.ceil((failures.saves.lag - failures.saves.standing) / step))
    interval = max(least, min(steps, best_steps(failures.saves, mean, step))) * step
    lost = time_lost(failures.saves, mean, interval)
    return dataclasses.replace(point, lost_share=1 - lost.working, checkpoint_minutes=interval / 60)
