"""What a device computes and sends in a step."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Literal

from largebatch.studies.cluster.machine import Pace

Kind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all"]
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bytes of DDP's buckets: of the first to become ready, and of all others."""
MOST_BUCKETS = 4096
"""Of gradients that would need more the buckets are larger."""


@dataclass(frozen=True)
class Transfer:
    """A collective of all devices; ``bytes`` are those of the whole tensor that is summed, scattered or gathered;
    of an all-to-all those that one device sends."""

    collective: Kind
    bytes: float
    hidden_by: Literal["backward", "forward"] | None = None  # the pass of a micro-batch beside which it goes on
    times: int = 1  # a step; where it is every micro-batch, as many as there are

    @property
    def gradients(self) -> bool:
        """Whether it becomes ready along the backward pass; weights that are gathered beside it are ready before."""
        return self.hidden_by == "backward" and self.collective != "all_gather"


@dataclass(frozen=True)
class Workload:
    """``buckets`` are the bytes of gradients that travel together, in the order in which they become ready in the
    backward pass; without any, all gradients are ready at its end alone."""

    pace: Pace
    transfers: tuple[Transfer, ...] = ()
    buckets: tuple[float, ...] = field(default=())


@functools.lru_cache(maxsize=64)
def runs_of(buckets: tuple[float, ...]) -> tuple[tuple[float, int], ...]:
    """Buckets of one size that follow one another: the share of all bytes that each has, and how many they are."""
    whole = sum(buckets)
    return tuple((size / whole, len(list(alike))) for size, alike in itertools.groupby(buckets)) if whole else ()


@functools.lru_cache(maxsize=64)
def buckets_of(gradients: float, first: float = FIRST_BUCKET, others: float = BUCKET) -> tuple[float, ...]:
    """As DDP cuts so many bytes: a small bucket, equal ones, and what is left."""
    sizes = [min(first, gradients)] if gradients else []
    left = gradients - sum(sizes)
    while left > 0:
        sizes.append(min(others, left))
        left -= sizes[-1]
    return tuple(sizes)


def data_parallel(pace: Pace, gradients: float | None = None) -> Workload:
    """DDP: one all-reduce of the gradients, in buckets, beside the backward pass of the last micro-batch."""
    size = pace.gradient_bytes if gradients is None else gradients
    transfers = (Transfer("all_reduce", size, "backward"),) if size else ()
    buckets = buckets_of(size, others=max(BUCKET, size / MOST_BUCKETS))
    return Workload(pace, transfers, buckets)
