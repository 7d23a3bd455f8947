"""What ``batch.micro_batch_size = auto`` asks to be tried on a device: which micro-batches the recipe allows. No torch.

Tried is the largest that a device holds of examples of each size that the phases have. What is found takes the place
of the usual size (:func:`~largebatch.recipes.derive.largest_micro_batch`): of each rank's share the largest divisor up
to it.
"""

from __future__ import annotations

from typing import NamedTuple

from largebatch.plan.batch import BatchPlan
from largebatch.recipes import config, derive

RESERVE = 0.1  # of a device's memory, where the recipe does not say


class AllowedSizes(NamedTuple):
    """Micro-batches of examples of one size."""

    pixels: int  # of an example
    stage: int  # the first that has the largest share of them, counted from 0
    share: int  # examples of a rank in a step of it
    allowed: tuple[int, ...]  # ascending


class Trying(NamedTuple):
    reserve: float  # of the device's memory, to stay free
    sizes: tuple[AllowedSizes, ...]


def trying(run: config.Run, plan: BatchPlan, pixels: int) -> Trying | None:
    """None where the recipe does not ask. ``pixels``: of the largest example, where phases do not say."""
    if not run.batch.tries_micro_batches:
        return None
    of_stages = (run,) * len(plan.stages) if run.phases is None else config.of_phases(run)
    found: dict[int, AllowedSizes] = {}
    for number, (laid, stage) in enumerate(zip(of_stages, plan.stages, strict=True)):
        if not laid.batch.tries_micro_batches:  # a phase may state its own
            continue
        size = pixels if run.phases is None else derive.pixels_of(laid.data) or pixels
        share = stage.global_batch_size // plan.world_size
        allowed = derive.micro_batch_of(laid, plan.world_size, share).all_of(share)
        before = found.get(size, AllowedSizes(size, number, 0, ()))
        both = tuple(sorted({*before.allowed, *allowed}))
        found[size] = (
            before._replace(allowed=both) if before.share >= share else AllowedSizes(size, number, share, both)
        )
    reserve = RESERVE if run.batch.memory_reserve is None else run.batch.memory_reserve
    return Trying(reserve, tuple(found.values()))
