"""What bounds a training step, from its numbers, by rules that are written here and nowhere else.

In this order; the first that holds is the bound:

    data            in at least three quarters of the rounds the trainer reaches less than 97 % of the same loop on
                    batches that lie ready: once may be chance
    communication   more than 15 % of a step is an all-reduce that no computing hides
    host            on CUDA the device is idle for more than 15 % of a step on ready batches
    device          else: its matrix units, if half of the rate of a large matrix product is reached; if not, its memory
                    and the operations between the matrix products
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

ENOUGH_OF_CEILING = 0.97
MOST_ROUNDS = 0.75
MOST_EXPOSED = 0.15
LEAST_BUSY = 0.85
COMPUTING = 0.5


class Measurements(NamedTuple):
    """What is known; None where it was not measured."""

    trainer_over_synthetic: list[float] | None  # a ratio for each round
    exposed_share: float | None  # of a step: communication that nothing hides
    busy_share: float | None  # of the time, in which the device does anything at all
    utilisation: float | None  # of the measured peak
    device: str  # cpu or cuda
    data_share: float | None = None  # of a step: waiting for images


class Verdict(NamedTuple):
    bound: str  # data, communication, host or device
    sentence: str


def verdict(facts: Measurements) -> Verdict:
    ratios = facts.trainer_over_synthetic or []
    below = sum(ratio < ENOUGH_OF_CEILING for ratio in ratios)
    if ratios and below >= MOST_ROUNDS * len(ratios):
        beyond = verdict(facts._replace(trainer_over_synthetic=None))
        reached = f"{percent(statistics.median(ratios))} of the same loop on batches that lie ready"
        rest = f"{beyond.sentence[0].lower()}{beyond.sentence[1:]}"
        waits = ""
        if facts.data_share is not None and facts.data_share < 1 - ENOUGH_OF_CEILING:
            waits = (
                f", though it waits for them {percent(facts.data_share)} of a step: who reads them takes its processors"
            )
        return Verdict("data", f"The data bound it: the trainer reaches {reached}{waits}. Without them: {rest}")
    if facts.exposed_share is not None and facts.exposed_share > MOST_EXPOSED:
        exposed = f"{percent(facts.exposed_share)} of a step"
        return Verdict("communication", f"Communication bounds it: {exposed} is an all-reduce that nothing hides.")
    if facts.device == "cuda" and facts.busy_share is not None and facts.busy_share < LEAST_BUSY:
        busy = f"busy for {percent(facts.busy_share)} of a step"
        return Verdict("host", f"The host bounds it: the device is {busy} and waits for launches in the rest.")
    name = "GPU" if facts.device == "cuda" else "processor"
    if facts.utilisation is None:
        return Verdict("device", f"The {name} bounds it; how much of its arithmetic is used was not measured.")
    used = f"{percent(facts.utilisation)} of the rate of a large matrix product"
    if facts.utilisation >= COMPUTING:
        return Verdict("device", f"The {name}'s arithmetic bounds it: {used} is reached.")
    return Verdict(
        "device",
        f"The {name} bounds it, by its memory and the operations between the matrix products: {used} is reached.",
    )


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
