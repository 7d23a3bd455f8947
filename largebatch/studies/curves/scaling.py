"""Where perfect scaling ends and where the batch stops to help: by the law in closed form, and by the points alone.

Perfect scaling is E(B)/E_least ≤ 1.2: at most 1.2 times the steps that linear scaling promises, S_linear(B) =
E_least/B (Zhang et al. 2024, arXiv:2410.21676, whose critical batch size this is). Of the law E_least is E_min, what
the smallest batches tend to: 1 + B/B_crit ≤ 1.2 up to B = 0.2·B_crit. Of the points it is the least that any batch up
to B needed; between the last point within 1.2 and the first beyond, ln E/E_least is interpolated in ln B.

A doubling saves the share 1 − S(2B)/S(B) of the steps. Of the law it is B_crit/(2·(B + B_crit)), one half for small
B, and falls to the share s at B = B_crit·(1/(2s) − 1): four times B_crit for a tenth. Of the points it is the mean
share per doubling up to any larger batch, so that one step between near neighbours, which is mostly noise, decides
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.records.curves import PERFECT, MeasuredRange
from largebatch.studies.curves.law import ScalingLaw
from largebatch.studies.curves.measured import MiddleOfRuns

NOTHING_LOST = 1.05
"""The same, up to which it is said that nothing is lost."""
HELPS = 0.1
"""The share of the steps that a doubling must save to be called of help."""


def scales_until(law: ScalingLaw, most: float = PERFECT) -> float:
    """(most − 1)·B_crit."""
    return (most - 1) * law.critical


def helps_until(law: ScalingLaw, share: float = HELPS) -> float:
    """B_crit·(1/(2·share) − 1), of a share below one half, which no doubling saves."""
    return law.critical * (1 / (2 * share) - 1)


def scales_until_measured(points: Sequence[MiddleOfRuns], most: float = PERFECT) -> MeasuredRange | None:
    """The largest batch within ``most``; a lower bound counts where it is beyond. None without points."""
    least, ratios = math.inf, []
    for point in points:
        least = min(least, point.examples) if point.exact else least
        ratios.append((point, point.examples / least))
    within_most = [place for place, (point, ratio) in enumerate(ratios) if point.exact and ratio <= most]
    if not within_most:
        return None
    last = within_most[-1]
    (within, low), beyond = ratios[last], next((pair for pair in ratios[last + 1 :] if pair[1] > most), None)
    if beyond is None:
        return MeasuredRange(low=within.batch, high=None, batch=None)
    after, high = beyond
    way = math.log(most / low) / math.log(high / low)
    batch = within.batch * (after.batch / within.batch) ** way if after.exact else None
    return MeasuredRange(low=within.batch, high=after.batch, batch=batch)


def helps_until_measured(points: Sequence[MiddleOfRuns], share: float = HELPS) -> MeasuredRange | None:
    """The first batch beyond which no larger one saved ``share`` per doubling; None with fewer than two points."""
    reached = [point.batch for point in points if point.exact]
    if len(points) < 2 or not reached:
        return None
    for place, point in enumerate(points[:-1]):
        larger = points[place + 1 :]
        if point.exact and all(saved_per_doubling(point, other) < share for other in larger):
            return MeasuredRange(low=point.batch, high=larger[0].batch, batch=None)
    return MeasuredRange(low=reached[-1], high=None, batch=None)


def saved_per_doubling(point: MiddleOfRuns, after: MiddleOfRuns) -> float:
    """1 − (S₂/S₁)^(1/log₂(B₂/B₁)); where the second is a lower bound, at most so much."""
    return 1 - (after.steps / point.steps) ** (1 / math.log2(after.batch / point.batch))
